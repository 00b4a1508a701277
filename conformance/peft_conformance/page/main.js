// The state of the page, which is also its address, and the events that change it.

const FILTERS = ["q", "verdict", "impl", "profile", "method", "level", "group", "differ"];
const EMPTY = { view: "overview", ...Object.fromEntries(FILTERS.map((name) => [name, ""])), fix: "impl", pick: "", open: "", column: "", of: "" };
const VIEWS = { overview: () => {}, clauses: showClauses, methods: showMethods };
const MANY = 4; // columns from which on the overview begins without its profiles
const form = document.getElementById("filters");
let state = { ...EMPTY, hide: [] };
let opener = null; // what was pressed to open the dialog

function fromAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  const read = Object.fromEntries(Object.keys(EMPTY).map((name) => [name, address.get(name) ?? EMPTY[name]]));
  if (!(read.view in VIEWS)) read.view = "overview";
  if (!(read.fix in FIXED)) read.fix = "impl";
  return { ...read, hide: address.getAll("hide") };
}

function toAddress(push = false) {
  const address = new URLSearchParams();
  for (const name of Object.keys(EMPTY)) if (state[name] !== EMPTY[name]) address.set(name, state[name]);
  for (const label of state.hide) address.append("hide", label);
  const hash = `#${address}`;
  if (hash !== location.hash) history[push ? "pushState" : "replaceState"](null, "", hash);
}

/** Change the state, the address and what is shown. */
function change(what, push = false) {
  state = { ...state, ...what };
  toAddress(push);
  show();
}

function show() {
  document.documentElement.dataset.shown = state.view;
  for (const view of Object.keys(VIEWS)) document.getElementById(view).hidden = view !== state.view;
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === state.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const name of FILTERS) {
    const control = form.elements[name];
    if (control.type === "checkbox") control.checked = Boolean(state[name]);
    else if (control.value !== state[name]) control.value = state[name];
  }
  for (const box of form.querySelectorAll("[name=column]")) box.checked = !state.hide.includes(box.value);
  VIEWS[state.view](state);
  showOpen();
}

function showOpen() {
  const clause = CLAUSES.get(state.open);
  const column = DATA.columns.findIndex(({ label }) => label === state.column);
  if (!clause || column < 0) {
    if (dialog.open) dialog.close();
    return;
  }
  showDetail({ clause, column, limit: state.of }, (other) => {
    state = { ...state, column: DATA.columns[other].label };
    toAddress();
    showOpen();
  });
}

// --- the dialog

document.addEventListener("click", ({ target }) => {
  const button = target.closest?.("button.cell");
  if (!button) return;
  opener = button;
  const { clause, column, limit } = button.dataset;
  state = { ...state, open: clause, column: DATA.columns[column].label, of: limit ?? "" };
  toAddress();
  showOpen();
});
dialog.addEventListener("close", () => {
  const { open, column } = state;
  state = { ...state, open: "", column: "", of: "" };
  toAddress();
  const number = DATA.columns.findIndex(({ label }) => label === column);
  const same = document.querySelector(`section:not([hidden]) button.cell[data-clause="${CSS.escape(open)}"][data-column="${number}"]`);
  (opener?.isConnected ? opener : same ?? document.getElementById("main")).focus();
  opener = null;
});
dialog.addEventListener("click", ({ target }) => {
  if (target === dialog) dialog.close();
});

// --- filters, columns, slices

function options(name, entries) {
  form.elements[name].replaceChildren(...entries.map(([value, text]) => h("option", { value }, text)));
}

