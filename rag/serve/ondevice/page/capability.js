// What this browser can run a model with, and why not with more: the graphics card, several threads, or one.
//
// It asks the browser only. Whether the graphics card was really used is told by the engine's own log (`usedGpu`): a
// browser may offer an adapter that llama.cpp then passes over without a word.

import { Fault } from "./faults.js";
import { t } from "./texts.js";

// A module with one function: i32.const 0, i8x16.splat. It is valid only where there is SIMD.
const SIMD = [0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 5, 1, 0x60, 0, 1, 0x7b, 3, 2, 1, 0, 0x0a, 8, 1, 6, 0, 0x41, 0, 0xfd, 0x0f, 0x0b];
const ADAPTER_PATIENCE_MS = 5000;

/** Raises a Fault where no model can run at all. */
export function check() {
  if (typeof WebAssembly !== "object" || typeof Worker !== "function") throw new Fault("ondevice.wrong_no_wasm");
  if (!WebAssembly.validate(new Uint8Array(SIMD))) throw new Fault("ondevice.wrong_no_simd");
  try {
    new WebAssembly.Memory({ address: "i64", initial: 1n });
  } catch (error) {
    if (error instanceof RangeError) throw new Fault("ondevice.wrong_memory", {}, "small");
    throw new Fault("ondevice.wrong_no_mem64");
  }
}

/** Why the graphics card cannot be used, in words; "" where it can be tried. */
async function gpuHindrance() {
  if (!window.isSecureContext) return t("ondevice.why_insecure");
  if (!navigator.gpu) return t("ondevice.why_no_gpu");
  if (!WebAssembly.Suspending) return t("ondevice.why_no_jspi");
  let adapter = null;
  try {
    const late = new Promise((resolve) => setTimeout(resolve, ADAPTER_PATIENCE_MS, null));
    adapter = await Promise.race([navigator.gpu.requestAdapter({ powerPreference: "high-performance" }), late]);
  } catch {
    // As if there were none.
  }
  if (!adapter) return t("ondevice.why_null_adapter");
  if (!adapter.features.has("shader-f16")) {
    const { vendor, architecture, description } = adapter.info ?? {};
    return t("ondevice.why_no_f16", { adapter: [vendor, architecture].filter(Boolean).join(" ") || description || "?" });
  }
  return "";
}

/** What to try for a choice of "auto", "gpu", "threads" or "single": {gpu, threads, why: [sentence]}. */
export async function plan(choice) {
  const cores = navigator.hardwareConcurrency || 1;
  const why = [];
  let gpu = false;
  if (choice === "auto" || choice === "gpu") {
    const hindrance = await gpuHindrance();
    gpu = !hindrance;
    if (hindrance) why.push(hindrance);
  } else {
    why.push(t("ondevice.why_not_asked"));
  }
  let threads = 1;
  if (choice === "single") why.push(t("ondevice.why_single_asked"));
  else if (!window.crossOriginIsolated || typeof SharedArrayBuffer !== "function") why.push(t("ondevice.why_not_isolated"));
  else if (choice === "threads") threads = Math.max(2, Math.floor(cores / 2));
  else if (cores === 1) why.push(t("ondevice.why_one_core"));
  else if (cores < 4) why.push(t("ondevice.why_few_cores", { count: cores }));
  else threads = Math.floor(cores / 2);
  return { gpu, threads, why };
}

/** What of the model the engine put on the graphics card: {layers, all, size}, or null if nothing. */
export function usedGpu(log) {
  const text = log.join("\n");
  const layers = /offloaded (\d+)\/(\d+) layers/.exec(text);
  const size = /WebGPU\d* model buffer size\s*=\s*([\d.]+ \w+)/.exec(text);
  if (!layers || !size || Number(layers[1]) === 0) return null;
  return { layers: Number(layers[1]), all: Number(layers[2]), size: size[1] };
}
