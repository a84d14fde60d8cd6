// What is read out to who does not see the page: an answer once, when it is whole, and what is being done until there is
// one. A live region around the stream would read every piece, and every second of a running clock.
import { t } from "./words.js";
import { element } from "./nodes.js";

const SETTLED_MS = 400;
const STANDS_MS = 1500; // a phase that is over sooner is not worth a word
const PAUSE_MS = 6000; // between two phases

function region(role) {
  const made = element("div", "small-first-unseen", document.body);
  made.setAttribute("role", role);
  made.setAttribute("aria-live", "polite");
  return made;
}

const answer = region("log");
const phase = region("status");

// --- the answer ------------------------------------------------------------------------------------------------------

let last = "";

function announce() {
  if (document.querySelector("#stop-button")) return; // still being written; its going is a change as well
  const answers = document.querySelectorAll("[data-step-type=assistant_message] .message-content");
  if (!answers.length) return;
  const whole = answers[answers.length - 1].cloneNode(true);
  // Receipts and buttons are read on their own, and so are the marks: a bare number in a sentence misleads.
  for (const part of whole.querySelectorAll('.inline-custom, button, a[href^="#source-"]')) part.remove();
  const text = whole.textContent.trim();
  const now = `${answers.length} ${text}`; // the same words may be the answer to another question
  if (now === last) return;
  last = now;
  phase.textContent = "";
  answer.textContent = text;
}

// --- the phase -------------------------------------------------------------------------------------------------------
// A phase is the message's last paragraph while it ends in a clock: "Searching 1,204 passages … 3 s".

const CLOCK = /\s*…(\s*\d+\s*\S{1,3})?$/;

let waiting = 0;
let standing = "";
let spokenAt = 0;

function now() {
  if (!document.querySelector("#stop-button")) return "";
  const paragraphs = document.querySelectorAll("[data-step-type=assistant_message] .message-content [role=article]");
  const text = paragraphs.length ? paragraphs[paragraphs.length - 1].textContent.trim() : "";
  return CLOCK.test(text) ? text.replace(CLOCK, "") : "";
}

function follow() {
  const text = now();
  if (text.replace(/\d+/g, "") === standing.replace(/\d+/g, "")) return; // only its figures changed
  standing = text;
  clearTimeout(waiting);
  if (!text) return;
  const pause = Math.max(STANDS_MS, spokenAt + PAUSE_MS - Date.now());
  waiting = setTimeout(() => {
    spokenAt = Date.now();
    phase.textContent = standing;
  }, pause);
}

// --- when ------------------------------------------------------------------------------------------------------------

let settling = 0;

new MutationObserver((records) => {
  if (records.every(({ target }) => answer.contains(target) || phase.contains(target))) return;
  follow();
  clearTimeout(settling);
  settling = setTimeout(announce, SETTLED_MS);
}).observe(document.body, { childList: true, characterData: true, subtree: true });

window.addEventListener("smallfirst:words", () => {
  answer.setAttribute("aria-label", t("page.latest_answer"));
});
