// The capability table: method, law and implementation; one of the three is fixed, the others are its sides.

const grid = document.getElementById("grid");
const slice = document.getElementById("slice");
const LAWS = DATA.clauses.filter((clause) => clause.kind === "laws" && clause.speaks.length);
const SUBJECTS = DATA.methods.filter(([name]) => LAWS.some((law) => law.speaks.includes(name)));
const FIXED = {
  impl: { name: "Implementation", options: () => DATA.columns.map(({ label }) => [label, label]) },
  method: { name: "Method", options: () => SUBJECTS.map(([name, title]) => [name, `${name}: ${title}`]) },
  law: { name: "Law", options: () => LAWS.map((law) => [law.id, `${law.id}: ${law.text}`]) },
};

/** Show the slice that is asked for. */
function showMethods(state) {
  const fixed = FIXED[state.fix] ?? FIXED.impl;
  const options = fixed.options();
  const pick = options.some(([value]) => value === state.pick) ? state.pick : options[0]?.[0];
  document.getElementById("fixed").textContent = fixed.name;
  slice.elements.fix.value = state.fix;
  slice.elements.pick.replaceChildren(...options.map(([value, name]) => h("option", { value, selected: value === pick }, name)));
  const columns = DATA.columns.map((_, number) => number);
  grid.classList.toggle("compact", state.fix === "impl");
  if (pick === undefined || !LAWS.length) {
    grid.replaceChildren(h("tbody", {}, h("tr", {}, h("td", { class: "empty" }, "These specs have no law of methods."))));
  } else if (state.fix === "impl") {
    const column = DATA.columns.findIndex(({ label }) => label === pick);
    fillGrid(`Laws by method, ${pick}`, "Method", SUBJECTS.map(([name]) => ({ key: name, heading: name })), LAWS.map((law) => ({
      heading: h("th", { scope: "col", title: law.text }, h("span", {}, law.id.replace(/^law\./, ""))),
      cell: (method) => capabilityCell(law, method, column, true),
    })));
  } else if (state.fix === "method") {
    fillGrid(`Laws by implementation, ${pick}`, "Law", LAWS.map((law) => ({
      key: law, heading: [law.text, h("span", { class: "clause-id" }, law.id)],
    })), columns.map((column) => ({ heading: columnHeading(column), cell: (law) => capabilityCell(law, pick, column) })));
  } else {
    const law = CLAUSES.get(pick);
    fillGrid(`Methods by implementation, ${pick}`, "Method", SUBJECTS.map(([name]) => subject(name)), columns.map((column) => ({
      heading: columnHeading(column), cell: (method) => capabilityCell(law, method, column),
    })));
  }
  firstStop(grid);
  const used = new Set([...grid.querySelectorAll("tbody .v")].map((element) => element.className));
  const letters = SEVERITY.filter((letter) => used.has(`v v-${VERDICTS.get(letter).name}`));
  document.getElementById("key").replaceChildren(...(state.fix === "impl" ? letters.map(badge) : []));
  const kinds = [plural(SUBJECTS.length, "method"), plural(LAWS.length, "law"), plural(columns.length, "implementation")];
  document.getElementById("slice-count").textContent = kinds.join(" × ");
}

function subject(name) {
  const [, title] = DATA.methods.find(([known]) => known === name);
  return { key: name, heading: [name, h("span", { class: "clause-id" }, title)] };
}

function fillGrid(caption, corner, rows, columns) {
  grid.replaceChildren(
    h("caption", { class: "sr" }, caption),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, corner), columns.map(({ heading }) => heading))),
    h("tbody", {}, rows.map(({ key, heading }) => {
      return h("tr", {}, h("th", { scope: "row" }, heading), columns.map(({ cell }) => cell(key)));
    })),
  );
}

function capabilityCell(law, method, column, compact) {
  const { letter, count, why } = capability(law, method, column);
  if (count) return clauseCell(law, column, method, compact);
  if (letter === NOTHING) return h("td", { class: "blank", title: why }, h("span", { class: "sr" }, why));
  const { name, symbol, word } = VERDICTS.get(letter);
  if (compact) return h("td", { class: "blank", title: `${word}: ${why}` }, h("span", { class: `v v-${name}`, "aria-hidden": "true" }, symbol), h("span", { class: "sr" }, `${word}: ${why}`));
  return h("td", { class: "without" }, badge(letter), h("span", { class: "n" }, why));
}
