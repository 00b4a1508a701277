"""What a schema cannot see: references, ranges, coverage. Every fault with its line, all in one go."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft_conformance import consumers
from peft_conformance.cases import Check, Clause
from peft_conformance.expand import excludes, fill, points
from peft_conformance.formula import FormulaError, parse
from peft_conformance.frame import MODULE_ASPECTS, TENSOR_ASPECTS
from peft_conformance.language import Suite, injectable
from peft_conformance.models import LAYERS
from peft_conformance.ranges import outside, untiled
from peft_conformance.reading import Map, Seq, SpecError, closest
from peft_conformance.schemas import schema_errors
from peft_conformance.steps import SPECIAL, configs, flat, step_label, step_options, step_word
from peft_conformance.trace import demands, gaps, rows_of

NO_CARD = ("none", "unknown", "not-a-config")  # what make_config makes beside the configs of methods
MAKES = {
    "make_model": "model",
    "make_config": "config",
    "make_folder": "folder",
    "compile": "model",
    "edit_state_dict": "state_dict",
    "forward": "tensor",
    "generate": "tensor",
    "read": "any",
    "look_up": "callable",
}
USES: dict[str, dict[str, tuple[str, ...]]] = {  # step -> key -> kinds of entity that it may name
    "make_folder": {"model": ("model",)},
    "compile": {"of": ("model",)},
    "edit_state_dict": {"of": ("state_dict",)},
    "edit_file": {"folder": ("folder",)},
    "forward": {"of": ("model",)},
    "backward": {"of": ("model",)},
    "generate": {"of": ("model",)},
    "train": {"of": ("model",)},
    "perturb": {"of": ("model",)},
    "set_tensor": {"of": ("model",)},
    "set_mode": {"of": ("model",)},
    "write": {"of": ("model", "config")},
    "within": {"on": ("model",)},
    "capture": {"of": ()},  # any
    "read": {"of": ()},
}
ARGUMENTS = {  # parameter of an operation -> kind of entity that it takes
    "model": "model",
    "base_model": "model",
    "arrow_config": "value",
    "task_specific_adapter_paths": "folder",
    "general_adapter_paths": "folder",
    "peft_config": "config",
    "config": "config",
    "lora_config": "config",
    "eva_state_dict": "state_dict",
    "state_dict": "state_dict",
    "peft_model_state_dict": "state_dict",
    "model_id": "folder",
    "save_directory": "folder",
    "path_initial_model_for_weight_conversion": "folder",
    "pretrained_model_name_or_path": "folder",
}
OF_COMPLETE = ("fields", "tensors", "identity_at_init", "mergeable")
OF_LAYERS = ("layers", "weight", "active_together")  # of a complete card of a method that adapts layers
SIZES = ("W", "W0", "b", "in", "out", "num", "dim", "kernel", "x")  # what every formula may name
TABLES = ("model", "state_dict", "folder", "tensor")  # what holds tensors
CHECKS: dict[str, dict[str, tuple[str, ...]]] = {  # check -> key -> kinds of entity that it may name
    "all": {"of": TABLES},
    "none": {"of": TABLES},
    "modules": {"of": ("model",)},
    "keys": dict.fromkeys(("of", "same_as", "fewer_than"), (*TABLES, "config", "value")),
    "shapes": {"of": ("state_dict",)},
    "same": {"left": (), "right": ()},
    "equal": {"of": ("value",)},
    "instance": {"of": ()},
    "close": {"left": TABLES, "right": TABLES},
    "differ": {"left": TABLES, "right": TABLES},
    "formula": {"of": ("model",), "output": ("tensor",)},
    "relation": {"of": ("model",), "before": ("model",)},
    "combination": {"of": ("model",)},
    "signature": {"of": ("callable",)},
    "snapshot": {"of": ("callable", "model", "state_dict")},
}
ASPECTS = {  # kind of entity -> what of it a frame watches
    "model": {*TENSOR_ASPECTS, *MODULE_ASPECTS},
    "state_dict": {"keys", *TENSOR_ASPECTS},
    "folder": {"keys", *TENSOR_ASPECTS},
    "config": {"fields"},
}
VIEWS = {"signature": "callable", "module_tree": "model", "state_dict": "state_dict"}


def lint(suite: Suite) -> list[SpecError]:
    """Every fault of a loaded suite that its schemas did not see, in file order."""
    written = _written(suite)
    found = [*_vocabulary(suite), *_cards(suite), *_needs(suite), *_coverage(suite)]
    found += consumers.faults(suite)
    for clause in suite.clauses:
        found += _ClauseLint(suite, clause, written[clause.file, clause.line]).errors
    return sorted(set(found), key=lambda e: (str(e.file), e.line, e.message))


def _written(suite: Suite) -> dict[tuple[Path, int], Map]:
    """Each clause as it stands in its file, by file and line."""
    return {
        (file, line): raw
        for file, data in suite.files.items()
        for items in (data.get("clauses", Seq(1)), data.get("laws", Seq(1)))
        for raw, line in zip(items, items.lines, strict=True)
    }


# --- vocabulary, cards, coverage ------------------------------------------------------------------


def _vocabulary(suite: Suite) -> Iterator[SpecError]:
    for file, data in suite.files.items():
        for model in data.get("models", {}).values():
            chain = model.get("chain", Seq(0))
            for part, line in zip(chain, chain.lines, strict=True):
                if part[1] not in LAYERS:
                    yield SpecError(file, line, f"unknown layer class {part[1]!r}", closest(part[1], LAYERS))
        for name, entry in data.get("sets", {}).items():
            if ("cards" in entry) == ("values" in entry):
                yield SpecError(file, entry.line, f"set {name!r} needs either `values` or `cards`")
            elif not suite.set_values(name):
                yield SpecError(file, entry.line, f"set {name!r} is empty: no card is of that kind")


def _cards(suite: Suite) -> Iterator[SpecError]:
    for card in suite.cards.values():
        file, config = suite.file_of(card), card["config"]
        if "base" in config and config["base"] not in suite.configs:
            message = f"unknown config {config['base']!r}"
            yield SpecError(file, config.lines["base"], message, closest(config["base"], suite.configs))
        options = [
            config["use"],
            *(config.get(name, {}) for name in [*sorted(SPECIAL), "without_bias"]),
            *(p["fields"] for p in config.get("points", {}).values()),
        ]
        fields = {*config.get("fields", (name for part in options for name in part))}
        problem = untiled(list(injectable(card)), ">=0")
        if problem:
            yield SpecError(file, card.lines["injectable"], f"injectable: the ranges {problem}")
        if card.get("complete"):
            for fact in (*OF_COMPLETE, *(OF_LAYERS if card["kind"] == "layer" else ["where"])):
                if fact == "weight" and "no_formula" in card:
                    continue
                if fact not in card and fact not in config:
                    yield SpecError(file, card.lines["complete"], f"a complete card states `{fact}`")
        tensors = card.get("tensors", {})
        choices = [card[key] for key in ("weight", "bias") if isinstance(card.get(key), list)]
        choices += [*card.get("symbols", {}).values()]
        alternatives = [choice for part in choices for choice in part]
        shapes = [e["shape"] for e in tensors.values() if e["shape"] and isinstance(e["shape"][0], dict)]
        conditions = [*tensors.values(), *alternatives, *(choice for part in shapes for choice in part)]
        named = [(part, name) for part in options for name in part]
        named += [(entry["when"], name) for entry in conditions for name in entry.get("when", ())]
        for where, name in named:
            if name not in fields:
                message = f"{config['class']} has no field {name!r}"
                yield SpecError(file, where.lines[name], message, closest(name, fields))
        symbols = {*SIZES, *fields, *card.get("symbols", ()), *tensors}
        symbols |= {entry.get("symbol", name) for name, entry in tensors.items()}
        formulas = [(card, key) for key in ("weight", "bias") if isinstance(card.get(key), str)]
        for holder, key in [*formulas, *((a, "value") for a in alternatives)]:
            try:
                unknown = sorted(parse(holder[key])[1] - symbols)
            except FormulaError as error:
                yield SpecError(file, holder.lines[key], str(error))
                continue
            for symbol in unknown:
                message = f"unknown symbol {symbol!r} in a formula"
                yield SpecError(file, holder.lines[key], message, closest(symbol, symbols))


def _needs(suite: Suite) -> Iterator[SpecError]:
    first: dict[str, Clause] = {}
    for clause in suite.clauses:
        other = first.setdefault(clause.id, clause)
        if other is not clause:
            place = f"{other.file.parent.name}/{other.file.name}:{other.line}"
            yield SpecError(clause.file, clause.line, f"clause {clause.id!r} is there already, at {place}")
    for clause in first.values():
        line = clause.lines.get("needs", clause.line)
        for need in clause.needs:
            if need not in first:
                yield SpecError(clause.file, line, f"needs unknown clause {need!r}", closest(need, first))
            elif need == clause.id:
                yield SpecError(clause.file, line, "needs itself")
            elif clause.id == _opens_circle(first, clause.id, need):
                yield SpecError(clause.file, line, f"needs {need!r}, which needs this clause in turn")


def _opens_circle(clauses: Mapping[str, Clause], name: str, need: str) -> str | None:
    """The first clause, in file order, of the circle that `name` closes by needing `need`, if it does."""
    circle = {other for other in _reached(clauses, need) if name in _reached(clauses, other)}
    return next((other for other in clauses if other in circle), None) if name in circle else None


def _reached(clauses: Mapping[str, Clause], start: str) -> set[str]:
    """The clauses that `start` needs, itself included, however far away."""
    found, waiting = set[str](), [start]
    while waiting:
        name = waiting.pop()
        if name in clauses and name not in found:
            found.add(name)
            waiting += clauses[name].needs
    return found


def _coverage(suite: Suite) -> Iterator[SpecError]:
    """Sentences and rows that no clause, reason or other sentence answers, or more than one of these."""
    found = demands(suite)
    sentences = {d.id: d for d in found if d.kind == "sentence"}
    seen = set[str]()
    for d in found:
        if d.id in seen:
            yield SpecError(d.file, d.line, f"{d.name} is listed twice")
        seen.add(d.id)
        if d.excluded and d.clauses:
            yield SpecError(d.file, d.line, f"{d.name} is excluded, but a clause cites it")
        if d.same_as and (d.excluded or d.clauses):
            yield SpecError(d.file, d.line, f"{d.name} names another sentence and has an answer of its own")
        if d.same_as and d.same_as not in sentences:
            yield SpecError(
                d.file, d.line, f"{d.name} names unknown sentence {d.same_as}", closest(d.same_as, sentences)
            )
        elif d.same_as and sentences[d.same_as].same_as:
            yield SpecError(
                d.file, d.line, f"{d.name} names {d.same_as}, which itself names another sentence"
            )
    for d in gaps(found):
        yield SpecError(d.file, d.line, f"{d.name} has neither a clause nor a reason to be excluded")
    rows = {d.id for d in found if d.kind == "row"}
    excluded = suite.rows.get("excluded", {})
    for row in excluded:
        if not fnmatch.filter(rows, row):
            file = next(file for file, data in suite.files.items() if data.get("excluded") is excluded)
            yield SpecError(file, excluded.lines[row], f"excludes unknown row {row}", closest(row, rows))


# --- one clause -----------------------------------------------------------------------------------


@dataclass
class _Entity:
    kind: str  # model, config, state_dict, folder, tensor, outcome, callable, value, or any
    line: int
    given: bool
    captured: bool = False
    models: frozenset[str] = frozenset()  # declarations that a model may come from
    values: bool = False
    used: bool = False
    attempt: bool = False  # a forward, read or look-up of `when`: that it can be done is what is shown


class _ClauseLint:
    """One walk over a clause in the order in which it is performed."""

    def __init__(self, suite: Suite, clause: Clause, raw: Map) -> None:
        self.suite, self.clause, self.raw = suite, clause, raw
        self.errors: list[SpecError] = []
        self.entities: dict[str, _Entity] = {}
        self.labels: dict[str, Any] = {}  # label -> step
        self.axes_used: set[str] = set()
        self.meant: set[str | None] = set()  # entities that a misspelled name was taken for
        steps = [*flat(clause.given), *flat(clause.when)]
        self.made_later = {name for step in steps if (name := self.makes(step))}
        self.head()
        self.matrix()
        for phase, group in (("given", clause.given), ("when", clause.when)):
            for step in flat(group):
                self.step(step, given=phase == "given")
        for step in steps:
            self.axes(step)
        for entry in clause.modifies:
            self.modifies(entry)
        for variant in clause.variants:
            self.checks(variant.checks)
        for axis in set(clause.matrix) - self.axes_used:
            self.error(self.raw["matrix"].lines[axis], f"axis {axis!r} is in the matrix, but nothing uses it")
        for name, entity in self.entities.items():
            if not (entity.used or entity.attempt or name in self.meant):
                self.error(entity.line, f"entity {name!r} is never used")

    def error(self, line: int, message: str, suggestion: str | None = None) -> None:
        self.errors.append(SpecError(self.clause.file, line, message, suggestion))

    def known(self, what: str, name: Any, table: Collection[Any], line: int, of: str = "") -> bool:
        """Whether `name` is in a table of the vocabulary; if not, an error with the nearest that is."""
        if name not in table:
            self.error(line, f"unknown {what} {name!r}" + (f" of {of}" if of else ""), closest(name, table))
        return name in table

    def in_range(self, api: str, what: str, line: int) -> None:
        """All API levels of the clause lie in the range of what it uses."""
        version = outside(self.clause.api, api)
        if version is not None:
            self.error(line, f"{what} exists in {api}, but the clause speaks of {self.clause.api}")

    # ids, ranges, sources

    def head(self) -> None:
        """What a clause says about itself."""
        clause, raw, suite = self.clause, self.raw, self.suite
        if "variants" in raw:
            problem = untiled([v.api for v in clause.variants], clause.api)
            if problem:
                self.error(raw.lines["variants"], f"variants: the ranges {problem}")
        for capability in clause.requires:
            methods = {f"method-{method.lower()}" for method in suite.cards}
            self.known("capability", capability, {*suite.capabilities, *methods}, raw.lines["requires"])
        for source in clause.sources:
            line = getattr(source, "line", clause.line)
            if "document" in source and self.known("document", source["document"], suite.sources, line):
                sentences = [entry["id"] for entry in suite.sources[source["document"]]["sentences"]]
                self.known("sentence", source["sentence"], sentences, line, of=source["document"])
        rows = {row for listed in suite.rows.get("areas", {}).values() for row in listed}
        for row, line in zip(clause.rows, raw["rows"].lines if clause.rows else (), strict=True):
            if suite.rows and "{method}" not in row:  # a suite of its own need not have the inventory
                self.known("row", row, rows, line)
            elif suite.rows and rows.isdisjoint(rows_of(suite, replace(clause, rows=(row,)))):
                self.error(line, f"{row} is no row of any method that {clause.id} runs on")
        levels = {clause.level: raw.lines["level"]}
        levels |= {c.level: c.line for v in clause.variants for c in v.checks if c.level != clause.level}
        if all("observed" in source for source in clause.sources):
            for level in levels.keys() - {"MAY", "UNSPECIFIED"}:
                message = (
                    f"{level} needs a sentence of a document; what is only observed is MAY or UNSPECIFIED"
                )
                self.error(levels[level], message)

    def matrix(self) -> None:
        """Axes, their values, and what is excluded of them."""
        clause, raw = self.clause, self.raw.get("matrix", Map(1))
        for axis, values in clause.matrix.items():
            line = raw.lines[axis]
            if axis in clause.axis_sets and self.known("set", clause.axis_sets[axis], self.suite.sets, line):
                if "where" in raw[axis] and "cards" not in self.suite.sets[clause.axis_sets[axis]]:
                    self.error(
                        line, f"`where` speaks of methods, the set {clause.axis_sets[axis]!r} has none"
                    )
                elif not values:
                    self.error(line, f"no method of the set {clause.axis_sets[axis]!r} is so")
            if len({*map(str, values)}) < len(values) or len({*values}) < len(values):
                self.error(line, f"axis {axis!r} has values that read the same")
        if not all(clause.matrix.values()):
            return
        every = points(replace(clause, exclude=()))
        for entry in clause.exclude:
            when = entry["when"]
            axes = [axis for axis in when if self.known("axis", axis, clause.matrix, when.lines[axis])]
            if len(axes) == len(when) and not any(excludes(when, point) for point in every):
                self.error(when.line, "this exclude matches no point of the matrix")
        if not points(clause):
            self.error(self.raw.lines["exclude"], "everything is excluded")

    def axes(self, part: Any) -> None:
        """Each `{axis: name}` of a step or check names an axis, and each of its values makes sense there."""
        named = set(self.axis_names(part))
        for axis in named & set(self.clause.matrix):
            self.axes_used.add(axis)
            first = {a: values[0] for a, values in self.clause.matrix.items() if values}
            for value in self.clause.matrix[axis]:
                filled = fill(part, {**first, axis: value})
                for made in configs(filled):
                    if made["config"] not in NO_CARD:  # `config` says whether there is a card
                        made["config"] = str(made["config"]).upper()
                for body in filled.values():
                    place = body.get("name", body) if isinstance(body, dict) else {}
                    for key in {"card", "class_of"} & place.keys() if isinstance(place, dict) else ():
                        if place[key] != "unsupported_layer":
                            place[key] = str(place[key]).upper()
                kind = "check" if "id" in filled and step_word(filled) == "id" else "step"
                for fault in schema_errors(self.clause.file, filled, f"clauses.schema.json#/$defs/{kind}"):
                    self.error(
                        self.raw["matrix"].lines[axis], f"axis {axis!r}, value {value!r}: {fault.text}"
                    )

    def axis_names(self, part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            names = (
                [part["axis"]] if set(part) == {"axis"} else [part["to_axis"]] if "to_axis" in part else []
            )
            for name in names:
                if self.known("axis", name, self.clause.matrix, part.line if isinstance(part, Map) else 0):
                    yield name
        for item in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from self.axis_names(item)

    # steps

    def makes(self, step: Any) -> str | None:
        """The entity that a step makes, if it makes one; a step that raises makes none."""
        options = step_options(step)
        return None if "raises" in options else step.get("as") or options.get("id")

    def use(self, name: Any, kinds: tuple[str, ...], line: int, change: bool = False) -> _Entity | None:
        """An entity that is named: it is there, its kind fits, and what is acted on is no capture."""
        entity = self.entities.get(name)
        if entity is None:
            near = None
            if name in self.made_later:
                message = f"entity {name!r} is used before it is made"
            elif name in self.labels:
                message = f"entity {name!r} is never made: its step raises"
            else:
                message, near = f"unknown entity {name!r}", closest(name, self.made_later)
                self.meant.add(near)
            self.error(line, message, near)
            return None
        entity.used = True
        if kinds and entity.kind not in (*kinds, "any"):
            self.error(line, f"{name!r} is a {entity.kind}, expected a {' or '.join(kinds)}")
        elif change and entity.captured:
            self.error(line, f"{name!r} is a capture: checks look at it, steps cannot use it")
        return entity

    def step(self, step: Any, given: bool) -> None:
        """One step: what it names exists and fits, and what it makes is new."""
        word = step_word(step)
        options: Any = step_options(step)
        if "raises" in options:
            line = options.lines["raises"]
            if given:
                self.error(line, "`raises` is an expectation: it belongs in `when`")
            for error in self.error_classes(options["raises"]):
                if self.known("error class", error, self.suite.errors, line):
                    self.in_range(self.suite.errors[error].get("api", ">=0"), error, line)
        for config in configs(step):
            self.config(config)
        models, kind, values, stored = frozenset[str](), MAKES.get(word, ""), False, False
        if word == "call":
            models, kind = self.call(step)
        elif isinstance(step[word], dict):
            body = step[word]
            for key, kinds in USES.get(word, {}).items():
                if key not in body:
                    continue
                used = self.use(body[key], kinds, body.lines[key], change=word not in ("capture", "read"))
                models = used.models if used else models
                kind = used.kind if used and word == "capture" else kind
            written = body["value"] if word == "write" else None
            for value in written.values() if isinstance(written, dict) else [written]:
                named = self.entities.get(value) if isinstance(value, str) else None
                if named and named.kind == "folder":  # its path is meant
                    named.used = True
            if word == "make_model":
                models = frozenset(self.axis_values(body["model"]))
                for model in models:
                    self.known("model", model, self.suite.models, body.lines["model"])
            if "input" in body and models:
                for model in models & set(self.suite.models):
                    for name in self.axis_values(body["input"]):
                        inputs = self.suite.models[model]["inputs"]
                        self.known("input", name, inputs, body.lines["input"], of=model)
            values = bool(body.get("values"))
            stored = word == "make_folder" and "model" in body  # the model's name leads to it
        made, label = self.makes(step), step_label(step)
        if made in self.entities:
            self.error(step.line, f"entity {made!r} is made twice, first on line {self.entities[made].line}")
        elif made:
            attempt = not given and word in ("forward", "generate", "read", "look_up")
            captured = word == "capture"
            attempt = attempt or stored
            self.entities[made] = _Entity(kind, step.line, given, captured, models, values, attempt=attempt)
        if label in self.labels and label != made:
            self.error(step.line, f"label {label!r} is given twice")
        if label:
            self.labels[label] = step

    def error_classes(self, named: Any) -> set[str]:
        """The classes that `raises` stands for: itself, or what the cards of the matrix's methods say."""
        if isinstance(named, str):
            return {named}
        methods = filter(None, map(self.suite.method, self.clause.matrix.get("method", ())))
        return {str(method.fact(named["card"])) for method in methods}

    def call(self, step: Any) -> tuple[frozenset[str], str]:
        """An operation and its arguments; returns the models its result may come from, and its kind."""
        operation = self.suite.operations.get(step["call"])
        args: Any = step.get("args") or Map(step.line)
        if operation is None:
            self.error(step.lines["call"], f"{step['call']} is not in vocabulary/operations.yaml")
            return frozenset(), "any"
        self.in_range(operation["api"], step["call"], step.lines["call"])
        models = frozenset[str]()
        for key, value in {**args, "on": step.get("on")}.items():
            line = args.lines.get(key) or step.lines.get(key, step.line)
            if key in operation.get("parameters", {}):
                self.in_range(operation["parameters"][key], f"{key} of {step['call']}", line)
            kind = ARGUMENTS.get(key)
            if key == "on":
                kind = "config" if step["call"].startswith("PeftConfig.") else "model"
            if isinstance(value, dict) and "inside" in value:
                kind, value = "folder", value["inside"]
            by_axis = isinstance(value, dict) and set(value) == {"axis"}
            names = self.axis_values(value) if by_axis or isinstance(value, (str, list)) else ()
            for name in names if kind else ():
                used = self.use(name, (kind or "",), line, change=True)
                models = used.models if used and kind == "model" else models
        return models, {"none": "value"}.get(operation["result"], operation["result"])

    def axis_values(self, value: Any) -> list[Any]:
        """The values that an argument takes over the matrix: those of its axis, or itself, or its items."""
        if isinstance(value, list):
            return value
        return list(self.clause.matrix.get(value["axis"], ())) if isinstance(value, dict) else [value]

    def config(self, made: Any) -> None:
        """A config names a method with a card, and fields that exist where the clause applies."""
        for value in self.axis_values(made["config"]):
            if value in NO_CARD:
                continue
            line = made.lines["config"]
            method = self.suite.method(value)
            if method is None:
                self.known("method", str(value).upper(), self.methods(), line)
                continue
            config = method.card["config"]
            for name in made.get("fields", ()) if "fields" in config else ():
                if self.clause.law and name not in config["fields"] and self.some_method_has(name):
                    continue  # the law leaves out the methods without this option
                at = made["fields"].lines[name]
                if self.known("field", name, config["fields"], at, of=config["class"]):
                    self.in_range(
                        config["fields"][name].get("api", ">=0"), f"{name} of {config['class']}", at
                    )

    def some_method_has(self, field: str) -> bool:
        """Whether this is a field of any method's config."""
        return any(field in card["config"].get("fields", ()) for card in self.suite.cards.values())

    def methods(self) -> list[str]:
        """What a config may name: every method, and every point of its card."""
        points = {method: card["config"].get("points", ()) for method, card in self.suite.cards.items()}
        return [m + (p and f"-{p.upper()}") for m, names in points.items() for p in ("", *names)]

    # what is expected

    def modifies(self, entry: Any) -> None:
        """The frame speaks of entities that are there before `when`."""
        self.axes_used |= set(self.axis_names(entry)) & set(self.clause.matrix)
        if "of" in entry:
            used = self.use(entry["of"], (), entry.line)
            if used and (used.captured or not used.given):
                self.error(entry.line, f"modifies {entry['of']!r}, which `given` does not make")
            for aspect in entry.get("aspects", ()) if used and used.kind in ASPECTS else ():
                if used and aspect not in ASPECTS[used.kind]:
                    self.error(entry.line, f"a {used.kind} such as {entry['of']!r} has no aspect {aspect!r}")

    def checks(self, checks: tuple[Check, ...]) -> None:
        """The checks of one variant."""
        seen: dict[str, int] = {}
        for check in checks:
            if check.id in seen:
                self.error(check.line, f"check {check.id!r} is there already, on line {seen[check.id]}")
            if check.id == "frame" or check.id.split("-")[0] == "raises":
                self.error(check.line, f"check id {check.id!r} is kept for the derived checks")
            seen[check.id] = check.line
            self.axes({"id": check.id, check.word: check.body})
            self.check(check)

    def formula(self, text: str, line: int) -> None:
        try:
            parse(text)
        except FormulaError as error:
            self.error(line, str(error))

    def check(self, check: Check) -> None:
        body, line = check.body, check.line
        for name in body if isinstance(body, list) else ():
            self.use(name, (), line)
        if isinstance(body, list):
            return
        for key, kinds in CHECKS.get(check.word, {}).items():
            if key in body:
                wanted = (VIEWS[body["view"]],) if check.word == "snapshot" else kinds
                used = self.use(body[key], wanted, line)
                reads = check.word in ("formula", "combination") and key == "of"
                if used and (reads or check.word == "relation") and not used.values:
                    self.error(
                        line, f"a {check.word} needs {body[key]!r} to be a capture with `values: true`"
                    )
        for side in (body["left"], body["right"]) if check.word == "relation" else ():
            self.formula(side, line)
        if "tolerance" in body:
            self.known("tolerance", body["tolerance"], self.suite.tolerances, line)
        if check.word == "raised" and "error" in body:
            self.known("error class", body["error"], self.suite.errors, line)
        if "step" in body and self.known("step", body["step"], self.labels, line):
            if body["step"] in self.entities:
                self.entities[body["step"]].used = True
            if check.word == "raised" and "raises" not in step_options(self.labels[body["step"]]):
                self.error(line, f"step {body['step']!r} is not expected to raise")
