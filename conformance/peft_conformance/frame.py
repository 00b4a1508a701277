"""The frame: whatever a clause's `modifies` does not name is as it was before `when`.

Records from before and after become `Change`s, and `modifies` becomes allowances on object tokens: of two
entities that share a tensor or a module (a model and the PeftModel around it), one has to be named. Adding,
changing or removing an adapter (`role: adapter`) covers what carries it: its slots, the layer that wraps a
base layer, its entry in `peft_config`. It covers neither what is active, merged or scaled on layers that were
adapted before, nor, when `adapter` is given, anything of other adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_conformance import plain
from peft_conformance.roles import (
    ROOT,
    SHARED,
    WRAPPED,
    Cards,
    Record,
    Tagged,
    pair,
    select,
    tags,
    unwrapped,
)

TENSOR_ASPECTS = ("presence", "storage", "values", "dtype", "device", "shape", "requires_grad", "grad")
MODULE_ASPECTS = (
    "structure",
    "training",
    "hooks",
    "activation",
    "merging",
    "scaling",
    "config",
)
OTHER_ASPECTS = ("keys", "fields")
Tags = Callable[[Record], list[Tagged]]  # what each tensor of a record is for


@dataclass(frozen=True)
class Change:
    """One difference: who may allow it (`keys`: object and storage tokens), as which aspects; its words."""

    keys: tuple[Any, ...]
    aspects: tuple[str, ...]
    where: str
    what: str


def violations(modifies: Iterable[Mapping[str, Any]], frame: Mapping[str, Any], cards: Cards) -> list[str]:
    """Everything that changed and that no entry of `modifies` names, as sorted short lines."""
    before, after = frame["before"], frame["after"]
    tagged = _remembered(cards)
    allowed = _allowances(modifies, before["entities"], after["entities"], tagged)
    seen: set[tuple[Any, ...]] = set()
    lines = []
    for id, old in before["entities"].items():
        new = after["entities"].get(id)
        changes = [Change((id,), ("presence",), "", "gone")] if new is None else _entity(id, old, new, tagged)
        for change in changes:
            keys = [key for key in change.keys if key is not None]
            told = (change.keys[0] if keys else id, change.aspects, change.what)
            if told in seen or any((key, aspect) in allowed for key in keys for aspect in change.aspects):
                continue
            seen.add(told)
            lines.append(f"{id}: {change.where}: {change.what}" if change.where else f"{id}: {change.what}")
    for name, value in before["globals"].items():
        if not plain.equal(value, after["globals"].get(name)) and (name, "global") not in allowed:
            lines.append(f"{name} changed")
    return sorted(lines)


def _remembered(cards: Cards) -> Tags:
    """`tags` by these cards, found once for each record."""
    known: dict[int, list[Tagged]] = {}

    def tagged(record: Record) -> list[Tagged]:
        if id(record) not in known:
            known[id(record)] = tags(record, cards)
        return known[id(record)]

    return tagged


def _allowances(
    modifies: Iterable[Mapping[str, Any]], before: Mapping[str, Any], after: Mapping[str, Any], tagged: Tags
) -> set[tuple[Any, str]]:
    """Pairs of token and aspect that `modifies` allows to change."""
    allowed: set[tuple[Any, str]] = set()
    for entry in modifies:
        if "global" in entry:
            allowed.add((entry["global"], "global"))
            continue
        everything = entry.keys() == {"of"}
        aspects = set(entry.get("aspects", ()))
        adapter = entry.get("adapter")
        for record in filter(None, (before.get(entry["of"]), after.get(entry["of"]))):
            narrow = "role" in entry or "adapter" in entry or "name" in entry
            own = aspects or (set() if narrow else {*OTHER_ASPECTS, *TENSOR_ASPECTS})
            allowed |= {(key, aspect) for key in (entry["of"], record.get("object")) if key for aspect in own}
            for tensor, _ in select(tagged(record), entry):
                of_tensor = aspects or set(TENSOR_ASPECTS)
                allowed |= {(tensor.get("object"), aspect) for aspect in of_tensor}
                if "values" in of_tensor:
                    allowed.add((tensor.get("storage"), "values"))
            if record["kind"] != "model":
                continue
            of_modules = {"adapter:*", *MODULE_ASPECTS} if everything else aspects & set(MODULE_ASPECTS)
            if entry.get("role", "adapter" if adapter else "base") != "base" and (
                not aspects or "presence" in aspects
            ):
                of_modules = {*of_modules, f"adapter:{adapter or '*'}"}
            allowed |= {(module["object"], aspect) for module in record["modules"] for aspect in of_modules}
            if "config" in of_modules:
                configs = (record.get("peft_config") or {}).values()
                allowed |= {(config.get("object"), "fields") for config in configs}
    return allowed


def _entity(id: str, old: Record, new: Record, tagged: Tags) -> Iterator[Change]:
    """The changes of one entity. Kinds whose records say all there is to compare are compared as a whole."""
    key = old.get("object")
    if old["kind"] != new["kind"]:
        yield Change((id, key), ("presence",), "", f"{old['kind']} → {new['kind']}")
    elif old["kind"] == "model":
        yield from _model(old, new)
        if old != new:  # else its tensors are the same, and what they are for
            yield from _tensors(tagged(old), tagged(new))
    elif old["kind"] == "state_dict":
        names = [[t["name"] for t in record["tensors"]] for record in (old, new)]
        yield from _mapping((id, key), "keys", dict.fromkeys(names[0]), dict.fromkeys(names[1]), "")
        if set(names[0]) == set(names[1]) and names[0] != names[1]:
            yield Change((id, key), ("keys",), "", "order of the keys changed")
        both = set(names[0]) & set(names[1])
        sides = ([item for item in tagged(record) if item[0]["name"] in both] for record in (old, new))
        yield from _tensors(*sides)
    elif old["kind"] == "config":
        yield from _mapping((id, key), "fields", old["fields"], new["fields"], "")
    elif old["kind"] == "tensor":
        yield from _tensors(tagged(old), tagged(new))
    elif old["kind"] == "folder":
        yield from _mapping((id,), "keys", dict.fromkeys(old["files"]), dict.fromkeys(new["files"]), "")
        for name in sorted(old["files"].keys() & new["files"].keys()):
            if old["files"][name]["digest"] != new["files"][name]["digest"]:
                yield Change((id,), ("values",), name, "changed")
    else:
        said = [{field: value for field, value in record.items() if field != "text"} for record in (old, new)]
        yield from _mapping((id, key), "values", said[0], said[1], "")


def _mapping(
    keys: tuple[Any, ...],
    aspect: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    where: str,
    *others: str,
) -> Iterator[Change]:
    """Entries that are new, gone or changed."""
    for name in sorted(old.keys() | new.keys()):
        place = f"{where}[{name}]" if where else name
        if name not in new:
            yield Change(keys, (aspect, *others), place, "gone")
        elif name not in old:
            yield Change(keys, (aspect, *others), place, "new")
        elif not plain.equal(old[name], new[name]):
            what = f"{plain.text(old[name], 40)} → {plain.text(new[name], 40)}"
            yield Change(keys, (aspect, *others), place, what)


def _tensors(old: Sequence[Tagged], new: Sequence[Tagged]) -> Iterator[Change]:
    pairs, gone, come = pair(old, new)
    for items, what in ((gone, "gone"), (come, "new")):
        for tensor, _ in items:
            yield Change((tensor.get("object"),), ("presence",), tensor["name"], what)
    for (was, was_tag), (now, now_tag) in pairs:
        keys = (was.get("object"),)  # what was there must be allowed to change, whatever took its place
        name = now["name"]
        if was.get("object") != now.get("object"):
            yield Change(keys, ("presence",), name, "replaced by another tensor")
        if was_tag.name != now_tag.name:
            yield Change(keys, ("presence",), was["name"], f"now {name}")
        if was.get("kind") != now.get("kind"):
            yield Change(keys, ("presence",), name, f"{was.get('kind')} → {now.get('kind')}")
        if was.get("storage") != now.get("storage"):
            yield Change(keys, ("storage",), name, "storage changed")
        if was.get("digest") != now.get("digest"):
            yield Change((*keys, was.get("storage")), ("values",), name, "values changed")
        for aspect in ("dtype", "device", "shape", "requires_grad", "grad"):
            if was.get(aspect) != now.get(aspect):
                what = f"{aspect} {plain.text(was.get(aspect))} → {plain.text(now.get(aspect))}"
                yield Change(keys, (aspect,), name, what)


def _model(old: Record, new: Record) -> Iterator[Change]:
    """Modules, what is active, merged and scaled, and the configs of a model."""
    before, after = ({m["name"]: m for m in record["modules"]} for record in (old, new))
    # A module is the same one when it is the same object at the same place, wrapping apart.
    places = {(m["object"], unwrapped(name, after)): name for name, m in after.items()}
    same = {name: places.get((m["object"], unwrapped(name, before))) for name, m in before.items()}
    kept = set(same.values())
    for name, place in same.items():
        was = before[name]
        if place is None:
            replaced = name in after and name not in kept
            what = "replaced by another module" if replaced else "gone"
            yield Change((was["object"],), _structure(name, before, what), name, what)
            continue
        if place != name:
            longer, modules = (place, after) if len(place) > len(name) else (name, before)
            yield Change((was["object"],), _structure(longer, modules, "moved"), name, f"now {place}")
        yield from _module(was, after[place])
    for name, now in after.items():
        if name not in kept and (name not in before or same[name] is not None):
            yield Change((now["object"],), _structure(name, after, "new module"), name, "new module")
    root = (old["object"], new["object"], *(m["object"] for m in (before.get(""), after.get("")) if m))
    for word in ("active_adapter", "active_adapters"):
        was_active, now_active = old.get(word, "absent"), new.get(word, "absent")
        if not plain.equal(was_active, now_active):
            appears = [f"adapter:{a}" for a in _names(now_active)] if word not in old else []
            what = f"{plain.text(was_active)} → {plain.text(now_active)}"
            yield Change(root, ("activation", *appears, *(["adapter:*"] if appears else [])), word, what)
    configs = [record.get("peft_config") or {} for record in (old, new)]
    for name in sorted(configs[0].keys() ^ configs[1].keys()):
        what = "new" if name in configs[1] else "gone"
        yield Change(root, ("config", "adapter:*", f"adapter:{name}"), f"peft_config[{name}]", what)
    for name in sorted(configs[0].keys() & configs[1].keys()):
        fields = [config[name].get("fields", {}) for config in configs]
        keys = (configs[0][name].get("object"), *root)
        yield from _mapping(keys, "config", *fields, f"peft_config[{name}]", "fields")
        if configs[0][name].get("object") != configs[1][name].get("object"):
            yield Change(root, ("config",), f"peft_config[{name}]", "replaced by another config")


def _names(active: Any) -> list[str]:
    return [active] if isinstance(active, str) else list(active) if isinstance(active, list) else []


def _structure(name: str, modules: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """Which allowances cover that the module called `name` comes, goes, moves or is replaced.

    A part of an adapter comes and goes with it. An adapted layer and its slots come and go with any of its
    adapters, and what the layer wraps moves with it; but replacing them by others of the same name takes
    leave to change all.
    """
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        owner, inside = ".".join(parts[:i]), parts[i:]
        layer = modules.get(owner) or {}
        if layer.get("adapter") is not None:
            adapters = layer["adapter"]["adapters"]
        elif f"{owner}.modules_to_save" in modules:
            start = f"{owner}.modules_to_save."
            adapters = sorted(
                {other[len(start) :].split(".")[0] for other in modules if other.startswith(start)}
            )
        else:
            continue
        if inside and inside[0] in WRAPPED and what != "moved":
            break
        if len(inside) >= 2 and inside[0] not in WRAPPED:
            adapters = [inside[1]]
        elif what == "replaced by another module":
            adapters = []
        return ("structure", "adapter:*", *(f"adapter:{adapter}" for adapter in adapters))
    if name.startswith(f"{SHARED}.") and not f"{name}.".startswith(ROOT):  # what an adapter's layers share
        return ("structure", "adapter:*", *(f"adapter:{part}" for part in parts[2:]))
    return ("structure",)


def _module(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    """The changes of one module, the same object before and after."""
    keys, name = (was["object"],), now["name"] or "(root)"
    for aspect, field in (("structure", "class"), ("training", "training"), ("hooks", "hooks")):
        if was.get(field) != now.get(field):
            yield Change(
                keys, (aspect,), name, f"{field} {plain.text(was.get(field))} → {plain.text(now.get(field))}"
            )
    old, new = was.get("adapter"), now.get("adapter")
    if old is None or new is None:
        if old is not new:
            state = "no longer adapted" if new is None else "adapted in place"
            adapters = (old or new)["adapters"]  # type: ignore[index]
            yield Change(keys, ("structure", "adapter:*", *(f"adapter:{a}" for a in adapters)), name, state)
        return
    gone, come = (
        set(a) - set(b) for a, b in ((old["adapters"], new["adapters"]), (new["adapters"], old["adapters"]))
    )
    for adapter in sorted(gone | come):
        what = f"adapter {adapter} {'gone' if adapter in gone else 'new'}"
        yield Change(keys, ("structure", "adapter:*", f"adapter:{adapter}"), name, what)
    for aspect, field in (("activation", "active"), ("activation", "disabled"), ("merging", "merged"),
                          ("scaling", "scaling"), ("scaling", "r")):  # fmt: skip
        # What belongs to an adapter that came or went has come or gone with it.
        sides = [
            _without(side.get(field), gone | come) if field != "active" else side.get(field)
            for side in (old, new)
        ]
        if field == "active":
            sides[0] = _without(sides[0], gone)
        if not plain.equal(*sides):
            yield Change(keys, (aspect,), name, f"{field} {plain.text(sides[0])} → {plain.text(sides[1])}")


def _without(value: Any, adapters: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if name not in adapters}
    return [item for item in value if str(item) not in adapters] if isinstance(value, list) else value
