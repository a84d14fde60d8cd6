// The shelf above the message box: small buttons, each of which opens a panel of its own upwards, over the conversation.
//
// It knows how they open and close, and where the message box is; what stands on them is documents.js's and totals.js's.
import { button, element } from "./nodes.js";

const shelf = element("div");
shelf.id = "small-first-shelf";

/** One button and its panel: {place, opener, panel, open(wanted)}. `opened` is called each time it opens. */
export function drawer(name, opened) {
  const place = element("div", "sf-drawer", shelf);
  place.dataset.testid = name;
  place.hidden = true;
  const opener = button("opener", place);
  opener.dataset.testid = `${name}-toggle`;
  opener.setAttribute("aria-expanded", "false");
  const panel = element("section", "panel", place);
  panel.id = `small-first-${name}`;
  panel.dataset.testid = `${name}-list`;
  panel.tabIndex = -1;
  panel.hidden = true;
  opener.setAttribute("aria-controls", panel.id);

  function open(wanted) {
    panel.hidden = !wanted;
    opener.setAttribute("aria-expanded", String(wanted));
    if (wanted) opened();
  }

  opener.addEventListener("click", () => open(panel.hidden));
  place.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || panel.hidden) return;
    event.stopPropagation();
    open(false);
    opener.focus();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!panel.hidden && !place.contains(event.target)) open(false);
  });
  return { place, opener, panel, open };
}

// Chainlit makes its message box anew when the first question is asked; the shelf goes where the box is.
function settle() {
  const box = document.querySelector("#message-composer");
  if (box && box.previousElementSibling !== shelf) box.before(shelf);
}

new MutationObserver(settle).observe(document.body, { childList: true, subtree: true });
settle();
