// The page: what is typed, who is asked, in which order, and the answers side by side.
//
// Everything that it needs is loaded with it: from then on the server may go, and the model in this browser answers on.

import * as asking from "./asking.js";
import { chart } from "./chart.js";
import { Column } from "./column.js";
import { Fault, Stopped } from "./faults.js";
import * as kept from "./kept.js";
import { element, link, put, the } from "./nodes.js";
import { Panel } from "./panel.js";
import { Refusal, address, askJson } from "./server.js";
import { fill, place, t } from "./texts.js";
import * as wording from "./wording.js";

const ENGINES = ["browser", "slm", "llm"];
const DRAWN_EVERY_MS = 100;
// Where the server has not said how much it reads.
const LONGEST_CHARS = 300000;
const BYTES_OF_CHAR = 4; // at most, in UTF-8
const MARKS = / ?\[\d+\]/g;

const panel = new Panel();
const history = { browser: [], slm: [], llm: [] };
let opening = kept.settings().opening ?? null;
let stop = null;
let columns = []; // of the question under way

// --- what is chosen ---

function chosen() {
  return ENGINES.filter((engine) => the(`ask-${engine}`).checked);
}

function restore() {
  const { engines, retrieve, order, length } = kept.settings();
  for (const engine of ENGINES) if (engines) the(`ask-${engine}`).checked = engines.includes(engine);
  if (retrieve === false) the("retrieve").checked = false;
  // On one machine, models that answer at the same time take the cores from each other.
  the("order").value = order ?? (["localhost", "127.0.0.1", "[::1]"].includes(location.hostname) ? "turns" : "together");
  if ([...the("length").options].some((option) => option.value === length)) the("length").value = length;
  the("key").value = kept.key();
  noteChoice();
}

function noteChoice() {
  const server = chosen().some((engine) => engine !== "browser");
  the("searches-anyway").hidden = the("retrieve").checked || !server;
}

function keepChoice() {
  const length = the("length").value;
  kept.keepSettings({ engines: chosen(), retrieve: the("retrieve").checked, order: the("order").value, length });
  noteChoice();
}

// --- asking ---

function complain(text) {
  put(the("complaint"), text);
  the("complaint").hidden = !text;
}

async function submit() {
  if (stop) return complain(t("ondevice.ask_busy"));
  const question = the("question").value.trim();
  const reference = the("reference").value;
  const engines = chosen();
  const most = opening?.reference_chars ?? Infinity;
  const longest = opening?.question_chars ?? Infinity;
  if (!question) return complain(t("ondevice.ask_empty"));
  if (question.length > longest) return complain(t("ondevice.ask_question_long", { count: question.length, most: longest }));
  if (!engines.length) return complain(t("ondevice.ask_no_engine"));
  if (reference.length > most) return complain(t("ondevice.ask_reference_long", { count: reference.length, most }));
  complain("");
  put(the("status"), ""); // or an equal end would not be announced
  the("question").value = "";
  stop = new AbortController();
  working(true);
  try {
    const barred = await exchange(question, reference, engines, stop.signal);
    // It will be asked again: with a key, or because nothing came of it.
    const again = barred.some(Boolean) || columns.every((column) => !column.answer);
    if (again && !the("question").value) the("question").value = question;
  } finally {
    stop = null;
    columns = [];
    complain("");
    const free = [document.body, the("ask"), the("stop"), the("question")].includes(document.activeElement);
    working(false);
    if (free) the("question").focus({ preventScroll: true }); // whoever writes elsewhere goes on there
  }
}

function working(on) {
  the("ask").disabled = on;
  the("stop").hidden = !on;
  the("stop").disabled = false;
}

async function exchange(question, reference, engines, signal) {
  const place = element("section", "exchange");
  the("exchanges").prepend(place);
  element("h3", "", place, question);
  const picture = chart(place);
  const beside = element("div", "columns", place);
  const made = (columns = engines.map((engine) => new Column(engine, beside)));
  const draw = () => {
    picture.show(made.map((one) => ({ engine: one.name, spans: one.times(), speed: one.speed, live: one.live })));
    for (const one of made) if (one.live && one.loading !== null) one.say(panel.doing);
  };
  draw();
  if (place.getBoundingClientRect().top > window.innerHeight / 2) place.scrollIntoView({ block: "nearest" });
  const drawing = setInterval(draw, DRAWN_EVERY_MS);
  const passages = element("details", "passages", place);
  passages.hidden = true;
  const options = { reference, retrieve: the("retrieve").checked, max_tokens: Number(the("length").value), opening };
  const run = (column) => answer(question, options, column, passages, signal).finally(draw);
  try {
    if (the("order").value === "together") return await Promise.all(made.map(run));
    const barred = [];
    for (const column of made) barred.push(await run(column));
    return barred;
  } finally {
    clearInterval(drawing);
    draw();
  }
}

/** One column's part. Returns whether nothing came of it but that the server must be told who asks. */
async function answer(question, options, column, passages, signal) {
  const { engine } = column;
  const mine = { ...options, history: history[engine] };
  try {
    if (signal.aborted) throw new Stopped();
    let said;
    if (engine === "browser") {
      column.begin();
      if (!panel.engine.running) {
        column.phase("ondevice.state_loading");
        column.loads();
        await Promise.race([started(), stopped(signal)]);
        column.loaded();
      } else {
        column.before = panel.fresh_ms;
      }
      panel.fresh_ms = 0;
      signal.throwIfAborted();
      column.model.textContent = panel.model.name;
      const { engine: model, window } = panel;
      const more = { engine: model, run: model.run, examine: () => panel.examine(), model: panel.model.name, window };
      const found = (prompt) => showPassages(prompt, passages);
      said = await asking.inBrowser(question, { ...mine, ...more }, column, { signal, found });
    } else {
      column.begin();
      const more = { model: panel.model?.name, window: panel.window };
      said = await asking.onServer(engine, question, { ...mine, ...more }, column, { signal });
    }
    if (said && !signal.aborted) history[engine].push({ question, answer: said.replace(MARKS, "") });
    put(the("status"), t("ondevice.ask_done", { engine: column.name }));
    return false;
  } catch (error) {
    failed(error, column, signal);
    return error instanceof Refusal && error.status === 401;
  }
}

