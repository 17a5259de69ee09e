// Shows the photo and the result of a node under core's before/after slider (only Nodes 2.0 can draw it).
//
// A node with an input "before_after" sends its pictures as `a_images` and `b_images`, as core's Compare Images does,
// which listens to that node alone. On the canvas the result is previewed as before.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const url = (picture) => api.apiURL(`/view?${new URLSearchParams(picture)}${app.getRandParam()}`);

app.registerExtension({
  name: "intrinsic-lora.compare",
  nodeCreated(node) {
    if (!node.constructor.comfyClass?.startsWith("IntrinsicLora_")) return;
    const widget = node.widgets?.find(({ type }) => type === "imagecompare");
    if (!widget) return;
    node.removeInput(node.findInputSlot(widget.name)); // nothing can be connected to it
    widget.options.serialize = false; // or the pictures would be an input, and the node would run again every time
    widget.hidden = true; // on the canvas
    const options = () => (widget._state ?? widget).options; // Nodes 2.0 looks here once it has taken the widget over
    options().hidden = true; // until there is something to compare
    node.hideOutputImages = true; // in Nodes 2.0, where the slider shows them
    const { onExecuted } = node;
    node.onExecuted = function (output) {
      onExecuted?.call(this, output);
      const { a_images: before, b_images: after } = output;
      if (!before || !after) return;
      options().hidden = false;
      widget.value = { beforeImages: before.map(url), afterImages: after.map(url) };
      widget.callback?.(widget.value);
    };
  },
});
