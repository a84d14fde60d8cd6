// One question put to one model, from its passages to its verdict: in this browser, or on the server.
//
// Each way gets a column to write into and returns what it answered, "" for nothing. It knows the order of the work; what
// is found and how an answer is judged is the server's, and where that is not there, it is said and the browser goes on.

import { Fault, Stopped } from "./faults.js";
import { Gone, Refusal, ask, askJson, events } from "./server.js";
import { t } from "./texts.js";
import * as wording from "./wording.js";

const HISTORY = 3;
// As an earlier turn without an answer is told to a model (rag/turn/prompt.py), whatever language the page speaks.
const REFUSED = "I don't know.";

/** What both POSTs of ours are sent. */
function asked(question, { reference, retrieve, history, model, window, max_tokens }) {
  return { question, reference, retrieve, history: history.slice(-HISTORY), model, window, max_tokens };
}

/** The prompt, and what was found for it; from the reference text alone where the server does not help. */
async function prompted(question, options, column, signal) {
  const { reference, opening, model, window } = options;
  if (!reference.trim() && !options.retrieve) throw new Fault("ondevice.fail_nothing");
  let why;
  try {
    return await askJson("ondevice/prompt", { body: asked(question, options), signal });
  } catch (error) {
    if (signal.aborted) throw new Stopped();
    if (!(error instanceof Gone || error instanceof Refusal)) throw error;
    // What is wrong with the question itself, the server says best.
    if (error instanceof Refusal && ![401, 403, 404, 429].includes(error.status) && error.status < 500) throw error;
    why = error;
  }
  if (!reference.trim() || !opening) throw why instanceof Gone ? new Fault("ondevice.fail_gone_nothing") : why;
  const note = why instanceof Gone ? "ondevice.note_gone" : why.of_key ? "ondevice.note_key" : "ondevice.note_refused";
  column.note(t(note, { detail: why.message.replace(/[.。]$/, "") }));
  if (options.history.length) column.note(t("ondevice.note_alone"));
  const evidence = wording.nearest(question, reference, opening.passage_chars);
  if (evidence.length < reference.trim().length) column.note(t("ondevice.note_reference_cut"));
  return { messages: wording.messages(opening, model, window, question, evidence), alone: true, notes: [], hits: [], read: [] };
}

/** The model in this browser. `options.engine` is an Engine that runs; `found` hears what passages there are. */
export async function inBrowser(question, options, column, { signal, found }) {
  column.phase("ondevice.state_searching");
  const prompt = await prompted(question, options, column, signal);
  found(prompt);
  if (prompt.silent) {
    silent(prompt.answer, column);
    return REFUSED;
  }
  prompt.notes.forEach((note) => column.note(note));
  column.phase("ondevice.state_reading");
  const on = {
    reading: (share) => share < 1 && column.phase("ondevice.state_reading_share", { percent: Math.round(100 * share) }),
    text: (piece) => {
      if (column.first === null) column.phase("ondevice.state_writing");
      column.write(piece);
    },
  };
  const { engine, run, max_tokens } = options;
  const written = await engine.ask(prompt.messages, { max_tokens, signal, on, run });
  column.end();
  // A model that counts no more is damaged, or this browser's GPU is: its words mean nothing.
  if (!written.tokens.every((token) => Number.isFinite(token.logprob))) {
    column.stand("");
    throw new Fault((await options.examine()) ? "ondevice.fail_no_numbers" : "ondevice.fail_damaged");
  }
  const tokens = written.tokens.length;
  column.tell({ tokens, rate: written.rate, read: written.read_tokens, kept: written.kept_tokens });
  if (!written.text.trim()) {
    column.phase("ondevice.state_empty");
    return "";
  }
  column.phase("turn.phase_judge");
  const judging = {
    ...asked(question, prompt.alone ? { ...options, retrieve: false } : options),
    answer: written.text,
    finish_reason: written.finish_reason === "length" ? "length" : "stop",
    tokens: written.tokens.map(bare),
  };
  const answer = await judged(judging, column, signal);
  if (answer === null && judging.finish_reason === "length") column.note(t("turn.note_cut_off"));
  column.phase();
  return answer ?? written.text;
}

/** The documents are silent: it was answered without asking a model. */
function silent(answer, column) {
  column.stand(answer);
  column.first = null; // no token was waited for
  column.end();
  column.tell({});
  column.phase("ondevice.note_silent");
  column.judge(null, t("ondevice.verdict_none", { why: t("ondevice.verdict_silent") }));
}

/** That an answer was cut off is said once: by the verdict, if that is its reason. */
function notes(said, verdict, column) {
  const told = verdict?.reason === t("turn.reason_cut_off");
  for (const note of said) if (!told || note !== t("turn.note_cut_off")) column.note(note);
}

