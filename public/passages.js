// The panel beside the chat: the passages that an answer cites or that were found, in their documents, one at a time.
//
// It is given a view by the receipt of an answer (elements/Receipt.jsx) and asks `GET ./source` for what only the server
// knows: the picture of a PDF's page, where on it the sentence stands, and the document itself. It is not Chainlit's
// side view, which closes whenever an element arrives. Texts of documents are set as text, never as HTML.
import { t } from "./words.js";
import { address, headings, isNumber, number, unit } from "./figures.js";
import { button, drawing, element, icon, put } from "./nodes.js";

const NARROW = matchMedia("(max-width: 899px)"); // of receipt.css as well: there is no room beside the chat
const PATHS = {
  previous: "m15 18-6-6 6-6",
  next: "m9 18 6-6-6-6",
  close: "M18 6 6 18M6 6l12 12",
  list: "M8 6h13M8 12h13M8 18h13M3 6h.01M3 12h.01M3 18h.01",
};

// View: {answer, thread, uploads, hits, citations, kind: "cited" or "found", index: number, or null for the list of what
// was found, query, opener}
let view = null;
let asking = null; // what ends the request that is under way
const answered = new Map(); // sources by their addresses

// --- the panel -------------------------------------------------------------------------------------------------------

const panel = element("aside", "sf-panel");
panel.id = "small-first-passages";
panel.dataset.testid = "passages";
panel.setAttribute("aria-labelledby", "small-first-passages-title");
panel.hidden = true;
const head = element("div", "sf-panel-head", panel);
const title = element("h2", "", head);
title.id = "small-first-passages-title";
title.tabIndex = -1;
title.setAttribute("aria-live", "polite"); // the next one is told, too
const controls = {};
for (const name of ["list", "previous", "next", "close"]) {
  controls[name] = button("sf-icon", head);
  controls[name].dataset.testid = `passages-${name}`;
  icon(PATHS[name], controls[name], 18);
}
const body = element("div", "sf-panel-body", panel);
body.tabIndex = 0; // it scrolls, also without a mouse
body.setAttribute("role", "group");

controls.close.addEventListener("click", close);
controls.list.addEventListener("click", () => go(null));
controls.previous.addEventListener("click", () => go(view.index - 1));
controls.next.addEventListener("click", () => go(view.index + 1));

const items = () => (view.kind === "cited" ? view.citations : view.hits);

function show(asked) {
  view = asked;
  panel.hidden = false;
  document.documentElement.classList.add("sf-beside");
  settle();
  render();
  title.focus({ preventScroll: true });
  if (!NARROW.matches && view.opener) view.opener.scrollIntoView({ block: "nearest" }); // the chat has become narrower
}

function go(index) {
  view.index = index;
  render();
  // A button that went, or can no longer be pressed, would take the focus along.
  if (!panel.contains(document.activeElement)) title.focus({ preventScroll: true });
}

function close() {
  if (!view) return;
  const { answer, opener, kind, index, citations } = view;
  if (asking) asking.abort();
  view = null;
  panel.hidden = true;
  document.documentElement.classList.remove("sf-beside");
  settle();
  // Chainlit may have made the answer anew since.
  const step = document.getElementById(`step-${answer}`);
  const mark = kind === "cited" && step && step.querySelector(`a[href="#source-${citations[index].marker}"]`);
  const target = opener && opener.isConnected ? opener : mark || (step && step.querySelector('[data-act="found"]'));
  if (target) target.focus();
}

/** On a narrow window the panel covers the page: what is below it must not be reached. */
function settle() {
  const covers = Boolean(view) && NARROW.matches;
  const page = document.getElementById("root");
  if (page) page.inert = covers;
  panel.setAttribute("role", covers ? "dialog" : "complementary");
  if (covers) panel.setAttribute("aria-modal", "true");
  else panel.removeAttribute("aria-modal");
}

NARROW.addEventListener("change", settle);

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !view || event.defaultPrevented) return;
  const at = document.activeElement;
  if (!panel.contains(at) && at !== document.body && at !== view.opener) return;
  event.stopPropagation();
  close();
});

// --- what stands in it -----------------------------------------------------------------------------------------------

