// A turn's dictionary (rag/turn/cascade.py, `Turn.to_dict`) in words: what stands in a receipt, without how it looks.
//
// Any part of a turn may be missing: it can be stopped, or fail, at any point. It knows the names of the cascade's spans,
// of the judge's signals and of the ledger's entries; one that it does not know is shown by its name.
import { t } from "./words.js";
import { enumerated, energy, isNumber, memory, money, number, percent, place, time } from "./figures.js";

const HERE = "on this machine"; // what a turn says of a model whose text did not leave, in every language
const LEG_SPANS = ["draft", "escalate"]; // these two enclose others: they are headings, not bars

export const list = (value) => (Array.isArray(value) ? value.filter((item) => (item ?? null) !== null) : []);

// words: page.span_read page.span_rewrite page.span_retrieve page.span_load page.span_cite page.span_prompt
// words: page.span_queue page.span_request page.span_first_token page.span_thinking page.span_completion page.span_judge
// words: page.signal_coverage page.signal_hit_strength page.signal_hit_margin page.signal_support
// words: page.signal_alignment page.signal_mean_logprob page.signal_fact_logprob page.signal_absent_fact
// words: page.signal_wrong_kind page.signal_refusal page.signal_looping page.signal_cut_off page.signal_sentence
// words: page.signal_missing page.signal_best_alignment page.signal_apart page.signal_elsewhere page.signal_echo
// words: page.signal_copied page.signal_verbatim page.signal_words page.signal_own_terms page.signal_low_logprob
// words: page.signal_least_logprob page.signal_own_logprob page.signal_first_entropy page.signal_lead
/** The text for a name of the server's; the name itself where there is none. */
function named(kind, name) {
  const key = `${kind}_${name.replaceAll(" ", "_")}`;
  const text = t(`page.${key}`);
  return text === key ? name.replaceAll("_", " ") : text;
}

const full = (text) => String(text).replace(/([^.!?…。！？])$/, "$1.");

// words: page.leg_slm page.leg_llm
/** "Small model", "Larger model". */
export const leg = (name) => (name === "slm" || name === "llm" ? t(`page.leg_${name}`) : name || t("page.leg_other"));

const model = (turn, name) => (list(turn.drafts).find((draft) => draft.leg === name) || {}).model;

/** The model and what runs it, as in "phi-4-mini (Foundry Local, CPU)"; turns of older versions do not tell the latter. */
function served(turn, name) {
  const { model: written, runs_on: where } = list(turn.drafts).find((draft) => draft.leg === name) || {};
  return written && where ? `${written} (${where})` : written;
}

export const left = (turn) => (turn.where && turn.where !== HERE ? turn.where : null);

// --- the line --------------------------------------------------------------------------------------------------------

function who(turn) {
  if (turn.model) return turn.model;
  if (turn.error) return t("page.failed");
  if (turn.stopped) return (list(turn.drafts).at(-1) || {}).model || null;
  return t(list(turn.drafts).length ? "page.no_model_answered" : "page.no_model_asked");
}

/** Tokens read and written by all legs; the models' own figures where there is no bill. */
function tokens(turn) {
  const sum = (name) => list(turn.drafts).reduce((all, draft) => all + ((draft.usage || {})[name] || 0), 0);
  const { input_tokens, output_tokens } = turn.bill || {};
  const spent = { count: input_tokens ?? sum("input_tokens"), output: output_tokens ?? sum("output_tokens") };
  return spent.count || spent.output ? spent : null;
}

function cost(turn) {
  const bill = turn.bill || {};
  if (bill.cost_known === false) return left(turn) ? t("page.cost_unknown") : null;
  return bill.cost > 0 ? money(bill.cost, bill.currency || "") : null;
}

/** Of drafts that were all given up, no server said what it had read. */
export function spentWords({ count, output }, atLeast) {
  if (!count) return t("page.tokens_out_at_least", { count: output });
  return t(atLeast ? "page.tokens_in_out_at_least" : "page.tokens_in_out", { count, output });
}

