"""What each tensor of a record is for, read from the method cards rather than from name prefixes.

A tensor `<path>.<slot>.<adapter>[.<rest>]` is an adapter's when `<slot>[.<rest>]` is a tensor of a card; a
copy below `modules_to_save.<adapter>` is `aux`; everything else is `base`, whatever it is called. A card's
tensor that is `shared` is one for the whole model: wherever a model carries it, it is taken once, by the key
that it has in a checkpoint, `base_model.<slot>[.<rest>]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
Cards = Mapping[str, Mapping[str, Any]]

# where a wrapper keeps what it stands for
WRAPPED = frozenset({"base_layer", "original_module", "token_adapter"})
AUX = ("modules_to_save", "trainable_tokens_delta")  # where wrappers keep what an adapter trains besides
TOKENS = ("trainable_tokens_delta", "trainable_tokens_original")  # the trained rows, and the base's
ROOT = "base_model.model."  # what PeftModel puts before the paths of the model it holds
SHARED = "base_model"  # where a PeftModel, and every checkpoint, has what an adapter shares over all layers


@dataclass(frozen=True)
class Tag:
    """What a tensor is for."""

    role: str  # base, aux, or a role of the cards: trainable, frozen, saved-buffer, unsaved
    module: str  # path of the adapted layer or wrapper, or of the module that owns a base tensor
    adapter: str | None  # None for base tensors, and in state dicts, whose keys name no adapter
    tensor: str  # the card's name for it, or the last segment of its own
    name: str  # its name as if no layer had been wrapped: equal before and after an injection
    bare: str  # the same without the adapter's name and PeftModel's prefix: as in a checkpoint
    shared: bool = False  # whether it is one for the whole model

    def has_role(self, role: str) -> bool:
        """True when `role` names what the tensor is for.

        `adapter` stands for every role of the cards, `saved` for all of them but `unsaved`, and `shared` for
        any of what is one for the whole model.
        """
        if role == "shared":
            return self.shared
        if role in ("adapter", "saved"):
            return self.role not in ("base", "aux") and (role == "adapter" or self.role != "unsaved")
        return self.role == role


Tagged = tuple[Mapping[str, Any], Tag]


def tensors_of(record: Record) -> list[Mapping[str, Any]]:
    """The tensors that a record holds, in its order; those of a folder come from its files."""
    if record["kind"] == "folder":
        return [t for _, file in sorted(record["files"].items()) for t in file.get("tensors") or ()]
    if record["kind"] == "tensor":
        return [{"name": "", **record}]
    return list(record.get("tensors") or ())


def card_of(config: Record, cards: Cards) -> Mapping[str, Any] | None:
    """The card of a config's record, by `peft_type`, else by class; None for a method without a card."""
    by_type = cards.get(str(config.get("fields", {}).get("peft_type")))
    return by_type or next((c for c in cards.values() if c["config"]["class"] == config.get("class")), None)


def unwrapped(path: str, modules: Mapping[str, Any] | None) -> str:
    """`path` without the segments that wrapping put into it; `modules` by name, None for state dicts."""
    every = path.split(".")
    if WRAPPED.isdisjoint(every):
        return path
    parts: list[str] = []
    real: list[str] = []
    for part in every:
        if part not in WRAPPED or not (modules is None or _wraps(modules, ".".join(real), part)):
            parts.append(part)
        real.append(part)
    return ".".join(parts)


def _adapted(modules: Mapping[str, Any], path: str) -> bool:
    return path in modules and modules[path]["adapter"] is not None


def _wraps(modules: Mapping[str, Any], path: str, part: str) -> bool:
    if part == "original_module":
        return join(path, "modules_to_save") in modules
    return _adapted(modules, path if part == "base_layer" else join(path, part))


Slots = dict[str, dict[str, tuple[str, Mapping[str, Any]]]]


