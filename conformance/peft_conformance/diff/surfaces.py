"""What two sides offer: names, parameters, config fields and members of enumerations, and their defaults."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peft_conformance import plain

ABSENT = "absent"
SECTIONS = {  # of what is offered, with the heading that its changes stand under
    "names": "Public names",
    "fields": "Config fields",
    "parameters": "Parameters",
    "members": "Methods and attributes",
    "enums": "Members of enumerations",
    "values": "Constants",
    "bases": "Base classes",
    "exports": "Lists of names (`__all__`)",
}


@dataclass
class Finding:
    """One change of what is offered; the same one in several owners (configs, functions) is told once."""

    section: str  # a key of SECTIONS
    what: str  # what came, went or changed
    was: str
    now: str
    owners: list[str]  # where it did; empty for a name by itself

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dict(vars(self))


Change = tuple[str, str, str, Any, Any]  # section, owner, what, was, now


def differences(left: Mapping[str, Any] | None, right: Mapping[str, Any] | None) -> list[Finding]:
    """Every change between two surfaces; none where there is one only, or none could be taken."""
    if not left or not right or left.get("error") or right.get("error"):
        return []
    groups: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for section, owner, what, was, now in (*_names(left["names"], right["names"]), *_exports(left, right)):
        groups[section, what, _text(was), _text(now)].append(owner)
    found = [Finding(*key, owners=sorted(filter(None, owners))) for key, owners in groups.items()]
    order = list(SECTIONS)
    return sorted(
        found, key=lambda f: (order.index(f.section), f.now != ABSENT, -len(f.owners), f.what, f.owners)
    )


def _names(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[Change]:
    for name, was, now in _both(left, right):
        if was == ABSENT or now == ABSENT or was["kind"] != now["kind"]:
            yield "names", "", name, _kind(was), _kind(now)
        elif was["kind"] == "function":
            yield from _parameters(name, was, now)
        elif was["kind"] == "class":
            yield from _class(name, was, now)
        elif was["kind"] == "enum":
            for member, before, after in _both(was["value"], now["value"]):
                yield "enums", name, member, before, after
        elif was["kind"] == "value" and isinstance(was["value"], dict) and isinstance(now["value"], dict):
            for key, before, after in _both(was["value"], now["value"]):
                yield "values", name, key, before, after
        elif was["kind"] == "value":
            yield "values", "", name, was["value"], now["value"]
        elif was["kind"] == "alias" and was["of"] != now["of"]:
            yield "names", "", name, f"the same as {was['of']}", f"the same as {now['of']}"


def _class(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    if "fields" in was and "fields" in now:
        for field, before, after in _both(was["fields"], now["fields"]):
            yield "fields", name, field, _default(before), _default(after)
    else:
        yield from _parameters(name, was, now)
    for member, before, after in _both(was.get("members", {}), now.get("members", {})):
        if before == ABSENT or after == ABSENT or before["kind"] != after["kind"]:
            yield "members", name, member, _kind(before), _kind(after)
        elif "parameters" in before:
            yield from _parameters(f"{name}.{member}", before, after)
        else:
            yield "members", name, member, before.get("value"), after.get("value")
    if was["mro"] != now["mro"]:
        gone = [base for base in was["mro"] if base not in now["mro"]]
        come = [base for base in now["mro"] if base not in was["mro"]]
        yield "bases", name, "bases", ", ".join(gone) or ABSENT, ", ".join(come) or ABSENT


def _parameters(owner: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    sides = [{p["name"]: p for p in record.get("parameters") or ()} for record in (was, now)]
    for name, *records in _both(*sides):
        texts = [_default(record) for record in records]
        if texts[0] == texts[1]:  # another kind: what could be given by position, for one
            texts = [str(record["kind"]) for record in records]
        yield "parameters", owner, name, texts[0], texts[1]
    names = [[name for name in side if name in sides[0] and name in sides[1]] for side in sides]
    if names[0] != names[1]:
        yield "parameters", owner, "order of the parameters", ", ".join(names[0]), ", ".join(names[1])


def _exports(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[Change]:
    modules = left["modules"], right["modules"]
    for place in (place for place in modules[0] if place in modules[1]):
        sides = [dict.fromkeys(module[place] or (), "listed") for module in modules]
        for name, was, now in _both(*sides):
            yield "exports", place or "the root module", name, was, now


def _both(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Entries that differ, with ABSENT for one that is not there."""
    for name in [*left, *(name for name in right if name not in left)]:
        was, now = left.get(name, ABSENT), right.get(name, ABSENT)
        if not plain.equal(was, now):
            yield name, was, now


def _kind(record: Any) -> str:
    return ABSENT if record == ABSENT else str(record["kind"])


def _default(record: Any) -> str:
    if record == ABSENT:
        return ABSENT
    return f"= {plain.text(record['default'], 60)}" if "default" in record else "required"


def _text(value: Any) -> str:
    return plain.text(value, 100)
