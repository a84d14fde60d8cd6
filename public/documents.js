// The documents attached to this conversation: a button above the message box that opens their list.
//
// It speaks with the server through Chainlit's window messages, which go over the page's own socket, so that the server
// knows whose documents are meant. What is said stands at `hear` and `say`. Elements in the chat hear of changes by the
// event "smallfirst:documents" and find the list in `window.smallFirstDocuments`.
import { t } from "./words.js";
import { button, element, icon, put } from "./nodes.js";
import { drawer } from "./shelf.js";

/** {smallfirst: "list"} or {smallfirst: "remove", number}. */
function say(message) {
  window.postMessage(message, window.location.origin);
}

/** {smallfirst: "conversation", documents: [{number, source, told}]}, a number never being used twice in a conversation;
 * {smallfirst: "moved"}, or {smallfirst: "deleted"}. */
function hear(event) {
  if (event.source !== window || !event.data) return;
  const { smallfirst, documents } = event.data;
  if (smallfirst === "conversation") {
    moved = false;
    show(Array.isArray(documents) ? documents : []);
  } else if (smallfirst === "moved") {
    moved = true;
    show([]);
  } else if (smallfirst === "deleted") {
    window.location.assign(new URL("..", import.meta.url)); // Chainlit would show the conversation that is no more
  }
}

window.addEventListener("message", hear);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) say({ smallfirst: "list" }); // what was said while the network was away is lost
});

// --- the list --------------------------------------------------------------------------------------------------------

let shown = [];
let moved = false; // this conversation went on in another tab

const { place, opener, panel, open } = drawer("documents", () => say({ smallfirst: "list" }));
icon(
  "M20 11.5 11.8 19.7a5 5 0 0 1-7.1-7.1l8.5-8.5a3.3 3.3 0 0 1 4.7 4.7l-8.4 8.4a1.7 1.7 0 0 1-2.4-2.4l7.7-7.6",
  opener,
  14,
);
const count = element("span", "", opener);
const list = element("ul", "", panel);
const told = element("span", "", place);
told.setAttribute("role", "status");

// Here nobody sees it; what changed by the person's own hand must be heard as well.
const spoken = element("span", "small-first-unseen", document.body);
spoken.setAttribute("role", "status");

function row(document_) {
  const item = element("li");
  item.dataset.number = document_.number;
  const words = element("span", "document", item);
  element("span", "name", words);
  element("span", "told", words);
  const remove = button("remove", item);
  remove.addEventListener("click", () => {
    remove.setAttribute("aria-disabled", "true"); // a disabled one would lose the focus
    say({ smallfirst: "remove", number: document_.number });
  });
  return item;
}

function word() {
  place.lang = spoken.lang = window.smallFirst.language;
  panel.setAttribute("aria-label", t("page.documents"));
  put(count, t("page.documents_attached", { count: shown.length }));
  put(told, moved ? t("page.moved") : "");
  shown.forEach((one, index) => {
    const item = list.children[index];
    put(item.querySelector(".name"), one.source);
    put(item.querySelector(".told"), one.told);
    const remove = item.querySelector(".remove");
    put(remove, t("page.remove"));
    remove.setAttribute("aria-label", t("page.remove_document", { name: one.source }));
  });
}

function show(documents) {
  const gone = shown.filter((one) => documents.every((other) => other.number !== one.number));
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
  shown = documents;
  opener.hidden = shown.length === 0;
  place.hidden = shown.length === 0 && !moved;
  word();
  if (!shown.length) open(false);
  if (at >= 0 && !list.contains(document.activeElement)) {
    const next = list.children[Math.min(at, list.children.length - 1)];
    const target = next ? next.querySelector("button") : document.querySelector("#chat-input");
    if (target) target.focus();
  }
  const names = gone.map((one) => one.source).join(", ");
  if (names && !moved) spoken.textContent = t("page.no_longer_attached", { names });
  window.smallFirstDocuments = shown;
  window.dispatchEvent(new CustomEvent("smallfirst:documents"));
}

window.addEventListener("smallfirst:words", word);
