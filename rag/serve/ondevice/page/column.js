// One model's answer to one question: its text as it comes, what it is doing, its figures, its verdict.
//
// It knows how these look; whoever answers tells it. Spans are in ms, for the chart: `before`, a load that this question
// did not wait for; `load`, `wait` for the first token and `write`; and `none`, of a question that no token came to.

import { total } from "./chart.js";
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
    this.before = 0;
    this.load = 0; // within the question's own time
    this.loading = null; // since when, while it goes on
    this.answer = "";
    this.pieces = 0;
    this.first = null;
    this.last = null;
    this.measured = null; // tokens/s, once they have been counted
    this.began = null;
    this.ended = null;
    this.phase("ondevice.state_waits");
  }

  /** What it is doing; without a key, nothing that needs saying. */
  phase(key, values) {
    put(this.state, key ? t(key, values) : "");
    this.state.classList.toggle("working", this.began !== null && this.ended === null);
  }

  /** The same, in words that are there already. */
  say(text) {
    put(this.state, text);
  }

  /** From now on its time counts. */
  begin() {
    this.began = performance.now();
  }

  /** The model is loaded, and the question waits for it. */
  loads() {
    this.loading = performance.now();
  }

  /** The model was loaded: in so many ms of the question's time, or since `loads`. */
  loaded(ms = performance.now() - this.loading) {
    this.load = ms;
    this.loading = null;
  }

  /** One more piece of text. */
  write(piece) {
    this.last = performance.now();
    this.first ??= this.last;
    this.pieces += 1;
    this.answer += piece;
    this.text.append(piece);
  }

  /** Where its time went, until now. */
  times() {
    const spans = { before: this.before, load: this.load, wait: 0, write: 0, none: 0 };
    if (this.began === null) return spans;
    const now = this.ended ?? performance.now();
    if (this.loading !== null) return { ...spans, load: now - this.loading };
    const wait = Math.max(0, (this.first ?? now) - this.began - this.load);
    if (this.first === null && this.ended !== null) return { ...spans, none: wait };
    return { ...spans, wait, write: this.first === null ? 0 : now - this.first };
  }

  /** Tokens/s in words: as they were counted; until then, and where nobody counted, about as many as pieces came. */
  get speed() {
    if (this.measured !== null) return t("page.speed", { n: this.measured });
    const seconds = (this.last - this.first) / 1000;
    return this.pieces > 2 && seconds > 0 ? `≈ ${t("page.speed", { n: (this.pieces - 1) / seconds })}` : "";
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
    this.answer = answer;
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
    if (rate) this.measured = rate;
    const spans = this.times();
    const told = [
      spans.before && t("ondevice.figure_before", { time: time(spans.before) }),
      spans.load && t("ondevice.figure_load", { time: time(spans.load) }),
      this.first !== null && t("page.first_token_after", { time: time(spans.wait) }),
      this.speed,
      tokens && t("ondevice.tokens", { count: tokens }),
      read && t(kept ? "ondevice.figure_prompt_kept" : "ondevice.figure_prompt", { count: read, kept }),
      t("ondevice.figure_total", { time: time(total(spans)) }),
    ];
    put(this.figures, told.filter(Boolean).join(" · "));
  }
}
