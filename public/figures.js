// Numbers as a person reads them, in the page's language: times, shares, money, energy, memory; and where a passage stands.
//
// It knows units and nothing of turns. `address` is here because every address on the page is a figure's neighbour in a
// text: a conversation has an address of its own, deeper than the page's, so none may be taken relative to the page.
import { t } from "./words.js";

const formats = new Map();

function format(options) {
  const { language } = window.smallFirst;
  const key = language + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.NumberFormat(language, { useGrouping: "always", ...options }));
  return formats.get(key);
}

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export const number = (value, digits = 2) => format({ maximumFractionDigits: digits }).format(value);

export const percent = (share) => format({ style: "percent", maximumFractionDigits: 0 }).format(share);

/** Milliseconds in the unit a person would use. */
export function time(ms) {
  if (!isNumber(ms)) return "–";
  if (ms < 1) return t("page.under_ms");
  if (ms < 100) return t("page.ms", { n: number(ms, 0) });
  if (ms < 59_950) {
    const digits = ms < 9_950 ? 2 : 1;
    const n = format({ minimumFractionDigits: digits, maximumFractionDigits: digits }).format(ms / 1000);
    return t("page.seconds", { n });
  }
  const seconds = Math.round(ms / 1000);
  return t("page.minutes", { min: number(Math.floor(seconds / 60)), s: number(seconds % 60) });
}

/** The price of one answer is a small part of a unit: two digits that tell something, not two after the point. */
export function money(amount, currency) {
  const digits = amount < 1 ? { maximumSignificantDigits: 2 } : { minimumFractionDigits: 2, maximumFractionDigits: 2 };
  return t("page.money", { amount: format(digits).format(amount), currency });
}

export function energy(joules) {
  if (joules < 1000) return t("page.joules", { n: number(joules, joules < 10 ? 1 : 0) });
  return t("page.kilojoules", { n: number(joules / 1000, 1) });
}

/** Millions of bytes, in one unit whatever the size: what is read here is compared. */
export const memory = (megabytes) => t("page.megabytes_of", { n: number(megabytes, 0) });

/** Several things after one another: "a, b, c". */
export function enumerated(things) {
  return new Intl.ListFormat(window.smallFirst.language, { type: "unit", style: "short" }).format(things);
}

const UNITS = [
  [/\.pptm?x?$/i, "slide"],
  [/\.xls[mbx]?$|\.ods$|\.csv$/i, "sheet"],
];

// words: page.unit_page page.unit_slide page.unit_sheet
/** "page 3"; null without a page. The turn has numbers only: a person calls them by what the document is made of. */
export function unit(source, page, named) {
  if (!isNumber(page)) return null;
  const kind = named || (UNITS.find(([ending]) => ending.test(source)) || [])[1] || "page";
  return t(`page.unit_${["slide", "sheet"].includes(kind) ? kind : "page"}`, { n: number(page) });
}

/** The headings above a passage, outermost first. */
export const headings = (heading) => (Array.isArray(heading) ? heading.join(" › ") : heading || "");

export const place = ({ source, page, heading }) =>
  [source, unit(source, page), headings(heading)].filter(Boolean).join(" · ");

/** Of something on this server, wherever the page is. */
export const address = (path) => new URL(path, new URL("..", import.meta.url)).href;

window.smallFirst = Object.assign(window.smallFirst || {}, {
  figures: { isNumber, number, percent, time, money, energy, memory, enumerated, unit, headings, place, address },
});
