// The server that this page came from, and no other: what it is asked, and what became of the asking.
//
// It knows addresses, the API key and the shape of errors. A server that is not there is a `Gone`; one that refuses, or is
// too slow, is a `Refusal` with words for it.

import { key } from "./kept.js";
import { t } from "./texts.js";

const PAGE = new URL("./", import.meta.url); // .../ondevice/
const ROOT = new URL("../", PAGE);
const PATIENCE_MS = 30000;
const LATE = 504;

export class Gone extends Error {}

export class Refusal extends Error {
  /** `of_key`: another API key would help. */
  constructor(status, message, of_key = false) {
    super(message);
    this.status = status;
    this.of_key = of_key;
  }
}

/** An address below the page's own folder, or below the server's. */
export const pageAddress = (path) => new URL(path, PAGE).href;
export const address = (path) => new URL(path, ROOT).href;

async function refusal(answer) {
  let told = {};
  try {
    told = (await answer.json()) ?? {};
  } catch {
    // No JSON: the status says it.
  }
  if (answer.status === 401) {
    // Where somebody must sign in, the chat says so as `detail`; about keys only the API speaks.
    if (told.detail || !told.error) return new Refusal(401, t("ondevice.fail_signed_out"));
    return new Refusal(401, t(key() ? "ondevice.fail_key_unknown" : "ondevice.fail_key"), true);
  }
  return new Refusal(answer.status, told.error?.message || t("ondevice.fail_status", { status: answer.status }));
}

/** As a header can carry it: its bytes, for a key of any letters. */
const carried = (text) => String.fromCharCode(...new TextEncoder().encode(text));

/** What became of an answer that did not come. */
function missed(error) {
  return error.name === "TimeoutError" ? new Refusal(LATE, t("ondevice.fail_late")) : new Gone();
}

/** An answer whose status is good; `headers` are added. Raises Gone or Refusal; an abort of `signal` goes through. */
export async function ask(path, { body, signal, patient = false, headers: added = {}, ...more } = {}) {
  const headers = { Accept: "application/json", ...added };
  if (body) headers["Content-Type"] = "application/json";
  if (key()) headers.Authorization = `Bearer ${carried(key())}`;
  const limits = [signal, patient ? null : AbortSignal.timeout(PATIENCE_MS)].filter(Boolean);
  let answer;
  try {
    answer = await fetch(address(path), {
      method: body ? "POST" : "GET",
      body: body && JSON.stringify(body),
      headers,
      signal: limits.length ? AbortSignal.any(limits) : undefined,
      cache: "no-store",
      ...more,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw missed(error);
  }
  if (answer.redirected || !answer.ok) throw answer.ok ? new Refusal(401, t("ondevice.fail_signed_out")) : await refusal(answer);
  return answer;
}

export async function askJson(path, options) {
  const answer = await ask(path, options);
  try {
    return await answer.json();
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    throw missed(error);
  }
}

/** The events of a stream, each one JSON object. Raises Gone where it breaks off. */
export async function* events(answer, signal) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch (error) {
        if (signal?.aborted) throw error;
        throw new Gone();
      }
      if (piece.done) throw new Gone();
      rest += piece.value;
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
