// One model's answer to one question: its text as it comes, what it is doing, its figures, its verdict.
//
// It knows how these look; whoever answers tells it. Spans are {load, wait, write} in ms, for the chart.

import { element, link, put } from "./nodes.js";
import { address } from "./server.js";
import { place, t, time } from "./texts.js";

const MARK = /\[(\d+)\]/g;

export class Column {
  constructor(engine, parent) {
    this.engine = engine;
    // words: ondevice.engine_browser ondevice.engine_slm ondevice.engine_llm
    this.name = t(`ondevice.engine_${engine}`);
    this.place = element("article", `column ${engine}`, parent);
    this.place.dataset.engine = engine;
    const head = element("header", "", this.place);
    element("h4", "", head, this.name);
    this.model = element("span", "model", head);
    this.state = element("p", "state", this.place);
    this.text = element("div", "text", this.place);
    this.sources = element("ol", "sources", this.place);
    this.notes = element("div", "notes", this.place);
    this.verdict = element("div", "verdict", this.place);
    this.figures = element("p", "figures", this.place);
    this.spans = { load: 0, wait: 0, write: 0 };
    this.within = 0;
    this.answer = "";
    this.first = null;
    this.began = null;
    this.ended = null;
    this.phase("ondevice.state_waits");
  }

  /** What it is doing; without a key, nothing that needs saying. */
  phase(key, values) {
    put(this.state, key ? t(key, values) : "");
    this.state.classList.toggle("working", this.began !== null && this.ended === null);
  }

  /** From now on its time counts. */
  begin() {
    this.began = performance.now();
  }

  /** A model was loaded for this question, before its time began to count, or `within` it. */
  loaded(ms, within = false) {
    this.spans.load = ms;
    this.within = within ? ms : 0;
  }

  /** One more piece of text. */
  write(piece) {
    this.first ??= performance.now();
    this.answer += piece;
    this.text.append(piece);
  }

  /** Where its time went, until now. */
  times() {
    if (this.began === null) return this.spans;
    const now = this.ended ?? performance.now();
    const wait = (this.first ?? now) - this.began - this.within;
    return { ...this.spans, wait: Math.max(0, wait), write: this.first === null ? 0 : now - this.first };
  }

  get live() {
    return this.began !== null && this.ended === null;
  }

  /** Nothing more is computed; what is shown still may be judged. */
  end() {
    this.ended ??= performance.now();
    this.state.classList.remove("working");
  }

  /** The answer as it stands, its marks [n] as links to where they were found. */
  stand(answer, citations = []) {
    this.text.replaceChildren();
    this.sources.replaceChildren();
    const known = new Map(citations.map((one) => [String(one.marker), one]));
    let at = 0;
    for (const match of answer.matchAll(MARK)) {
      const citation = known.get(match[1]);
      if (!citation) continue;
      this.text.append(answer.slice(at, match.index));
      this.mark(citation, this.text);
      at = match.index + match[0].length;
    }
    this.text.append(answer.slice(at));
    for (const citation of citations) {
      const item = element("li", "", this.sources);
      element("span", "number", item, String(citation.marker));
      const pasted = citation.address === null;
      const where = pasted ? t("ondevice.source_reference") : place({ ...citation, heading: [] });
      const source = pasted ? element("span", "", item, where) : link(address(citation.address), "", item, where);
      source.title = citation.quote;
    }
  }

  mark(citation, parent) {
    const number = String(citation.marker);
    const pasted = citation.address === null;
    const mark = pasted ? element("span", "mark", parent, number) : link(address(citation.address), "mark", parent, number);
    mark.title = citation.quote;
    if (!pasted) mark.setAttribute("aria-label", `${number}: ${citation.source}`);
  }

  note(text) {
    if (text) element("p", "note", this.notes, text);
  }

  fail(text) {
    this.end();
    put(this.state, "");
    const place = element("p", "failure", this.notes, text);
    place.setAttribute("role", "alert");
  }

  /** {accepted, reason}, or null; `grounds` says on what it was judged. */
  judge(verdict, grounds) {
    this.verdict.replaceChildren();
    if (verdict) {
      const line = element("p", verdict.accepted ? "stands" : "doubted", this.verdict);
      element("strong", "", line, t(verdict.accepted ? "ondevice.verdict_accepted" : "ondevice.verdict_doubted"));
      line.append(` ${t("page.because", { reason: verdict.reason })}`);
    }
    element("p", "grounds", this.verdict, grounds);
  }

  /** Its figures: {tokens, rate, read, kept}. */
  tell({ tokens, rate, read, kept }) {
    const spans = this.times();
    const told = [
      spans.load && t("ondevice.figure_load", { time: time(spans.load) }),
      this.first !== null && t("page.first_token_after", { time: time(spans.wait) }),
      rate && t("page.speed", { n: rate }),
      tokens && t("ondevice.tokens", { count: tokens }),
      read && t(kept ? "ondevice.figure_prompt_kept" : "ondevice.figure_prompt", { count: read, kept }),
      t("ondevice.figure_total", { time: time(spans.load + spans.wait + spans.write) }),
    ];
    put(this.figures, told.filter(Boolean).join(" · "));
  }
}
