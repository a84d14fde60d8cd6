// Elements of the page: made, found, filled. It knows nothing of what they mean.

const SVG = "http://www.w3.org/2000/svg";

/** The element of that id; the page is not ours without it. */
export function the(id) {
  return document.getElementById(id);
}

/** A new element at the end of its parent. */
export function element(tag, classes = "", parent = null, text = "") {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  if (text) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

/** A link to another page, which opens beside this one. */
export function link(href, classes, parent, text) {
  const made = element("a", classes, parent, text);
  Object.assign(made, { href, target: "_blank", rel: "noopener" });
  return made;
}

/** The same of an SVG picture. */
export function drawing(tag, attributes = {}, parent = null) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (parent) parent.append(made);
  return made;
}

/** Text into an element, only if it is another one: a screen reader would say it again. */
export function put(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

export function button(text, parent, act, classes = "quiet") {
  const made = element("button", classes, parent, text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}