/** The model is started for this question, unless it is on its way already. */
async function started() {
  try {
    await (panel.bringing ? settled() : panel.start());
  } catch (error) {
    throw error instanceof Fault ? new Fault("ondevice.fail_not_loaded", { detail: error.message }) : error;
  }
  if (!panel.engine.running) throw new Fault("ondevice.fail_not_loaded", { detail: panel.trouble });
}

/** Fails when Stop is pressed. */
function stopped(signal) {
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(new Stopped()), { once: true }));
}

function settled() {
  return new Promise((resolve) => {
    const before = panel.changed;
    panel.changed = () => {
      before();
      if (!panel.bringing) {
        panel.changed = before;
        resolve();
      }
    };
  });
}

function failed(error, column, signal) {
  if (error instanceof Stopped || signal.aborted) {
    column.end();
    column.phase(signal.aborted ? "chat.stopped" : "ondevice.state_restarted");
    if (column.answer) {
      column.tell({});
      column.judge(null, t("ondevice.verdict_stopped"));
    }
    return;
  }
  if (!(error instanceof Fault || error instanceof Refusal)) console.error(error);
  if (error instanceof Refusal && error.of_key) the("key-fold").open = true;
  if (column.engine === "browser" && error.way && !panel.engine.running && !panel.bringing) {
    panel.fail(error); // the model broke down under the question
    panel.changed();
  }
  column.fail(error.message);
}

function showPassages({ hits, read }, parent) {
  if (!hits.length) return;
  parent.replaceChildren();
  element("summary", "", parent, t("ondevice.passages_read", { count: hits.length, read: read.length }));
  const list = element("ol", "", parent);
  const known = new Set(read.map((hit) => `${hit.source} ${hit.start}`));
  for (const hit of hits) {
    const item = element("li", "", list);
    const head = element("p", "place", item);
    if (hit.address) link(address(hit.address), "", head, place(hit));
    else element("span", "", head, t("ondevice.passages_reference"));
    if (known.has(`${hit.source} ${hit.start}`)) {
      head.append(" · ");
      element("span", "read", head, t("ondevice.passages_was_read"));
    }
    element("p", "quote", item, hit.text);
  }
  parent.hidden = false;
}

// --- reference texts from files ---

async function addFiles(files) {
  complain("");
  const most = opening?.reference_chars ?? LONGEST_CHARS;
  for (const file of files) {
    if (file.size > most * BYTES_OF_CHAR) {
      complain(t("ondevice.ask_file_long", { name: file.name, most }));
      continue;
    }
    const { text, wrong } = await read(file);
    if (wrong) {
      complain(t(wrong, { name: file.name }));
      continue;
    }
    const place = the("reference");
    place.value = place.value ? `${place.value.trimEnd()}\n\n${text}` : text;
  }
}

/** The text of a file, or the key of what is wrong with it. */
async function read(file) {
  try {
    const bytes = new Uint8Array(await file.arrayBuffer());
    if (bytes.includes(0)) return { wrong: "ondevice.ask_not_text" };
    return { text: new TextDecoder("utf-8", { fatal: true }).decode(bytes) };
  } catch (error) {
    return { wrong: error instanceof TypeError ? "ondevice.ask_not_utf8" : "ondevice.ask_not_text" };
  }
}

// --- the page ---

the("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
the("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
the("stop").addEventListener("click", () => {
  for (const column of columns) if (column.live) column.phase("ondevice.state_stopping");
  stop?.abort();
  the("stop").disabled = true;
});
the("anew").addEventListener("click", () => {
  stop?.abort();
  for (const engine of ENGINES) history[engine].length = 0;
  the("exchanges").replaceChildren();
  complain("");
});
the("key").addEventListener("change", () => kept.keepKey(the("key").value.trim()));
the("files").addEventListener("change", async () => {
  await addFiles([...the("files").files]);
  the("files").value = ""; // the same file may be chosen again
});
the("reference").addEventListener("dragover", (event) => event.preventDefault());
the("reference").addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  addFiles(event.dataTransfer.files);
});
for (const id of ["retrieve", "order", "length", ...ENGINES.map((engine) => `ask-${engine}`)]) {
  the(id).addEventListener("change", keepChoice);
}
panel.changed = () => {
  document.body.dataset.model = panel.bringing ? "starting" : panel.engine.running ? "ready" : "idle";
  // Answered questions before one's own are long to read; they are the same for every question.
  const before = opening && wording.before(opening, panel.model?.name, panel.window);
  if (panel.engine.running && !panel.bringing && before) panel.engine.prepare(before);
};

fill(document);
the("model-fold").open = window.matchMedia("(min-width: 761px)").matches; // below, the question comes first
restore();
panel.changed();
askJson("ondevice/opening").then(
  (found) => {
    opening = found;
    kept.keepSettings({ opening: found });
  },
  () => {}, // What was kept of the last visit serves.
);
panel.open();