/** The one line under an answer, in its parts. */
export function summary(turn) {
  const trace = turn.trace || {};
  const spent = tokens(turn);
  const speed = (turn.bill || {}).tokens_per_s;
  const broken = turn.stopped || (!turn.error && list(trace.spans).some((span) => !isNumber(span.duration_ms)));
  const short = turn.standing === "slm" && turn.escalated;
  return [
    who(turn),
    turn.escalated && t(short ? "page.short_kept" : "page.escalated"),
    isNumber(trace.ttft_ms) && t("page.first_token_after", { time: time(trace.ttft_ms) }),
    trace.total_ms > 0 && t("page.total", { time: time(trace.total_ms) }),
    spent && spentWords(spent, (turn.bill || {}).at_least),
    speed > 0 && t("page.speed", { n: number(speed, speed < 10 ? 1 : 0) }),
    cost(turn),
    left(turn) && t("page.sent_to", { host: left(turn) }),
    broken && t("page.stopped"),
  ].filter(Boolean);
}

// --- what was set aside ----------------------------------------------------------------------------------------------

/** What a model wrote and the answer does not say, with the reason: [{title, text, writer}]. */
export function setAside(turn) {
  const verdict = turn.verdict || {};
  const drafts = list(turn.drafts).filter((draft) => draft.text);
  const reason = (draft) => {
    // The verdict is of the small model's draft; it may have accepted a refusal as honest.
    const judged = draft.leg === "slm" || !list(turn.drafts).some((other) => other.leg === "slm");
    return judged && !verdict.accepted && verdict.reason ? verdict.reason : t("page.refused_itself");
  };
  const aside = drafts.filter((draft) => {
    if (turn.refused) return true;
    return turn.escalated && draft.leg === (turn.standing === "slm" ? "llm" : "slm");
  });
  return aside.map((draft) => {
    const count = String(draft.text).trim().split(/\s+/).length;
    const cut = draft.finish_reason === null && !turn.refused ? t("page.stopped_after", { count }) : null;
    let title = t("page.aside_short", { reason: reason(draft) });
    // words: page.aside_refused page.aside_refused_slm page.aside_refused_llm
    const whose = aside.length > 1 ? `_${draft.leg}` : "";
    if (turn.refused) title = t(`page.aside_refused${whose}`, { reason: reason(draft) });
    else if (turn.standing === "slm") title = t("page.aside_larger");
    return { title: full(title), text: String(draft.text), writer: [draft.model, cut].filter(Boolean).join(", ") };
  });
}

// --- the waterfall ---------------------------------------------------------------------------------------------------

/** Rows in the order they began, a leg before what lies in it: {heading, leg, name, text, start, share, length}; `start`
 * and `share` are parts of the whole, `share` is null where it was stopped. */
export function waterfall(turn) {
  const spans = list((turn.trace || {}).spans)
    .filter((span) => isNumber(span.start_ms))
    .map((span, index) => ({ ...span, index, heading: LEG_SPANS.includes(span.name) }))
    .sort((a, b) => a.start_ms - b.start_ms || b.heading - a.heading || a.index - b.index);
  const ends = spans.map((span) => span.start_ms + (span.duration_ms || 0));
  const total = Math.max((turn.trace || {}).total_ms || 0, ...ends, 0.001);
  const share = (ms) => Math.min(1, Math.max(0, ms / total));
  return spans.map((span) => {
    const closed = isNumber(span.duration_ms);
    const writer = model(turn, span.leg) || (span.leg === "slm" ? null : turn.model);
    return {
      heading: span.heading,
      leg: span.leg || "",
      name: span.name,
      text: span.heading ? [leg(span.leg), writer].filter(Boolean).join(": ") : named("span", span.name),
      start: share(span.start_ms),
      share: closed ? share(span.duration_ms) : null,
      length: closed ? time(span.duration_ms) : t("page.stopped"),
    };
  });
}

// --- the verdict -----------------------------------------------------------------------------------------------------

