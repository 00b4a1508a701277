"""Differences of many cases become facts that a person reads: what, after what, where, and how often.

The same fact in several methods, layers and dtypes is one finding. A fact that one call alone brings about is
not told again for each story in which the call is one of several.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft_conformance.cases import plain_text
from peft_conformance.diff.changes import Change

# What a difference is about, the most telling first, with the heading that it stands under.
KINDS = {
    "offers": "Names that are offered",
    "outcome": "Calls that end in another way",
    "requires_grad": "What trains",
    "keys": "Tensors and checkpoint keys",
    "identity": "Which objects are kept, replaced or shared",
    "dtype": "Dtypes",
    "shape": "Shapes",
    "device": "Devices",
    "activity": "What is active or merged",
    "scaling": "Scalings and ranks",
    "value": "Values that are returned or read",
    "files": "Files",
    "config": "Config fields",
    "grad": "Gradients",
    "kind": "Parameters and buffers",
    "modules": "Modules",
    "signature": "Signatures",
    "globals": "Global state",
    "warning": "Warnings",
    "numbers": "Zero and not finite numbers",
    "message": "Messages and texts",
    "values": "Other numbers",
    "rounding": "Rounding",
}
AGGREGATED = ("values", "rounding")  # many cases, little to tell: a line each
WORDS = ("outcome", "warning", "message")  # what is told by its words and not by a value
ALIKE = 3  # differences of one subject that are told one by one; more become one finding with an example


@dataclass(frozen=True)
class Seen:
    """A difference in one case."""

    case: str
    clause: str
    axes: Mapping[str, Any]
    methods: tuple[str, ...]
    change: Change


Fact = tuple[str, str, str, str]  # kind, subject, was, now
Facts = dict[Fact, dict[tuple[str, ...], list[Seen]]]  # with what was done, and the cases


@dataclass
class Finding:
    """One fact: what was, what is, after what, and the cases that show it."""

    kind: str
    subject: str
    was: str
    now: str
    occasions: list[dict[str, Any]]  # what was done (`during`), in how many cases, and one of them
    cases: list[str]
    clauses: list[str]
    methods: list[str]
    slots: list[str]
    example: dict[str, str]  # case, place
    only: dict[str, list[str]] = field(default_factory=dict)  # axis -> the only values that show it
    besides: list[str] = field(default_factory=list)  # other facts of exactly the same cases
    judged_by: list[str] = field(
        default_factory=list
    )  # checks whose verdict changed, if in all cases one did
    pairs: int = 1  # how many pairs of was and now it stands for

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dict(vars(self))


def findings(
    seen: Iterable[Seen],
    compared: Mapping[str, Sequence[Mapping[str, Any]]],
    turned: Mapping[str, set[str]] = {},
) -> list[Finding]:
    """All facts, the most telling first.

    `compared` has the points of every clause that were compared, `turned` for each case the checks whose
    verdict is another one.
    """
    by_fact: Facts = defaultdict(lambda: defaultdict(list))
    for item in seen:
        change = item.change
        by_fact[change.kind, change.subject, change.was, change.now][change.during].append(item)
    found = []
    explained = {fact: _explained(occasions) for fact, occasions in by_fact.items()}
    for fact, occasions in _alike(explained).items():
        found.append(_finding(fact, occasions, compared))
    for finding in (bundled := _bundled(found)):
        if all(case in turned for case in finding.cases):
            finding.judged_by = sorted({check for case in finding.cases for check in turned[case]})
    return sorted(bundled, key=_rank)


def _explained(occasions: Mapping[tuple[str, ...], list[Seen]]) -> dict[tuple[str, ...], list[Seen]]:
    """Occasions by the smallest set of acts that shows the same fact."""
    kept: dict[tuple[str, ...], list[Seen]] = {}
    for during in sorted(occasions, key=lambda acts: (len(acts), acts)):
        cause = next((known for known in kept if known and set(known) <= set(during)), during)
        kept.setdefault(cause, []).extend(occasions[during])
    return kept


def _alike(facts: Facts) -> Facts:
    """Facts of one subject that differ in their values only, as one where there are many."""
    groups: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        told_apart = fact[3] if fact[0] in WORDS else ""
        groups[fact[0], fact[1] + told_apart].append(fact)
    result: Facts = {}
    for members in groups.values():
        members.sort(key=lambda fact: (-sum(map(len, facts[fact].values())), fact))
        if len(members) <= ALIKE:
            result |= {fact: facts[fact] for fact in members}
            continue
        merged: dict[tuple[str, ...], list[Seen]] = defaultdict(list)
        for fact in members:
            for during, items in facts[fact].items():
                merged[during] += items
        result[members[0]] = merged
    return result


def _finding(
    fact: Fact,
    occasions: Mapping[tuple[str, ...], Sequence[Seen]],
    compared: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Finding:
    ranked = sorted(
        occasions.items(), key=lambda pair: (-len({i.clause for i in pair[1]}), len(pair[0]), pair[0])
    )
    items = [item for _, some in ranked for item in some]
    first = items[0]
    kind, subject, was, now = fact
    return Finding(
        kind,
        subject,
        was,
        now,
        occasions=[
            {"during": list(during), "cases": len({i.case for i in some}), "example": some[0].case}
            for during, some in ranked
        ],
        cases=sorted({item.case for item in items}),
        clauses=sorted({item.clause for item in items}),
        methods=sorted({method for item in items for method in item.methods}),
        slots=sorted({slot for item in items for slot in item.change.slots}),
        example={"case": first.case, "place": first.change.place},
        only=_only(items, compared),
        pairs=len({(item.change.was, item.change.now) for item in items}),
    )


def _only(items: Sequence[Seen], compared: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[str]]:
    """The axes whose values set these cases apart from the others of the same clauses that were compared."""
    axes = set.intersection(*(set(item.axes) for item in items)) - {"method"}
    result = {}
    for axis in sorted(axes):
        here = {plain_text(item.axes[axis]) for item in items}
        every = {
            plain_text(p[axis]) for clause in {i.clause for i in items} for p in compared[clause] if axis in p
        }
        if len(here) < len(every) and len(here) <= 3:
            result[axis] = sorted(here)
    return result


def _bundled(found: list[Finding]) -> list[Finding]:
    """Facts of exactly the same cases and occasion stand together, below the most telling one."""
    groups: dict[tuple[Any, ...], list[Finding]] = defaultdict(list)
    for finding in sorted(found, key=_rank):
        apart = finding.kind if finding.kind in AGGREGATED else ""
        acts = tuple(tuple(occasion["during"]) for occasion in finding.occasions)
        groups[acts, tuple(finding.cases), apart].append(finding)
    for first, *rest in groups.values():
        first.besides = [f"{finding.subject}: {finding.was} → {finding.now}" for finding in rest]
        first.slots = sorted({slot for finding in (first, *rest) for slot in finding.slots})
    return [group[0] for group in groups.values()]


def _rank(finding: Finding) -> tuple[Any, ...]:
    milder = finding.kind == "outcome" and finding.was != "returns"  # than an error where there was none
    breadth = -len(finding.clauses), -len(finding.methods), -len(finding.cases)
    return list(KINDS).index(finding.kind), milder, *breadth, finding.subject, finding.was, finding.now
