// What can go wrong, told to a person: a `Fault` is a sentence and what to do next. Anything else is a bug.

import { t } from "./texts.js";

export class Fault extends Error {
  /** `way` names the button that helps: "again" (fetch anew), "small" (one thread, short window), "retry", or "". */
  constructor(key, values = {}, way = "") {
    super(t(key, values));
    this.key = key;
    this.way = way;
  }
}

/** The user pressed Stop. */
export class Stopped extends Error {}

// What an engine says of its end when it knows no more than that it came to one.
const NOTHING_MORE = /^\W*(runtimeerror\W+)?(abort(ed)?\W*)?(native code called abort|unknown error|unreachable)?\W*$/i;
const MEMORY = /out of memory|\boom\b|memory|alloc|invalid array (buffer )?length|could not allocate/i;

/** What an engine threw, as a Fault. `starting`: the model was not running yet. */
export function faultOf(error, starting) {
  if (error instanceof Fault || error instanceof Stopped) return error;
  const text = String(error?.message ?? error).replace(/\s+/g, " ").trim();
  if (error instanceof RangeError || MEMORY.test(text)) return new Fault("ondevice.wrong_memory", {}, "small");
  const way = starting ? "small" : "retry";
  const bare = starting ? "ondevice.wrong_not_started_bare" : "ondevice.wrong_crashed_bare";
  if (NOTHING_MORE.test(text)) return new Fault(bare, {}, way);
  const detail = text.replace(/^\(ABORT\)\s*/i, "").slice(0, 160).replace(/[.\s]+$/, "");
  return new Fault(starting ? "ondevice.wrong_not_started" : "ondevice.wrong_crashed", { detail }, way);
}