/** Of a token, what judging needs. */
function bare({ token, logprob, top_logprobs = [] }) {
  return { token, logprob, top_logprobs: top_logprobs.map((rival) => ({ token: rival.token, logprob: rival.logprob })) };
}

/** The server's verdict on an answer, shown; the answer with its sources, or null where nobody judged it. */
async function judged(body, column, signal) {
  let found;
  try {
    found = await askJson("ondevice/verdict", { body, signal });
  } catch (error) {
    if (!(error instanceof Gone || error instanceof Refusal) && !signal.aborted) throw error;
    const why = signal.aborted ? t("ondevice.verdict_stopped") : error instanceof Gone ? t("ondevice.verdict_gone") : null;
    column.judge(null, why ?? t("ondevice.verdict_none", { why: error.message }));
    return null;
  }
  if (body.engine !== "llm") column.stand(found.answer, found.citations);
  if (body.engine !== "llm") notes(found.notes, found.verdict, column);
  const grounds = t(found.with_logprobs ? "ondevice.verdict_grounds_tokens" : "ondevice.verdict_grounds_words");
  column.judge(found.verdict, found.verdict ? grounds : t("ondevice.verdict_refused"));
  return found.refused ? REFUSED : found.answer;
}

/** Its address below the server's own, as the page knows that; the text that was pasted has none. */
function placed(citation) {
  const { protocol, pathname, search, hash } = new URL(citation.url);
  return { ...citation, address: protocol === "attachment:" ? null : `${pathname.slice(1)}${search}${hash}` };
}

/** A model of the server, "slm" or "llm", by its OpenAI-compatible API. */
export async function onServer(engine, question, options, column, { signal }) {
  column.phase("ondevice.state_asking");
  const messages = options.history.slice(-HISTORY).flatMap((said) => [
    { role: "user", content: said.question },
    { role: "assistant", content: said.answer },
  ]);
  const content = [{ type: "text", text: question }];
  if (options.reference.trim()) content.push(attached(options.reference));
  messages.push({ role: "user", content: content.length > 1 ? content : question });
  const body = { model: `smallfirst-${engine}`, messages, stream: true, max_tokens: options.max_tokens };
  let turn = null;
  try {
    const answer = await ask("v1/chat/completions", { body, signal, patient: true });
    for await (const event of events(answer, signal)) {
      if (event.error) throw new Refusal(500, event.error.message);
      if (event.smallfirst?.trace) turn = event.smallfirst;
      const piece = event.choices?.[0]?.delta?.content;
      if (!piece) continue;
      if (column.first === null) column.phase("ondevice.state_writing");
      column.write(piece);
    }
  } catch (error) {
    if (signal.aborted) throw new Stopped();
    if (error instanceof Gone) throw new Fault(column.answer ? "ondevice.fail_gone_middle" : "ondevice.fail_gone");
    throw error;
  }
  column.end();
  if (!turn) {
    column.tell({});
    column.phase();
    return column.answer;
  }
  if (!turn.drafts.length) {
    silent(turn.answer, column);
    notes(turn.notes, null, column);
    return turn.answer;
  }
  const load = turn.trace.spans.filter((span) => span.name === "load").reduce((sum, span) => sum + span.duration_ms, 0);
  if (load) column.loaded(load);
  const draft = turn.drafts.findLast((one) => one.leg === engine) ?? turn.drafts.at(-1);
  const tokens = draft?.usage?.output_tokens;
  const writing = turn.trace.spans.findLast((span) => span.name === "completion")?.duration_ms;
  const rate = tokens > 1 && writing ? (1000 * (tokens - 1)) / writing : null;
  column.tell({ tokens, rate, read: draft?.usage?.input_tokens });
  column.model.textContent = turn.model ?? "";
  column.stand(turn.answer, turn.citations.map(placed));
  notes(turn.notes, turn.verdict, column);
  column.phase();
  if (turn.refused) column.judge(null, t("ondevice.verdict_refused"));
  else if (turn.verdict) column.judge(turn.verdict, t("ondevice.verdict_grounds_turn"));
  else {
    column.phase("turn.phase_judge");
    await judged({ ...asked(question, { ...options, retrieve: true }), engine: "llm", answer: turn.answer }, column, signal);
    column.phase();
  }
  return turn.answer;
}

/** The reference text as a file of the message. */
function attached(text) {
  const bytes = new TextEncoder().encode(text);
  let binary = "";
  for (let at = 0; at < bytes.length; at += 8192) binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
  const file_data = `data:text/plain;base64,${btoa(binary)}`;
  return { type: "file", file: { filename: "reference.txt", file_data } };
}
