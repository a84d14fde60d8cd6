// The words of the page, in the language of the browser: `t("page.retry")`, `t("ondevice.tokens", { count: 3 })`.
//
// They come with the page itself (rag/serve/ondevice/page.py): texts by key, with {name} placeholders, or an object of
// plural forms where {count} decides; so they are there before anything is shown, and when the server has gone. It knows no
// text. Elements of index.html name theirs in data-t, data-label and data-placeholder; `fill` puts them there.

const language = document.documentElement.lang;
const texts = JSON.parse(document.getElementById("texts").textContent);
const plurals = new Intl.PluralRules(language);
// As the server writes them: by itself, Polish would leave 1234 without its space.
const numbers = new Intl.NumberFormat(language, { useGrouping: "always", maximumFractionDigits: 1 });

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

/** The page's own elements get their texts; the number in an option's is its value. */
export function fill(page) {
  for (const one of page.querySelectorAll("[data-t]")) one.textContent = t(one.dataset.t, { count: Number(one.value) });
  for (const one of page.querySelectorAll("[data-label]")) one.setAttribute("aria-label", t(one.dataset.label));
  for (const one of page.querySelectorAll("[data-placeholder]")) one.placeholder = t(one.dataset.placeholder);
}

/** Milliseconds for a person. */
export function time(ms) {
  return ms < 1000 ? t("page.ms", { n: Math.round(ms) }) : t("page.seconds", { n: ms / 1000 });
}

const megabytes = (bytes) => Math.round(bytes / 1e6);

/** Bytes for a person. */
export const size = (bytes) => t("page.megabytes_of", { n: megabytes(bytes) });

/** How many bytes of how many. */
export const amount = (done, total) => t("page.megabytes", { done: megabytes(done), total: megabytes(total) });

const UNITS = [
  [/\.pptm?x?$/i, "slide"],
  [/\.xls[mbx]?$|\.ods$|\.csv$/i, "sheet"],
];

// words: page.unit_page page.unit_slide page.unit_sheet
/** Where a passage or a quote is found: document, page, headings. The server has numbers of pages only. */
export function place({ source, page, heading = [] }) {
  const unit = UNITS.find(([ending]) => ending.test(source))?.[1] ?? "page";
  const where = page ? `${source}, ${t(`page.unit_${unit}`, { n: page })}` : source;
  return [where, ...heading].join(" › ");
}
