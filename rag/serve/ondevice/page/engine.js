// The model in this browser: wllama, started on a file, asked, stopped, and watched so that it cannot hang for ever.
//
// It knows wllama and its log; it knows no server but for the engine's own code, which is fetched once and then held in
// memory, so that another way of running can be chosen when the server has gone. Errors are `Fault`s.

import { Wllama } from "./vendor/3.8.1/index.min.js";
import { usedGpu } from "./capability.js";
import { Fault, Stopped, faultOf } from "./faults.js";
import { pageAddress } from "./server.js";
import { t, time } from "./texts.js";

const CODE = pageAddress("vendor/3.8.1/wllama.wasm");
// The longest silence before it is taken for dead, in seconds. Each step of reading or writing breaks it.
const START_S = 60;
const ASK_S = 120;
// So many tokens are read between two looks at whether to stop; more would be hardly faster.
const STEP_TOKENS = 32;
const LOGGED = 4000;

let code = null; // a promise of the engine's code as a Blob

/** The engine's code, from now on in memory. */
export function fetchCode() {
  code ??= fetch(CODE, { signal: AbortSignal.timeout(START_S * 1000) }).then((answer) => {
    if (!answer.ok) throw new Error(String(answer.status));
    return answer.blob();
  });
  code.catch(() => {
    code = null;
  });
  return code;
}

let started = false;

/** The code's own address lets the browser reuse what it compiled; after the first start the copy in memory serves. */
async function codeAddress() {
  let copy;
  try {
    copy = await fetchCode();
  } catch {
    throw new Fault("ondevice.wrong_code", {}, "retry");
  }
  if (!started) {
    started = true;
    return CODE;
  }
  return URL.createObjectURL(new Blob([copy], { type: "application/wasm" }));
}

export class Engine {
  constructor() {
    this.wllama = null;
    this.run = null; // which start it is: another one gives up what was under way
    this.preparing = null;
    this.log = [];
    this.heard = 0;
  }

  get running() {
    return this.wllama !== null;
  }

  /** Start on a file: {gpu, threads} as planned, `window` in tokens.
   *
   * Returns {where, why, compile_ms, load_ms, gpu, way}: where it runs, in words, and by a name for `kept.times`. */
  async start(file, planned, window) {
    const run = (this.run = {});
    await this.quit();
    this.of(run);
    this.log = [];
    const address = await this.watched(codeAddress(), 2 * START_S, null);
    this.of(run);
    const note = (...words) => {
      this.heard = performance.now();
      if (this.log.length < LOGGED) this.log.push(words.map((word) => (typeof word === "string" ? word : "")).join(" "));
      if (words[0] === "Loading model...") this.compiled = performance.now();
    };
    const logger = { debug: note, log: note, warn: note, error: note };
    // A cache of its own it would make where the browser stores no files, too, and fail; it has nothing to cache.
    const wllama = new Wllama({ default: address }, { logger, cacheManager: {} });
    wllama.setCompat(null); // never from elsewhere
    const began = performance.now();
    this.compiled = began;
    this.starting = wllama;
    try {
      await this.watched(
        wllama.loadModel([file], {
          n_ctx: window,
          n_threads: planned.threads,
          n_gpu_layers: planned.gpu ? undefined : 0,
          n_batch: planned.gpu ? 512 : STEP_TOKENS,
          n_ubatch: planned.gpu ? 512 : STEP_TOKENS,
          n_parallel: 1,
          warmup: planned.gpu, // it compiles the shaders
        }),
        START_S,
        wllama,
      );
      // It is silent about a file that it could not read, and about a window that it could not make room for.
      const { success, n_vocab, n_ctx } = wllama.getLoadedContextInfo();
      if (!success || !n_vocab || !n_ctx) throw new Fault("ondevice.wrong_not_loaded", {}, "small");
    } catch (error) {
      await end(wllama);
      throw faultOf(error, true);
    } finally {
      if (address !== CODE) URL.revokeObjectURL(address);
      if (this.starting === wllama) this.starting = null;
    }
    if (this.run !== run) {
      await end(wllama);
      throw new Stopped();
    }
    this.wllama = wllama;
    return { ...this.told(planned), compile_ms: this.compiled - began, load_ms: performance.now() - this.compiled };
  }

  /** Nothing of a start, or of a question to it, goes on after another one. */
  of(run) {
    if (this.run !== run) throw new Stopped();
  }

