// Nodes for the parts of the page that are ours and not Chainlit's. It knows nothing of what they say; texts are set as
// text by those who use them, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

export function element(tag, className, parent) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (parent) parent.append(made);
  return made;
}

export function button(className, parent) {
  const made = element("button", className, parent);
  made.type = "button";
  return made;
}

export function drawing(tag, attributes, parent) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (parent) parent.append(made);
  return made;
}

/** A line drawing in a square of 24 units, as Chainlit's icons are; it says nothing to who does not see it. */
export function icon(path, parent, size = 16) {
  const box = { width: size, height: size, viewBox: "0 0 24 24", fill: "none", "aria-hidden": "true" };
  const svg = drawing("svg", box, parent);
  const line = { stroke: "currentColor", "stroke-width": 2, "stroke-linecap": "round", "stroke-linejoin": "round" };
  drawing("path", { d: path, ...line }, svg);
  return svg;
}

/** An unchanged text is not set, so that it is not announced again. */
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
