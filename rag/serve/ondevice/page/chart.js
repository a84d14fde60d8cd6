// The picture of one question's times: a bar for each model, of its loading, the wait for its first token, its writing; and
// how fast it writes.
//
// It knows spans in milliseconds and draws them to one scale; while something is under way the picture grows.

import { drawing, element } from "./nodes.js";
import { t, time } from "./texts.js";

const ROW = 36;
const BAR = 14;
const LABEL = 88; // for the names before the bars
const END = 74; // for the figure behind the longest bar
const NARROWEST = 240;
const LEAST_MS = 1000;
// words: ondevice.chart_before ondevice.chart_load ondevice.chart_wait ondevice.chart_write ondevice.chart_none
const PARTS = ["before", "load", "wait", "write", "none"];
const ALWAYS = ["load", "wait", "write"]; // in the legend; others where there are some

/** How long a question took, without what was loaded before it. */
export const total = ({ load, wait, write, none }) => load + wait + write + none;

/** A chart inside `parent`; `show([{engine, spans, speed, live}])` draws it anew, with a column's spans and speed. */
export function chart(parent) {
  const figure = element("figure", "chart", parent);
  const svg = drawing("svg", { role: "img", class: "bars" }, figure);
  const key = element("figcaption", "legend", figure);
  const entries = PARTS.map((part) => {
    const entry = element("span", "", key);
    element("span", `patch ${part}`, entry);
    entry.append(t(`ondevice.chart_${part}`));
    return entry;
  });

  function show(rows) {
    figure.hidden = rows.length === 0;
    PARTS.forEach((part, index) => {
      entries[index].hidden = !ALWAYS.includes(part) && !rows.some((row) => row.spans[part]);
    });
    const most = Math.max(LEAST_MS, ...rows.map((row) => row.spans.before + total(row.spans)));
    const width = Math.max(NARROWEST, figure.clientWidth); // one unit is one pixel, on a phone too
    const scale = (width - LABEL - END) / most;
    const height = rows.length * ROW + 4;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    rows.forEach((row, index) => {
      const y = index * ROW + (ROW - BAR) / 2;
      const name = drawing("text", { x: 0, y: y + (row.speed ? 4 : BAR - 3), class: "name" }, svg);
      name.textContent = row.engine;
      if (row.speed) drawing("text", { x: 0, y: y + BAR + 4, class: "speed" }, svg).textContent = row.speed;
      drawing("rect", { x: LABEL, y, width: width - LABEL - END, height: BAR, rx: 4, class: "track" }, svg);
      let x = LABEL;
      for (const part of PARTS) {
        const length = row.spans[part] * scale;
        if (length <= 0) continue;
        drawing("rect", { x, y, width: Math.max(1.5, length), height: BAR, rx: 2, class: part }, svg);
        x += length;
      }
      if (!total(row.spans)) return;
      const told = drawing("text", { x: x + 6, y: y + BAR - 3, class: "time" }, svg);
      told.textContent = time(total(row.spans));
    });
    if (rows.some((row) => row.live)) return; // said once, when it stands still
    const parts = rows.map((row) => {
      const told = PARTS.filter((part) => row.spans[part]).map((part) => `${t(`ondevice.chart_${part}`)} ${time(row.spans[part])}`);
      if (row.speed) told.push(row.speed);
      return t("ondevice.chart_engine", { engine: row.engine, parts: told.join(", ") || "–" });
    });
    svg.setAttribute("aria-label", t("ondevice.chart_told", { parts: parts.join("; ") }));
  }

  svg.setAttribute("aria-label", t("ondevice.chart_told", { parts: "" }));
  show([]);
  return { show };
}
