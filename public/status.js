// What the page says of the state of models and documents, at its top.
//
// Chainlit loads one script, and this is it: it brings the others along. It knows `GET ./status` (its shape stands at
// `Status` below), not how models are fetched or documents read, and it changes nothing on the server.
import "./names.js";
import "./announcements.js";
import "./receipts.js";
import "./turns.js";
import "./passages.js";
import "./documents.js";
import "./totals.js";
import { showHealth } from "./models.js";
import { t } from "./words.js";
import { address, number } from "./figures.js";
import { button, element, put } from "./nodes.js";

const BUSY_MS = 1000; // while a model is on its way, or documents are read
const CALM_MS = 5000; // when there is nothing to wait for: a server that died should show
const BUSY = ["fetching", "verifying", "loading"];
const READY = ["ready", "resting", "remote"];
const FAILURES_SHOWN = 3; // one lost request is no news

// --- what is told ----------------------------------------------------------------------------------------------------
// Status: {slm: Model, llm: Model, documents: {files, passages, reading: null or {done, total, words}}}
// Model: {name, runs_on, where, state: absent|fetching|verifying|loading|ready|resting|failed|remote, done_bytes,
// total_bytes, detail}. "resting": unloaded to save memory; "remote": a server that is not ours, also of this machine.
// Told: {before, amount, after, share (0 to 1, or null), kind}; the amount stands between the other two.

const GAP = "\u0000";

/** A sentence with a figure in it, which is shown at once but not read out every second. */
function told(key, amount, more, share, kind) {
  const [before, after = ""] = t(key, { amount: GAP }).split(GAP);
  return { before, amount, after: [after, ...more].filter(Boolean).join(" "), share, kind };
}

// words: page.fetching_slm page.fetching_llm page.verifying_slm page.verifying_llm page.loading_slm page.loading_llm
// words: page.absent_slm page.absent_llm page.failed_slm page.failed_llm
/** Null when there is nothing to say of it. */
function sentence(who, model, after) {
  const kind = model.state;
  if (kind === "fetching") {
    const [done, total] = [Number(model.done_bytes) || 0, Number(model.total_bytes) || 0];
    const megabytes = (bytes) => number(Math.round(bytes / 1e6), 0);
    const amount = total ? t("page.megabytes", { done: megabytes(done), total: megabytes(total) }) : "…";
    return told(`page.fetching_${who}`, amount, [after], total ? Math.min(1, done / total) : null, kind);
  }
  if (!["verifying", "loading", "absent", "failed"].includes(kind)) return null;
  const detail = model.detail ? String(model.detail).replace(/([^.!?。])$/, "$1.") : "";
  const whole = [t(`page.${kind}_${who}`), detail, after].filter(Boolean).join(" ");
  return { before: whole, amount: "", after: "", share: null, kind };
}

/** The small model first: without it there is no answer at all. */
function models({ slm = {}, llm = {} }) {
  const first = sentence("slm", slm, READY.includes(llm.state) ? t("page.larger_answers") : "");
  return first || sentence("llm", llm, t(llm.state === "failed" ? "page.small_answers" : "page.small_answers_until"));
}

/** Of the shared folder; a look at it that finds nothing to read is over before anyone could read this. */
function reading(documents) {
  const now = documents && documents.reading;
  if (!now || !(now.total > 0)) return null;
  const amount = t("page.done_of_total", { done: number(now.done), total: number(now.total) });
  return told("page.reading_documents", amount, [], now.done / now.total, "reading");
}

// --- where it is told ------------------------------------------------------------------------------------------------

const notices = element("div");
notices.id = "small-first-notices";

/** A line at the top of the page; returns how to change it. */
function notice(id) {
  const pill = element("div", "notice", notices);
  pill.id = id;
  pill.dataset.testid = id;
  pill.setAttribute("role", "status");
  pill.setAttribute("aria-live", "polite");
  pill.setAttribute("aria-atomic", "false");
  pill.hidden = true;
  const row = element("div", "row", pill);
  const text = element("span", "text", row);
  const before = element("span", "", text);
  const amount = element("span", "amount", text);
  // The state is announced once; the figures would be read out every second.
  amount.setAttribute("aria-live", "off");
  const after = element("span", "", text);
  const hide = button("", row);
  hide.textContent = "×";
  const track = element("div", "track", pill);
  const bar = element("div", "bar", track);

  let dismissed = ""; // the notice that was hidden by hand; another one is shown again
  hide.addEventListener("click", () => {
    dismissed = before.textContent;
    pill.hidden = true;
  });

  return (now) => {
    if (!now || now.before === dismissed) {
      pill.hidden = true;
      if (!now) dismissed = "";
      return;
    }
    dismissed = "";
    pill.hidden = false;
    pill.dataset.kind = now.kind;
    put(before, now.before);
    put(amount, now.amount);
    put(after, now.after);
    hide.setAttribute("aria-label", t("page.hide_notice"));
    track.hidden = now.share === null;
    bar.style.width = `${(100 * (now.share || 0)).toFixed(1)}%`;
  };
}

const showModels = notice("model-status");
const showReading = notice("documents-status");

// --- asking ----------------------------------------------------------------------------------------------------------

let timer = 0;
let failures = 0;
let asking = false;

async function ask() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  let pause = BUSY_MS;
  try {
    const answer = await fetch(address("status"), { headers: { Accept: "application/json" }, cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const status = await answer.json();
    failures = 0;
    showHealth(status);
    const read = reading(status.documents);
    showModels(models(status));
    showReading(read);
    // A model that is absent and says why is not on its way.
    const moving = (model) => model && (BUSY.includes(model.state) || (model.state === "absent" && !model.detail));
    if (![status.slm, status.llm].some(moving) && !read) pause = CALM_MS;
  } catch {
    failures += 1;
    if (failures >= FAILURES_SHOWN) {
      showHealth(null);
      showReading(null);
      showModels({ before: t("page.not_reachable"), amount: "", after: "", share: null, kind: "failed" });
      pause = 5 * BUSY_MS;
    }
  }
  asking = false;
  if (!document.hidden) timer = setTimeout(ask, pause);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else ask();
});

document.body.append(notices);
window.addEventListener("smallfirst:words", () => {
  notices.lang = window.smallFirst.language;
  ask();
});