function render() {
  if (!view) return;
  if (asking) asking.abort();
  const shown = items();
  const single = view.index !== null;
  panel.lang = window.smallFirst.language;
  // words: page.panel_cited page.panel_found page.panel_list page.panel_previous page.panel_next page.panel_close
  const counted = { n: number((view.index || 0) + 1), total: number(shown.length) };
  put(title, single ? t(`page.panel_${view.kind}`, counted) : t("page.panel_found_all"));
  controls.list.hidden = !single || view.kind === "cited";
  for (const [name, there] of [
    ["previous", view.index > 0],
    ["next", view.index < shown.length - 1],
  ]) {
    controls[name].hidden = !single || shown.length < 2;
    controls[name].disabled = !there;
  }
  for (const [name, control] of Object.entries(controls)) control.setAttribute("aria-label", t(`page.panel_${name}`));
  body.setAttribute("aria-label", title.textContent);
  body.replaceChildren();
  body.scrollTop = 0;
  if (single) renderOne(shown[view.index]);
  else renderAll(shown);
}

/** The hit that holds the quote, and the quote's place in its text; else the quote alone. Offsets count characters as
 * Python does, which in JavaScript may be two. */
function parts(item) {
  if (item.quote === undefined) return { before: "", quote: "", after: item.text || "", alone: false };
  for (const hit of view.hits) {
    if (hit.source !== item.source || hit.start > item.start || hit.end < item.end) continue;
    const characters = Array.from(hit.text);
    const [from, to] = [item.start - hit.start, item.end - hit.start];
    const [before, quote, after] = [[0, from], [from, to], [to]].map((cut) => characters.slice(...cut).join(""));
    if (quote === item.quote) return { before, quote, after, alone: false };
  }
  return { before: "", quote: item.quote, after: "", alone: true };
}

/** PDFs break lines where their page ends: such a break becomes a space. Nothing moves, so offsets stay. */
function flowing(text) {
  const longest = Math.max(...text.split("\n").map((line) => line.length));
  return text.replace(/([^\n]*)\n(?=\S)/g, (whole, line) => (line.length > 0.75 * longest ? `${line} ` : whole));
}

function renderOne(item) {
  const { before, quote, after, alone } = parts(item);
  const heading = element("h3", "", body);
  if (item.marker !== undefined) element("span", "sf-number", heading).textContent = item.marker;
  element("span", "sf-document", heading).textContent = item.source;
  const place = element("p", "sf-place", body);
  put(place, [unit(item.source, item.page), headings(item.heading)].filter(Boolean).join(" · "));
  const text = element("p", "sf-text", body);
  const whole = isNumber(item.page) ? flowing(before + quote + after) : before + quote + after;
  text.append(whole.slice(0, before.length).trimStart());
  if (quote) element("mark", "", text).textContent = whole.slice(before.length, before.length + quote.length);
  text.append(whole.slice(before.length + quote.length));
  const more = element("div", "sf-more", body);
  const mark = text.querySelector("mark");
  if (mark) mark.scrollIntoView({ block: "nearest" });
  ask(item).then(
    (source) => source && renderSource(source, { item, place, text, more, alone }),
    (error) => put(element("p", "sf-quiet", more), error.message),
  );
}

/** What the server adds: the page's picture, the way to the document, and the text around a quote that stands alone. */
function renderSource(source, { item, place, text, more, alone }) {
  put(place, [unit(item.source, item.page, source.unit), headings(item.heading)].filter(Boolean).join(" · "));
  if (alone && source.before) text.prepend(source.before);
  if (alone && source.after) text.append(source.after);
  const page = source.page ?? item.page;
  const paged = isNumber(page);
  const reached = source.document && address(source.document) + (paged ? `#page=${page}` : "");
  if (source.picture) {
    const figure = element(reached ? "a" : "div", "sf-picture", more);
    if (reached) leads(figure, reached);
    const picture = element("img", "", figure);
    picture.alt = t("page.picture_of", { unit: unit(item.source, page, source.unit), name: source.name });
    picture.src = address(source.picture);
    for (const [left, top, width, height] of source.marks || []) {
      const box = element("span", "sf-marked", figure);
      const sides = { left, top, width, height };
      for (const [side, share] of Object.entries(sides)) box.style[side] = `${100 * share}%`;
    }
  }
  if (source.detail) element("p", "sf-quiet", more).textContent = source.detail;
  if (reached) {
    const link = element("a", "sf-reach", more);
    leads(link, reached);
    const where = { unit: unit(item.source, page, source.unit) };
    element("span", "", link).textContent = paged ? t("page.open_at", where) : t("page.open_document");
    icon("M15 3h6v6M10 14 21 3M18 13v8H3V6h8", link, 14);
  }
}

