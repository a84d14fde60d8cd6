// How both models are: a button above the message box with a mark for each, which opens what is known of them.
//
// It asks nobody: status.js hands over what it heard from `GET ./status` (the shape of a model stands there), or null
// when the server was not to be reached. A mark differs by its shape as much as by its colour, and never in its size.
import { t } from "./words.js";
import { address, number } from "./figures.js";
import { drawing, element, icon, put } from "./nodes.js";
import { drawer } from "./shelf.js";
import { leg, left } from "./turns.js";

const KINDS = {
  ready: "good",
  remote: "good",
  resting: "quiet",
  absent: "quiet",
  fetching: "busy",
  verifying: "busy",
  loading: "busy",
  failed: "bad",
};

const RING = "M5 1.2a3.8 3.8 0 1 1 0 7.6a3.8 3.8 0 1 1 0-7.6z";
const MARKS = {
  good: { line: RING, body: RING },
  quiet: { line: RING, body: "" },
  busy: { line: RING, body: "M5 1.2a3.8 3.8 0 0 1 0 7.6z" },
  bad: { line: "M1.6 1.6 8.4 8.4M8.4 1.6 1.6 8.4", body: "" },
};

// What is not known is not said to be well: it has the kind of what is not there.
let health = { slm: {}, llm: {} };

const { place, opener, panel } = drawer("models", render);
icon("M22 12h-4l-3 8L9 4l-3 8H2", opener, 14);
const title = element("span", "title", opener);
const heading = element("h2", "", panel);
const list = element("ul", "", panel);
const browser = element("a", "browser", panel);
browser.href = address("ondevice");
browser.target = "_blank";
browser.rel = "noopener";
panel.tabIndex = 0; // in a low window it scrolls, by keys too

/** One model's mark on the button and its row in the panel; returns how to show a model there. */
function entry(name, size) {
  const item = element("li", "", list);
  const marks = [mark(opener, size), mark(item, 11)];
  item.dataset.testid = `models-${name}`;
  const words = element("div", "document", item);
  const top = element("div", "top", words);
  const who = element("span", "told", top);
  const state = element("span", "state", top);
  const called = element("span", "name", words);
  const where = element("span", "told", words);
  const detail = element("span", "told detail", words);

  return (model) => {
    const kind = KINDS[model.state] || "quiet";
    item.dataset.kind = kind;
    for (const set of marks) set(kind);
    put(who, leg(name));
    put(state, [condition(model), amount(model)].filter(Boolean).join(" · "));
    put(called, model.name || "–");
    put(where, [model.runs_on, destination(model)].filter(Boolean).join(" · "));
    put(detail, model.detail || (model.state === "resting" ? t("page.models_again") : ""));
  };
}

/** A drawing of a kind, in a square that stays as large as it is; returns how to change it. */
function mark(parent, size) {
  const box = { viewBox: "0 0 10 10", width: size, height: size, class: "mark", "aria-hidden": "true" };
  const pen = { fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round" };
  const svg = drawing("svg", box, parent);
  const body = drawing("path", { fill: "currentColor" }, svg);
  const line = drawing("path", pen, svg);
  return (kind) => {
    svg.dataset.kind = kind;
    line.setAttribute("d", MARKS[kind].line);
    body.setAttribute("d", MARKS[kind].body);
  };
}

// words: page.state_absent page.state_fetching page.state_verifying page.state_loading page.state_ready
// words: page.state_resting page.state_failed page.state_remote page.state_unknown
/** In words; a server of this machine is as ready as what runs inside. */
function condition(model) {
  if (!Object.hasOwn(KINDS, model.state)) return t("page.state_unknown");
  return t(`page.state_${model.state === "remote" && !left(model) ? "ready" : model.state}`);
}

function amount({ state, done_bytes: done, total_bytes: total }) {
  if (state !== "fetching" || !(total > 0)) return "";
  const megabytes = (bytes) => number(Math.round(bytes / 1e6), 0);
  return t("page.megabytes", { done: megabytes(done || 0), total: megabytes(total) });
}

function destination(model) {
  if (!model.where) return "";
  return left(model) ? t("page.models_there", { host: left(model) }) : t("page.models_here");
}

// The larger model's mark is the larger one.
const show = { slm: entry("slm", 9), llm: entry("llm", 12) };

function render() {
  place.lang = window.smallFirst.language;
  const said = t("page.models_are", { slm: condition(health.slm), llm: condition(health.llm) });
  put(title, t("page.models"));
  put(heading, t("page.models"));
  put(browser, t("page.models_in_browser"));
  panel.setAttribute("aria-label", t("page.models"));
  opener.setAttribute("aria-label", said);
  opener.title = said;
  for (const name of ["slm", "llm"]) show[name](health[name]);
}

/** Of the server's answer the models' part; null when it gave none. */
export function showHealth(status) {
  health = { slm: (status && status.slm) || {}, llm: (status && status.llm) || {} };
  render();
}

window.addEventListener("smallfirst:words", () => {
  place.hidden = false;
  render();
});
