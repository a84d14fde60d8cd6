// What the page says of the state of models and documents, and what Chainlit's page leaves out for people who do not see
// it.
//
// It knows `GET ./status` (its shape stands at `Status` below) and the ids of Chainlit 2.12's buttons. It does not know
// how models are fetched or documents read, and it changes nothing on the server. Texts are set as text, never as HTML.
import { element } from "./documents.js";

(() => {
  "use strict";

  const BUSY_MS = 1000; // while a model is on its way, or documents are read
  const CALM_MS = 30000; // when there is nothing to wait for
  const BUSY = ["fetching", "verifying", "loading"];
  const READY = ["ready", "remote"];
  const FAILURES_SHOWN = 3; // one lost request is no news

  // --- the theme ---------------------------------------------------------------------------------------------------
  // Chainlit's setting knows only "light" and "dark"; what a person has set up for the whole machine comes first. This
  // script runs before the page's own.
  try {
    if (!localStorage.getItem("vite-ui-theme")) localStorage.setItem("vite-ui-theme", "system");
  } catch {
    // Storage is forbidden here; the page then keeps its default.
  }

  // --- the models and the documents --------------------------------------------------------------------------------
  // Status: {slm: Model, llm: Model, documents: {files, passages, reading: null or {done, total, words}}}
  // Model: {name, state: absent|fetching|verifying|loading|ready|failed|remote, done_bytes, total_bytes, detail}

  const megabytes = (bytes) => Math.round(bytes / 1e6).toLocaleString("en-US");

  /** Before the number, the number, after it, and how far (0 to 1, or null). Null when there is nothing to say. */
  function sentence(who, model, after) {
    const detail = model.detail ? ` ${String(model.detail).replace(/([^.!?])$/, "$1.")}` : "";
    switch (model.state) {
      case "fetching": {
        const done = Number(model.done_bytes) || 0;
        const total = Number(model.total_bytes) || 0;
        if (!total) return { before: `${who}: fetching`, amount: "", after: after && `. ${after}`, share: null };
        const amount = ` ${megabytes(done)} of ${megabytes(total)} MB`;
        return { before: `${who}: fetching`, amount, after: after && `. ${after}`, share: Math.min(1, done / total) };
      }
      case "verifying":
        return { before: `${who}: checking the file. ${after}`, amount: "", after: "", share: null };
      case "loading":
        return { before: `${who}: starting. ${after}`, amount: "", after: "", share: null };
      case "absent":
        return { before: `${who}: not here yet.${detail} ${after}`, amount: "", after: "", share: null };
      case "failed":
        return { before: `${who} is not available.${detail} ${after}`, amount: "", after: "", share: null };
      default:
        return null;
    }
  }

  /** The small model first: without it there is no answer at all. */
  function wording(status) {
    const slm = status.slm || {};
    const llm = status.llm || {};
    const ready = (model) => READY.includes(model.state);
    const first = sentence("Small model", slm, ready(llm) ? "The larger model answers until then." : "");
    if (first) return { ...first, kind: slm.state };
    const until = llm.state === "failed" ? "The small model answers alone." : "The small model answers alone until then.";
    const second = sentence("Larger model", llm, until);
    return second && { ...second, kind: llm.state };
  }

  /** Of the shared folder; a look at it that finds nothing to read is over before anyone could read this. */
  function readingWording(reading) {
    if (!reading || !(reading.total > 0)) return null;
    const amount = ` ${String(reading.words).replace(/ documents$/, "")}`;
    return { before: "Reading documents:", amount, after: "", share: reading.done / reading.total, kind: "reading" };
  }

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
    const hide = element("button", "", row);
    hide.type = "button";
    hide.textContent = "×";
    hide.setAttribute("aria-label", "Hide this notice");
    const track = element("div", "track", pill);
    const bar = element("div", "bar", track);

    let dismissed = ""; // the notice that was hidden by hand; another one is shown again
    hide.addEventListener("click", () => {
      dismissed = before.textContent;
      pill.hidden = true;
    });

    const put = (node, value) => {
      if (node.textContent !== value) node.textContent = value; // an unchanged text is not announced again
    };

    return (told) => {
      if (!told || told.before.trim() === dismissed) {
        pill.hidden = true;
        if (!told) dismissed = "";
        return;
      }
      dismissed = "";
      pill.hidden = false;
      pill.dataset.kind = told.kind;
      put(before, told.before.trim());
      put(amount, told.amount);
      put(after, told.after);
      track.hidden = told.share === null;
      bar.style.width = `${(100 * (told.share || 0)).toFixed(1)}%`;
    };
  }

  const showModels = notice("model-status");
  const showReading = notice("documents-status");

  let timer = 0;
  let failures = 0;
  let asking = false;

  async function ask() {
    if (asking) return;
    asking = true;
    clearTimeout(timer);
    let pause = BUSY_MS;
    try {
      const answer = await fetch("./status", { headers: { Accept: "application/json" }, cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const status = await answer.json();
      failures = 0;
      const reading = readingWording(status.documents && status.documents.reading);
      showModels(wording(status));
      showReading(reading);
      // A model that is absent and says why is not on its way.
      const moving = (model) => model && (BUSY.includes(model.state) || (model.state === "absent" && !model.detail));
      const busy = [status.slm, status.llm].some(moving);
      if (!busy && !reading) pause = CALM_MS;
    } catch {
      failures += 1;
      if (failures >= FAILURES_SHOWN) {
        showReading(null);
        showModels({ before: "Server not reachable", amount: "", after: "", share: null, kind: "failed" });
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

  // --- names, language, announcements --------------------------------------------------------------------------------

  // Chainlit's languages. In any other its page is English, whatever the browser asks for.
  const SPOKEN = "ar bn da de el en es fr gu he hi it ja kn ko ml mr nl pt ta te zh".split(" ");
  const language = navigator.language || "en";
  const base = language.split("-")[0];
  document.documentElement.lang = SPOKEN.includes(base) ? language : "en";

  const NAMES = {
    "#upload-button": "Attach files",
    "#chat-submit": "Send message",
    "#stop-button": "Stop the answer",
    "#chat-settings-open-modal": "Chat settings",
    "#chat-settings-header-button": "Chat settings",
    "#new-chat-button": "New chat",
    "#theme-toggle": "Theme",
    "#side-view-close": "Close the panel",
    ".edit-message": "Edit this question",
    "button:has(> .lucide-thumbs-up)": "Good answer",
    "button:has(> .lucide-thumbs-down)": "Bad answer",
    "button:has(> .lucide-copy)": "Copy to clipboard",
    "button:has(> .lucide-arrow-down)": "Go to the latest message",
  };

  function nameButtons() {
    for (const [selector, name] of Object.entries(NAMES)) {
      for (const button of document.querySelectorAll(selector)) {
        const named = button.getAttribute("aria-label") || button.textContent.trim();
        if (!named) button.setAttribute("aria-label", name);
      }
    }
  }

  const spoken = element("div", "small-first-unseen");
  spoken.setAttribute("role", "log");
  spoken.setAttribute("aria-live", "polite");
  spoken.setAttribute("aria-label", "Latest answer");
  let last = "";

  /** An answer is read out once, when it is whole: a live region around the stream would read every piece. */
  function announce() {
    if (document.querySelector("#stop-button")) return; // still being written; its going is a change as well
    const answers = document.querySelectorAll("[data-step-type=assistant_message] .message-content");
    if (!answers.length) return;
    const whole = answers[answers.length - 1].cloneNode(true);
    // Buttons are read on their own.
    for (const part of whole.querySelectorAll("[data-testid=receipt], button")) part.remove();
    const answer = whole.textContent.trim();
    const now = `${answers.length} ${answer}`; // the same words may be the answer to another question
    if (now === last) return;
    last = now;
    spoken.textContent = answer;
  }

  let settling = 0;
  function changed(records) {
    if (records.every((record) => notices.contains(record.target) || spoken.contains(record.target))) return;
    clearTimeout(settling);
    settling = setTimeout(() => {
      nameButtons();
      announce();
    }, 400);
  }

  document.body.append(notices, spoken);
  new MutationObserver(changed).observe(document.body, { childList: true, characterData: true, subtree: true });
  ask();
})();
