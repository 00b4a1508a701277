"""Two observations of a program that both sides finished in the same way: what their entities differ in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from peft_conformance import plain
from peft_conformance.diff.change import NOTHING, ROUNDING, TIMELESS, Change
from peft_conformance.diff.timeline import Look, Observation, Story, masked, pattern, slots_in
from peft_conformance.roles import Record, Tag, tags, tensors_of

Place = tuple[int, str, str]  # moment, entity, name within it: a thing that has a token


WORDS = {  # what tensors of a role are called
    "base": "base tensors",
    "trainable": "adapter parameters",
    "unsaved": "adapter tensors that are not saved",
    "frozen": "fixed adapter tensors",
    "saved-buffer": "adapter buffers",
}


class Comparison:
    """Two observations of a program that both sides finished in the same way."""

    def __init__(self, story: Story, left: Observation, right: Observation) -> None:
        self.story, self.left, self.right = story, left, right
        self.found: list[Change] = []
        self.told: set[tuple[Any, ...]] = set()  # what the state of an object differs in, told before
        self.numbers: int | None = None  # the first moment with other numbers: what follows has too
        self.groups: dict[str, list[dict[Place, Any]]] = {"object": [{}, {}], "storage": [{}, {}]}
        self.described: dict[Place, tuple[str, frozenset[str], Look]] = {}

    def perform(self) -> list[Change]:
        """All differences, in the order of time."""
        looks = list(self.story.looks(self.left, self.right))
        self.related = any(_tokens(look.left) != _tokens(look.right) for look in looks)
        for look in looks:
            if self.related or look.left != look.right:
                self._entity(look)
        if self.related:
            self._relations()
        self._globals()
        return self.found

    def _tell(self, kind: str, subject: str, pair: Iterable[Any], look: Look, place: str = "",
              slots: Iterable[str] = (), key: tuple[Any, ...] | None = None) -> None:  # fmt: skip
        """Note a difference, unless `key` (the thing it is about) has shown the same one before."""
        texts = [item if isinstance(item, str) else plain.text(item, 100) for item in pair]
        if key is not None:
            if (*key, kind, *texts) in self.told:
                return
            self.told.add((*key, kind, *texts))
        where = ": ".join(filter(None, (look.entity, place)))
        during = () if kind in TIMELESS else look.during
        self.found.append(Change(kind, subject, texts[0], texts[1], during, where, frozenset(slots)))

    # --- one entity at one moment

    def _entity(self, look: Look) -> None:
        kinds = look.left["kind"], look.right["kind"]
        if kinds[0] != kinds[1]:
            self._tell("value", f"what {self._origin(look)} gives", kinds, look, key=(look.entity,))
            return
        for relation, places in self.groups.items():
            for side, record in zip(places, (look.left, look.right), strict=True):
                if relation in record and kinds[0] not in ("value", "callable"):
                    side[look.moment, look.entity, ""] = record[relation]
        self.described[look.moment, look.entity, ""] = (self._origin(look), frozenset(), look)
        classes = [record.get("class") for record in (look.left, look.right)]
        if kinds[0] != "callable" and classes[0] != classes[1]:
            self._tell("value", f"class of {self._origin(look)}", classes, look, key=(look.entity,))
        getattr(self, f"_{kinds[0]}")(look)

    def _origin(self, look: Look) -> str:
        """What an entity is, in words that fit other programs."""
        step = self.story.steps[self.story.born(look.entity)]
        word = next(w for w in step if w not in ("label", "index", "attempt", "as", "args", "on"))
        if word == "call":
            return f"result of {step['call']}"
        if word == "make_model":
            return "the given model"
        if word == "read":
            path = re.sub(r"\[\d+\]", "[…]", step["read"]["path"])
            return f"`{pattern(path, self.story) if '[' not in path else path}`"
        return {"forward": "the output", "make_config": "the given config", "make_folder": "the folder",
                "edit_state_dict": "the given state dict"}.get(word, word)  # fmt: skip

    def _model(self, look: Look) -> None:
        self._tensors(look)
        self._modules(look)
        for word in ("active_adapter", "active_adapters"):
            pair = [record.get(word, "absent") for record in (look.left, look.right)]
            if not plain.equal(*pair):
                self._tell("activity", f"`{word}` of a model", pair, look, key=(look.entity, word))
        configs = [record.get("peft_config") or {} for record in (look.left, look.right)]
        self._names("activity", "`peft_config` of a model", configs, look)
        for name in sorted(configs[0].keys() & configs[1].keys()):
            pair = [config[name] for config in configs]
            self._fields(look, configs[0][name], configs[1][name])

    def _state_dict(self, look: Look) -> None:
        self._tensors(look)

    def _tensor(self, look: Look) -> None:
        self._tensors(look)

    def _config(self, look: Look) -> None:
        self._fields(look, look.left, look.right)

    def _fields(self, look: Look, left: Record, right: Record) -> None:
        """The fields of a config; it is told by its class, for every method has the same ones."""
        for name, (was, now) in _differing(left.get("fields", {}), right.get("fields", {})).items():
            self._tell(
                "config", f"config field `{name}`", (was, now), look, name, key=(left.get("class"), name)
            )

    def _outcome(self, look: Look) -> None:
        for word in ("missing_keys", "unexpected_keys"):
            self._lists(f"`{word}`", (look.left[word], look.right[word]), look)

    def _value(self, look: Look) -> None:
        subject, kind = self._origin(look), "value"
        if subject.startswith("`["):  # what was read from a file
            subject, kind = re.sub(r"^`\[([^\]]*)\](.*)`", r"`\1`\2", subject), "files"
        self._plain(subject, look.left["value"], look.right["value"], look, kind)

    def _object(self, look: Look) -> None:
        exports = [record.get("exports") or [] for record in (look.left, look.right)]
        self._lists("`__all__`", exports, look)

    def _callable(self, look: Look) -> None:
        name = look.right["name"]
        parameters = [{p["name"]: p for p in record["parameters"]} for record in (look.left, look.right)]
        for parameter, (was, now) in _differing(*parameters).items():
            subject = f"parameter `{parameter}` of `{name}`"
            self._tell("signature", subject, map(_parameter, (was, now)), look, key=(name, parameter))

    def _folder(self, look: Look) -> None:
        files = look.left["files"], look.right["files"]
        self._names("files", "files that are written", files, look)
        for name in sorted(files[0].keys() & files[1].keys()):
            was, now = files[0][name], files[1][name]
            if was["digest"] == now["digest"]:
                continue
            if "json" in was and "json" in now:
                self._plain(f"`{name.rpartition('/')[2]}`", was["json"], now["json"], look, "files")
            elif was.get("metadata") != now.get("metadata"):
                self._tell(
                    "files",
                    f"metadata of `{name.rpartition('/')[2]}`",
                    (was.get("metadata"), now.get("metadata")),
                    look,
                )
            elif "tensors" not in was and "json" not in was:
                self._tell(
                    "message", f"text of `{name.rpartition('/')[2]}`", ("as it was", "other words"), look
                )
        self._tensors(look)

    # --- tensors

    def _tensors(self, look: Look) -> None:
        if not self.related and tensors_of(look.left) == tensors_of(look.right):
            return
        sides = [{tag.name: (tensor, tag) for tensor, tag in tags(record, self.story.cards)}
                 for record in (look.left, look.right)]  # fmt: skip
        kind = look.left["kind"]
        for one, other, states in _ways(sides):
            for name, (tensor, tag) in one.items():
                if name in other:
                    continue
                subject = self._subject(tag, kind, look)
                if kind in ("state_dict", "folder"):
                    subject = f"keys of {self._origin(look)}: {pattern(tensor['name'], self.story)}"
                slots = slots_in([tensor["name"]], self.story)
                self._tell("keys", subject, states, look, name, slots, key=(name,))
        for name in (name for name in sides[0] if name in sides[1]):
            (was, tag), (now, _) = sides[0][name], sides[1][name]
            place = (look.moment, look.entity, name)
            for relation, places in self.groups.items():
                if kind != "folder" and was.get(relation) and now.get(relation):
                    places[0][place], places[1][place] = was[relation], now[relation]
            subject, slots = self._subject(tag, kind, look), slots_in([name], self.story)
            self.described[place] = (subject, frozenset(slots), look)
            self._tensor_states(look, subject, was, now, name, slots)

    def _subject(self, tag: Tag, kind: str, look: Look) -> str:
        """What a tensor is, in words that fit other methods and other layers."""
        if kind == "tensor":
            return self._origin(look)
        what = WORDS.get(tag.role, tag.role)
        if tag.role == "aux":
            what = f"{tag.tensor.rpartition('.')[2]} of a trained copy"
        if tag.shared:
            what = f"shared {what}"
        if len(self.story.adapters) > 1 and look.named and tag.adapter not in (None, *look.named):
            what += " of another adapter"
        return what if kind != "state_dict" else f"{what} in a state dict"

    def _tensor_states(
        self, look: Look, subject: str, was: Record, now: Record, name: str, slots: set[str]
    ) -> None:
        tokens = (was.get("object"), now.get("object"))
        for kind in ("requires_grad", "dtype", "shape", "device", "grad", "kind"):
            pair = was.get(kind), now.get(kind)
            if pair[0] != pair[1]:
                self._tell(kind, f"`{kind}` of {subject}", pair, look, name, slots, key=(*tokens, kind))
        if was.get("dtype") != now.get("dtype") or was.get("shape") != now.get("shape"):
            return
        for kind in ("zero", "finite"):
            if was.get(kind) != now.get(kind):
                words = {"zero": ("not zero", "zero"), "finite": ("not finite", "finite")}[kind]
                said = [words[bool(record.get(kind))] for record in (was, now)]
                self._tell("numbers", subject, said, look, name, slots, key=(*tokens, kind))
        if was.get("digest") != now.get("digest") and self.numbers in (None, look.moment):
            self.numbers = look.moment
            # What is computed from other numbers has other numbers: only the first moment tells something.
            self._numbers(look, subject, was, now, name, slots)

    def _numbers(
        self, look: Look, subject: str, was: Record, now: Record, name: str, slots: set[str]
    ) -> None:
        tensors = [
            side["tensors"].get(record.get("values"))
            for side, record in ((self.left, was), (self.right, now))
        ]
        if all(tensor is not None for tensor in tensors) and _close(*tensors):
            self._tell("rounding", subject, ("its numbers", "equal but for rounding"), look, name, slots)
        else:
            self._tell("values", subject, ("its numbers", "others"), look, name, slots)

    # --- modules

    def _modules(self, look: Look) -> None:
        sides = [
            {module["name"]: module for module in record["modules"]} for record in (look.left, look.right)
        ]
        for one, other, states in _ways(sides):
            for name in (name for name in one if name not in other):
                what = f"modules {pattern(name, self.story)}: {one[name]['class']}"
                self._tell("modules", what, states, look, name, slots_in([name], self.story), key=(name,))
        for name in (name for name in sides[0] if name in sides[1]):
            was, now = sides[0][name], sides[1][name]
            if name:
                place = (look.moment, look.entity, f"module {name}")
                self.groups["object"][0][place], self.groups["object"][1][place] = (
                    was["object"],
                    now["object"],
                )
                self.described[place] = (f"modules of class {was['class']}", frozenset(), look)
            key = (was["object"], now["object"])
            if was["class"] != now["class"]:
                self._tell("modules", "class of modules", (was["class"], now["class"]), look, name, key=key)
            for word in ("training", "hooks"):
                if was[word] != now[word]:
                    subject = f"`{word}` of modules of class {now['class']}"
                    self._tell("modules", subject, (was[word], now[word]), look, name, key=(*key, word))
            adapters = [module["adapter"] for module in (was, now)]
            if None in adapters:
                if adapters[0] != adapters[1]:
                    words = ["adapted" if adapter else "not adapted" for adapter in adapters]
                    self._tell("modules", f"modules of class {now['class']}", words, look, name, key=key)
                continue
            for word, pair in _differing(*adapters).items():
                kind = "activity" if word in ("active", "merged", "disabled", "adapters") else "scaling"
                self._tell(kind, f"`{word}` of adapted layers", pair, look, name, key=(*key, word))

    # --- values

    def _plain(self, subject: str, was: Any, now: Any, look: Look, kind: str = "value") -> None:
        if plain.equal(was, now):
            return
        if isinstance(was, dict) and isinstance(now, dict):
            for name, pair in _differing(was, now).items():
                self._plain(f"{subject}[{pattern(name, self.story)}]", *pair, look, kind)
        elif (
            isinstance(was, list) and isinstance(now, list) and all(isinstance(i, str) for i in [*was, *now])
        ):
            self._lists(subject, (was, now), look, kind)
        elif isinstance(was, str) and isinstance(now, str):
            if masked(was) != masked(now):
                long = len(was) > 60 or len(now) > 60
                self._tell("message" if long else kind, subject, (masked(was), masked(now)), look)
        elif isinstance(was, float) and isinstance(now, float):
            near = abs(was - now) <= ROUNDING * max(abs(was), abs(now))
            kind, now = ("rounding", "equal but for rounding") if near else ("values", "others")
            self._tell(kind, subject, ("its numbers", now), look)
        else:
            self._tell(kind, subject, (was, now), look)

    def _lists(self, subject: str, names: Sequence[list[str]], look: Look, kind: str = "value") -> None:
        """Two lists of names, by the kinds of names that came and went."""
        ways = ((names[0], names[1]), (names[1], names[0]))
        gone, come = ([name for name in one if name not in other] for one, other in ways)
        texts = [", ".join(sorted({pattern(name, self.story) for name in some})) for some in (gone, come)]
        slots = slots_in([*gone, *come], self.story)
        if not gone and not come:
            return  # the order of what may be a set says nothing
        place = f"{plain.text(gone, 60)} → {plain.text(come, 60)}"
        self._tell(kind, subject, (text or NOTHING for text in texts), look, place, slots)

    def _names(self, kind: str, subject: str, names: Iterable[Iterable[str]], look: Look) -> None:
        self._lists(subject, [sorted(some) for some in names], look, kind)

    # --- which things are one, and what stays the same object

    def _relations(self) -> None:
        parted: set[tuple[str, str]] = set()
        for relation, (was, now) in self.groups.items():
            common = [place for place in was if place in now]
            firsts = [_firsts(side, common) for side in (was, now)]
            for place in common:
                first = [side[place] for side in firsts]
                if first[0] == first[1]:
                    continue
                earlier = [p for p in common if p[1:] == place[1:] and p < place]
                if earlier and all(side[earlier[-1]] == side[place] for side in (was, now)):
                    continue  # it is what it was then; that has been told
                subject, slots, look = self.described[place]
                words = [self._relation(place, other, relation) for other in first]
                if relation == "storage" and (place[1], place[2]) in parted:
                    continue  # another object has another storage
                parted.add((place[1], place[2]))
                if words[0] != words[1]:
                    self._tell("identity", subject, words, look, place[2], slots, key=(*place[1:], relation))

    def _relation(self, place: Place, first: Place, relation: str) -> str:
        thing = "object" if relation == "object" else "memory"
        if first == place:
            before = any(p[1:] == place[1:] and p < place for p in self.groups["object"][0])
            return f"another {thing} than before" if before else f"{thing} of its own"
        if first[1:] == place[1:]:
            return f"the same {thing} as before"
        if first[1] == place[1] and first[2]:
            return "one with another of its model" if relation == "object" else "memory of another of it"
        other = self._origin(self.described[first][2])
        return f"one with {other}" if relation == "object" else f"memory shared with {other}"

    def _globals(self) -> None:
        frames = [side["frame"] for side in (self.left, self.right)]
        for name in frames[0]["before"]["globals"]:
            states = [[frame[when]["globals"].get(name) for when in ("before", "after")] for frame in frames]
            touched = ["left alone" if plain.equal(*pair) else "changed" for pair in states]
            if touched[0] != touched[1]:
                during = self.story.between(self.story.given, len(self.story.steps))
                self.found.append(Change("globals", f"global state: {name}", touched[0], touched[1], during))


def _ways(sides: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[str]]]:
    """What each side may have and the other not, with the words for what is there on one side only."""
    yield sides[0], sides[1], ["there", "absent"]
    yield sides[1], sides[0], ["absent", "there"]


def _tokens(record: Record) -> list[Any]:
    """Every token of a record, with what has it."""
    parts = [*tensors_of(record), *record.get("modules", ())] if record["kind"] != "folder" else []
    return [record.get("object"), *((p.get("name"), p.get("object"), p.get("storage")) for p in parts)]


def _firsts(tokens: Mapping[Place, Any], common: list[Place]) -> dict[Place, Place]:
    """For each place the first one that has the same token."""
    first: dict[Any, Place] = {}
    return {place: first.setdefault(tokens[place], place) for place in common}


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Entries that differ; one that a side does not have is "absent" there."""
    names = [*was, *(name for name in now if name not in was)]
    pairs = {name: (was.get(name, "absent"), now.get(name, "absent")) for name in names}
    return {name: pair for name, pair in pairs.items() if not plain.equal(*pair)}


def _parameter(record: Any) -> str:
    if isinstance(record, str):
        return record
    return f"= {plain.text(record['default'], 60)}" if "default" in record else "required"


def _close(left: Any, right: Any) -> bool:
    if left.shape != right.shape or not left.is_floating_point():
        return False
    a, b = left.double(), right.double()
    return bool(((a - b).abs().max() <= ROUNDING * a.abs().max()).item()) if a.numel() else True
