// The model in this browser as the page shows it: which one, where it runs, how far it is, what was measured.
//
// It brings the weights and starts the engine, and tells what goes wrong with a way on. It knows nothing of questions.

import * as capability from "./capability.js";
import { Engine, fetchCode } from "./engine.js";
import { Fault, Stopped } from "./faults.js";
import * as kept from "./kept.js";
import { button, element, put, the } from "./nodes.js";
import { Gone, Refusal } from "./server.js";
import * as storage from "./storage.js";
import { amount, size, t, time } from "./texts.js";
import * as weights from "./weights.js";

const WAYS = ["auto", "gpu", "threads", "single"];
const SHORT = "1024";

export class Panel {
  constructor() {
    this.engine = new Engine();
    this.models = [];
    this.model = null;
    this.files = new Map(); // model files of this visit, for when the server has gone
    this.bringing = null;
    this.fetching = null; // the last work on a file, which a later one waits for
    this.trouble = ""; // what went wrong, as it is shown
    this.fresh_ms = 0; // of a start that no question has told of yet
    this.changed = () => {};
    const { way = "auto", window: chosen = "2048" } = kept.settings();
    if (WAYS.includes(way)) the("way").value = way;
    the("window").value = chosen;
    if (!the("window").value) the("window").value = "2048";
    // What is below the pointer changes with a click: the second one of a double click means nothing.
    const second = (event) => event.detail > 1 && (event.preventDefault(), event.stopPropagation());
    the("start").closest("section").addEventListener("click", second, { capture: true });
    the("start").addEventListener("click", () => (this.bringing ? this.cancel() : this.start().catch(() => {})));
    the("forget").addEventListener("click", () => this.forget());
    the("model").addEventListener("change", () => this.choose(the("model").value));
    for (const id of ["way", "window"]) {
      the(id).addEventListener("change", () => {
        kept.keepSettings({ [id]: the(id).value });
        if (this.engine.running || this.bringing) this.start().catch(() => {});
      });
    }
  }

  get window() {
    return Number(the("window").value);
  }

  /** A stored model is started at once. */
  async open() {
    fetchCode().catch(() => {}); // told when it is needed
    try {
      await this.offer();
    } catch (error) {
      return this.fail(error);
    }
    return this.choose(this.model.name);
  }

  /** What the server offers, or, if it is not there, what was offered last time. */
  async offer() {
    let found = kept.settings().offered;
    try {
      found = await weights.list();
      kept.keepSettings({ offered: found });
    } catch (error) {
      if (!found) throw error instanceof Gone ? new Fault("ondevice.wrong_gone_before", {}, "retry") : error;
    }
    this.models = found.models;
    const select = the("model");
    select.replaceChildren();
    for (const model of this.models) {
      const option = element("option", "", select, t("ondevice.model_option", { name: model.name, size: size(model.bytes) }));
      option.value = model.name;
    }
    this.take(this.models.find((model) => model.name === kept.settings().model)?.name ?? found.default);
  }

  take(name) {
    this.model = this.models.find((model) => model.name === name) ?? this.models[0];
    the("model").value = this.model.name;
    put(the("license"), t("ondevice.model_license", this.model));
    this.showTimes();
  }

  async choose(name) {
    const was = this.model;
    this.take(name);
    if (was !== this.model) kept.keepSettings({ model: this.model.name });
    const stored = this.files.has(this.model.file) || (await weights.stored(this.model));
    this.noteStored();
    try {
      capability.check();
    } catch (fault) {
      return this.fail(fault);
    }
    if (was !== this.model && (this.engine.running || this.bringing)) return this.start().catch(() => {});
    if (stored) return this.start().catch(() => {});
    this.clear();
    return this.idle();
  }

