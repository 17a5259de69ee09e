// Shows of a node's fields those that count for the choice in one of its menus: a rim light has no position.
//
// The node says which: a field with the option "shown_for": [menu, [choices]] (sockets.py). Fields that are not shown
// keep their values and are sent as before, so that a graph means the same with and without this file.

import { app } from "../../../scripts/app.js";

const specs = (node) => {
  const { required, optional } = node.constructor.nodeData?.input ?? {};
  return Object.entries({ ...required, ...optional }).filter(([, spec]) => spec[1]?.shown_for);
};

function arrange(node) {
  const widgets = Object.fromEntries(node.widgets.map((widget) => [widget.name, widget]));
  for (const [name, [, options]] of specs(node)) {
    const [menu, choices] = options.shown_for;
    const hidden = !choices.includes(widgets[menu].value);
    widgets[name].hidden = hidden; // the canvas looks here,
    // and Nodes 2.0 here: through what it watches, once it has taken the widget over
    (widgets[name]._state ?? widgets[name]).options.hidden = hidden;
  }
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "intrinsic-lora.fields",
  nodeCreated(node) {
    const menus = new Set(specs(node).map(([, [, options]]) => options.shown_for[0]));
    if (!menus.size) return;
    for (const widget of node.widgets.filter(({ name }) => menus.has(name))) {
      const { callback } = widget;
      widget.callback = function (...values) {
        const result = callback?.apply(this, values);
        const before = node.computeSize()[1];
        arrange(node);
        node.setSize([node.size[0], node.size[1] + node.computeSize()[1] - before]); // what a preview has, it keeps
        return result;
      };
    }
    arrange(node);
    node.setSize([node.size[0], node.computeSize()[1]]);
  },
  loadedGraphNode(node) {
    if (specs(node).length) arrange(node); // the values of a saved graph come after nodeCreated
  },
});