def _slots(cards: Iterable[Mapping[str, Any]]) -> Slots:
    """Slot name -> rest of the name -> the card's name of a tensor and its entry, over all the cards."""
    slots: Slots = {}
    for card in cards:
        for name, tensor in card.get("tensors", {}).items():
            for called in (name, tensor.get("saved_as", name)):
                slot, _, rest = called.partition(".")
                slots.setdefault(slot, {})[rest] = (name, tensor)
    return slots


_latest: tuple[Cards, Slots] = ({}, {})


def _all_slots(cards: Cards) -> Slots:
    """`_slots` of all the cards, kept while the cards are the same object: a suite's are never changed, and
    to go through them takes half as long as all else that is done for a record.
    """
    global _latest
    if _latest[0] is not cards:
        _latest = cards, _slots(cards.values())
    return _latest[1]


def _find(slots: Slots, slot: str, rest: str) -> tuple[str, Mapping[str, Any]] | None:
    """What the cards say of a name; `<group>` in a card's name stands for any segment."""
    entries = slots.get(slot, {})
    if rest in entries:
        return entries[rest]
    fitting = (key for key in entries if re.fullmatch(r"<\w+>", key) and re.fullmatch(r"[^.]+", rest))
    return next((entries[key] for key in fitting), None)


def _readings(after: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """What follows a slot as (adapter, rest, whether the adapter came last): it does where what is shared is
    kept by groups of layers.
    """
    if after:
        yield after[0], ".".join(after[1:]), False
    if len(after) > 1:
        yield after[-1], ".".join(after[:-1]), True


def tags(record: Record, cards: Cards) -> list[Tagged]:
    """Every tensor of a record with what it is for; of what is shared, one of the places that have it.

    An adapter that the model's `peft_config` knows is read with its own method's card; any other (a leftover
    of a deleted adapter, a state dict) with all the cards.
    """
    is_model = record["kind"] == "model"
    modules = {m["name"]: m for m in record["modules"]} if is_model else None
    configs = (record.get("peft_config") or {}) if is_model else {}
    known = {name: card_of(config, cards) for name, config in configs.items()}
    everything = _all_slots(cards)
    telling = everything.keys() | {"modules_to_save", *TOKENS}
    of_adapter = {name: _slots([card]) if card else everything for name, card in known.items()}

    def tag(name: str) -> Tag:
        parts = name.split(".")
        for i in () if telling.isdisjoint(parts) else range(len(parts) - 1, -1, -1):
            path, here, after = ".".join(parts[:i]), parts[i], parts[i + 1 :]
            if here == "modules_to_save" and after and modules is not None:
                if join(path, "original_module") in modules:
                    rest = ".".join(after[1:])
                    before = [unwrapped(path, modules), here]
                    return _tag("aux", path, after[0], rest, before, rest)
                continue
            if here in TOKENS and i > 0 and parts[i - 1] == "token_adapter":
                adapter = after[0] if after and modules is not None else None
                return _tag("aux", join(*parts[: i - 1]), adapter, here, [unwrapped(path, modules), here], "")
            if here not in everything:
                continue
            rest = ".".join(after)
            if modules is None and (found := _find(everything, here, rest)):  # as in a checkpoint
                return _of_card(found, path, None, here, rest)
            # A group may be named as an adapter could be: first the reading with an adapter that there is
            for adapter, rest, at_end in sorted(_readings(after), key=lambda r: r[0] not in known):
                found = _find(of_adapter.get(adapter, everything), here, rest)
                if not found or (at_end and not found[1].get("shared")):
                    continue
                # Without a config that knows the adapter, `lora_A.weight` could be a plain layer of that name
                if rest or modules is None or adapter in known or _adapted(modules, path):
                    return _of_card(found, path, adapter, here, rest, configs.get(adapter, {}))
        owner, _, last = name.rpartition(".")
        plain = unwrapped(owner, modules)
        return _tag("base", plain, None, last, [plain], last)

    tagged = [(tensor, tag(tensor["name"])) for tensor in tensors_of(record)]
    places = {(t.get("object"), tag.name): i for i, (t, tag) in enumerate(tagged) if is_model and tag.shared}
    return [
        item
        for i, item in enumerate(tagged)
        if places.get((item[0].get("object"), item[1].name), i) == i or not item[1].shared
    ]


def _of_card(
    found: tuple[str, Mapping[str, Any]],
    path: str,
    adapter: str | None,
    slot: str,
    rest: str,
    config: Mapping[str, Any] = {},
) -> Tag:
    """The tag of a tensor that a card has; one that is saved for some configs is `unsaved` for others."""
    name, entry = found
    shared = entry.get("shared", False)
    before = [SHARED if shared and adapter is not None else path, slot]  # a checkpoint has to have that key
    in_checkpoint = None if name == entry.get("saved_as", name) else entry["saved_as"]
    role = entry["role"]
    if "saved_when" in entry and not config.get("fields", {}).get(entry["saved_when"], True):
        role = "unsaved"
    return _tag(role, path, adapter, name, before, rest, in_checkpoint, shared)


def _tag(
    role: str,
    module: str,
    adapter: str | None,
    tensor: str,
    before: Sequence[str],
    rest: str,
    in_checkpoint: str | None = None,
    shared: bool = False,
) -> Tag:
    bare = join(*before, rest) if in_checkpoint is None else join(*before[:-1], in_checkpoint)
    name = join(*before, adapter or "", rest)
    return Tag(role, module, adapter, tensor, name, bare.removeprefix(ROOT), shared)


def join(*parts: str) -> str:
    """The non-empty parts as one dotted path."""
    return ".".join(filter(None, parts))


def select(tagged: Iterable[Tagged], selection: Mapping[str, Any]) -> list[Tagged]:
    """The tensors that fit every given one of `role`, `adapter`, `module`, `name` (full matches) and `kind`.

    A state dict's keys name no adapter, so there `adapter` selects whatever is not base.
    """

    def fits(tensor: Mapping[str, Any], tag: Tag) -> bool:
        role, adapter = selection.get("role"), selection.get("adapter")
        module, name, kind = selection.get("module"), selection.get("name"), selection.get("kind")
        return (
            (role is None or tag.has_role(role))
            and (adapter is None or (tag.role != "base" and tag.adapter in (adapter, None)))
            and (module is None or re.fullmatch(module, tag.module) is not None)
            and (name is None or re.fullmatch(name, tensor["name"]) is not None)
            and (kind is None or tensor.get("kind") == kind)
        )

    return [(tensor, tag) for tensor, tag in tagged if fits(tensor, tag)]


def pair(
    left: Sequence[Tagged], right: Sequence[Tagged]
) -> tuple[list[tuple[Tagged, Tagged]], list[Tagged], list[Tagged]]:
    """Pairs, what is only left and what is only right; matched by object where possible, else by name."""
    keys: list[Callable[[Tagged], tuple[Any, ...]]] = [
        lambda item: (item[0].get("object"), item[1].name),
        lambda item: (item[1].name,),
        lambda item: (item[0].get("object"),),
        lambda item: (item[1].bare,),
    ]
    pairs: list[tuple[Tagged, Tagged]] = []
    lefts, rights = list(left), list(right)
    for key in keys:
        waiting: dict[Any, list[Tagged]] = {}
        for item in rights:
            if None not in key(item):
                waiting.setdefault(key(item), []).append(item)
        unmatched = []
        for item in lefts:
            candidates = waiting.get(key(item))
            if candidates:
                pairs.append((item, candidates.pop(0)))
            else:
                unmatched.append(item)
        taken = {id(item) for _, item in pairs}
        lefts, rights = unmatched, [item for item in rights if id(item) not in taken]
    return pairs, lefts, rights
