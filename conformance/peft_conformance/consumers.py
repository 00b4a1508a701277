"""Consumers: the libraries that build on PEFT, and the clauses that each relies on (`specs/profiles/`).

A clause has one profile of its own; beside that, any number of consumers may rely on it, or on some of its
cases.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from peft_conformance.cases import Clause, plain_text
from peft_conformance.expand import methods_at, points
from peft_conformance.language import Suite
from peft_conformance.reading import Map, SpecError, closest

Point = Mapping[str, Any]  # axis -> value


class Consumers:
    """Who relies on what, worked out once for a suite."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        ids = [clause.id for clause in suite.clauses]
        self._entries: dict[str, list[tuple[str, Map]]] = {}  # clause -> who names it, and in which entry
        for name, profile in suite.profiles.items():
            for entry in profile["relies_on"]:
                for clause in dict.fromkeys(c for p in entry["clauses"] for c in fnmatch.filter(ids, p)):
                    self._entries.setdefault(clause, []).append((name, entry))

    def of(self, clause: Clause, point: Point) -> list[str]:
        """The consumers that rely on a clause at a point of its matrix, by name."""
        entries = self._entries.get(clause.id, ())
        return sorted({name for name, entry in entries if self._takes(name, entry, clause, point)})

    def entries(self, clause: Clause) -> list[tuple[str, Map]]:
        """Each consumer that names a clause, with the entry of its profile that does."""
        return self._entries.get(clause.id, [])

    def _takes(self, name: str, entry: Map, clause: Clause, point: Point) -> bool:
        """Whether a point is within what an entry is restricted to: values of axes, and methods."""
        for axis, values in entry.get("axes", {}).items():
            if axis in point and not _any_of(point[axis], values):
                return False
        wanted = entry.get("methods", self.suite.profiles[name].get("methods"))
        return wanted is None or methods_at(self.suite, clause, point) <= set(wanted)


def selected(suite: Suite, profiles: Collection[str]) -> Callable[[Clause, Point], bool]:
    """What tells whether a point of a clause is in one of these profiles; without any, everything is.

    A profile is one that clauses have, or the name of a consumer. Raises KeyError for one that there is not.
    """
    known = names(suite)
    for name in profiles:
        if name not in known:
            near = closest(name, known)
            meant = f"; did you mean {near!r}?" if near else ""
            raise KeyError(f"unknown profile {name!r}{meant}; choose from {', '.join(known)}")
    wanted, consumers = set(profiles), Consumers(suite)

    def takes(clause: Clause, point: Point) -> bool:
        return not wanted or clause.profile in wanted or not wanted.isdisjoint(consumers.of(clause, point))

    return takes


def names(suite: Suite) -> list[str]:
    """What `--profile` takes: the profiles that clauses have, then the consumers."""
    return [*sorted({clause.profile for clause in suite.clauses}), *sorted(suite.profiles)]


def faults(suite: Suite) -> Iterator[SpecError]:
    """What is wrong with the profiles: entries that select nothing, a profile that selects everything."""
    consumers = Consumers(suite)
    own = {clause.profile for clause in suite.clauses}
    known = {clause.id: clause for clause in suite.clauses}
    for name, profile in suite.profiles.items():
        file = suite.file_of(profile)
        if name in own:
            yield SpecError(file, profile.lines["profile"], f"{name!r} is a profile that clauses have")
        for entry in profile["relies_on"]:
            yield from (SpecError(file, *fault) for fault in _of_entry(suite, consumers, name, entry))
        if len(known) > 1 and all(name in consumers.of(c, p) for c in suite.clauses for p in points(c)):
            message = f"all {len(known)} clauses are selected: a profile names what its consumer relies on"
            yield SpecError(file, profile.lines["relies_on"], message)
    for clause in suite.clauses:
        line = clause.lines.get("source", clause.line)
        named = {name for name, _ in consumers.entries(clause)}
        for user in (user for source in clause.sources for user in source.get("relied-on-by", ())):
            if user not in suite.profiles:
                near = closest(user, suite.profiles)
                yield SpecError(clause.file, line, f"relied on by unknown consumer {user!r}", near)
            elif user not in named:
                message = f"relied on by {user}, whose profile does not select this clause"
                yield SpecError(clause.file, line, message)


def _of_entry(
    suite: Suite, consumers: Consumers, name: str, entry: Map
) -> Iterator[tuple[int, str] | tuple[int, str, str | None]]:
    """What is wrong with one entry, each with its line."""
    ids = [clause.id for clause in suite.clauses]
    chosen = [clause for clause in suite.clauses if any(e is entry for _, e in consumers.entries(clause))]
    taken = [c.id for c in chosen if any(consumers._takes(name, entry, c, point) for point in points(c))]
    for pattern, line in _lined(entry["clauses"]):
        if not fnmatch.filter(ids, pattern):
            patterns = {f"{clause.partition('.')[0]}.*" for clause in ids}
            yield line, f"no clause matches {pattern!r}", closest(pattern, [*ids, *sorted(patterns)])
        elif not fnmatch.filter(taken, pattern):
            yield line, f"{pattern!r} has no case with these axes and methods"
    for method, line in _lined(entry.get("methods", ())):
        if method not in suite.cards:
            yield line, f"unknown method {method!r}", closest(method, suite.cards)
    for axis, patterns in entry.get("axes", {}).items() if chosen else ():
        line = entry["axes"].lines[axis]
        values = {plain_text(value) for clause in chosen for value in clause.matrix.get(axis, ())}
        if not values:
            axes = {axis for clause in chosen for axis in clause.matrix}
            yield line, f"none of these clauses has an axis {axis!r}", closest(axis, axes)
            continue
        for pattern in patterns:
            if not fnmatch.filter(values, plain_text(pattern)):
                near = closest(plain_text(pattern), values)
                yield line, f"axis {axis!r} has no value {plain_text(pattern)!r} here", near


def _lined(items: Any) -> Iterable[tuple[Any, int]]:
    return zip(items, items.lines, strict=True) if items else ()


def _any_of(value: Any, patterns: Iterable[Any]) -> bool:
    return any(fnmatch.fnmatchcase(plain_text(value), plain_text(pattern)) for pattern in patterns)
