// The host shows a text result on its own Preview Any node only; this puts the report of Identity Score on the node.
import { app } from "../../../scripts/app.js";
import { ComfyWidgets } from "../../../scripts/widgets.js";

const NODE = "IDCodeFormerIdentityScore";
const WIDGET = "scores";

function reportWidget(node) {
  const found = node.widgets?.find((widget) => widget.name === WIDGET);
  if (found) return found;
  const { widget } = ComfyWidgets.STRING(node, WIDGET, ["STRING", { multiline: true }], app);
  widget.options.read_only = true;
  if (widget.element) widget.element.readOnly = true;
  widget.serialize = false; // not in a saved workflow
  widget.options.serialize = false; // not in the prompt that is sent
  return widget;
}

app.registerExtension({
  name: "IDCodeFormer.IdentityScore",
  async beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== NODE) return;
    const { onNodeCreated, onExecuted } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function (...args) {
      const result = onNodeCreated?.apply(this, args);
      reportWidget(this);
      return result;
    };
    nodeType.prototype.onExecuted = function (output, ...rest) {
      onExecuted?.call(this, output, ...rest);
      reportWidget(this).value = (output?.text ?? []).join("\n");
    };
  },
});
