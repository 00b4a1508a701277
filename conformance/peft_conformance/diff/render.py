"""A comparison for people: a page for the terminal, and Markdown for a comment on a pull request."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft_conformance import plain
from peft_conformance.diff import Difference, findings, surfaces, verdicts

LINES = 60  # of a page, unless everything is asked for
WIDTH = 260  # characters of a line of it
PAGE = 3  # what is less telling is only counted on the page
WEIGHTS = dict.fromkeys(("outcome", "requires_grad", "keys", "identity", "dtype"), 1) | dict.fromkeys(
    ("offers", "shape", "activity", "value", "files", "config", "warning"), 3
)
SHOWN = ("names", "fields", "parameters", "enums")  # of what is offered
COMMENT = 60_000  # characters: what a comment on a pull request may have


@dataclass(frozen=True)
class Block:
    """Lines under a heading; `total` counts what they stand for."""

    heading: str
    lines: list[str]
    telling: int = 0  # the smaller, the sooner it gets a line


def terminal(difference: Difference, *, everything: bool = False) -> list[tuple[str, str | None]]:
    """Lines and their styles: a page that tells the most important, or everything."""
    found, opening = blocks(difference), _opening(difference)
    told = found if everything else [block for block in found if block.telling <= PAGE]
    room = LINES - len(opening) - len(told) - 2
    shown = {id(b): len(b.lines) for b in told} if everything else _shares(told, room)
    lines: list[tuple[str, str | None]] = [(opening[0], "bold"), *((line, None) for line in opening[1:])]
    for block in told:
        number = shown[id(block)]
        more = f" ({number} of {len(block.lines)})" if number < len(block.lines) else ""
        lines.append((f"{block.heading}{more}", "bold"))
        lines += [
            (f"  {line if everything else plain.text(line, WIDTH)}", None) for line in block.lines[:number]
        ]
    if rest := [f"{len(block.lines)} {_small(block.heading)}" for block in found if block not in told]:
        lines.append((f"Also: {'; '.join(rest)}", "bold"))
    if sum(shown.values()) < sum(len(block.lines) for block in found):
        lines.append(("--all shows every line, --format json every case.", "dim"))
    return lines


def _small(heading: str) -> str:
    return heading[0].lower() + heading[1:]


def _shares(found: Sequence[Block], room: int) -> dict[int, int]:
    """How many lines each block gets: one each while there is room, then the more telling ones first."""
    shares = {id(block): 0 for block in found}
    for limit in (1, 3, 5, 9, 99):
        for block in sorted(found, key=lambda b: b.telling):
            take = min(max(0, room), max(0, min(len(block.lines), limit) - shares[id(block)]))
            shares[id(block)] += take
            room -= take
    return shares


def markdown(difference: Difference, limit: int = COMMENT) -> str:
    """A summary that is seen, and all else behind headings that open; never longer than a comment may be."""
    title, *opening = _opening(difference)
    parts = [f"## {title}\n", *(f"{line}  " for line in opening), ""]
    found = [
        (block, [f"- {_escaped(plain.text(line, 900))}" for line in block.lines])
        for block in blocks(difference)
    ]
    room = limit - sum(map(len, parts)) - 200 * len(found)
    rooms = _rooms([sum(len(entry) + 1 for entry in entries) for _, entries in found], room)
    for (block, entries), share in zip(found, rooms, strict=True):
        ends = itertools.accumulate(len(entry) + 1 for entry in entries)
        listed = [entry for entry, end in zip(entries, ends, strict=True) if end <= share]
        if len(listed) < len(entries):
            listed.append(f"- … and {len(entries) - len(listed)} more")
        opened = " open" if block.telling == 0 else ""
        parts += [f"<details{opened}><summary>{block.heading}</summary>\n", *listed, "\n</details>\n"]
    return "\n".join(parts)


def _rooms(sizes: Sequence[int], room: int) -> list[int]:
    """How much of a room each gets: what is small all that it needs, the others equal parts of the rest."""
    given = dict[int, int]()
    for waiting, index in zip(
        range(len(sizes), 0, -1), sorted(range(len(sizes)), key=sizes.__getitem__), strict=True
    ):
        given[index] = min(sizes[index], max(0, room) // waiting)
        room -= given[index]
    return [given[index] for index in range(len(sizes))]


def _escaped(line: str) -> str:
    return line.replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|").replace("*", "\\*")


def _opening(difference: Difference) -> list[str]:
    """Who is compared with whom, with what, and how it ended."""
    sides = difference.left, difference.right
    names = [f"{side['implementation']['name']} {side['implementation']['version']}" for side in sides]
    levels = [side["implementation"]["api_level"] for side in sides]
    lines = [f"From {names[0]} to {names[1]}"]
    about = [
        f"{difference.compared} programs compared, matrix {difference.selection['matrix']}",
        f"API levels {levels[0]} and {levels[1]}",
        *(f"{p} {difference.right[p]}" for p in ("torch", "transformers") if difference.right[p]),
    ]
    lines.append(" · ".join(about))
    lines += difference.notes
    if difference.not_compared:
        reasons = [f"{number} {reason}" for reason, number in difference.not_compared.items()]
        lines.append(f"Not compared: {'; '.join(plain.few(reasons))}")
    counts = verdicts.totals(difference.turns)
    told = [f"{count['checks']} {_small(verdicts.TURNS[turn])}" for turn, count in counts.items()]
    lines.append(f"Checks: {'; '.join(told) or 'every verdict is the same'}")
    return lines


def blocks(difference: Difference) -> list[Block]:
    """Everything that was found, in the order of its weight."""
    found = []
    for turn, heading in verdicts.TURNS.items():
        turned = [t for t in difference.turns if t.turn == turn]
        if turned and turn in verdicts.TELLING:
            checks = sum(len(t.points) for t in turned)
            heading = f"{heading}: {checks} checks of {len({t.clause for t in turned})} clauses"
            found.append(Block(heading, list(map(_turn, turned)), {"red": 0, "green": 3}.get(turn, 2)))
    for kind, heading in findings.KINDS.items():
        if facts := [f for f in difference.findings if f.kind == kind]:
            found.append(Block(heading, list(map(_finding, facts)), WEIGHTS.get(kind, 4)))
    for section, heading in surfaces.SECTIONS.items():
        if offered := [f for f in difference.surface if f.section == section]:
            weight = 3 if section in SHOWN else 4
            found.append(Block(f"Offered: {_small(heading)}", list(map(_offered, offered)), weight))
    return found


def _turn(turn: verdicts.Turn) -> str:
    points = f" ({len(turn.points)} points)" if len(turn.points) > 1 else ""
    parts = [f"{turn.clause}:{turn.check}{points}: {turn.text}"]
    if turn.turn in ("red", "red-otherwise", "green", "warning"):
        parts.append(f"was {_value(turn.was)}, now {_value(turn.now)}")
    elif turn.turn != "blocked":
        parts.append(f"expected {_value(turn.expected)}, observed {_value(turn.now)}")
    if turn.because:
        parts.append(f"known: {turn.because}")
    parts.append(f"e.g. {turn.example}")
    return " · ".join(parts)


def _value(value: Any) -> str:
    return plain.text(" ".join(plain.text(value, 400).split()), 70)


def _finding(finding: findings.Finding) -> str:
    """A fact in one line: what, after what, where."""
    parts = [f"{finding.subject}: {plain.text(finding.was, 90)} → {plain.text(finding.now, 90)}"]
    if finding.pairs > 1:
        parts[0] += f" (and {finding.pairs - 1} more like it)"
    acts = [" + ".join(occasion["during"]) for occasion in finding.occasions if occasion["during"]]
    if acts and acts != [finding.subject.removesuffix(" again")]:
        parts.append(f"after {'; '.join(plain.few(acts, 4))}")
    where = [_some("methods", finding.methods, 8), _some("slots", finding.slots)]
    where += [f"only {axis} {', '.join(values)}" for axis, values in finding.only.items()]
    parts += filter(None, where)
    parts.append(f"{len(finding.cases)} case{'s' if len(finding.cases) > 1 else ''}")
    if finding.besides:
        parts.append(f"with it: {'; '.join(plain.few(finding.besides, 2))}")
    place = f", {plain.text(finding.example['place'], 80)}" if finding.example["place"] else ""
    parts.append(f"e.g. {finding.example['case']}{place}")
    if finding.judged_by:
        parts.append(f"judged by {', '.join(plain.few(finding.judged_by, 2))}")
    return " · ".join(parts)


def _some(what: str, names: Sequence[str], limit: int = 4) -> str:
    if not names:
        return ""
    return ", ".join(names) if len(names) <= limit else f"{len(names)} {what} ({', '.join(names[:limit])}, …)"


def _offered(finding: surfaces.Finding) -> str:
    owners = f" in {_some('places', finding.owners)}" if finding.owners else ""
    return f"{finding.what}{owners}: {finding.was} → {finding.now}"
