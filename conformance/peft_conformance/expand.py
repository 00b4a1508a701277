"""Clauses become cases: axes filled in, sets resolved, variants chosen, one program for the driver each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from allpairspy import AllPairs
from packaging.version import Version

from peft_conformance import facts
from peft_conformance.cases import Case, Check, Clause, Matrix
from peft_conformance.cases import case_id as id_of
from peft_conformance.formula import FormulaError
from peft_conformance.language import Method, Suite, injectable
from peft_conformance.ranges import contains
from peft_conformance.steps import SPECIAL, flat, is_config, step_label, step_options, step_word

Point = dict[str, Any]  # axis -> value
INJECT = "inject_adapter_in_model"
THROUGH_MODEL = ("get_peft_model", "PeftModel.add_adapter", "BaseTuner.set_adapter")  # what does without it
SPEAKS_OF = {"of", "on", "left", "right", "model", "same_as", "same_object", "different_objects"}


@dataclass(frozen=True)
class Skipped:
    """A case that is not run, and why: `not-applicable` (API level) or `unsupported` (capability)."""

    case: Case
    verdict: str
    reason: str


class _HasAxes(Protocol):
    @property
    def axes(self) -> Point: ...


Placed = TypeVar("Placed", bound=_HasAxes)


@dataclass(frozen=True)
class _Placed:
    """A point that is not a case yet, with the reason for its standing."""

    axes: Point
    reason: str


@dataclass(frozen=True)
class Expansion:
    """The cases to run, and those that are counted without being run."""

    cases: list[Case]
    skipped: list[Skipped]


class Ground:
    """A suite for an implementation that claims `api_level`: where each point stands, and the case there.

    `offers` names the capabilities that the implementation has (`method-lora` and the like included) or is
    "all"; `lacks` maps those that it does not have to the reason.
    """

    def __init__(
        self,
        suite: Suite,
        *,
        api_level: str,
        offers: Collection[str] | Literal["all"] = "all",
        lacks: Mapping[str, str] | None = None,
    ) -> None:
        self.suite, self.level = suite, Version(api_level)
        self._offers, self._lacks = offers, lacks or {}
        self._standings: dict[tuple[str, ...], tuple[str, str] | None] = {}
        self._to_run: dict[str, list[Point]] = {}

    def expand(
        self,
        matrix: Matrix = "full",
        where: Callable[[Clause, Point], bool] | None = None,
        clauses: Collection[str] | None = None,
    ) -> Expansion:
        """All cases in the order of the files. `where` (`consumers.selected`) chooses points and `clauses`
        ids; what they leave out is not returned at all.
        """
        cases: list[Case] = []
        skipped: list[Skipped] = []
        for clause in self.suite.clauses:
            if clauses is not None and clause.id not in clauses:
                continue
            groups: dict[str, list[_Placed]] = {"run": [], "not-applicable": [], "unsupported": []}
            for point, (verdict, reason) in self._placed(clause):
                if where is None or where(clause, point):
                    groups[verdict].append(_Placed(point, reason))
            # Only what is chosen becomes a case; the rest, nine in ten for smoke, would be built for nothing.
            cases += [self.case(clause, at.axes) for at in select(groups.pop("run"), matrix)]
            for verdict, group in groups.items():  # counted by the same measure as the cases that are run
                chosen = select(group, matrix)
                skipped += [Skipped(self.case(clause, at.axes), verdict, at.reason) for at in chosen]
        return Expansion(cases, skipped)

    def to_run(self, clause: Clause) -> list[Point]:
        """The points of a clause's whole matrix that can be run."""
        if clause.id not in self._to_run:
            placed = self._placed(clause)
            self._to_run[clause.id] = [point for point, (verdict, _) in placed if verdict == "run"]
        return self._to_run[clause.id]

    def case(self, clause: Clause, point: Point) -> Case:
        """The clause's case at a point."""
        return _case(self.suite, clause, point, self.level)

    def _placed(self, clause: Clause) -> Iterator[tuple[Point, tuple[str, str]]]:
        """The points of a clause's matrix with their standing, but for those that are none of its law's."""
        telling = _telling(clause)
        for point in points(clause):
            key = (clause.id, *(str(point[axis]) for axis in telling))
            if key not in self._standings:
                self._standings[key] = self._standing(clause, point)
            if standing := self._standings[key]:
                yield point, standing

    def _standing(self, clause: Clause, point: Point) -> tuple[str, str] | None:
        """None at no point of a law: its matrix has every layer, the method's card only some."""
        if clause.law and any(out(self.suite, clause, point) for out in LEFT_OUT):
            return None
        return _standing(self.suite, clause, point, self.level, self._offers, self._lacks)


