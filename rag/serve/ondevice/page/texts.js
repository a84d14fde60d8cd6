// Every text of the page, by key, with {name} for what is filled in. Elements of index.html name theirs in data-t, data-label
// and data-placeholder; `fill` puts them there.
//
// It knows no state. A number is written as the browser's language writes numbers.

const TEXTS = {
  // What stands on the page from the start
  "page.skip": "To the question",
  "page.title": "On this device",
  "page.lead": "A small model answers inside this browser. Nothing goes to any site but the server that this page came from.",
  "page.model": "Model in this browser",
  "page.progress": "How far it is",
  "page.more": "Settings and times",
  "page.forget": "Delete stored weights",
  "page.which": "Model",
  "page.way": "Runs on",
  "way.auto": "The best there is",
  "way.gpu": "Graphics card (WebGPU)",
  "way.threads": "Processor, several threads",
  "way.single": "Processor, one thread",
  "page.window": "Window",
  "window.1024": "1,024 tokens, quickest",
  "window.2048": "2,048 tokens",
  "window.4096": "4,096 tokens",
  "window.8192": "8,192 tokens, most memory",
  "times.caption": "Measured in this browser",
  "times.server": "From the server",
  "page.ask": "Ask",
  "page.question": "Question",
  "page.sources": "Where the answer may come from",
  "page.reference": "Reference text, sent to this server, which searches it and judges the answer by it",
  "page.paste": "Paste a text, or drop text files here.",
  "page.add_files": "Add text files",
  "page.retrieve": "Passages from the documents folder",
  "page.who": "Who is asked",
  "page.order": "When several",
  "order.turns": "One after another",
  "order.together": "At the same time",
  "page.length": "Longest answer",
  "length.16": "16 tokens",
  "length.64": "64 tokens",
  "length.160": "160 tokens",
  "length.400": "400 tokens",
  "page.stop": "Stop",
  "page.anew": "New conversation",
  "page.key": "API key",
  "page.key_kept": "Key of this server, kept until this tab is closed",
  "page.answers": "Answers",
  "times.storage": "From storage",

  // Bringing the model
  "model.idle": "Not started. {name} has {size} MB; it is fetched from this server once and then kept in this browser.",
  "model.looking": "Looking at what this browser can do",
  "model.server_fetching": "The server is still fetching this model: {done} of {total} MB",
  "model.server_verifying": "The server is checking this model: {done} of {total} MB",
  "model.fetching": "Fetching from the server: {done} of {total} MB",
  "model.checking": "Checking the file",
  "model.starting": "Starting: compiling the code, then loading the model",
  "model.ready": "Ready: {name}, {where}.",
  "model.option": "{name} ({size} MB)",
  "model.license": "{license}, from {from}.",
  "model.start": "Start",
  "model.cancel": "Cancel",
  "model.restart": "Start anew",
  "model.again": "Fetch again",
  "model.small": "Try one thread and a short window",
  "model.retry": "Try again",
  "model.deleted": "The stored weights are deleted. What is running goes on.",

  // Where it runs, and why
  "where.gpu": "on the graphics card (WebGPU), {layers} of {all} layers",
  "where.threads": "on the processor (WebAssembly), {count} threads",
  "where.single": "on the processor (WebAssembly), one thread",
  "why.gpu_used": "WebGPU is really used: the engine put {layers} layers and {size} there.",
  "why.no_gpu": "Not on the graphics card: this browser has no WebGPU.",
  "why.insecure": "Not on the graphics card: WebGPU needs https, or an address on this machine.",
  "why.null_adapter": "Not on the graphics card: the browser offers no adapter.",
  "why.no_f16": "Not on the graphics card: its adapter ({adapter}) lacks shader-f16, which llama.cpp needs.",
  "why.no_jspi": "Not on the graphics card: this browser cannot wait inside WebAssembly (JSPI).",
  "why.gpu_unused": "Not on the graphics card: WebGPU was offered, and the engine did not use it.",
  "why.not_asked": "The graphics card was not asked, as chosen.",
  "why.few_cores": "One thread: with {count} cores the others are left to the rest of this machine.",
  "why.not_isolated": "One thread: this page is not isolated from others, so the browser shares no memory.",
  "why.single_asked": "One thread, as chosen.",

  // What was measured
  "times.weights": "Weights",
  "times.compile": "Code compiled",
  "times.load": "Model loaded",
  "times.load_gpu": "Model loaded, shaders compiled",
  "times.server_now": "From the server, now",
  "times.storage_now": "From storage, now",

  // What can be wrong with the browser or the file
  "wrong.no_wasm": "This browser does not run WebAssembly, so no model can run in it. Use a current Chrome, Edge or Firefox, or ask the server’s models below.",
  "wrong.no_simd": "This browser’s WebAssembly lacks SIMD, which the model needs. Use a current Chrome, Edge or Firefox, or ask the server’s models below.",
  "wrong.no_mem64": "This browser’s WebAssembly lacks 64-bit memory, which the model needs. Use a current Chrome, Edge or Firefox, or ask the server’s models below.",
  "wrong.memory": "There was not enough memory for the model. A short window on one thread needs the least; closing other tabs helps too.",
  "wrong.corrupt": "The model file is damaged: {why}. It was thrown away; fetch it again.",
  "wrong.corrupt_size": "it has {got} bytes and should have {wanted}",
  "wrong.corrupt_magic": "it does not begin as a GGUF file does",
  "wrong.corrupt_hash": "its SHA-256 is not its publisher’s",
  "wrong.missing": "The server does not have this model. Choose another one, or fetch it there with: smallfirst models pull {name}",
  "wrong.server_failed": "The server could not fetch the model. {detail}",
  "wrong.gone_before": "The server is not there, and the weights are not stored in this browser. Start the server, then try again.",
  "wrong.broken_off": "The connection broke after {done} of {total} MB. Try again.",
  "wrong.hung": "Nothing has happened for {seconds} s, so the model was stopped. Try again; one thread is the surest.",
  "wrong.crashed": "The model stopped unexpectedly ({detail}). Start it anew.",
  "wrong.not_started": "The model could not be started ({detail}). Try again; one thread is the surest.",
  "wrong.code": "The engine’s code did not come from the server. Start the server, then try again.",
  "stored.refused": "This browser refuses to keep the weights ({detail}): they are held in memory, and fetched again at the next visit.",
  "stored.no_room": "This browser has no room for the weights: they are held in memory, and fetched again at the next visit.",
  "stored.private": "not offered here",

  // Asking
  "ask.empty": "Type a question first.",
  "ask.no_engine": "Choose at least one of the models to ask.",
  "ask.too_long": "The question takes about {tokens} tokens; the window has {window} for it and its answer. Shorten it, or choose a longer window.",
  "ask.reference_long": "The reference text has {count} characters; at most {most} are read. Shorten it.",
  "ask.not_text": "{name} is not a text file. Paste its text instead.",
  "ask.server_searches": "The server’s models always search the documents folder as well.",
  "ask.done": "{engine}: finished",

  // A column
  "engine.browser": "Browser",
  "engine.slm": "SLM",
  "engine.llm": "LLM",
  "state.none": "",
  "state.waits": "Waits for its turn",
  "state.searching": "Searching passages",
  "state.loading": "Starting the model",
  "state.reading": "Reading the prompt",
  "state.reading_share": "Reading the prompt: {percent}%",
  "state.writing": "Writing",
  "state.judging": "Checking the answer",
  "state.asking": "Waiting for the server",
  "state.stopped": "Stopped.",
  "state.cut": "Cut off at the longest allowed length.",
  "state.empty": "It wrote nothing. Ask again, or in other words.",
  "note.gone": "The server is not there: answered from the reference text alone.",
  "note.key": "The server wants an API key: answered from the reference text alone.",
  "note.refused": "The server did not search ({detail}): answered from the reference text alone.",
  "note.reference_cut": "Of the reference text, the part nearest to the question was read.",
  "note.silent": "No model was asked.",
  "fail.gone": "The server is not there. The model in the browser goes on without it.",
  "fail.gone_nothing": "The server is not there, and there is no reference text to answer from. Paste one, then ask again.",
  "fail.gone_middle": "The server went away in the middle of its answer.",
  "fail.nothing": "There is nothing to answer from. Paste a reference text, or let the documents folder be searched.",
  "fail.key": "The server wants an API key. Enter it below, then ask again.",
  "fail.signed_out": "The server asks who you are. Sign in to the chat in another tab, then ask again.",
  "fail.status": "The server answered with status {status}.",
  "fail.not_loaded": "The model in the browser is not started. {detail}",

  // Figures
  "figure.load": "load {time}",
  "figure.first": "first token {time}",
  "figure.rate": "{rate} tokens/s",
  "figure.tokens": "{count} tokens",
  "figure.total": "{time} in all",
  "figure.prompt": "{count} tokens read",
  "figure.prompt_kept": "{count} tokens read, {kept} of them kept from before",
  "chart.load": "load",
  "chart.wait": "until the first token",
  "chart.write": "writing",
  "chart.told": "Time for each model: {parts}",
  "chart.engine": "{engine}: {parts}",

  // The verdict
  "verdict.accepted": "Stands",
  "verdict.doubted": "Doubted",
  "verdict.grounds_tokens": "Judged by its words and by how sure the model was of each.",
  "verdict.grounds_words": "Judged by its words alone; how sure the model was is not part of it.",
  "verdict.grounds_turn": "The server’s own verdict on this answer.",
  "verdict.refused": "It says that this is not in the documents.",
  "verdict.gone": "Not judged: the server, which judges, is not there.",
  "verdict.stopped": "Not judged: it was stopped.",
  "verdict.none": "Not judged: {why}",
  "verdict.silent": "not in the documents",

  // Passages
  "passages.read": "{count} passages found, {read} read",
  "passages.reference": "your reference text",
  "passages.was_read": "read by the browser’s model",
  "source.reference": "reference text",
};

const numbers = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });

/** The text of a key, filled in. */
export function t(key, values = {}) {
  const text = TEXTS[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    return typeof value === "number" ? numbers.format(value) : String(value ?? whole);
  });
}

/** The page's own elements get their texts. */
export function fill(page) {
  for (const one of page.querySelectorAll("[data-t]")) one.textContent = t(one.dataset.t);
  for (const one of page.querySelectorAll("[data-label]")) one.setAttribute("aria-label", t(one.dataset.label));
  for (const one of page.querySelectorAll("[data-placeholder]")) one.placeholder = t(one.dataset.placeholder);
}

/** Milliseconds for a person. */
export function time(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return `${numbers.format(ms / 1000)} s`;
}

/** Bytes as MB, without the unit. */
export function megabytes(bytes) {
  return Math.round(bytes / 1e6);
}

export function number(value) {
  return numbers.format(value);
}
