// The documents attached to this conversation: a button above the message box that opens their list, and the key by which
// a reloaded tab finds its conversation again.
//
// It speaks with app.py through Chainlit's window messages, which go over the page's own socket, so that the server knows
// whose documents are meant. What is said stands at `hear` and `say`. Elements in the chat hear of changes by the event
// "smallfirst:documents" and find the list in `window.smallFirstDocuments`. Texts are set as text, never as HTML.

export function element(tag, className, parent) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (parent) parent.append(made);
  return made;
}

// --- the conversation ------------------------------------------------------------------------------------------------
// The key lies in the tab's storage only while the page is away: a tab that is copied from a living one must begin a
// conversation of its own, not take that one's.

const KEPT = "small-first-conversation";
let key = null;
let former = take();

function take() {
  try {
    const kept = sessionStorage.getItem(KEPT);
    sessionStorage.removeItem(KEPT);
    return kept;
  } catch {
    return null; // storage is forbidden here; a reload then begins anew
  }
}

function keep() {
  try {
    if (key) sessionStorage.setItem(KEPT, key);
  } catch {
    // as above
  }
}

window.addEventListener("pagehide", keep);
window.addEventListener("pageshow", (event) => event.persisted && take());
document.addEventListener("visibilitychange", () => {
  // A tab in the background may be thrown away without another word.
  if (document.hidden) {
    keep();
  } else {
    take();
    say({ smallfirst: "list" }); // what was said while the network was away is lost
  }
});

function say(message) {
  window.postMessage(message, window.location.origin);
}

/** Document: {number, source, told}; a number is never used twice in a conversation. */
function hear(event) {
  if (event.source !== window || !event.data) return;
  const { smallfirst, key: said, documents } = event.data;
  if (smallfirst === "conversation") {
    key = String(said);
    if (former && former !== key) say({ smallfirst: "resume", key: former });
    former = null;
    show(Array.isArray(documents) ? documents : []);
  } else if (smallfirst === "moved") {
    key = null;
    show([]);
    note("This conversation went on in another tab. Reload this page to begin a new one.");
  }
}

window.addEventListener("message", hear);

// --- the list --------------------------------------------------------------------------------------------------------

const place = element("div");
place.id = "small-first-documents";
place.dataset.testid = "documents";
place.hidden = true;

const opener = element("button", "opener", place);
opener.type = "button";
opener.dataset.testid = "documents-toggle";
opener.setAttribute("aria-expanded", "false");
opener.setAttribute("aria-controls", "small-first-documents-list");
const clip = document.createElementNS("http://www.w3.org/2000/svg", "svg");
for (const [name, value] of Object.entries({ width: 14, height: 14, viewBox: "0 0 24 24", fill: "none" })) {
  clip.setAttribute(name, value);
}
clip.setAttribute("aria-hidden", "true");
const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
line.setAttribute("d", "M20 11.5 11.8 19.7a5 5 0 0 1-7.1-7.1l8.5-8.5a3.3 3.3 0 0 1 4.7 4.7l-8.4 8.4a1.7 1.7 0 0 1-2.4-2.4l7.7-7.6");
line.setAttribute("stroke", "currentColor");
line.setAttribute("stroke-width", "2");
line.setAttribute("stroke-linecap", "round");
clip.append(line);
opener.append(clip);
const count = element("span", "", opener);

const panel = element("section", "panel", place);
panel.id = "small-first-documents-list";
panel.dataset.testid = "documents-list";
panel.setAttribute("aria-label", "Documents attached to this conversation");
panel.hidden = true;
const list = element("ul", "", panel);

// Here nobody sees it; what changed by the person's own hand must be heard as well.
const spoken = element("span", "small-first-unseen");
spoken.setAttribute("role", "status");
const told = element("span", "", place);

function note(text) {
  told.textContent = text;
  place.hidden = false;
}

function open(wanted) {
  panel.hidden = !wanted;
  opener.setAttribute("aria-expanded", String(wanted));
  if (wanted) say({ smallfirst: "list" });
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

function row(shown) {
  const item = document.createElement("li");
  item.dataset.number = shown.number;
  const words = element("span", "document", item);
  element("span", "name", words).textContent = shown.source;
  element("span", "told", words).textContent = shown.told;
  const remove = element("button", "remove", item);
  remove.type = "button";
  remove.textContent = "Remove";
  remove.setAttribute("aria-label", `Remove ${shown.source}`);
  remove.addEventListener("click", () => {
    remove.setAttribute("aria-disabled", "true"); // a disabled one would lose the focus
    say({ smallfirst: "remove", number: shown.number });
  });
  return item;
}

function show(documents) {
  const before = window.smallFirstDocuments || [];
  const gone = before.filter((one) => documents.every((other) => other.number !== one.number));
  const rows = [...list.children];
  // The row that had the focus goes: the next one gets it, or the one before, or what is left.
  const at = rows.findIndex((item) => item.contains(document.activeElement));
  for (const item of rows) if (documents.every((one) => String(one.number) !== item.dataset.number)) item.remove();
  const kept = new Map([...list.children].map((item) => [item.dataset.number, item]));
  documents.forEach((one, index) => {
    const item = kept.get(String(one.number)) || row(one);
    // A row that is moved would lose the focus.
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] || null);
  });
  count.textContent = documents.length === 1 ? "1 document attached" : `${documents.length} documents attached`;
  opener.hidden = documents.length === 0;
  place.hidden = documents.length === 0;
  told.textContent = "";
  if (!documents.length) open(false);
  if (at >= 0 && !list.contains(document.activeElement)) {
    const next = list.children[Math.min(at, list.children.length - 1)];
    const target = next ? next.querySelector("button") : document.querySelector("#chat-input");
    if (target) target.focus();
  }
  if (gone.length) spoken.textContent = `No longer attached: ${gone.map((one) => one.source).join(", ")}`;
  window.smallFirstDocuments = documents;
  window.dispatchEvent(new CustomEvent("smallfirst:documents"));
}

// Chainlit makes its message box anew when the first question is asked; the button goes where the box is.
function settle() {
  const box = document.querySelector("#message-composer");
  if (box && box.previousElementSibling !== place) box.before(place);
}

document.body.append(spoken);
new MutationObserver(settle).observe(document.body, { childList: true, subtree: true });
settle();