  told(planned) {
    const used = planned.gpu ? usedGpu(this.log) : null;
    const why = [...planned.why];
    if (used) why.unshift(t("ondevice.why_gpu_used", used));
    else if (planned.gpu) why.unshift(t("ondevice.why_gpu_unused"));
    const threads = this.wllama.getNumThreads();
    const cpu = threads > 1 ? t("ondevice.where_threads", { count: threads }) : t("ondevice.where_single");
    return { where: used ? t("ondevice.where_gpu", used) : cpu, why, gpu: used !== null, threads, way: used ? "gpu" : `threads-${threads}` };
  }

  /** Read what every prompt begins with, until something is asked: whatever is read by then, no question waits for. */
  prepare(messages) {
    const stop = new AbortController();
    const on = { reading: () => {}, text: () => {} };
    const work = this.ask(messages, { max_tokens: 1, signal: stop.signal, on }).catch(() => {});
    const mine = (this.preparing = { stop: () => stop.abort(), work });
    work.then(() => {
      if (this.preparing === mine) this.preparing = null;
    });
  }

  /** Answer `messages`. `on` hears `reading(share)` and `text(piece)`; `run` is the start that the question was put to.
   *
   * Returns {text, tokens, finish_reason, read_tokens, kept_tokens, rate}; `tokens` are OpenAI's logprobs, [] unless all. */
  async ask(messages, { max_tokens, signal, on, run = this.run }) {
    if (this.run) this.of(run);
    if (this.preparing) {
      // What it has read by then stays read, if this prompt begins so, too.
      this.preparing.stop();
      await this.preparing.work;
      if (signal.aborted) throw new Stopped();
      if (this.run) this.of(run);
    }
    const wllama = this.wllama;
    if (!wllama) throw new Fault("ondevice.fail_not_loaded", { detail: "" }, "retry");
    const answer = { text: "", tokens: [], finish_reason: null, read_tokens: null, kept_tokens: 0, rate: null };
    const take = (chunk) => {
      this.heard = performance.now();
      if (signal.aborted) return;
      const progress = chunk.prompt_progress;
      if (progress) on.reading(progress.processed / Math.max(1, progress.total));
      const [choice] = chunk.choices ?? [];
      const piece = choice?.delta?.content;
      if (piece) {
        answer.text += piece;
        on.text(piece);
      }
      answer.tokens.push(...(choice?.logprobs?.content ?? []));
      answer.finish_reason = choice?.finish_reason ?? answer.finish_reason;
      if (chunk.timings) {
        answer.read_tokens = chunk.timings.prompt_n + chunk.timings.cache_n;
        answer.kept_tokens = chunk.timings.cache_n;
        answer.rate = chunk.timings.predicted_n > 1 ? chunk.timings.predicted_per_second : null;
      }
    };
    const wanted = {
      messages, max_tokens, temperature: 0, stream: true, logprobs: true, top_logprobs: 5, cache_prompt: true,
      return_progress: true, abortSignal: signal, onData: take,
    }; // prettier-ignore
    try {
      await this.watched(wllama.createChatCompletion(wanted), ASK_S, wllama);
    } catch (error) {
      if (signal.aborted || error.name === "AbortError" || error instanceof Stopped) throw new Stopped();
      const long = /\((\d+) tokens\) exceeds the available context size \((\d+) tokens\)/.exec(String(error.message));
      if (long) throw new Fault("ondevice.ask_too_long", { tokens: Number(long[1]), window: Number(long[2]) });
      const fault = faultOf(error, false);
      if (this.run === run) await this.stop();
      throw fault;
    }
    if (signal.aborted) throw new Stopped();
    return answer;
  }

  /** The work, unless nothing is heard of it for so long. */
  async watched(work, seconds, wllama) {
    this.heard = performance.now();
    let watch, give_up;
    const hung = new Promise((_, reject) => {
      watch = setInterval(() => {
        if (performance.now() - this.heard < seconds * 1000) return;
        if (wllama) end(wllama);
        if (this.wllama === wllama) this.wllama = null;
        reject(new Fault("ondevice.wrong_hung", { time: time(seconds * 1000) }, "small"));
      }, 500);
      give_up = this.give_up = (why) => reject(why ?? new Stopped());
    });
    try {
      return await Promise.race([work, hung]);
    } finally {
      clearInterval(watch);
      if (this.give_up === give_up) this.give_up = null;
    }
  }

  /** End the model and give its memory back; a question under way is told the Fault `why`. */
  async stop(why = null) {
    this.run = null;
    await this.quit(why);
  }

  async quit(why = null) {
    const running = this.wllama ?? this.starting;
    this.wllama = this.starting = null;
    this.give_up?.(why);
    if (running) await end(running);
  }
}

async function end(wllama) {
  try {
    await wllama.exit();
  } catch {
    // It had ended already.
  }
}