const surely = (logprob) => percent(Math.exp(logprob));
const SEEN = {
  coverage: percent,
  hit_strength: percent,
  hit_margin: percent,
  support: percent,
  alignment: percent,
  mean_logprob: surely,
  fact_logprob: (value) => (value === 0 ? null : surely(value)), // 0: there is no number or name in it
  absent_fact: String,
  wrong_kind: (value) => (value ? t("page.yes") : null),
  refusal: (value) => (value ? t("page.yes") : null),
  looping: (value) => (value ? t("page.yes") : null),
  cut_off: (value) => (value ? t("page.yes") : null),
  sentence: String,
};
const SEEN_CLOSER = {
  missing: percent,
  best_alignment: percent,
  apart: percent,
  elsewhere: percent,
  echo: percent,
  copied: percent,
  verbatim: (value) => t(value ? "page.yes" : "page.no"),
  words: (value) => number(value),
  own_terms: (value) => number(value),
  low_logprob: surely,
  least_logprob: surely,
  own_logprob: surely,
  first_entropy: percent,
  lead: (value) => t("page.times_as_likely", { n: number(Math.exp(value), 1) }),
};

function plainly(value) {
  if (typeof value === "boolean") return t(value ? "page.yes" : "page.no");
  if (isNumber(value)) return number(value);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function seen(signals, names, how) {
  return names
    .filter((name) => signals[name] !== null && signals[name] !== undefined)
    .map((name) => ({ looked: named("signal", name), seen: (how[name] || plainly)(signals[name]) }))
    .filter((row) => row.seen !== null);
}

/** {outcome, score, threshold, calibrated, seen: [{looked, seen}], closer: [...]}; null without a verdict. */
export function verdict(turn) {
  const judged = turn.verdict;
  if (!judged) return null;
  const { score, threshold, accepted, reason } = judged;
  const { calibrated = false, ...signals } = judged.signals || {};
  const others = Object.keys(signals).filter((name) => !(name in SEEN) && !(name in SEEN_CLOSER));
  const asked = list(turn.drafts).length > 0;
  let outcome = t("page.verdict_silent", { reason, percent: percent(threshold) });
  if (asked) {
    const rejected = turn.escalated ? "page.verdict_escalated" : "page.verdict_rejected";
    outcome = t(accepted ? "page.verdict_accepted" : rejected);
    // Where a draft was set aside, the reason stands there; of one that was sure enough, the scale below tells it.
    const told = setAside(turn).length || (accepted && !signals.refusal);
    if (reason && !told) outcome += ` ${t("page.because", { reason })}`;
  }
  return {
    asked,
    outcome,
    score: asked && isNumber(score) ? score : null,
    threshold: isNumber(threshold) ? threshold : null,
    calibrated,
    seen: seen(signals, Object.keys(SEEN), SEEN),
    closer: seen(signals, [...Object.keys(SEEN_CLOSER), ...others], SEEN_CLOSER),
  };
}

// --- what was sent ---------------------------------------------------------------------------------------------------

const LEFT_OUT = {
  duplicate: "page.left_duplicate",
  "adds nothing": "page.left_adds_nothing",
  "no room": "page.left_no_room",
};

/** For each leg that was asked: {leg, title, share, told, passages, sent, leftOut}; `share` is how full its window is,
 * `passages` how much of it they are; both null where the window is not known. */
export function ledgers(turn) {
  return Object.entries(turn.ledger || {})
    .filter(([, entry]) => entry)
    .map(([name, entry]) => {
      const usage = (list(turn.drafts).find((draft) => draft.leg === name) || {}).usage;
      const measured = usage && isNumber(usage.input_tokens) ? usage.input_tokens : null;
      const read = measured ?? entry.prompt_tokens_estimated ?? 0;
      const window = entry.window_tokens;
      const told = { count: read, window: window || 0, percent: window ? percent(read / window) : "" };
      // words: page.window_about page.window_unknown_about
      const key = `${window ? "page.window" : "page.window_unknown"}${measured === null ? "_about" : ""}`;
      const counted = (key, count) => (count ? t(key, { count }) : null);
      const reasons = Object.entries(entry.left_out || {}).map(([reason, count]) =>
        LEFT_OUT[reason] ? counted(LEFT_OUT[reason], count) : count && `${number(count)} × ${reason}`,
      );
      return {
        leg: name,
        title: [leg(name), served(turn, name)].filter(Boolean).join(": "),
        share: window ? Math.min(1, read / window) : null,
        passages: window ? Math.min(1, (entry.evidence_tokens_estimated || 0) / window) : null,
        told: t(key, told),
        sent: enumerated(
          [
            t("page.passages_sent", { count: entry.passages_sent || 0 }),
            counted("page.passages_merged", entry.passages_merged),
            counted("page.turns_sent", entry.turns_sent),
          ].filter(Boolean),
        ),
        leftOut: enumerated([...reasons, counted("page.turns_left_out", entry.turns_left_out)].filter(Boolean)),
      };
    });
}

// --- what it took ----------------------------------------------------------------------------------------------------

const METERS = { "RAPL, package": "page.meter_rapl", battery: "page.meter_battery" };
const ESTIMATES = {
  "estimated from CPU time": "page.energy_from_cpu",
  "estimated from computing time": "page.energy_from_computing",
};

/** Of a turn's bill, or of the sum of several: how much energy, and how that is known; null where there is none to tell.
 * Bills of older versions do not say how: all were estimated alike. */
export function energyWords({ energy_j: joules, energy_source: source, watts }) {
  if (!(joules > 0)) return null;
  const known = (source || "estimated from computing time").split(" + ");
  const how = enumerated(known.filter((name) => name in ESTIMATES).map((name) => t(ESTIMATES[name])));
  const by = enumerated(known.filter((name) => !(name in ESTIMATES)).map((name) => (METERS[name] ? t(METERS[name]) : name)));
  const told = { energy: energy(joules), how, by, watts: isNumber(watts) ? number(watts) : "" };
  if (!how) return t("page.energy_measured", told);
  // words: page.energy_estimated page.energy_estimated_about page.energy_partly page.energy_partly_about
  return t(`page.energy_${by ? "partly" : "estimated"}${told.watts ? "" : "_about"}`, told);
}

/** What a model took of this machine; nothing of what is not known. */
function taken(used) {
  const { cpu_s: cpu, peak_memory_mb: most, gpu_memory_mb: gpu, gpu_share: share } = used || {};
  return [
    cpu > 0 && t("page.cpu_time_of", { time: time(cpu * 1000) }),
    isNumber(most) && t("page.memory_at_most", { size: memory(most) }),
    isNumber(share) && t("page.gpu_share", { percent: percent(share) }),
    isNumber(gpu) && t("page.gpu_memory_at_most", { size: memory(gpu) }),
  ].filter(Boolean);
}

/** Rows of two: what, how much. */
export function bill(turn) {
  const all = turn.bill || {};
  const resources = { ...all.resources };
  const rows = list(turn.drafts)
    .filter((draft) => draft.usage)
    .map((draft) => {
      const { input_tokens: count, output_tokens: output } = draft.usage;
      const cut = draft.finish_reason === "length" ? `, ${t("page.cut_at_limit")}` : "";
      const used = t("page.tokens_read_written", { count: count || 0, output: output || 0 });
      const told = [used + cut, ...taken(resources[draft.leg])];
      delete resources[draft.leg];
      return [draft.model || leg(draft.leg), told.join(" · ")];
    });
  for (const [name, used] of Object.entries(resources)) {
    // One whose draft was given up, or broke off, has used this machine all the same.
    if (taken(used).length) rows.push([model(turn, name) || leg(name), taken(used).join(" · ")]);
  }
  if (all.tokens_per_s > 0) rows.push([t("page.speed_name"), t("page.speed", { n: number(all.tokens_per_s, 1) })]);
  if (cost(turn)) rows.push([t("page.cost_name"), cost(turn)]);
  if (energyWords(all)) rows.push([t("page.energy_name"), energyWords(all)]);
  return rows;
}

// --- its sources -----------------------------------------------------------------------------------------------------

/** The answer as text, with the places that its marks stand for. */
export function copied(turn, text) {
  const sources = list(turn.citations).map((cited) => `[${cited.marker}] ${place(cited)}`);
  return [text, sources.join("\n")].filter(Boolean).join("\n\n");
}

window.smallFirst = Object.assign(window.smallFirst || {}, {
  turns: { list, left, summary, setAside, waterfall, verdict, ledgers, bill, copied },
});