function fillControls() {
  const given = new Set(DATA.clauses.flatMap((clause) => DATA.columns.flatMap((_, column) => [...counts(clause, column).keys()])));
  const profiles = [...new Set(DATA.clauses.map(({ profile }) => profile))].sort();
  const named = new Set(DATA.clauses.flatMap((clause) => [...methodsOf(clause)]));
  options("verdict", [["", "any"], ["red", "red: any of four"], ...DATA.verdicts.filter(({ letter }) => given.has(letter)).map(({ name, symbol, word }) => [name, `${symbol} ${word}`])]);
  options("impl", [["", "any column"], ...DATA.columns.map(({ label }) => [label, label])]);
  options("profile", [["", "any"], ...profiles.map((name) => [name, name]), ...DATA.consumers.map((name) => [name, `for ${name}`])]);
  options("method", [["", "any"], ...DATA.methods.filter(([name]) => named.has(name)).map(([name]) => [name, name])]);
  options("level", [["", "any"], ...["MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY", "UNSPECIFIED"].filter((level) => DATA.clauses.some((clause) => clause.level === level)).map((level) => [level, level])]);
  document.querySelector("#pick fieldset").append(...DATA.columns.map(({ label }) => h("label", { class: "tick" }, h("input", { type: "checkbox", name: "column", value: label }), label)));
  document.getElementById("pick").hidden = DATA.columns.length < 2;
}

let waiting = 0;
function takeFilters() {
  clearTimeout(waiting);
  forgetOpened();
  const boxes = [...form.querySelectorAll("[name=column]")];
  const value = (control) => (control.type !== "checkbox" ? control.value : control.checked ? "1" : "");
  change({
    ...Object.fromEntries(FILTERS.map((name) => [name, value(form.elements[name])])),
    hide: boxes.filter((box) => !box.checked).map((box) => box.value),
  });
}
form.addEventListener("change", takeFilters);
form.elements.q.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(takeFilters, 120);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", (event) => {
  event.preventDefault();
  forgetOpened();
  change({ ...EMPTY, view: state.view, hide: [] });
});
document.getElementById("expand").addEventListener("click", () => {
  toggleAll();
  show();
});
slice.addEventListener("submit", (event) => event.preventDefault());
slice.addEventListener("change", ({ target }) => {
  change(target.name === "fix" ? { fix: target.value, pick: "" } : { pick: target.value });
});

// --- views, the counts of the overview, the theme

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
for (const link of document.querySelectorAll("nav [data-view]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    change({ view: link.dataset.view }, true);
  });
}
for (const place of document.querySelectorAll("#overview td[data-verdict]")) {
  const { column } = place.closest("tbody").dataset;
  const { profile = "" } = place.closest("tr").dataset;
  const filters = { ...EMPTY, view: "clauses", verdict: place.dataset.verdict, impl: DATA.columns[column].label, profile };
  const address = new URLSearchParams(Object.entries(filters).filter(([name, value]) => value !== EMPTY[name]));
  const word = DATA.verdicts.find(({ name }) => name === filters.verdict).word;
  const text = place.textContent;
  place.replaceChildren(h("a", {
    href: `#${address}`,
    "aria-label": `${text} ${word}: show the clauses`,
    onclick: (event) => { event.preventDefault(); forgetOpened(); change({ ...filters, hide: [] }, true); },
  }, text));
}

const profiles = document.getElementById("profiles");
function showProfiles(open) {
  document.getElementById("counts").classList.toggle("brief", !open);
  profiles.setAttribute("aria-expanded", String(open));
  profiles.textContent = open ? "Hide profiles" : "Show profiles";
}
profiles.hidden = false;
profiles.addEventListener("click", () => showProfiles(profiles.getAttribute("aria-expanded") !== "true"));
showProfiles(DATA.columns.length <= MANY);

const THEMES = ["system", "light", "dark"];
const theme = document.getElementById("theme");
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  theme.querySelector("span").textContent = name;
}
function kept(action) {
  try { return action(); } catch { return null; } // a browser may keep storage from files
}
theme.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  setTheme(next);
  kept(() => localStorage.setItem("theme", next));
});
const before = kept(() => localStorage.getItem("theme"));
setTheme(THEMES.includes(before) ? before : "system");

roving(matrix);
roving(grid);
fillControls();
window.addEventListener("hashchange", () => { state = fromAddress(); show(); });
window.addEventListener("popstate", () => { state = fromAddress(); show(); });
state = fromAddress();
show();
document.documentElement.dataset.ready = "true";
