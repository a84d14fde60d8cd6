// Links to documents of the server. Where it wants an API key, which no link can carry, this page fetches the document
// itself and shows it in a new tab.
//
// It knows how a document is opened, and nothing of citations or passages.

import { key } from "./kept.js";
import { address, ask } from "./server.js";
import { t } from "./texts.js";

const KEPT_MS = 60000; // until a new tab has surely read it

/** The link leads to `path` below the server's own address; `told` hears in words why it could not be opened. */
export function lead(link, path, told) {
  link.href = address(path);
  link.target = "_blank";
  link.rel = "noopener";
  link.addEventListener("click", (event) => {
    if (!key()) return;
    event.preventDefault();
    fetched(path).catch((error) => told(error.message || t("ondevice.fail_gone")));
  });
}

async function fetched(path) {
  const [bare, page] = path.split("#");
  const answer = await ask(bare, { patient: true });
  const type = answer.headers.get("Content-Type") ?? "";
  const pdf = type.startsWith("application/pdf");
  const shown = pdf || type.startsWith("text/"); // a text of any kind to be read as it is, never as a page of ours
  const bytes = await answer.blob();
  const url = URL.createObjectURL(new Blob([bytes], { type: pdf ? type : shown ? "text/plain;charset=utf-8" : "application/octet-stream" }));
  setTimeout(() => URL.revokeObjectURL(url), KEPT_MS);
  if (shown) {
    const tab = window.open(page ? `${url}#${page}` : url, "_blank");
    if (!tab) throw new Error(t("ondevice.fail_popup"));
    tab.opener = null;
    return;
  }
  const save = document.createElement("a");
  save.href = url;
  save.download = decodeURIComponent(bare.split("/").pop());
  save.click();
}