def expand(
    suite: Suite,
    *,
    api_level: str,
    matrix: Matrix = "full",
    offers: Collection[str] | Literal["all"] = "all",
    lacks: Mapping[str, str] | None = None,
    where: Callable[[Clause, Point], bool] | None = None,
    clauses: Collection[str] | None = None,
) -> Expansion:
    """All cases of a suite, as `Ground` says."""
    return Ground(suite, api_level=api_level, offers=offers, lacks=lacks).expand(matrix, where, clauses)


def points(clause: Clause) -> list[Point]:
    """The points of a clause's matrix that no `exclude` names; without a matrix, the one empty point."""
    axes = list(clause.matrix)
    every = (dict(zip(axes, values, strict=True)) for values in itertools.product(*clause.matrix.values()))
    return [point for point in every if not any(excludes(entry["when"], point) for entry in clause.exclude)]


def case_of(suite: Suite, clause: Clause, case_id: str, api_level: str) -> Case | None:
    """The case of that id as an implementation that claims `api_level` performs it; None if there is none."""
    fitting = (point for point in points(clause) if id_of(clause.id, point) == case_id)
    point = next(fitting, None)
    return None if point is None else _case(suite, clause, point, Version(api_level))


def excludes(when: Mapping[str, Any], point: Point) -> bool:
    """Whether an exclude names this point: every axis that it lists has (one of) the listed values."""
    return all(
        axis in point and repr(point[axis]) in map(repr, value if isinstance(value, list) else [value])
        for axis, value in when.items()
    )


def select(cases: list[Placed], matrix: Matrix) -> list[Placed]:
    """Those of a clause's cases that a matrix size keeps: all, enough for all pairs of values, or one."""
    if matrix == "smoke":
        return cases[:1]
    if matrix == "full" or not cases or len(cases[0].axes) < 3:  # with two axes, the pairs are the points
        return cases
    by_point = {tuple(case.axes.items()): case for case in cases}
    axes = list(cases[0].axes)
    values = [list(dict.fromkeys(case.axes[axis] for case in cases)) for axis in axes]
    rows = AllPairs(values, filter_func=lambda row: len(row) < len(axes) or _point(axes, row) in by_point)
    chosen = {_point(axes, row) for row in rows}
    # Excludes can leave a pair that the search does not reach: the first point that has it is added.
    covered = {pair for point in chosen for pair in itertools.combinations(point, 2)}
    for point in by_point:
        pairs = set(itertools.combinations(point, 2))
        if not pairs <= covered:
            chosen.add(point)
            covered |= pairs
    return [case for point, case in by_point.items() if point in chosen]


