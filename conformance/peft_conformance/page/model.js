"use strict";
// The data of the page, and what can be asked of it. Nothing here touches the document.

const DATA = JSON.parse(document.getElementById("data").textContent);
const VERDICTS = new Map(DATA.verdicts.map((verdict) => [verdict.letter, verdict]));
const SEVERITY = [..."efcsbkwpiuna"]; // which verdict stands for a cell: the first of these that was given
const JUDGED = new Set("efcskwpi");
const NOTHING = "-"; // at a point that a report does not have
const CLAUSES = new Map(DATA.clauses.map((clause) => [clause.id, clause]));

const said = (number) => (number === null || number === undefined ? "" : DATA.texts[number]);
const unfold = (runs) => runs.replace(/(\d+)(\D)/g, (_, number, letter) => letter.repeat(Number(number)));
const hasRows = (cell) => typeof cell[0] !== "string";
const plural = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

/** The methods that a clause's points name; for a clause whose points name none, those that it makes itself. */
function methodsOf(clause) {
  if (!clause.methods) {
    const [byAxis, own] = clause.of;
    const named = byAxis.flat().filter(Boolean);
    clause.methods = new Set(named.length ? named : own);
  }
  return clause.methods;
}

/** What cells are limited to, as one text: a method, a consumer, both or neither. */
const limited = (method, consumer) => (consumer ? `${method}@${consumer}` : method);

/** Which points of a clause are within a limit: null for all of them. */
function pointsOf(clause, limit) {
  const [byAxis] = clause.of;
  const [method, consumer] = limit.split("@");
  const named = method && byAxis.some((values) => values.some(Boolean));
  if (!named && !consumer) return null;
  clause.chosen ??= new Map();
  if (!clause.chosen.has(limit)) {
    const relied = consumer ? unfold(clause.users[consumer] ?? "") : "";
    clause.chosen.set(limit, clause.points.map((point, number) => {
      return (!named || point.some((value, axis) => byAxis[axis][value] === method)) && (!consumer || relied[number] === "y");
    }));
  }
  return clause.chosen.get(limit);
}

/** How often each verdict was given on a clause by a column, at all points or those within a limit. */
function counts(clause, column, limit = "") {
  const cell = clause.cells[column];
  cell.counted ??= new Map();
  if (cell.counted.has(limit)) return cell.counted.get(limit);
  const result = new Map();
  if (hasRows(cell)) {
    const about = pointsOf(clause, limit);
    for (const runs of cell[0]) {
      [...unfold(runs)].forEach((letter, point) => {
        if (letter !== NOTHING && (!about || about[point])) result.set(letter, (result.get(letter) ?? 0) + 1);
      });
    }
  } else {
    result.set(cell[0], 0);
  }
  cell.counted.set(limit, result);
  return result;
}

const worst = (count) => SEVERITY.find((letter) => count.has(letter)) ?? NOTHING;
const total = (count) => [...count.values()].reduce((sum, number) => sum + number, 0);
const isRed = (letter) => Boolean(VERDICTS.get(letter)?.red);

/** Several counts as one. */
function added(all) {
  const result = new Map();
  for (const count of all) for (const [letter, number] of count) result.set(letter, (result.get(letter) ?? 0) + number);
  return result;
}

/** A count in words, worst first: "3 fail, 117 pass". */
function inWords(count) {
  return SEVERITY.filter((letter) => count.get(letter)).map((letter) => `${count.get(letter)} ${VERDICTS.get(letter).word}`).join(", ");
}

/** Whether columns that judged a clause came to different ends. */
function differs(clause, columns, limit) {
  const ends = columns.map((column) => worst(counts(clause, column, limit))).filter((letter) => JUDGED.has(letter));
  return new Set(ends).size > 1;
}

/** Everything of a clause that the search looks at, in lower case. */
function haystack(clause) {
  clause.haystack ??= [
    clause.id, clause.text, clause.topic, clause.file, clause.decided ?? "",
    ...clause.sources.flat().map(said), ...clause.checks.map(([check]) => check),
  ].join("\n").toLowerCase();
  return clause.haystack;
}

/** What the filters limit cells to. */
const limitOf = ({ method, profile }) => limited(method, DATA.consumers.includes(profile) ? profile : "");

/** Whether a clause passes the filters. */
function matches(clause, filters, columns) {
  const { q, verdict, impl, profile, method, level, differ } = filters;
  const limit = limitOf(filters);
  if (level && clause.level !== level) return false;
  if (profile && clause.profile !== profile && !clause.users[profile]) return false;
  if (method && !methodsOf(clause).has(method)) return false;
  if (q && !q.toLowerCase().split(/\s+/).every((word) => haystack(clause).includes(word))) return false;
  if (differ && !differs(clause, columns, limit)) return false;
  if (!verdict) return true;
  const among = impl ? columns.filter((column) => DATA.columns[column].label === impl) : columns;
  return among.some((column) => [...counts(clause, column, limit).keys()].some((letter) => {
    return verdict === "red" ? isRed(letter) : VERDICTS.get(letter).name === verdict;
  }));
}

/** What a column says of a law and a method: a count, and where there is none, why. */
function capability(law, method, column) {
  const count = counts(law, column, method);
  if (hasRows(law.cells[column]) && count.size) return { letter: worst(count), count };
  const number = DATA.methods.findIndex(([name]) => name === method);
  const lacks = DATA.columns[column].lacks[method];
  const whole = DATA.columns.some(({ matrix, built }) => built && matrix === "full");
  const silent = { letter: NOTHING, why: "this law has no case of this method" };
  if (!law.speaks.includes(method)) return silent;
  if (DATA.absent[number][column]) return { letter: "a", why: `the method is part of API ${DATA.methods[number][2]}` };
  if (lacks) return { letter: "u", why: lacks };
  if (whole && !methodsOf(law).has(method)) return silent; // its layers are not the law's
  if (!hasRows(law.cells[column])) return { letter: law.cells[column][0], why: said(law.cells[column][1]) };
  return { letter: "n", why: "no check in this report" };
}
