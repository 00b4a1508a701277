// A cell, opened: the promise, where it is from, what was expected beside what was observed, and a script.

const dialog = document.getElementById("detail");
const PLACES = 12; // points that are listed at once

/** Open a cell; `onmove` is told when another column is chosen inside. */
function showDetail({ clause, column, limit }, onmove) {
  const { label, about } = DATA.columns[column];
  const cell = clause.cells[column];
  const count = counts(clause, column, limit);
  const letter = worst(count);
  const sheet = h("div", { class: "sheet" },
    h("header", {},
      h("div", {},
        h("h2", { id: "detail-title", tabindex: "-1", autofocus: true }, clause.id, " · ", label, limit ? ` · ${limit.replace("@", " for ").trim()}` : ""),
        letter === NOTHING ? null : h("p", {}, badge(letter), " ", total(count) ? `${inWords(count)}; ${plural(total(count), "check")}` : "")),
      h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Close")),
    h("p", { class: "promise" }, h("span", { class: "level" }, clause.level), clause.text),
    facts(clause, about),
    strip(clause, column, limit, onmove),
    hasRows(cell) ? checks(clause, column, limit) : h("p", { class: "reason" }, said(cell[1])));
  dialog.replaceChildren(sheet);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  dialog.querySelector("h2").focus();
}

function facts(clause, about) {
  const entries = clause.sources.map(([title, place, says]) => ["Source", [
    said(title), place === null ? "" : `, ${said(place)}`, says === null ? null : h("span", { class: "says" }, said(says)),
  ].flat()]);
  if (clause.decided) entries.push(["Decided", [clause.decided]]);
  if (clause.file) entries.push(["Written in", [h("code", {}, `${clause.file}:${clause.line}`)]]);
  entries.push(["Promised for", [`API ${clause.api || "unknown"} · profile ${clause.profile}`]]);
  const users = Object.keys(clause.users);
  if (users.length) entries.push(["Relied on by", [users.join(", ")]]);
  entries.push(["Ran with", [about]]);
  return h("dl", { class: "facts" }, entries.map(([term, told]) => [h("dt", {}, term), h("dd", {}, told)]));
}

/** The same clause in every column. */
function strip(clause, column, limit, onmove) {
  if (DATA.columns.length < 2) return null;
  return h("section", { "aria-label": "The same clause elsewhere" }, h("h3", {}, "In each implementation"),
    h("div", { class: "strip" }, DATA.columns.map(({ label }, other) => {
      const letter = worst(counts(clause, other, limit));
      return h("button", {
        type: "button", "aria-current": other === column ? "true" : null, onclick: () => onmove(other),
      }, label, letter === NOTHING ? null : badge(letter));
    })));
}

function checks(clause, column, limit) {
  const [verdicts, outcomes] = clause.cells[column];
  const about = pointsOf(clause, limit);
  return h("section", { "aria-label": "Checks" }, h("h3", {}, "Checks"), clause.checks.map(([check, level, line, because], number) => {
    const letters = [...unfold(verdicts[number])].map((letter, point) => (about && !about[point] ? NOTHING : letter));
    const count = new Map();
    for (const letter of letters) if (letter !== NOTHING) count.set(letter, (count.get(letter) ?? 0) + 1);
    if (!count.size) return null;
    const own = outcomes.filter(([of]) => of === number).map((outcome) => within(outcome, letters)).filter(Boolean);
    own.sort((left, right) => SEVERITY.indexOf(left.letter) - SEVERITY.indexOf(right.letter));
    return h("article", { class: "check" },
      h("h4", {}, h("code", {}, check), badge(worst(count)), h("span", { class: "sub" }, `${level} · ${inWords(count)}`),
        line === null ? null : h("code", { class: "sub" }, `${clause.file}:${line}`)),
      because ? h("p", { class: "because" }, `because: ${because}`) : null,
      own.map((outcome) => outcomeOf(clause, outcome, letters.length)),
      unsaid(own, count));
  }));
}

/** An outcome at those of its points that are asked about; a pass stands for all points that have it. */
function within([, letter, points, expected, observed, detail, script, known], letters) {
  const passes = VERDICTS.get(letter).name === "pass";
  const places = passes ? [...letters.keys()].filter((point) => letters[point] === letter) : points.filter((point) => letters[point] !== NOTHING);
  return places.length ? { letter, passes, places, expected, observed, detail, script, known } : null;
}

function outcomeOf(clause, outcome, points) {
  const { letter, passes, places, script, known } = outcome;
  const [expected, observed, detail] = [outcome.expected, outcome.observed, outcome.detail].map(said);
  const { name } = VERDICTS.get(letter);
  const isKnown = name === "expected-failure";
  const body = [
    points > 1 ? h("p", {}, badge(letter), ` at ${places.length} of ${plural(points, "point")}`) : null,
    isKnown ? reason(detail, known) : null,
    ["blocked", "not-run", "unsupported"].includes(name) ? h("p", { class: "reason" }, detail) : h("div", { class: "beside" },
      outcome.expected === null ? null : h("div", {}, h("h5", {}, "expected"), h("pre", {}, expected)),
      h("div", {}, h("h5", {}, "observed"), h("pre", {}, observed))),
    detail && !isKnown && !["blocked", "not-run", "unsupported"].includes(name) ? h("p", { class: "because" }, detail) : null,
    clause.axes.length ? placesOf(clause, places) : null,
    script ? scriptOf(script) : null,
  ];
  if (passes) return h("details", { class: "outcome" }, h("summary", {}, `What passes${points > 1 ? `, at ${places.length} of ${plural(points, "point")}` : ""}`), body.slice(1));
  return h("div", { class: "outcome" }, body);
}

function reason(because, known) {
  const [review, link] = known ?? ["", null];
  return h("p", { class: "reason" }, `Known: ${because}`, review ? ` (to be looked at again by ${review})` : "",
    link && /^https?:/.test(link) ? [" ", h("a", { href: link, rel: "noreferrer noopener" }, "more")] : link ? ` ${link}` : "");
}

/** Points that have the verdict but no outcome of their own in the page. */
function unsaid(own, count) {
  const told = new Map();
  for (const { letter, places } of own) told.set(letter, (told.get(letter) ?? 0) + places.length);
  const more = [...count].filter(([letter, number]) => number > (told.get(letter) ?? 0));
  return more.map(([letter, number]) => h("div", { class: "outcome" },
    h("p", {}, badge(letter), ` with other values at ${plural(number - (told.get(letter) ?? 0), "more point")}; results.jsonl has them`)));
}

function placesOf(clause, places) {
  const write = (point) => h("li", {}, clause.axes.map((axis, number) => [axis, clause.values[number][clause.points[point][number]]])
    .filter(([, value]) => value !== "").map(([axis, value]) => `${axis}=${value}`).join(", "));
  const list = h("ul", {}, places.slice(0, PLACES).map(write));
  const more = places.length > PLACES && h("button", {
    type: "button", class: "quiet",
    onclick: () => { list.append(...places.slice(PLACES).map(write)); more.remove(); list.lastChild.scrollIntoView({ block: "nearest" }); },
  }, `Show all ${places.length}`);
  return h("div", { class: "places" }, h("h5", {}, places.length === 1 ? "at the point" : "at the points"), list, more);
}

function scriptOf(blocks) {
  const text = blocks.map(said).join("\n\n");
  const told = h("span", { role: "status", class: "sr" });
  const button = h("button", { type: "button", class: "quiet", onclick: async () => {
    const done = await copied(text);
    button.textContent = done ? "Copied" : "Select and copy by hand";
    told.textContent = done ? "The script is copied." : "The browser does not let a page copy.";
  } }, "Copy");
  return h("div", { class: "script" }, h("div", { class: "head" }, h("h5", {}, "A script that shows it"), told, button),
    h("pre", { tabindex: "0" }, h("code", {}, text)));
}

/** Put a text on the clipboard; from file:// some browsers only know the old way. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { class: "sr", "aria-hidden": "true" });
    area.value = text;
    dialog.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
