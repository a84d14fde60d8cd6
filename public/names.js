// Names and roles for what Chainlit's page leaves without them to who does not see it or has no mouse, its language, and
// the theme of the machine.
//
// It knows the ids and icons of Chainlit 2.12 and sets attributes only: React would not find nodes that were changed.
import { ready, t } from "./words.js";
import { element } from "./nodes.js";

// Chainlit's setting knows only "light" and "dark"; what a person has set up for the whole machine comes first. This runs
// before the page's own script.
try {
  if (!localStorage.getItem("vite-ui-theme")) localStorage.setItem("vite-ui-theme", "system");
} catch {
  // Storage is forbidden here; the page then keeps its default.
}

const PAUSE_MS = 100; // an answer that streams in changes the page all the time

// The languages of Chainlit's own texts that are not among ours. In any other its page is English.
const CHAINLITS = "ar bn da de el es fr gu he hi it ja kn ko ml mr nl pt ta te zh".split(" ");

const NAMES = {
  "#upload-button": "page.name_attach",
  "#chat-submit": "page.name_send",
  "#stop-button": "page.name_stop",
  "#chat-settings-open-modal": "page.name_settings",
  "#chat-settings-header-button": "page.name_settings",
  "#new-chat-button": "page.name_new_chat",
  "#theme-toggle": "page.name_theme",
  "#side-view-close": "page.name_close_side",
  "#sidebar-trigger-button": "page.name_sidebar",
  "#search-chats-button": "page.name_search_chats",
  "#user-nav-button": "page.name_user",
  "#thread-options": "page.name_thread_options",
  "[data-sidebar=sidebar]": "page.name_sidebar",
  ".edit-message": "page.name_edit",
  "button:has(> .lucide-copy)": "page.name_copy",
  "button:has(> .lucide-arrow-down)": "page.name_latest",
};

/** The label above a setting, without the figure that stands beside it. */
function labelled(node) {
  const label = (node.closest(".space-y-2") || node).querySelector("label");
  return (label && label.firstChild && label.firstChild.textContent) || "";
}

// In the list of past chats a link holds a button, which holds what opens the menu: only the link and the menu's opener
// are left to be reached.
const ROLES = {
  "#chat-settings :is([role=slider], [role=radiogroup])": { "aria-label": labelled },
  "[data-sidebar=sidebar]": { role: "navigation" },
  "ul:has(> #thread-history)": { role: "none" },
  "a > [data-sidebar=menu-button]": { role: "group", tabindex: "-1", "aria-label": (node) => node.textContent.trim() },
  "#thread-options": { role: "button", tabindex: "0" },
};

const given = new WeakMap(); // the name that a button got here, which another language may change

function nameButtons() {
  for (const [selector, key] of Object.entries(NAMES)) {
    for (const button of document.querySelectorAll(selector)) {
      const own = given.get(button);
      const text = button.matches("[data-sidebar]") ? "" : button.textContent.trim();
      if (own === undefined && (button.getAttribute("aria-label") || text)) continue;
      const name = t(key);
      if (own === name && button.getAttribute("aria-label") === name) continue;
      given.set(button, name);
      button.setAttribute("aria-label", name);
    }
  }
}

function giveRoles() {
  for (const [selector, attributes] of Object.entries(ROLES)) {
    for (const node of document.querySelectorAll(selector)) {
      for (const [name, wanted] of Object.entries(attributes)) {
        const value = typeof wanted === "function" ? wanted(node) : wanted;
        if (node.getAttribute(name) !== value) node.setAttribute(name, value);
      }
    }
  }
}

let waiting = false;
new MutationObserver(() => {
  if (waiting) return;
  waiting = true;
  setTimeout(() => {
    waiting = false;
    nameButtons();
    giveRoles();
  }, PAUSE_MS);
}).observe(document.body, { childList: true, subtree: true });

window.addEventListener("smallfirst:words", nameButtons);

function tellLanguage() {
  const { language } = window.smallFirst;
  const asked = navigator.language || "en";
  document.documentElement.lang = language === "en" && CHAINLITS.includes(asked.split("-")[0]) ? asked : language;
}

tellLanguage();
ready.then(tellLanguage);

element("h1", "small-first-unseen", element("header", "", document.body)).textContent = "Small First";
