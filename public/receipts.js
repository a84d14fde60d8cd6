// What a person has done with a receipt, which Chainlit forgets: it makes every element anew whenever a turn begins, ends,
// or an element changes.
//
// For each answer: {open, asking (for a comment), comment (not yet kept), pending (the action under way), failed (why)}.
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

/** Gives the focus back to the control that had it, if it went with the receipt that stood here before. */
function refocus(answer, root) {
  if (!focused || focused.answer !== answer || document.activeElement !== document.body) return;
  const control = root.querySelector(`[data-act="${focused.act}"]`);
  if (control) control.focus({ preventScroll: true });
}

document.addEventListener("focusin", ({ target }) => {
  const control = target.closest("[data-act]");
  const root = control && control.closest("[data-answer]");
  focused = root ? { answer: root.dataset.answer, act: control.dataset.act } : null;
});
document.addEventListener("pointerdown", ({ target }) => {
  if (!target.closest("[data-answer]")) focused = null;
});

window.smallFirst = Object.assign(window.smallFirst || {}, { receipts: { of, change, listen, refocus } });
