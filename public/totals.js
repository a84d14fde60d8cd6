// What this conversation has taken so far: a button above the message box that opens the sums, and how long each turn took.
//
// The server sends them after each turn, and when a conversation is begun or resumed:
// {smallfirst: "totals", thread, totals: {turns, escalated, escalation_rate, refused, stopped, failed, input_tokens,
// output_tokens, at_least, time_ms, ttft_ms_median, cost, currency, cost_known, energy_j, energy_measured, energy_source,
// watts, cpu_s, peak_memory_mb, latency: [Turn]}}
// Turn: {total_ms, ttft_ms, by: "slm", "llm" or null, escalated, refused, question}; what nobody knows is null.
import { t } from "./words.js";
import { address, isNumber, memory, money, number, percent, time } from "./figures.js";
import { drawing, element, icon, put } from "./nodes.js";
import { drawer } from "./shelf.js";
import { energyWords, spentWords } from "./turns.js";

const SHOWN = 40; // turns in the picture, the newest
const HEIGHT = 96;
const STEP = 14; // from one bar to the next
const COLOURS = {
  slm: "hsl(var(--chart-2))",
  llm: "hsl(var(--chart-3))",
  refused: "hsl(var(--chart-1))",
  none: "hsl(var(--muted-foreground) / 0.5)",
};

let totals = null;
let thread = null;

const { place, opener, panel, open } = drawer("totals", render);
icon("M4 20V10M10 20V4M16 20v-7M22 20H2", opener, 14);
const count = element("span", "", opener);

// words: page.by_slm page.by_llm page.by_refused page.by_none page.by_first_token page.column_question
// words: page.column_who page.column_first_token page.column_total
const by = (turn) => (turn.refused ? "refused" : turn.by || "none");

/** What is known of it, and that there is more; null where nothing was charged. */
function cost() {
  const known = totals.cost > 0 ? money(totals.cost, totals.currency || "") : null;
  const unknown = totals.cost_known === false ? t("page.cost_unknown") : null;
  return [known, unknown].filter(Boolean).join(" + ") || null;
}

/** Pairs of words and figures. */
function rows() {
  const rate = percent(totals.escalation_rate || 0);
  const told = [
    [t("page.totals_turns"), number(totals.turns)],
    [t("page.totals_escalated"), t("page.totals_share", { n: number(totals.escalated), share: rate })],
    totals.refused > 0 && [t("page.totals_refused"), number(totals.refused)],
    totals.stopped > 0 && [t("page.totals_stopped"), number(totals.stopped)],
    totals.failed > 0 && [t("page.totals_failed"), number(totals.failed)],
    (totals.input_tokens || totals.output_tokens) && [
      t("page.totals_tokens"),
      spentWords({ count: totals.input_tokens, output: totals.output_tokens || 0 }, totals.at_least),
    ],
    [t("page.totals_time"), time(totals.time_ms)],
    isNumber(totals.ttft_ms_median) && [t("page.totals_first_token"), time(totals.ttft_ms_median)],
    cost() && [t("page.cost_name"), cost()],
    totals.cpu_s > 0 && [t("page.totals_cpu_time"), time(totals.cpu_s * 1000)],
    totals.peak_memory_mb > 0 && [t("page.totals_memory"), memory(totals.peak_memory_mb)],
    energyWords(totals) && [t("page.energy_name"), energyWords(totals)],
  ];
  return told.filter(Boolean);
}

/** Bars of the turns' times, coloured by who answered, with a tick where the first token came. */
function picture(latency, parent) {
  const most = Math.max(...latency.map((turn) => turn.total_ms || 0), 1);
  const width = Math.max(latency.length, 8) * STEP;
  const high = (ms) => Math.max(2, (HEIGHT * (ms || 0)) / most);
  const box = { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", class: "bars", preserveAspectRatio: "none" };
  const svg = drawing("svg", box, parent);
  const tick = { stroke: "hsl(var(--foreground))", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" };
  svg.setAttribute("aria-label", t("page.totals_picture", { count: latency.length, longest: time(most) }));
  latency.forEach((turn, index) => {
    const x = index * STEP;
    const height = high(turn.total_ms);
    const fill = COLOURS[by(turn)];
    drawing("rect", { x: x + 2, y: HEIGHT - height, width: STEP - 4, height, rx: 1.5, fill }, svg);
    if (!isNumber(turn.ttft_ms)) return;
    const y = HEIGHT - high(turn.ttft_ms);
    drawing("line", { x1: x + 1, x2: x + STEP - 1, y1: y, y2: y, ...tick }, svg);
  });
}

function legend(latency, parent) {
  const key = element("p", "legend", parent);
  key.setAttribute("aria-hidden", "true"); // of the picture, which is told in its own words and in the table
  for (const kind of Object.keys(COLOURS)) {
    if (!latency.some((turn) => by(turn) === kind)) continue;
    const entry = element("span", "", key);
    element("span", "patch", entry).style.background = COLOURS[kind];
    entry.append(t(`page.by_${kind}`));
  }
  const entry = element("span", "", key);
  element("span", "tick", entry);
  entry.append(t("page.by_first_token"));
}

function table(latency, parent) {
  const fold = element("details", "", parent);
  element("summary", "", fold).textContent = t("page.as_table");
  const made = element("table", "", fold);
  const top = element("tr", "", element("thead", "", made));
  for (const name of ["question", "who", "first_token", "total"]) {
    const cell = element("th", "", top);
    cell.scope = "col";
    cell.textContent = t(`page.column_${name}`);
  }
  const body = element("tbody", "", made);
  for (const turn of latency) {
    const line = element("tr", "", body);
    const cells = [turn.question, t(`page.by_${by(turn)}`), time(turn.ttft_ms), time(turn.total_ms)];
    for (const text of cells) element("td", "", line).textContent = text;
  }
}

function links(parent) {
  if (!thread) return;
  const line = element("p", "exports", parent);
  line.append(t("page.export"));
  for (const [ending, name] of [["md", "Markdown"], ["csv", "CSV"]]) {
    const link = element("a", "", line);
    link.href = address(`export/${encodeURIComponent(thread)}.${ending}`);
    link.download = "";
    link.textContent = name;
  }
}

function render() {
  place.lang = window.smallFirst.language;
  place.hidden = !totals || !totals.turns;
  if (place.hidden) return open(false);
  const told = [t("page.totals_short_turns", { count: totals.turns })];
  if (totals.escalated) told.push(t("page.totals_short_escalated", { count: totals.escalated }));
  put(count, told.join(" · "));
  panel.setAttribute("aria-label", t("page.totals"));
  if (panel.hidden) return undefined;
  const folded = panel.querySelector("details");
  const wasOpen = folded && folded.open;
  panel.replaceChildren();
  element("h2", "", panel).textContent = t("page.totals");
  const sums = element("dl", "", panel);
  for (const [what, amount] of rows()) {
    const pair = element("div", "", sums);
    element("dt", "", pair).textContent = what;
    element("dd", "", pair).textContent = amount;
  }
  const latency = (totals.latency || []).slice(-SHOWN);
  if (latency.length) {
    picture(latency, panel);
    legend(latency, panel);
    table(latency, panel);
    panel.querySelector("details").open = Boolean(wasOpen);
  }
  return links(panel);
}

window.addEventListener("message", (event) => {
  if (event.source !== window || !event.data || event.data.smallfirst !== "totals") return;
  ({ totals, thread } = event.data);
  render();
});
window.addEventListener("smallfirst:words", render);
