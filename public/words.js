// The words of the page, in the language of the browser: `t("page.remove")`, `t("page.attached", { count: 3 })`.
//
// It knows `GET /words` (rag/serve/words.py): texts by key, with {name} placeholders, or an object of plural forms where
// {count} decides. It knows no text itself; until they are here, `t` answers the last part of the key. Elements in the
// chat find the same in `window.smallFirst` and hear of it by the event "smallfirst:words".

const PAUSES_MS = [500, 2000, 8000]; // between attempts; the server may just be starting

/** The language of the texts, one of the six: "en" until they are here. */
export let language = "en";

let texts = {};
let plurals;
let numbers;

function speak(tag) {
  language = tag;
  plurals = new Intl.PluralRules(tag);
  // As the server writes them: by itself, Polish would leave 1234 without its space.
  numbers = new Intl.NumberFormat(tag, { useGrouping: "always", maximumFractionDigits: 3 });
}

/** The text of a key. A number gets the language's thousands and decimal sign; a string stands as it is. */
export function t(key, values = {}) {
  let text = texts[key];
  if (text === undefined) return key.split(".").pop();
  if (typeof text === "object") text = text[plurals.select(values.count)] ?? Object.values(text).pop();
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    return typeof value === "number" ? numbers.format(value) : String(value ?? whole);
  });
}

async function ask() {
  // Beside this file's folder: a conversation's own address is deeper than the page's.
  const address = new URL("../words", import.meta.url);
  address.searchParams.set("language", navigator.language || "en"); // as Chainlit asks for its own texts
  const answer = await fetch(address, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(`The words were not sent (${answer.status}).`);
  texts = await answer.json();
  speak(answer.headers.get("Content-Language") || "en");
}

async function load() {
  for (const pause of PAUSES_MS) {
    try {
      return await ask();
    } catch {
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
  return ask();
}

speak(language);
window.smallFirst = Object.assign(window.smallFirst || {}, { t, language });

/** Fulfilled when the texts are here; never, where the server does not send them. */
export const ready = load().then(
  () => {
    window.smallFirst.language = language;
    window.dispatchEvent(new CustomEvent("smallfirst:words"));
  },
  (error) => {
    console.error(error);
    return new Promise(() => {});
  },
);