  /** Bring the weights and start; a start under way is given up for this one. Raises a Fault, which is shown too. */
  async start() {
    this.bringing?.abort();
    const mine = (this.bringing = new AbortController());
    // Below the pointer, nothing moves.
    the("model-state").style.minHeight = `${the("model-state").offsetHeight}px`;
    this.clear();
    put(the("start"), t("ondevice.model_cancel"));
    the("start").className = "quiet";
    this.changed();
    try {
      capability.check();
      this.say("ondevice.model_looking");
      await this.engine.stop();
      if (!this.model) await this.offer();
      const { model } = this;
      const brought = await this.bring(model, mine.signal);
      const planned = await capability.plan(the("way").value);
      mine.signal.throwIfAborted();
      this.say("ondevice.model_starting");
      the("bar").removeAttribute("value");
      const began = performance.now();
      let started;
      try {
        started = await this.engine.start(brought.file, planned, this.window);
      } catch (error) {
        throw await this.reason(error, model, brought.file, mine.signal);
      }
      mine.signal.throwIfAborted();
      this.fresh_ms = performance.now() - began + brought.ms;
      this.started = { ...started, from: brought.from, model, file: brought.file };
      const { compile_ms, load_ms, gpu, way } = started;
      // The rest of a file is not what the whole takes.
      const weights_ms = brought.resumed || brought.from === "memory" ? null : brought.ms;
      kept.keepTimes(model.file, way, brought.from, { weights_ms, compile_ms, load_ms, gpu });
      this.showTimes(brought.from, started.way);
      this.mend();
      this.say("ondevice.model_ready", { name: model.name, where: started.where });
      for (const why of started.why) element("li", "", the("why"), why);
      the("why").hidden = false;
    } catch (error) {
      if (error instanceof Stopped || mine.signal.aborted) throw new Stopped();
      this.fail(error);
      throw error;
    } finally {
      if (this.bringing === mine) {
        this.bringing = null;
        the("progress").hidden = true;
        the("model-state").style.minHeight = "";
        if (mine.signal.aborted && !this.engine.running) this.idle();
        this.noteStored();
        this.offerStart();
        this.changed();
        this.examine();
      }
    }
  }

  offerStart() {
    put(the("start"), t(this.engine.running ? "ondevice.model_restart" : "ondevice.model_start"));
    the("start").className = this.engine.running ? "quiet" : "main";
  }

  async noteStored() {
    const any = await storage.holds();
    the("forget").hidden = !any || !the("progress").hidden; // what is being written cannot be deleted
  }

  /** Why the engine did not start on a file: that it is damaged, or else what the engine says. */
  async reason(error, model, file, signal) {
    if (error instanceof Stopped || signal.aborted || error.key === "ondevice.wrong_code") return error;
    this.say("ondevice.model_checking");
    if ((await weights.whole(file, model)) || signal.aborted) return error;
    return this.discard(model);
  }

  /** Throws a damaged file away. Returns the Fault that says so. */
  discard(model) {
    this.files.delete(model.file);
    const thrown = weights.discard(model);
    this.fetching = thrown;
    return thrown;
  }

  /** Is the file of the running model whole, as far as that can be told? Where it is damaged, the model is ended, the file
   * thrown away, and that is said, unless another start is on its way: that one asks again. A file is read only once. */
  async examine() {
    const { engine, started } = this;
    const { run } = engine;
    if (!started || (await weights.whole(started.file, started.model))) return true;
    const over = () => !engine.running || engine.run !== run || this.bringing;
    if (over()) return false;
    const why = await this.discard(started.model);
    if (over()) return false;
    engine.stop(why);
    this.clear();
    this.fail(why);
    this.noteStored();
    this.offerStart();
    this.changed();
    return false;
  }

  cancel() {
    this.bringing.abort();
    this.engine.stop();
    this.idle();
  }

  idle() {
    if (!this.model) return put(the("model-state"), "");
    this.say("ondevice.model_idle", { name: this.model.name, size: size(this.model.bytes) });
  }

