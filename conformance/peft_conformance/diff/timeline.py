"""Where a program looks at its entities, and what it does in between.

An entity is recorded before `when`, at each capture, and at the end; a `Look` is one such record of both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft_conformance import plain
from peft_conformance.driver import SOURCES
from peft_conformance.roles import Cards, Record
from peft_conformance.steps import configs, flat, step_word

Observation = Mapping[str, Any]
LOOKS = frozenset(
    {"capture", "read", "look_up", "seed", "make_folder", "make_config", "make_model"}
)  # change nothing


@dataclass(frozen=True)
class Look:
    """One entity at one moment, as both sides recorded it."""

    entity: str
    moment: int  # how many steps are done
    left: Record
    right: Record
    during: tuple[str, ...]  # what was done to it since it was looked at before
    named: set[str]  # the adapters that the last of this named


@dataclass
class Story:
    """A program: its steps in order, and what they are about."""

    program: Mapping[str, Any]
    cards: Cards
    steps: list[dict[str, Any]] = field(init=False)
    acts: list[str | None] = field(init=False)  # per step: what it does, None where it only looks
    methods: tuple[str, ...] = field(init=False)
    adapters: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        given, when = list(self.program.get("given", ())), list(self.program.get("when", ()))
        self.steps = list(flat([*given, *when]))
        self.given = len(list(flat(given)))
        self.slots = frozenset(self.program.get("slots", ()))
        self._lineages()
        seen: Counter[tuple[Any, ...]] = Counter()
        self.acts = []
        for step, roots in zip(self.steps, self.about, strict=True):
            word = step_word(step)
            act = None if word in LOOKS else step["call"] if word == "call" else word
            if act:
                first = min(roots, default="")
                seen[act, first] += 1
                act = act if seen[act, first] == 1 else f"{act} again"
            self.acts.append(act)
        classes = {
            made["config"]["class"] for made in configs(self.steps) if isinstance(made["config"], dict)
        }
        classes |= {
            step["make_config"]["class"] for step in self.steps if "class" in step.get("make_config", {})
        }
        by_class = {card["config"]["class"]: name for name, card in self.cards.items()}
        self.methods = tuple(sorted(by_class[name] for name in classes if name in by_class))
        named = (step.get("args", {}).get("adapter_name") for step in self.steps)
        self.adapters = frozenset({"default", *(name for name in named if isinstance(name, str))})

    def _lineages(self) -> None:
        """Which model each entity descends from, and what each step is about: its result, its receiver."""
        self.root: dict[str, str] = {}
        self.maker: dict[str, int] = {}
        self.about: list[set[str]] = []
        for number, step in enumerate(self.steps):
            word = step_word(step)
            body = step[word] if isinstance(step[word], dict) else {}
            arguments = step.get("args", {})
            made = step.get("as") or body.get("id")
            sources = [
                step.get("on"),
                body.get("of"),
                body.get("on"),
                *(arguments.get(key) for key in SOURCES),
            ]
            source = next((s for s in sources if isinstance(s, str) and s in self.root), None)
            if made:
                self.maker.setdefault(made, number)
                self.root[made] = self.root[source] if source else made
            touched = (source, made, arguments.get("save_directory"))
            self.about.append({self.root[t] for t in touched if isinstance(t, str) and t in self.root})

    def during(self, entity: str, start: int, end: int) -> tuple[str, ...]:
        """What is done between two moments to an entity and what it descends from, in alphabetical order."""
        root = self.root.get(entity)
        chosen = (
            a for a, about in zip(self.acts[start:end], self.about[start:end], strict=True) if root in about
        )
        return tuple(sorted({act for act in chosen if act}))

    def named(self, entity: str, start: int, end: int) -> set[str]:
        """The adapters that the last call between two moments names; one that names none means `default`."""
        root = self.root.get(entity)
        for step, about in reversed(list(zip(self.steps[start:end], self.about[start:end], strict=True))):
            if root in about and "call" in step:
                name = step.get("args", {}).get("adapter_name", "default")
                return set(map(str, name)) if isinstance(name, list) else {str(name)}
        return set()

    def between(self, start: int, end: int) -> tuple[str, ...]:
        """What is done between two moments, in alphabetical order."""
        return tuple(sorted({act for act in self.acts[start:end] if act}))

    def methods_with(self, slots: frozenset[str]) -> tuple[str, ...]:
        """The methods of the program that have these slots; all of them where no slot is named."""

        def has(card: Mapping[str, Any]) -> bool:
            names = (
                name
                for key, entry in card.get("tensors", {}).items()
                for name in (key, entry.get("saved_as", key))
            )
            return any(name.partition(".")[0] in slots for name in names)

        return tuple(name for name in self.methods if has(self.cards[name])) or self.methods

    def step_name(self, record: Mapping[str, Any]) -> str:
        """What a step of an observation does, in a word."""
        for number, (step, act) in enumerate(zip(self.steps, self.acts, strict=True)):
            phase = "given" if number < self.given else "when"
            if (phase, str(step.get("index"))) == (record["phase"], str(record["index"])):
                return act or step_word(step)
        return "step"

    def born(self, entity: str) -> int:
        """The step that makes an entity."""
        return self.maker.get(entity, 0)

    def looks(self, left: Observation, right: Observation) -> Iterator[Look]:
        """Each entity at each moment at which both sides recorded it, in the order of time."""
        found: list[tuple[int, str, Record, Record]] = []
        sides = (left, right)
        before = [side["frame"]["before"]["entities"] for side in sides]
        found += [(self.given, id, before[0][id], before[1][id]) for id in before[0] if id in before[1]]
        for number, step in enumerate(self.steps):
            body = step.get("capture")
            if body and all(body["id"] in side["captures"] for side in sides):
                found.append((number, body["of"], *(side["captures"][body["id"]] for side in sides)))
        ends = [side["entities"] for side in sides]
        found += [(len(self.steps), id, ends[0][id], ends[1][id]) for id in ends[0] if id in ends[1]]
        last: dict[str, int] = {}
        for moment, entity, *records in sorted(found, key=lambda item: item[0]):
            start = last.get(entity, self.born(entity))
            last[entity] = moment
            acts = self.during(entity, start, moment)
            yield Look(entity, moment, records[0], records[1], acts, self.named(entity, start, moment))


def masked(words: str) -> str:
    """A message without what two situations need not share: names in quotes, numbers, classes, paths."""
    words = plain.message(words, 400)
    words = re.sub(r"\{[^{}]*\}|\[[^\[\]]*\]", "…", words)
    words = re.sub(r"\bPeftType\.\w+", "…", words)
    words = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "…", words)
    words = re.sub(r"\b[A-Z]\w*(?:Config|Model|Layer|Linear|Wrapper)\b|<class …>", "…", words)
    words = re.sub(r"\b[\w.]*\d[\w.]*\b", "…", words)
    return re.sub(r"…(?:[\s,.]*…)+", "…", words)


def pattern(key: str, story: Story) -> str:
    """A dotted name as one of a kind: the way to the slot, the slot and the adapter's name are left open."""
    parts = key.split(".")
    if len(parts) < 2:
        return key
    named = ["<adapter>" if part in story.adapters else part for part in parts]
    at = next((i for i in range(len(parts) - 1, -1, -1) if parts[i] in story.slots), None)
    if at is not None:
        return ".".join(["…", "<slot>", *named[at + 1 :]])
    return ".".join(["…", *named[-2:]]) if "<adapter>" in named[-2:] else f"….{named[-1]}"


def slots_in(keys: Sequence[str], story: Story) -> set[str]:
    """The slots that these dotted names speak of."""
    return {part for key in keys for part in key.split(".") if part in story.slots}