def _point(axes: list[str], row: Iterable[Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(zip(axes, row, strict=True))


# --- one case -------------------------------------------------------------------------------------


def fill(value: Any, axes: Point) -> Any:
    """A copy in which each `{axis: name}` is the axis's value and `to_axis: name` is `to: value`."""
    if isinstance(value, dict):
        if set(value) == {"axis"} and value["axis"] in axes:
            return axes[value["axis"]]
        if value.get("to_axis") in axes:
            value = {**{k: v for k, v in value.items() if k != "to_axis"}, "to": axes[value["to_axis"]]}
        return {key: fill(item, axes) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, axes) for item in value]
    return value


def _case(suite: Suite, clause: Clause, point: Point, level: Version) -> Case:
    given, when = fill(list(clause.given), point), fill(list(clause.when), point)
    steps = list(flat([*given, *when]))
    models = sorted(models_at(clause, point))
    calls = sorted({step["call"] for step in steps if "call" in step})

    variant = next((v for v in clause.variants if contains(v.api, level)), clause.variants[0])
    checks = [
        Check(c.id, c.word, _by_card(suite, clause, point, level, c), c.level, c.line, c.because)
        for c in variant.checks
    ]
    if clause.law and _no_formula(suite, point):
        checks = [check for check in checks if check.word != "formula"]
    checks += _derived(suite, clause, when, point)
    given, when = _steps(suite, given), _steps(suite, when)
    if _needs_model(suite, clause, point, level):
        names: dict[str, str] = {}
        given, when = _through_model(given, names), _through_model(when, names)
        checks = [replace(check, body=_renamed(check.body, names)) for check in checks]
        calls = sorted({*calls, *THROUGH_MODEL} - {INJECT})
    case = Case(clause, point, {}, tuple(checks), tuple(sorted(_requires(suite, clause, point, level))))
    case.program.update(
        case=case.id,
        given=given,
        when=when,
        models={name: suite.models[name] for name in models if name in suite.models},
        **_of_cards(suite),
        operations={call: suite.operations[call] for call in calls if call in suite.operations},
        values=[step["capture"]["id"] for step in steps if step.get("capture", {}).get("values")],
    )
    return case


def methods_at(suite: Suite, clause: Clause, point: Mapping[str, Any]) -> set[str]:
    """The PEFT types that a clause makes configs of, or looks the config classes up of, at a point."""
    return {method.card["method"] for method in _methods(suite, clause, point)}


def _methods(suite: Suite, clause: Clause, point: Mapping[str, Any]) -> list[Method]:
    return [method for name in fill(_named_methods(clause), dict(point)) if (method := suite.method(name))]


def _named_methods(clause: Clause) -> list[Any]:
    looked_up = (step["look_up"]["name"] for step in clause.steps if "look_up" in step)
    made = [made["config"] for made in clause.configs]
    return made + [name["class_of"] for name in looked_up if isinstance(name, dict)]


def models_at(clause: Clause, point: Point) -> set[str]:
    """The models that a clause makes at a point."""
    return set(fill(_named_models(clause), point))


def _named_models(clause: Clause) -> list[Any]:
    return [step["make_model"]["model"] for step in clause.steps if "make_model" in step]


def _telling(clause: Clause) -> list[str]:
    """The axes that say by which methods and on which models, and so where a point stands."""
    names = (*_named_methods(clause), *_named_models(clause))
    named = {name["axis"] for name in names if isinstance(name, dict) and "axis" in name}
    return [axis for axis in clause.matrix if axis in named | clause.axis_sets.keys()]


def _needs_model(suite: Suite, clause: Clause, point: Point, level: Version) -> bool:
    """Whether a law speaks at this point of a method that only a PeftModel can bring."""
    return clause.law and not all(can_inject(m.card, level) for m in _methods(suite, clause, point))


def _requires(suite: Suite, clause: Clause, point: Point, level: Version) -> set[str]:
    """The capabilities that the clause needs at a point."""
    requires = {*clause.requires, *(f"method-{m.lower()}" for m in methods_at(suite, clause, point))}
    models = (suite.models[name] for name in models_at(clause, point) if name in suite.models)
    requires.update(*(model.get("requires", ()) for model in models))
    return requires | {"peft-model"} if _needs_model(suite, clause, point, level) else requires


def _by_card(suite: Suite, clause: Clause, point: Point, level: Version, check: Check) -> Any:
    """The body of a check, with what it leaves to a method's card as plain data in its place."""
    body = fill(check.body, point)
    method = suite.method(body["card"]) if isinstance(body, dict) and "card" in body else None
    if method is None:
        return body
    rest = {key: value for key, value in body.items() if key != "card"}
    if check.word == "signature":
        return rest | {"contains": facts.parameters(method, level), "only": True}
    kind, arguments = _layers(suite, clause, point, body["module"])[0]
    group = str(body["module"]).rpartition(".")[2]  # what layers of one name share is kept by it
    try:
        shapes = facts.shapes(method, kind, arguments, level)
        return rest | {"exactly": {name.replace("<group>", group): s for name, s in shapes.items()}}
    except FormulaError as error:
        return rest | {"unknown": str(error)}


def _of_cards(suite: Suite) -> dict[str, list[str]]:
    """What every program holds of the cards, made once for a suite."""
    if suite.specs not in _known or _known[suite.specs][0] is not suite.cards:
        cards = suite.cards.values()
        prefixes = sorted({card["prefix"] for card in cards} - {""})
        found = {"slots": _slots(cards), "layer_slots": _slots(cards, shared=False)}
        found |= {"trained": _slots(cards, "trainable"), "prefixes": prefixes}
        _known[suite.specs] = (suite.cards, found)
    return _known[suite.specs][1]


_known: dict[Path, tuple[Mapping[str, Any], dict[str, list[str]]]] = {}


def _slots(cards: Iterable[Mapping[str, Any]], role: str | None = None, *, shared: bool = True) -> list[str]:
    """Where the tensors of these cards are kept, or those of one role, or without what layers share."""
    tensors = (pair for card in cards for pair in card.get("tensors", {}).items())
    fitting = (
        name
        for name, entry in tensors
        if role in (None, entry["role"]) and (shared or not entry.get("shared", False))
    )
    return sorted({name.partition(".")[0] for name in fitting})


def _steps(suite: Suite, steps: list[dict[str, Any]], within: str = "") -> list[dict[str, Any]]:
    """Steps as the driver takes them: configs resolved, no expected error class, each with its index."""
    result = []
    for number, filled in enumerate(steps):
        step = _resolve(suite, filled)
        options, label = step_options(step), step_label(step)
        options.pop("label", None)
        if options.pop("raises", None):
            step["attempt"] = True
        if label:
            step["label"] = label
        step["index"] = f"{within}{number}" if within else number
        if "within" in step:
            step["within"]["steps"] = _steps(suite, filled["within"]["steps"], f"{number}.")
        result.append(step)
    return result


def _through_model(steps: list[dict[str, Any]], names: dict[str, str]) -> list[dict[str, Any]]:
    """The steps of a law for a method that cannot be injected: get_peft_model and add_adapter bring it.

    From then on the PeftModel stands for the model that it holds: `names` says which for which.
    """
    result = []
    for original in steps:
        step = _renamed(original, names)
        if "within" in step:
            step["within"]["steps"] = _through_model(original["within"]["steps"], names)
        result.append(step)
        if step.get("call") not in (INJECT, "set_adapter"):
            continue
        model, args = step["args"].pop("model"), step["args"]
        if step["call"] == "set_adapter":  # the function would not tell the PeftModel what is active
            step.update(call="BaseTuner.set_adapter", on=model)
        elif model in names.values():
            args.setdefault("adapter_name", "default")
            step.update(call="PeftModel.add_adapter", on=model)
            if not step.get("attempt"):  # what is injected is active
                activate = {"adapter_name": args["adapter_name"]}
                index = f"{step['index']}+"
                result.append(
                    {"call": "BaseTuner.set_adapter", "on": model, "args": activate, "index": index}
                )
        else:
            step.update(call="get_peft_model", args={"model": model, **args, "autocast_adapter_dtype": False})
            step["as"] = f"peft-{model}"
            if not step.get("attempt"):
                names[model] = step["as"]
    return result


def _renamed(value: Any, names: Mapping[str, str], key: str = "") -> Any:
    """A copy of a step or a check's body that speaks of the entities by their new `names`."""
    if isinstance(value, str):
        return names.get(value, value) if key in SPEAKS_OF else value
    if isinstance(value, list):
        both = [] if key != "modifies" else [entry for entry in value if entry.get("of") in names]
        return both + [_renamed(item, names, key) for item in value]
    if not isinstance(value, dict) or "make_model" in value:
        return value
    return {name: _renamed(item, names, name) for name, item in value.items()}


def _resolve(suite: Suite, value: Any) -> Any:
    """A copy with each config as class and fields, those of the clause laid over those of the card."""
    if isinstance(value, list):
        return [_resolve(suite, item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"class_of"} and (known := suite.method(value["class_of"])):
        return known.card["config"]["class"]
    method = suite.method(value["config"]) if is_config(value) else None
    if method is None:  # no config, or one that no card describes: none, unknown, not-a-config
        return {key: _resolve(suite, item) for key, item in value.items()}
    config = {
        "class": method.card["config"]["class"],
        # plain lists and mappings: copies of those that know their lines come out empty
        "fields": fill({**method.options(*SPECIAL & value.keys()), **value.get("fields", {})}, {}),
    }
    if "id" not in value:
        return {"config": config}
    return {"id": value["id"], "config": method.card["method"], **config}


def _derived(suite: Suite, clause: Clause, when: list[dict[str, Any]], point: Point) -> list[Check]:
    """The checks that a clause implies: the errors it names are raised, only what it names is modified."""
    pairs = zip(_indexed(when), flat(clause.when), strict=True)
    raising = [(i, s, raw) for (i, s), raw in pairs if "raises" in step_options(s)]
    result = []
    for index, step, raw in raising:
        where = step_label(step) or index
        name = "raises" if len(raising) == 1 else f"raises-{where}"
        body = {"step": where, "error": _error_class(suite, step_options(step)["raises"], point)}
        result.append(Check(name, "raises", body, clause.level, getattr(raw, "line", clause.line)))
    level = clause.level if clause.level in ("MAY", "UNSPECIFIED") else "MUST"
    line = clause.lines.get("modifies", clause.line)
    return [*result, Check("frame", "frame", {"modifies": fill(list(clause.modifies), point)}, level, line)]


def _error_class(suite: Suite, named: Any, point: Point) -> str:
    """The error class that a step names, or that the card of the law's method does."""
    method = suite.method(point.get("method")) if isinstance(named, dict) else None
    return (method.fact(named["card"]) if method else None) or str(named)


def _indexed(steps: list[dict[str, Any]], within: str = "") -> Iterator[tuple[int | str, dict[str, Any]]]:
    for number, step in enumerate(steps):
        yield (f"{within}{number}" if within else number), step
        if "within" in step:
            yield from _indexed(step["within"]["steps"], f"{number}.")


# --- what is not run ------------------------------------------------------------------------------


def _standing(
    suite: Suite,
    clause: Clause,
    point: Point,
    level: Version,
    offers: Collection[str] | Literal["all"],
    lacks: Mapping[str, str],
) -> tuple[str, str]:
    """Whether the case there is to `run`, or else the verdict that it has without that; and the reason."""
    if not contains(clause.api, level):
        return "not-applicable", f"API level {level} is not in {clause.api}"
    requires = _requires(suite, clause, point, level)
    for method in (name.removeprefix("method-").upper() for name in sorted(requires)):
        card: Mapping[str, Any] = suite.cards.get(method, {})
        if not contains(card.get("api", ">=0"), level):
            return "not-applicable", f"{method} is not in API level {level}, but in {card['api']}"
    for axis, name in clause.axis_sets.items():
        wanted = suite.sets[name].get("cards", {}).get("injectable")
        made = suite.method(point[axis])
        if made is None:
            continue
        if wanted is not None and can_inject(made.card, level) is not wanted:
            reason = f"{made.card['method']} is not in the set {name!r} at API level {level}"
            return "not-applicable", reason
        fields = made.card["config"].get("fields", {})
        for option in made.point.get("fields", ()):
            if not contains(api := fields.get(option, {}).get("api", ">=0"), level):
                return "not-applicable", f"{option} is not in API level {level}, but in {api}"
        for kind, api in made.card.get("layers_since", {}).items():
            if kind in _layer_kinds(suite, clause, point) and not contains(api, level):
                return "not-applicable", f"{made.card['method']} adapts {kind} in API level {api}"
    adapts = suite.method(point["method"]) if clause.law else None
    if adapts and not can_inject(adapts.card, level) and any(map(_by_keys, [*clause.given, *clause.when])):
        return "not-applicable", f"{adapts.card['method']} cannot be injected at API level {level}"
    for name in sorted(requires):
        if name in lacks:
            return "unsupported", f"{name}: {lacks[name]}"
        if offers != "all" and name not in offers:
            return "unsupported", f"{name} is not offered"
    return "run", ""


def _by_keys(step: Mapping[str, Any]) -> bool:
    """Whether a step injects what the keys of a state dict say, which no other function does."""
    return step.get("call") == INJECT and "state_dict" in step["args"]


def can_inject(card: Mapping[str, Any], level: Version | str) -> bool:
    """Whether a card's method can be injected at an API level; outside all of its ranges it cannot."""
    return any(yes for api, yes in injectable(card).items() if contains(api, level))


def _not_adapted(suite: Suite, clause: Clause, point: Point) -> bool:
    """Whether the law's layers at this point are not those that it speaks of, by the method's card."""
    method = suite.method(point["method"])
    adapts = set((method and method.fact("layers")) or ())
    kinds = _layer_kinds(suite, clause, point)
    return bool(kinds & adapts) if clause.layers == "others" else not kinds <= adapts


def _cannot_merge(suite: Suite, clause: Clause, point: Point) -> bool:
    """Whether the law merges into a layer that lacks what the method's card says that merging needs."""
    method = suite.method(point["method"])
    if method is None or method.card.get("merge_needs") != "bias":
        return False
    calls = {"BaseTuner.merge_adapter", "BaseTuner.merge_and_unload"}
    merges = any(step.get("call") in calls for step in flat(clause.when))
    return merges and any(not arguments.get("bias", True) for _, arguments in _layers(suite, clause, point))


def _asks_for_more(suite: Suite, clause: Clause, point: Point) -> bool:
    """Whether the law calls an adapted model, and the method's card wants arguments with that."""
    method = suite.method(point["method"])
    if method is None or not method.fact("forward_arguments"):
        return False
    calls = {"forward", "backward", "generate", "train"}
    return any(step_word(step) in calls for step in clause.steps)


def _has_no_such_option(suite: Suite, clause: Clause, point: Point) -> bool:
    """Whether the law sets a field that the config of this method does not have."""
    method = suite.method(point["method"])
    known = method.card["config"].get("fields", ()) if method else ()
    made = [config for config in clause.configs if config["config"] == {"axis": "method"}]
    return bool(known) and any(name not in known for config in made for name in config.get("fields", ()))


def _no_formula(suite: Suite, point: Point) -> bool:
    """Whether the card of a law's method says why it has no formula."""
    method = suite.method(point.get("method"))
    return method is not None and "no_formula" in method.card


def _only_by_formula(suite: Suite, clause: Clause, point: Point) -> bool:
    """Whether the law compares with nothing but the formula, and the method's card has none."""
    words = {check.word for variant in clause.variants for check in variant.checks}
    return words == {"formula"} and _no_formula(suite, point)


LEFT_OUT = (_not_adapted, _asks_for_more, _cannot_merge, _has_no_such_option, _only_by_formula)


def _layer_kinds(suite: Suite, clause: Clause, point: Point) -> set[str]:
    """The kinds of the layers that a law adapts."""
    return {kind for kind, _ in _layers(suite, clause, point)}


def _layers(
    suite: Suite, clause: Clause, point: Point, at: str = "layer"
) -> list[tuple[str, Mapping[str, Any]]]:
    """Kind and arguments of the layers that are called `layer`, the one that a law adapts."""
    names = fill(_named_models(clause), point)
    chains = [suite.models[name].get("chain", ()) for name in names if name in suite.models]
    return [(kind, dict(*rest)) for chain in chains for path, kind, *rest in chain if path == at]
