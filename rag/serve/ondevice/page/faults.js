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

const MEMORY = /out of memory|\boom\b|memory|alloc|invalid array (buffer )?length|could not allocate/i;

/** What an engine threw, as a Fault. `starting`: the model was not running yet. */
export function faultOf(error, starting) {
  if (error instanceof Fault || error instanceof Stopped) return error;
  const text = String(error?.message ?? error).replace(/\s+/g, " ").trim();
  if (error instanceof RangeError || MEMORY.test(text)) return new Fault("ondevice.wrong_memory", {}, "small");
  const detail = text.slice(0, 160).replace(/[.\s]+$/, "") || "?";
  return new Fault(starting ? "ondevice.wrong_not_started" : "ondevice.wrong_crashed", { detail }, starting ? "small" : "retry");
}
