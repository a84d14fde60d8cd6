// What a person has done with a receipt, which Chainlit forgets: it makes every element anew whenever a turn begins, ends,
// or an element changes.
//
// For each answer: {open, asking (for a comment), comment (not yet kept), said (kept), pending (the action under way),
// failed (why)}.
// And which control had the focus, by its `data-act`, so that the element that takes its place can give it back.

const kept = new Map();
const heard = new EventTarget();
let focused = null; // {answer, act}

function of(answer) {
  return kept.get(answer) || {};
}

function change(answer, what) {
  kept.set(answer, { ...of(answer), ...what });
  heard.dispatchEvent(new Event("change"));
}

/** Calls back after each change; returns how to end that. */
function listen(callback) {
  heard.addEventListener("change", callback);
  return () => heard.removeEventListener("change", callback);
}

/** Resolves when no action of this answer is under way. Of several that wait, one goes on at a time: look again. */
function idle(answer) {
  return new Promise((resolve) => {
    const end = listen(() => {
      if (of(answer).pending) return;
      end();
      resolve();
    });
  });
}

/** Gives the focus back to the control that had it, if that went with the receipt that stood here before; to one beside it
 * where it is gone for good: a kept comment is a text, and what was done is no longer offered. */
function refocus(answer, root) {
  if (!focused || focused.answer !== answer || document.activeElement !== document.body) return;
  const places = [`[data-act="${focused.act}"]`, "[data-act=said]", "[aria-pressed=true]", "[data-act=copy]"];
  const control = places.map((place) => root.querySelector(place)).find(Boolean);
  if (control) control.focus({ preventScroll: true });
}

document.addEventListener("focusin", ({ target }) => {
  const control = target.closest("[data-act]");
  const root = control && control.closest("[data-answer]");
  focused = root ? { answer: root.dataset.answer, act: control.dataset.act } : null;
});
document.addEventListener("pointerdown", ({ target }) => {
  if (!target.closest("[data-act]")) focused = null;
});

window.smallFirst = Object.assign(window.smallFirst || {}, { receipts: { of, change, listen, idle, refocus } });
