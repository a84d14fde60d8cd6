// One model's file, from this browser's storage or from the server: fetched, checked, kept.
//
// It knows the server's list of models and the storage. A file is trusted for its size, its first bytes and, when it has
// just been fetched, its SHA-256, where the browser can tell; one from the storage is hashed when somebody asks (`whole`).
// A damaged one is thrown away and told as a Fault. A fetch that broke off is gone on with.

import { Fault } from "./faults.js";
import { Gone, Refusal, ask, askJson } from "./server.js";
import * as storage from "./storage.js";
import { amount } from "./texts.js";

const MAGIC = "GGUF";
const LOOK_AGAIN_MS = 700;
// The whole file must be in memory to be hashed.
const HASHED_BYTES = 700e6;

/** What the server has: {default, models: [{name, file, bytes, sha256, license, from, state, done_bytes, detail}]}. */
export const list = () => askJson("ondevice/models");

async function damage(file, model) {
  if (file.size !== model.bytes) return ["size", { count: file.size, wanted: model.bytes }];
  const begin = await file.slice(0, 4).text();
  return begin === MAGIC ? null : ["magic", {}];
}

const looked = new WeakMap(); // by file, what became of hashing it: once is enough, and whoever asks meanwhile waits

function wrongHash(file, model) {
  if (!looked.has(file)) looked.set(file, hashedWrong(file, model));
  return looked.get(file);
}

async function hashedWrong(file, model) {
  if (!crypto.subtle || file.size > HASHED_BYTES) return false;
  let digest;
  try {
    digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  } catch {
    return false; // no memory for it: the size and the beginning are right
  }
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("") !== model.sha256;
}

/** Is it its publisher's, by its SHA-256? It is, too, where that cannot be told. */
export const whole = async (file, model) => !(await wrongHash(file, model));

/** Is it in this browser's storage, whole as far as its size tells? */
export async function stored(model) {
  try {
    const file = await storage.find(model.file);
    return file !== null && file.size === model.bytes;
  } catch {
    return false;
  }
}

/** Until the server has it: its own fetching is told by `tell(key, values)`. */
async function onServer(model, tell, signal) {
  if (model.state === "here") return;
  let asked = false;
  for (;;) {
    signal.throwIfAborted();
    const found = await askJson("ondevice/models", { body: asked ? undefined : {}, signal });
    const one = found.models.find((entry) => entry.name === model.name);
    if (!one || (one.state === "absent" && asked)) throw new Fault("ondevice.wrong_missing", { name: model.name }, "retry");
    if (one.state === "here") return;
    if (one.state === "failed") throw new Fault("ondevice.wrong_server_failed", { detail: one.detail }, "retry");
    asked = true;
    const key = one.state === "verifying" ? "ondevice.model_server_verifying" : "ondevice.model_server_fetching";
    tell(key, { done: one.done_bytes, total: one.bytes });
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
  }
}

/** Where the bytes go: the storage, or memory where that is refused; `note` hears why. */
async function sink(model, note) {
  try {
    // To go on with a part, the browser copies it: that takes no less room than the whole.
    if (!(await storage.roomFor(model.bytes))) {
      await storage.removePart(model.file);
      note("ondevice.stored_no_room", {});
    } else {
      return await storage.create(model.file);
    }
  } catch (error) {
    if (!(error instanceof storage.Refused)) throw error;
    note("ondevice.stored_refused", { detail: error.message });
  }
  return inMemory();
}

function inMemory() {
  const chunks = [];
  const nothing = async () => void (chunks.length = 0);
  const write = async (chunk) => void chunks.push(chunk);
  return { begun: 0, write, restart: nothing, abort: nothing, keep: nothing, close: async () => new Blob(chunks) };
}

/** The server's answer with the file from byte `begun` on, or, unless its status is 206, with all of it. */
async function rest(model, begun, signal) {
  const path = `ondevice/models/${model.file}`;
  if (begun) {
    // Its tag is its hash (shelf.py): if the server has other bytes by now, all of them come.
    const headers = { Range: `bytes=${begun}-`, "If-Range": `"${model.sha256}"` };
    try {
      const answer = await ask(path, { signal, patient: true, headers });
      const from = /^bytes (\d+)-/.exec(answer.headers.get("Content-Range"))?.[1];
      if (answer.status !== 206 || Number(from) === begun) return answer;
      await answer.body.cancel();
    } catch (error) {
      if (error.status !== 416) throw error; // the file is no longer than that
    }
  }
  return ask(path, { signal, patient: true });
}

