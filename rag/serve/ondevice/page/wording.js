// The prompt for the browser's model, made from the reference text alone: for when the server is not there to search.
//
// The words are the server's (`GET /ondevice/opening`), fetched with the page; here the marks in them are only filled in.
// Of a long reference text the pieces nearest to the question are taken, ranked by BM25 over its own paragraphs.

const K1 = 1.2;
const B = 0.75;

function words(text) {
  return text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
}

/** Paragraphs, and of long ones their sentences, none much longer than `most` characters. */
function pieces(text, most) {
  const found = [];
  for (const paragraph of text.split(/\n\s*\n/)) {
    let piece = "";
    for (const sentence of paragraph.trim().match(/[\s\S]{1,400}?(?:[.!?。！？]+\s+|\n|$)|[\s\S]{1,400}/g) ?? []) {
      if (piece && piece.length + sentence.length > most) {
        found.push(piece.trim());
        piece = "";
      }
      piece += sentence;
    }
    if (piece.trim()) found.push(piece.trim());
  }
  return found;
}

/** The piece that fits the question best; the first where none shares a word with it. */
export function nearest(question, reference, most) {
  const all = pieces(reference, most);
  if (all.length < 2) return all[0] ?? "";
  const counted = all.map(words);
  const average = counted.reduce((sum, one) => sum + one.length, 0) / all.length;
  const asked = [...new Set(words(question))];
  const idf = new Map(
    asked.map((word) => {
      const holding = counted.filter((one) => one.includes(word)).length;
      return [word, Math.log(1 + (all.length - holding + 0.5) / (holding + 0.5))];
    }),
  );
  const scores = counted.map((one) =>
    asked.reduce((sum, word) => {
      const often = one.filter((other) => other === word).length;
      return sum + (idf.get(word) * often * (K1 + 1)) / (often + K1 * (1 - B + (B * one.length) / average));
    }, 0),
  );
  return all[scores.indexOf(Math.max(...scores))];
}

function template(opening, model, window) {
  return window < opening.examples_from_tokens ? opening.plain : (opening.templates[model] ?? opening.plain);
}

/** What every prompt of this model begins with, where that is worth reading beforehand; else null. */
export function before(opening, model, window) {
  const set = template(opening, model, window);
  return set.length > 2 ? set : null;
}

/** Messages for a model, in the server's own wording. */
export function messages(opening, model, window, question, evidence) {
  const set = template(opening, model, window);
  const filled = { [opening.evidence_mark]: evidence, [opening.question_mark]: question };
  const marks = new RegExp(Object.keys(filled).join("|"), "g");
  return set.map(({ role, content }) => ({ role, content: content.replace(marks, (mark) => filled[mark]) }));
}
