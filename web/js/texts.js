// The host shows a text result on its own Preview Any node only; this puts texts of our nodes on the nodes.
import { app } from "../../../scripts/app.js";

const WIDGETS = {
  IDCodeFormerIdentityScore: { name: "scores", make: lines },
  IDCodeFormerPerson: { name: "who", make: lines },
  IDCodeFormerLoader: { name: "hint", make: box }, // only where a better model could be had; its address can be copied
};
const LINE = 15, MARGIN = 10, PAD = 6, FONT = "12px monospace"; // px
const MOST_LINES = 8; // the report output has all of them

/** Lines no wider than `width`, broken between words where that is possible. */
function wrapped(context, text, width) {
  context.font = FONT;
  const most = Math.max(8, Math.floor((width - 2 * (MARGIN + PAD)) / context.measureText("0").width));
  const out = [];
  for (const line of text.split("\n")) {
    let rest = line;
    while (rest.length > most) {
      const space = rest.lastIndexOf(" ", most);
      const cut = space > most / 2 ? space : most;
      out.push(rest.slice(0, cut));
      rest = rest.slice(cut).trimStart();
    }
    out.push(rest);
  }
  return out.length > MOST_LINES ? [...out.slice(0, MOST_LINES - 1), "..."] : out;
}

const measure = document.createElement("canvas").getContext("2d");

/** As high as its text: a text box would take all the room that the picture on the node needs. */
function lines(node, name) {
  return node.addCustomWidget({
    name,
    type: "idcodeformer_lines",
    value: "",
    options: { serialize: false },
    serialize: false,
    computeSize(width) {
      const count = wrapped(measure, this.value, width ?? node.size[0]).length;
      return [width ?? node.size[0], count * LINE + 2 * PAD];
    },
    draw(context, _, width, y) {
      const shown = wrapped(context, this.value, width);
      context.save();
      context.font = FONT;
      context.fillStyle = LiteGraph.WIDGET_BGCOLOR;
      context.fillRect(MARGIN, y, width - 2 * MARGIN, shown.length * LINE + 2 * PAD);
      context.fillStyle = LiteGraph.WIDGET_TEXT_COLOR;
      context.textAlign = "left";
      context.textBaseline = "top";
      shown.forEach((line, number) => context.fillText(line, MARGIN + PAD, y + PAD + number * LINE));
      context.restore();
    },
  });
}

function box(node, name) {
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
    const { onExecuted } = nodeType.prototype;
    nodeType.prototype.onExecuted = function (output, ...rest) {
      onExecuted?.call(this, output, ...rest);
      const text = (output?.text ?? []).join("\n");
      let widget = this.widgets?.find((one) => one.name === shown.name);
      if (!widget && !text) return;
      widget ??= shown.make(this, shown.name);
      widget.value = text;
      widget.triggerDraw?.(); // Nodes 2.0 draws when it is told to
      const [width, least] = this.computeSize();
      if (least > this.size[1]) this.setSize([Math.max(width, this.size[0]), least]);
      this.setDirtyCanvas?.(true, true);
    };
  },
});
