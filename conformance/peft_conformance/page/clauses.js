// The table of clauses: groups that open and close, rows that the filters leave.

const KINDS = { laws: "law of every method", api: "API", checkpoint: "files", "": "" };
const FEW = 120; // so many rows are shown at once without being asked for
const matrix = document.getElementById("matrix");
const opened = new Map(); // group -> whether it was opened or closed by hand
let everything = null; // true: all opened by hand; false: all closed

/** The groups of rows that are left, each with what its cells are limited to. */
function groupsOf(filters, columns) {
  const left = DATA.clauses.filter((clause) => matches(clause, filters, columns));
  const groups = new Map();
  const put = (name, note, limit, clause) => {
    if (!groups.has(name)) groups.set(name, { name, note, limit, clauses: [] });
    groups.get(name).clauses.push(clause);
  };
  if (filters.group !== "method") {
    for (const clause of left) put(clause.topic, KINDS[clause.kind] ?? clause.kind, limitOf(filters), clause);
    return [...groups.values()];
  }
  for (const [method, title] of DATA.methods) {
    if (filters.method && filters.method !== method) continue;
    const about = left.filter((clause) => methodsOf(clause).has(method));
    // what the verdict filter found must be about this method
    for (const clause of about) if (matches(clause, { ...filters, method }, columns)) put(method, title, limitOf({ ...filters, method }), clause);
  }
  if (!filters.method) for (const clause of left) if (!methodsOf(clause).size) put("no method in particular", "", limitOf(filters), clause);
  return [...groups.values()];
}

function shownColumns(state) {
  return DATA.columns.map((_, number) => number).filter((number) => !state.hide.includes(DATA.columns[number].label));
}

/** Fill the table, and say how much of the suite it shows. */
function showClauses(state) {
  const columns = shownColumns(state);
  const groups = groupsOf(state, columns);
  const found = new Set(groups.flatMap((group) => group.clauses));
  const filtered = found.size < DATA.clauses.length;
  const isOpen = (group) => opened.get(group.name) ?? everything ?? (filtered && found.size <= FEW);
  matrix.replaceChildren(
    h("caption", { class: "sr" }, "Verdicts by clause and implementation. A cell's button opens its details."),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Clause"), columns.map(columnHeading))),
    ...groups.map((group) => groupBody(group, columns, isOpen(group))),
  );
  if (!groups.length) {
    const nothing = h("td", { class: "empty", colspan: columns.length + 1 }, "No clause passes these filters.");
    matrix.append(h("tbody", {}, h("tr", {}, nothing)));
  }
  firstStop(matrix);
  const shown = `${found.size} of ${plural(DATA.clauses.length, "clause")} in ${plural(groups.length, state.group || "topic")}`;
  document.getElementById("count").textContent = shown;
  const all = groups.length > 0 && groups.every(isOpen);
  document.getElementById("expand").textContent = all ? "Collapse all" : "Expand all";
}

function groupBody(group, columns, open) {
  const body = h("tbody");
  const toggle = h("button", {
    type: "button", tabindex: "-1", "aria-expanded": String(open),
    onclick: () => {
      const now = toggle.getAttribute("aria-expanded") !== "true";
      opened.set(group.name, now);
      toggle.setAttribute("aria-expanded", String(now));
      fill(now);
    },
  }, h("span", { class: "twist", "aria-hidden": "true" }, "›"), group.name,
  h("span", { class: "sub" }, [group.note, plural(group.clauses.length, "clause")].filter(Boolean).join(" · ")));
  const heading = h("tr", { class: "topic" }, h("th", { scope: "rowgroup" }, toggle), columns.map((column) => {
    const count = added(group.clauses.map((clause) => counts(clause, column, group.limit)));
    const letter = worst(count);
    if (letter === NOTHING) return h("td", {}, h("span", { class: "sr" }, "no check"));
    return h("td", {}, badge(letter), h("span", { class: "n cell-n" }, ` ${share(letter, count)}`));
  }));
  const fill = (full) => { // the heading stays where it is, and with it the focus
    while (heading.nextSibling) heading.nextSibling.remove();
    if (full) body.append(...group.clauses.map((clause) => clauseRow(clause, columns, group.limit)));
  };
  body.append(heading);
  fill(open);
  return body;
}

function clauseRow(clause, columns, limit) {
  return h("tr", {}, h("th", { scope: "row" }, clause.text, h("span", { class: "clause-id" }, `${clause.level} · ${clause.id}`)),
    columns.map((column) => clauseCell(clause, column, limit)));
}

/** Open all groups, or close them. */
function toggleAll() {
  everything = document.getElementById("expand").textContent === "Expand all";
  opened.clear();
}

/** What was opened by hand no longer counts. */
function forgetOpened() {
  opened.clear();
  everything = null;
}
