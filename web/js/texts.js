// The host shows a text result on its own Preview Any node only; this puts texts of our nodes on the nodes.
import { app } from "../../../scripts/app.js";

const WIDGETS = {
  IDCodeFormerIdentityScore: { name: "scores", always: true },
  IDCodeFormerLoader: { name: "hint" }, // only where a better model could be had
  IDCodeFormerPerson: { name: "who" },
};

function textWidget(node, name) {
  const found = node.widgets?.find((widget) => widget.name === name);
  if (found) return found;
  const { widget } = app.widgets.STRING(node, name, ["STRING", { multiline: true }], app);
  widget.options.read_only = true;
  if (widget.element) widget.element.readOnly = true;
  widget.serialize = false; // not in a saved workflow
  widget.options.serialize = false; // not in the prompt that is sent
  return widget;
}

app.registerExtension({
  name: "IDCodeFormer.Texts",
  async beforeRegisterNodeDef(nodeType, nodeData) {
    const shown = WIDGETS[nodeData.name];
    if (!shown) return;
    const { onNodeCreated, onExecuted } = nodeType.prototype;
    if (shown.always) {
      nodeType.prototype.onNodeCreated = function (...args) {
        const result = onNodeCreated?.apply(this, args);
        textWidget(this, shown.name);
        return result;
      };
    }
    nodeType.prototype.onExecuted = function (output, ...rest) {
      onExecuted?.call(this, output, ...rest);
      const text = (output?.text ?? []).join("\n");
      if (text || this.widgets?.some((widget) => widget.name === shown.name)) {
        textWidget(this, shown.name).value = text;
      }
    };
  },
});