/** {file, resumed}: whether an earlier fetch had brought a part of it. */
async function fetched(model, { tell, note, signal }, store = true) {
  await onServer(model, tell, signal);
  const target = store ? await sink(model, note) : inMemory();
  let done = target.begun;
  let resumed = done > 0;
  const startOver = async () => {
    await target.restart();
    done = 0;
    resumed = false;
  };
  const broken = () => new Fault("ondevice.wrong_broken_off", { amount: amount(done, model.bytes) }, "retry");
  try {
    if (done > model.bytes) await startOver();
    tell("ondevice.model_fetching", { done, total: model.bytes });
    if (done < model.bytes) {
      const answer = await rest(model, done, signal);
      if (done && answer.status !== 206) await startOver();
      const reader = answer.body.getReader();
      for (;;) {
        const { done: ended, value } = await reader.read();
        if (ended) break;
        await target.write(value);
        done += value.length;
        signal.throwIfAborted();
        tell("ondevice.model_fetching", { done, total: model.bytes });
      }
    }
    return { file: await target.close(), resumed };
  } catch (error) {
    if (error.name === "QuotaExceededError" && store && !signal.aborted) {
      await target.abort();
      note("ondevice.stored_no_room", {});
      return fetched(model, { tell, note, signal }, false);
    }
    await target.keep();
    if (signal.aborted) throw error;
    if (error instanceof Refusal) throw error.status === 404 ? new Fault("ondevice.wrong_missing", { name: model.name }, "retry") : error;
    throw done && !(error instanceof Gone) ? broken() : new Gone();
  }
}

/** The file, and where it came from: {file, from: "server" | "storage", ms, resumed}.
 *
 * `tell(key, {done, total})` hears how far it is, in bytes; `note(key, values)` what the user should know. */
export async function bring(model, options) {
  return (await kept(model)) ?? alone(model, options, async () => (await kept(model)) ?? anew(model, options));
}

/** From the storage; null where it is not there. */
async function kept(model) {
  const began = performance.now();
  let file = null;
  try {
    file = await storage.find(model.file);
  } catch {
    // That it is refused is told when it is to be written.
  }
  if (!file) return null;
  const ms = performance.now() - began;
  await sound(file, model);
  return { file, from: "storage", ms, resumed: false };
}

/** `work` while no other tab does the same. */
async function alone(model, { tell, signal }, work) {
  if (!navigator.locks) return work();
  const name = `smallfirst-weights/${model.file}`;
  const busy = {};
  const brought = await navigator.locks.request(name, { ifAvailable: true }, (lock) => (lock ? work() : busy));
  if (brought !== busy) return brought;
  tell("ondevice.model_other_tab");
  return navigator.locks.request(name, { signal }, work);
}

async function anew(model, options) {
  const began = performance.now();
  let file, resumed;
  try {
    ({ file, resumed } = await fetched(model, options));
  } catch (error) {
    throw error instanceof Gone ? new Fault("ondevice.wrong_gone_before", {}, "retry") : error;
  }
  const ms = performance.now() - began;
  options.tell("ondevice.model_checking");
  await sound(file, model, true);
  return { file, from: "server", ms, resumed };
}

/** Raises a Fault for a damaged file, which is thrown away. */
async function sound(file, model, fresh = false) {
  const found = (await damage(file, model)) ?? (fresh && (await wrongHash(file, model)) ? ["hash", {}] : null);
  if (!found) return;
  await storage.remove(model.file);
  throw corrupt(found);
}

/** A file that is not `whole` is thrown away. Returns the Fault that says so. */
export async function discard(model) {
  await storage.remove(model.file);
  return corrupt(["hash", {}]);
}

function corrupt([what, values]) {
  // words: ondevice.wrong_corrupt_size ondevice.wrong_corrupt_magic ondevice.wrong_corrupt_hash
  const fault = new Fault(`ondevice.wrong_corrupt_${what}`, values);
  return new Fault("ondevice.wrong_corrupt", { why: fault.message }, "again");
}
