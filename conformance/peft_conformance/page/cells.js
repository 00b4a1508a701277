// Elements, and the cells of both tables: what they show, and how the keyboard moves between them.

/** An element; text is always set as text, never as markup. */
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A verdict as people read it: symbol and word. */
function badge(letter) {
  const { name, symbol, word } = VERDICTS.get(letter);
  return h("span", { class: `v v-${name}` }, h("span", { "aria-hidden": "true" }, symbol), ` ${word}`);
}

/** How many of the checks the shown verdict is about; what is only recorded is no part that failed to pass. */
function share(letter, count) {
  const all = total(count);
  const of = (number) => number.toLocaleString("en");
  if (!all) return "";
  if (count.get(letter) === all) return of(all);
  return letter === "p" ? `${of(count.get("p"))}, ${of(all - count.get("p"))} info` : `${of(count.get(letter))} of ${of(all)}`;
}

/** A cell of a clause, to be opened. */
function clauseCell(clause, column, limit, compact) {
  const count = counts(clause, column, limit);
  const letter = worst(count);
  if (letter === NOTHING) return h("td", { class: "blank" }, h("span", { class: "sr" }, "no check"));
  const { name, word, symbol } = VERDICTS.get(letter);
  const label = [`${word} ${share(letter, count)}`.trim(), inWords(count)].filter(Boolean).join(": ");
  return h("td", { class: `g-${name}` }, h("button", {
    type: "button", class: "cell", tabindex: "-1", "aria-haspopup": "dialog", "aria-label": label,
    "data-clause": clause.id, "data-column": column, "data-limit": limit || null,
    title: compact ? `${clause.id}, ${limit}: ${label}` : null,
  }, compact ? h("span", { class: `v v-${name}` }, symbol) : [badge(letter), h("span", { class: "n" }, share(letter, count))]));
}

/** The heading of a column. */
function columnHeading(column) {
  const { label, api, built, caveats } = DATA.columns[column];
  const [name, ...version] = label.split(" ");
  return h("th", { scope: "col" }, name, h("br"), version.join(" "), h("span", { class: "sub" }, !built ? "not run" : caveats.length ? "incomplete" : `API ${api}`));
}

/** One tab stop for a table: arrow keys move between what can be opened in it. */
function roving(table) {
  const all = () => [...table.querySelectorAll("button")];
  const go = (button) => {
    if (!button) return;
    table.querySelectorAll("button[tabindex='0']").forEach((other) => other.setAttribute("tabindex", "-1"));
    button.setAttribute("tabindex", "0");
    button.focus();
  };
  const inColumn = (button, step) => {
    const place = button.closest("td, th").cellIndex;
    const rows = [...table.rows];
    for (let row = button.closest("tr").rowIndex + step; rows[row]; row += step) {
      const found = rows[row].cells[place]?.querySelector("button");
      if (found) return found;
    }
    return null;
  };
  table.addEventListener("focusin", ({ target }) => {
    if (target.tagName === "BUTTON" && target.tabIndex !== 0) go(target);
  });
  table.addEventListener("keydown", (event) => {
    const button = event.target.closest("button");
    if (!button || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    const row = [...button.closest("tr").querySelectorAll("button")];
    const opens = button.getAttribute("aria-expanded");
    const next = all()[all().indexOf(button) + 1];
    const moves = {
      ArrowUp: () => go(inColumn(button, -1)),
      ArrowDown: () => go(inColumn(button, 1)),
      ArrowRight: () => {
        if (opens === "false") button.click();
        else go(opens ? next : row[row.indexOf(button) + 1]);
      },
      ArrowLeft: () => {
        if (opens === "true") button.click();
        else if (!opens) go(row[row.indexOf(button) - 1] ?? button.closest("tbody").querySelector("button"));
      },
      Home: () => go(row[0]),
      End: () => go(row.at(-1)),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  });
}

/** After a table was filled: its one tab stop. */
function firstStop(table) {
  table.querySelector("button")?.setAttribute("tabindex", "0");
}