  async bring(model, signal) {
    await this.fetching; // which was given up
    signal.throwIfAborted();
    const known = this.files.get(model.file);
    const begin = await known?.slice(0, 4).text().catch(() => "");
    if (begin === "GGUF") return { file: known, from: "memory", ms: 0, resumed: false };
    const bringing = weights.bring(model, {
      signal,
      tell: (key, { done = 0, total = 0 } = {}) => {
        if (signal.aborted) return;
        this.say(key);
        the("forget").hidden = true;
        put(the("amount"), total ? amount(done, total) : ""); // not to be read out at each of its changes
        the("progress").hidden = false; // it takes the room that was held
        the("model-state").style.minHeight = "";
        if (total) the("bar").value = done / total;
        else the("bar").removeAttribute("value");
      },
      note: (key, values) => element("p", "note", the("model-notes"), t(key, { ...values, detail: values.detail || t("ondevice.stored_private") })),
    });
    this.fetching = bringing.catch(() => {});
    const brought = await bringing;
    this.files.set(model.file, brought.file);
    return brought;
  }

  /** What it says that it is doing, with how much of it is done. */
  get doing() {
    return [the("model-state").textContent, the("progress").hidden ? "" : the("amount").textContent].filter(Boolean).join(" · ");
  }

  say(key, values) {
    put(the("model-state"), t(key, values));
  }

  /** What went wrong before does so no longer. */
  mend() {
    this.trouble = "";
    for (const one of the("model-notes").querySelectorAll(".failure, button")) one.remove();
  }

  clear() {
    this.trouble = "";
    the("model-notes").replaceChildren();
    the("why").replaceChildren();
    the("why").hidden = true;
  }

  fail(error) {
    const said = error instanceof Fault || error instanceof Refusal;
    if (!said) console.error(error);
    const fault = said ? error : new Fault("ondevice.wrong_not_started", { detail: error.message || error.name }, "retry");
    this.trouble = fault.message;
    put(the("model-state"), "");
    the("model-notes").replaceChildren();
    const place = element("p", "failure", the("model-notes"), fault.message);
    place.setAttribute("role", "alert");
    const again = () => (this.model ? this.start() : this.open()).catch(() => {});
    if (fault.way === "again") button(t("ondevice.model_again"), the("model-notes"), again);
    if (fault.way === "retry" || fault instanceof Refusal) button(t("page.retry"), the("model-notes"), again);
    if (fault.way === "small") {
      button(t("ondevice.model_small"), the("model-notes"), () => {
        the("way").value = "single";
        the("window").value = SHORT;
        kept.keepSettings({ way: "single", window: SHORT });
        again();
      });
    }
  }

  async forget() {
    try {
      await storage.clear();
    } catch (error) {
      element("p", "note", the("model-notes"), t("ondevice.forget_refused", { detail: error.message || t("ondevice.stored_private") }));
      return;
    }
    this.files.clear();
    the("forget").hidden = true;
    element("p", "note", the("model-notes"), t("ondevice.model_deleted"));
  }

  /** Rows of what was measured, of one way of running; `now` is where the weights came from just now. */
  showTimes(now = null, way = undefined) {
    const found = kept.times(this.model.file, way);
    const any = found.storage ?? found.server ?? found.memory;
    the("times").hidden = !any;
    the("times-memory").hidden = !found.memory;
    const sources = found.memory ? ["server", "storage", "memory"] : ["server", "storage"];
    // words: ondevice.times_server ondevice.times_storage ondevice.times_memory
    // words: ondevice.times_server_now ondevice.times_storage_now ondevice.times_memory_now
    for (const from of sources) put(the(`times-${from}`), t(`ondevice.times_${from}${from === now ? "_now" : ""}`));
    const body = the("times-body");
    body.replaceChildren();
    const gpu = any?.gpu;
    // words: ondevice.times_weights ondevice.times_compile ondevice.times_load ondevice.times_load_gpu
    for (const [key, name] of [["weights", "weights_ms"], ["compile", "compile_ms"], [gpu ? "load_gpu" : "load", "load_ms"]]) {
      const row = element("tr", "", body);
      element("th", "", row, t(`ondevice.times_${key}`)).scope = "row";
      for (const from of sources) {
        const ms = found[from]?.[name] ?? null;
        element("td", from === now ? "now" : "", row, ms === null ? "–" : time(ms));
      }
    }
  }
}