function leads(link, to) {
  link.href = to;
  link.target = "_blank";
  link.rel = "noopener";
}

function renderAll(hits) {
  if (view.query) element("p", "sf-place", body).textContent = t("page.searched_for", { query: view.query });
  const most = Math.max(...hits.map((hit) => hit.score || 0), 0.001);
  const list = element("ol", "sf-hits", body);
  list.dataset.testid = "passages-found";
  hits.forEach((hit, index) => {
    const row = element("li", "", list);
    const heading = element("h3", "", row);
    element("span", "sf-document", heading).textContent = hit.source;
    const cites = (one) => one.source === hit.source && one.start < hit.end && hit.start < one.end;
    for (const one of view.citations.filter(cites)) element("span", "sf-number", heading).textContent = one.marker;
    const where = [unit(hit.source, hit.page), headings(hit.heading)].filter(Boolean).join(" · ");
    if (where) element("p", "sf-place", row).textContent = where;
    const text = element("p", "sf-text sf-clamped", row);
    text.textContent = isNumber(hit.page) ? flowing(hit.text) : hit.text;
    const foot = element("div", "sf-foot", row);
    if (isNumber(hit.score)) {
      const track = element("span", "sf-track", foot);
      track.setAttribute("aria-hidden", "true");
      element("span", "", track).style.width = `${(100 * hit.score) / most}%`;
      element("span", "sf-quiet", foot).textContent = t("page.score", { n: number(hit.score) });
    }
    const whole = button("sf-link", foot);
    whole.textContent = t("page.show_whole");
    whole.setAttribute("aria-label", t("page.show_whole_of", { name: hit.source, n: number(index + 1) }));
    whole.addEventListener("click", () => go(index));
  });
  element("p", "sf-quiet", body).textContent = t("page.scores_explained");
}

// --- the server ------------------------------------------------------------------------------------------------------
// Source: {name, unit, page, pages, picture, marks: [[left, top, width, height]] as parts of the page, document, before,
// after}; `picture` and `document` are addresses or null. Where there is no picture: {detail: why, document}.

async function ask(item) {
  const asked = new URL(address("source"));
  asked.searchParams.set("name", item.source);
  if (view.uploads.includes(item.source)) asked.searchParams.set("thread", view.thread);
  if (isNumber(item.page)) asked.searchParams.set("page", item.page);
  if (item.quote) {
    asked.searchParams.set("quote", item.quote);
    asked.searchParams.set("start", item.start); // where the quote stands twice
  }
  if (answered.has(asked.href)) return answered.get(asked.href);
  const mine = (asking = new AbortController());
  let answer;
  try {
    answer = await fetch(asked, { signal: mine.signal, headers: { Accept: "application/json" } });
  } catch {
    if (mine.signal.aborted) return null;
    throw new Error(t("page.not_connected"));
  }
  const source = await answer.json().catch(() => ({}));
  if (mine.signal.aborted) return null;
  if (!answer.ok && !source.document) throw new Error(source.detail || t("page.no_page"));
  if (answer.ok) answered.set(asked.href, source);
  return source;
}

// --- the answer's marks ----------------------------------------------------------------------------------------------

/** Chainlit would open a mark in a tab of its own. */
function follow(event) {
  const mark = event.target.closest && event.target.closest('.message-content a[href^="#source-"]');
  if (!mark) return;
  event.preventDefault();
  event.stopPropagation();
  const receipt = mark.closest(".message-content").querySelector("[data-answer]");
  const marker = mark.getAttribute("href").slice("#source-".length);
  if (receipt) receipt.dispatchEvent(new CustomEvent("smallfirst:cite", { detail: { marker, opener: mark } }));
}

document.addEventListener("click", follow, true);
document.addEventListener("auxclick", follow, true);
window.addEventListener("smallfirst:words", render);
new MutationObserver(() => {
  // Its conversation was left, or its question edited.
  if (view && !document.getElementById(`step-${view.answer}`)) close();
}).observe(document.body, { childList: true, subtree: true });

document.body.append(panel);
window.smallFirst = Object.assign(window.smallFirst || {}, { passages: { show } });
