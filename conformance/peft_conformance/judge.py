"""What an observation says of the checks of its case: a pure function of both.

One function for each check word, in `WORDS`; it takes the scene and the check's body and returns a `Finding`.
Where there is nothing to judge (a step failed, an entity was never made, a card does not fit) it raises
`Unjudgeable`, which becomes an `error`: a check that looked at nothing proved nothing.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from peft_conformance import formula, plain, script_parts
from peft_conformance.cases import Case, Check, Plain, Verdict
from peft_conformance.frame import violations
from peft_conformance.language import Suite
from peft_conformance.roles import ROOT, Record, Tag, Tagged, card_of, pair, select, tags, unwrapped

Body = Any
Limits = tuple[float, float] | None  # rtol and atol; None means bit for bit
COARSENESS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn")  # by the bits of their mantissa
DIFFER_FACTOR = 10  # what counts as different lies this many tolerances apart
OURS = "our own mistake: "


class Unjudgeable(Exception):
    """There is nothing to judge a check on."""


@dataclass(frozen=True)
class Finding:
    """Whether a check holds, and both sides in few plain words that are the same in every run."""

    ok: bool
    expected: Plain
    observed: Plain
    detail: str = ""
    at: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """One observation with what is needed to read it."""

    case: Case
    observation: Mapping[str, Any]
    suite: Suite
    snapshots: Mapping[str, str] | None = None
    _tags: dict[int, list[Tagged]] = field(default_factory=dict)

    def record(self, entity: str) -> Record:
        """The record of a capture, or of an entity as it was at the end."""
        records: Mapping[str, Record] = {**self.observation["entities"], **self.observation["captures"]}
        if entity not in records:
            raise Unjudgeable(f"{OURS}no step made {entity!r}")
        return records[entity]

    def tagged(self, entity: str) -> list[Tagged]:
        """The tensors of an entity with what they are for."""
        record = self.record(entity)
        if record["kind"] not in ("model", "state_dict", "tensor", "folder"):
            raise Unjudgeable(f"{entity} is {describe(record)}, which has no tensors")
        if id(record) not in self._tags:
            self._tags[id(record)] = tags(record, self.suite.cards)
        return self._tags[id(record)]

    def step(self, name: str | int) -> Mapping[str, Any]:
        """The step of that label or, in `when`, of that index."""
        steps: Sequence[Mapping[str, Any]] = self.observation["steps"]
        for step in steps:
            if is_step(step, name):
                return step
        raise Unjudgeable(f"{OURS}the case came to no step {name!r}")

    def values(self, tensor: Mapping[str, Any], what: str) -> torch.Tensor:
        """The values of a recorded tensor."""
        if tensor.get("values") is None:
            meta = tensor.get("device") == "meta"
            why = "it is on the meta device" if meta else f"{OURS}capture it with `values: true`"
            raise Unjudgeable(f"the values of {what} were not recorded: {why}")
        value: torch.Tensor = self.observation["tensors"][tensor["values"]]
        return value


def judge(
    case: Case, observation: Mapping[str, Any], suite: Suite, snapshots: Mapping[str, str] | None = None
) -> list[Verdict]:
    """One verdict for each check of `case`, in their order.

    `snapshots` holds stored texts by check id; without it such checks are `info`. A check that holds is
    `pass`; one that does not is `fail` for MUST and `warn` for SHOULD; MAY and UNSPECIFIED are only recorded
    (`info`). After a crash, or a step that failed and should not have, every check is an `error`, except
    those on what earlier steps had to raise.
    """
    scene = Scene(case, observation, suite, snapshots)
    end = _end(case, observation)
    return [_verdict(scene, check, end) for check in case.checks]


def is_step(step: Mapping[str, Any], name: str | int) -> bool:
    """Whether a check that says `name` speaks of this step."""
    return step["label"] == name or (step["phase"] == "when" and step["index"] == name)


def describe(record: Record) -> str:
    """A record in a few words, the same in every run."""
    name = record.get("class") or record.get("name")
    return f"a {record['kind']}" + (f" of class {name}" if name else "")


def _error_text(error: Mapping[str, Any]) -> str:
    return plain.message(f"{error['type']}: {error['message']}")


def _end(case: Case, observation: Mapping[str, Any]) -> tuple[Finding, Sequence[Mapping[str, Any]]] | None:
    """What ended a case before its time, and the steps until then; None when all went as it had to."""
    if crash := observation["crash"]:
        message = plain.message(f"{crash['kind']}: {crash['message']}")
        return Finding(False, None, message, "the implementation left no observation"), ()
    may_fail = [check.body["step"] for check in case.checks if check.word == "raises"]
    for place, step in enumerate(observation["steps"]):
        error = step["error"]
        if not error:
            continue
        name, detail = f"step {step['label'] or step['index']} of {step['phase']}", None
        if error["origin"] == "driver":
            detail = f"{OURS}the driver failed in {name}"
        elif "BaseException" not in error["mro"]:  # a name that is not there satisfies no `raises`
            detail = f"{name} found nothing to work on"
        elif not any(is_step(step, which) for which in may_fail):
            detail = f"{name} failed, which no `raises` expects"
        if detail:
            at = {"step": step["label"] or step["index"]}
            return Finding(False, None, _error_text(error), detail, at), observation["steps"][:place]
    return None


def _verdict(scene: Scene, check: Check, end: tuple[Finding, Sequence[Mapping[str, Any]]] | None) -> Verdict:
    verdict = "error"
    came_before = end and check.word == "raises" and any(is_step(step, check.body["step"]) for step in end[1])
    if end and not came_before:
        finding = end[0]
    else:
        try:
            finding = (
                _snapshot(scene, check) if check.word == "snapshot" else WORDS[check.word](scene, check.body)
            )
            compared = check.word != "snapshot" or scene.snapshots is not None
            red = {"MUST": "fail", "SHOULD": "warn"}.get(check.level.partition(" ")[0]) if compared else None
            verdict = "info" if red is None else "pass" if finding.ok else red
        except Unjudgeable as reason:
            finding = Finding(False, None, plain.message(str(reason)), "nothing to judge")
    at = dict(finding.at)
    return Verdict(scene.case.id, check.id, verdict, finding.expected, finding.observed, finding.detail, at)


# --- Objects and values


def _identity(scene: Scene, body: Body, same: bool) -> Finding:
    """`same_object`: all are one; `different_objects`: no two are one."""
    groups: dict[str, list[str]] = {}
    for entity in body:
        record = scene.record(entity)
        if "object" not in record:
            raise Unjudgeable(f"{OURS}{entity} is {describe(record)}, which has no identity")
        groups.setdefault(record["object"], []).append(f"{entity} ({record.get('class', record['kind'])})")
    ok = len(groups) == (1 if same else len(body))
    expected = "one object" if same else "different objects"
    return Finding(
        ok, expected, expected if ok else "; ".join(" is ".join(group) for group in groups.values())
    )


def _equal(scene: Scene, body: Body) -> Finding:
    expected = body["to"] if "to" in body else scene.case.axes[body["to_axis"]]
    record = scene.record(body["of"])
    if record["kind"] != "value":
        return Finding(False, expected, describe(record))
    return Finding(plain.equal(record["value"], expected), expected, record["value"])


def _instance(scene: Scene, body: Body) -> Finding:
    record = scene.record(body["of"])
    if "mro" not in record:
        raise Unjudgeable(f"{OURS}{body['of']} is {describe(record)}, whose ancestors are not recorded")
    wanted, exactly, unwanted = (
        body["of_class"].rpartition(".")[2],
        body.get("exactly"),
        body.get("not", False),
    )
    fits = record["class"] == wanted if exactly else wanted in record["mro"]
    words = f"{'not ' if unwanted else ''}{'exactly ' if exactly else ''}{wanted}"
    return Finding(fits is not unwanted, words, record["class"])


# --- Tensors, modules, keys


def _all(scene: Scene, body: Body) -> Finding:
    chosen = select(scene.tagged(body["of"]), body)
    if not chosen:
        reason = body.get("may_be_empty", "")
        return Finding(bool(reason), body["have"], "no tensor selected", reason)
    return _each(body, [(tensor["name"], _lacks(tensor, body["have"])) for tensor, _ in chosen], "tensor")


def _none(scene: Scene, body: Body) -> Finding:
    chosen = select(scene.tagged(body["of"]), body)
    names = [tensor["name"] for tensor, _ in chosen if not _lacks(tensor, body.get("have", {}))]
    at = {"entity": body["of"], "tensor": names[0]} if names else {}
    return Finding(not names, "no such tensor", plain.few(names) or "no such tensor", at=at)


def _each(body: Body, lacking: Sequence[tuple[str, list[str]]], word: str) -> Finding:
    """Whether each of the named things has all of `have`; `lacking` says what it has instead."""
    wrong = [(name, ", ".join(instead)) for name, instead in lacking if instead]
    observed = plain.few(f"{name}: {instead}" for name, instead in wrong) or body["have"]
    at = {"entity": body["of"], word: wrong[0][0]} if wrong else {}
    return Finding(not wrong, body["have"], observed, f"{len(wrong)} of {len(lacking)} {word}s differ", at)


def _lacks(tensor: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What a tensor has in place of what is wanted, in short phrases."""
    phrases = []
    for aspect, value in wanted.items():
        found = tensor.get(aspect)
        if aspect == "values":
            quality, truth = VALUES[value]
            ok, found = tensor.get(quality) is truth, f"not {value}" if quality in tensor else "unknown"
        elif aspect == "grad" and value == "not-none":
            ok = found in ("zero", "nonzero")
        elif aspect == "device":
            ok = str(found).partition(":")[0] == value
        else:
            ok = plain.equal(found, value)
        if not ok:
            phrases.append(f"{aspect} {plain.text(found)}")
    return phrases


VALUES = {
    "zero": ("zero", True),
    "nonzero": ("zero", False),
    "finite": ("finite", True),
    "not-finite": ("finite", False),
}


def _modules(scene: Scene, body: Body) -> Finding:
    record = scene.record(body["of"])
    if record["kind"] != "model":
        raise Unjudgeable(f"{OURS}{body['of']} is {describe(record)}, which has no modules")

    def fits(module: Mapping[str, Any]) -> bool:
        names = (module["name"], module["name"].removeprefix(ROOT))
        named = "name" not in body or any(re.fullmatch(body["name"], name) for name in names)
        return bool(named) and body.get("adapted") in (None, module["adapter"] is not None)

    lacking = [(m["name"] or "(root)", _module_lacks(m, body["have"])) for m in record["modules"] if fits(m)]
    return _each(body, lacking, "module") if lacking else Finding(False, body["have"], "no module selected")


def _module_lacks(module: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    adapter = module["adapter"] or {}
    facts = {**module, **adapter, "rank": adapter.get("r"), "adapted": bool(adapter)}
    phrases = []
    for aspect, value in wanted.items():
        found = facts.get(aspect)
        if aspect in ("scaling", "rank") and isinstance(found, dict):
            ok = all(_is_near(found.get(name), number) for name, number in value.items())
        elif aspect == "adapters" and found is not None:
            ok = sorted(found) == sorted(value)
        else:
            ok = plain.equal(found, value)
        if not ok:
            phrases.append(f"{aspect} {plain.text(found)}")
    return phrases


def _is_near(found: Plain, number: float) -> bool:
    return isinstance(found, (int, float)) and not isinstance(found, bool) and math.isclose(found, number)


def _keys_of(scene: Scene, entity: str) -> list[str]:
    record = scene.record(entity)
    match record["kind"], record.get("value"):
        case (("model" | "state_dict"), _):
            return [tensor["name"] for tensor in record["tensors"]]
        case "folder", _:
            return sorted(record["files"])
        case "config", _:
            return list(record["fields"])
        case "value", (dict() | list()) as value:
            return [str(key) for key in value]
    raise Unjudgeable(f"{entity} is {describe(record)}, which has no keys")


def _keys(scene: Scene, body: Body) -> Finding:
    keys, wrong = _keys_of(scene, body["of"]), []
    if "exactly" in body or "same_as" in body:
        wanted = body["exactly"] if "exactly" in body else _keys_of(scene, body["same_as"])
        wrong += [f"missing: {key}" for key in sorted({*wanted} - {*keys})]
        wrong += [f"extra: {key}" for key in sorted({*keys} - {*wanted})]
    wrong += [f"missing: {key}" for key in body.get("contain", ()) if key not in keys]
    wrong += [f"extra: {key}" for key in body.get("lack", ()) if key in keys]
    if "match" in body:
        wrong += [f"no match: {key}" for key in keys if not re.fullmatch(body["match"], key)]
        wrong += [] if keys else ["no key at all"]
    if "no_match" in body:
        wrong += [f"match: {key}" for key in keys if re.fullmatch(body["no_match"], key)]
    if "fewer_than" in body and len(keys) >= (more := len(_keys_of(scene, body["fewer_than"]))):
        wrong.append(f"{len(keys)} keys, {body['fewer_than']} has {more}")
    expected = {name: value for name, value in body.items() if name != "of"}
    return Finding(not wrong, expected, plain.few(wrong) or "as expected", at={"entity": body["of"]})


def _shapes(scene: Scene, body: Body) -> Finding:
    """The adapter's tensors are those of its card, by the card's names."""
    if "unknown" in body:
        raise Unjudgeable(f"{OURS}{body['unknown']}")
    found = {}
    for tensor, tag in scene.tagged(body["of"]):
        if tag.role != "base":
            path = tag.module.removeprefix(ROOT)
            found[tensor["name"].removeprefix(ROOT).removeprefix(f"{path}.")] = tensor.get("shape")
    wrong = [f"missing: {name}" for name in sorted(body["exactly"].keys() - found.keys())]
    wrong += [
        f"extra: {name} {plain.text(found[name])}" for name in sorted(found.keys() - body["exactly"].keys())
    ]
    for name in sorted(found.keys() & body["exactly"].keys()):
        wanted, shape = body["exactly"][name], found[name] or []
        if len(wanted) != len(shape) or any(w not in ("?", n) for w, n in zip(wanted, shape, strict=True)):
            wrong.append(f"{name}: {plain.text(shape)} ≠ {plain.text(wanted)}")
    return Finding(not wrong, body["exactly"], plain.few(wrong) or "as expected", at={"entity": body["of"]})


# --- Two sides


def _same(scene: Scene, body: Body) -> Finding:
    sides, wrong = [scene.record(body[side]) for side in ("left", "right")], []
    for aspect in body["aspects"]:
        if aspect == "files":
            wrong += _differences("file", *(dict.fromkeys(record.get("files", ())) for record in sides))
        elif aspect == "fields":
            wrong += _differences("field", *map(_fields, sides))
        elif aspect in ("active", "training"):
            wrong += _differences("module", *_states(sides, aspect))
        else:
            left, right = (select(scene.tagged(body[side]), body) for side in ("left", "right"))
            wrong += _same_tensors(left, right, aspect)
    expected = f"same {', '.join(body['aspects'])}"
    return Finding(not wrong, expected, plain.few(wrong) or expected, at={"entity": body["left"]})


def _differences(word: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """How two mappings differ; two empty ones are no evidence of anything."""
    if not left and not right:
        return [f"no {word} on either side"]
    lines = [f"{name}: only left" for name in sorted(left.keys() - right.keys())]
    lines += [f"{name}: only right" for name in sorted(right.keys() - left.keys())]
    unequal = (
        name for name in sorted(left.keys() & right.keys()) if not plain.equal(left[name], right[name])
    )
    return lines + [
        f"{name}: {plain.text(left[name], 60)} ≠ {plain.text(right[name], 60)}" for name in unequal
    ]


def _fields(record: Record) -> dict[str, Any]:
    """The fields of a config, of a model's configs, or of the JSON files of a folder."""
    configs = (record.get("peft_config") or {}).items()
    files = (record.get("files") or {}).items()
    return {
        **record.get("fields", {}),
        **{f"{name}.{key}": value for name, config in configs for key, value in _fields(config).items()},
        **{f"{name}.{key}": value for name, file in files for key, value in (file.get("json") or {}).items()},
    }


def _states(records: Sequence[Record], aspect: str) -> list[dict[str, Any]]:
    """What is active on each adapted layer, or whether each module of both sides trains; by path."""
    sides = []
    for record in records:
        modules = {module["name"]: module for module in record.get("modules", ())}
        path = {name: unwrapped(name, modules).removeprefix(ROOT) or "(root)" for name in modules}
        layers = {path[name]: module["adapter"] for name, module in modules.items() if module["adapter"]}
        active = {
            name: {word: layer[word] for word in ("active", "disabled")} for name, layer in layers.items()
        }
        sides.append({path[n]: m["training"] for n, m in modules.items()} if aspect == "training" else active)
    if aspect == "training":
        common = sides[0].keys() & sides[1].keys()
        return [{name: side[name] for name in common} for side in sides]
    return sides


def _same_tensors(left: list[Tagged], right: list[Tagged], aspect: str) -> list[str]:
    if not left and not right:
        return ["no tensor selected"]
    if aspect == "keys":
        return _differences(
            "key", *(dict.fromkeys(tensor["name"] for tensor, _ in side) for side in (left, right))
        )
    pairs, only_left, only_right = pair(left, right)
    lines = [f"{tensor['name']}: only left" for tensor, _ in only_left]
    lines += [f"{tensor['name']}: only right" for tensor, _ in only_right]
    for (a, _), (b, _) in pairs:
        parts = {"values": ("digest", "shape", "dtype"), "identity": ("object",)}.get(aspect, (aspect,))
        on_meta = a.get("device") == b.get("device") == "meta"  # where there are no values to tell apart
        if not (on_meta and aspect == "values") and a.get(parts[0]) is None and b.get(parts[0]) is None:
            lines.append(f"{a['name']}: {aspect} not recorded")
        elif any(not plain.equal(a.get(part), b.get(part)) for part in parts):
            opaque = aspect in ("values", "identity", "storage")
            what = "other" if opaque else f"{plain.text(a.get(aspect))} ≠ {plain.text(b.get(aspect))}"
            lines.append(f"{a['name']}: {aspect} {what}")
    return lines


def _tolerance(scene: Scene, name: str, tensors: Sequence[Mapping[str, Any]]) -> Limits:
    """The limits of a tolerance class for the coarsest of the tensors' dtypes, wider where one is on cuda."""
    if name not in scene.suite.tolerances:
        raise Unjudgeable(f"{OURS}no tolerance class is called {name!r}")
    entry, dtypes = scene.suite.tolerances[name], {tensor["dtype"] for tensor in tensors}
    dtype = max(dtypes & {*COARSENESS}, key=COARSENESS.index, default=None)
    on_cuda = any(str(tensor.get("device")).startswith("cuda") for tensor in tensors)
    limits = {**entry["per_dtype"], **(entry.get("cuda", {}) if on_cuda else {})}.get(dtype)
    return (limits["rtol"], limits["atol"]) if limits else None


def _compare(left: torch.Tensor, right: torch.Tensor, limits: Limits) -> tuple[str, str]:
    """`close`, `not close`, `not finite` or the shapes, and the size of the difference for the reader."""
    if left.shape != right.shape:
        return f"shape {list(left.shape)} ≠ {list(right.shape)}", ""
    if limits is None:
        bits = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
        same = left.dtype == right.dtype and torch.equal(*bits)
        return "close" if same else "not close", f"bit for bit, {left.dtype} and {right.dtype}"
    x, y = left.double(), right.double()
    if bool(x.isnan().any() or y.isnan().any()):
        return "not finite", "NaN"
    distance = torch.where(x == y, 0.0, (x - y).abs())  # equal infinities are no distance apart
    close = bool((distance.isfinite() & (distance <= limits[1] + limits[0] * y.abs())).all())
    worst = float(distance.max()) if distance.numel() else 0.0
    return (
        "close" if close else "not close",
        f"up to {worst:.2g} apart, rtol {limits[0]:g}, atol {limits[1]:g}",
    )


def _samples(body: Body, value: torch.Tensor, what: str) -> torch.Tensor:
    """The samples of a batch that a check speaks of, by default all of them."""
    wanted = body.get("samples")
    if wanted is None:
        return value
    if value.ndim == 0 or max(wanted) >= len(value):
        raise Unjudgeable(f"{what} of shape {list(value.shape)} has no sample {max(wanted)}")
    return value[wanted]


def _near(scene: Scene, body: Body, factor: float) -> list[tuple[str, str, str]]:
    """For each pair of tensors its name, how it compares within `factor` tolerances, and the detail."""
    pairs, only_left, only_right = pair(scene.tagged(body["left"]), scene.tagged(body["right"]))
    if only_left or only_right or not pairs:
        names = plain.few(tensor["name"] for tensor, _ in (*only_left, *only_right))
        raise Unjudgeable(
            f"{body['left']} and {body['right']} hold other tensors: {', '.join(names) or 'none'}"
        )
    found = []
    for (a, _), (b, _) in pairs:
        limits = _tolerance(scene, body.get("tolerance", "forward"), (a, b))
        x, y = (
            _samples(body, scene.values(t, body[side]), body[side]) for side, t in (("left", a), ("right", b))
        )
        how, detail = _compare(x, y, limits and (limits[0] * factor, limits[1] * factor))
        found.append((a["name"], how, detail))
    return found


def _close(scene: Scene, body: Body) -> Finding:
    wrong = [near for near in _near(scene, body, 1) if near[1] != "close"]
    observed = plain.few(f"{name}: {how}" if name else how for name, how, _ in wrong)
    return Finding(not wrong, "close", observed or "close", wrong[0][2] if wrong else "")


def _differ(scene: Scene, body: Body) -> Finding:
    """Of several tensors one must differ at least, and all must be finite and of the same shapes."""
    found = _near(scene, body, DIFFER_FACTOR)
    how = sorted({how for _, how, _ in found} - {"close"}) or ["close"]
    return Finding(how == ["not close"], "not close", how[0] if len(how) == 1 else how, found[0][2])


# --- The oracle


def _formula(scene: Scene, body: Body) -> Finding:
    """The output of a forward step, or what a merged model holds, is what the cards' formulas give."""
    layer, arguments = _declared_layer(scene, body["module"])
    weight, bias, adapters, used = _layer_state(scene, body["of"], body["module"], body["adapters"])
    output = scene.record(body["output"])
    expected = "as the formula says"
    sides: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]]
    given: Any = scene.observation["tensors"][output["input"]] if "input" in output else None
    try:
        effective = formula.effective(layer, weight, bias, adapters, body.get("with", {}), given)
        if output["kind"] == "model":
            merged, merged_bias, _, seen = _layer_state(scene, body["output"], body["module"], ())
            sides = {"weight": (merged, effective[0]), "bias": (merged_bias, effective[1])}
        else:
            seen = [output]
            computed = formula.apply_layer(layer, arguments, given, *effective)
            y = scene.values(output, body["output"])
            sides = {"output": (_samples(body, y, "the output"), _samples(body, computed, "the formula"))}
    except formula.Misfit as misfit:
        return Finding(False, expected, "tensors that do not fit the formula", str(misfit))
    except formula.FormulaError as error:
        raise Unjudgeable(f"{OURS}{error}") from None
    limits = _tolerance(scene, body.get("tolerance", "forward"), [*seen, *used]) or (0.0, 0.0)
    near = {}
    for what, (found, wanted) in sides.items():
        if found is None or wanted is None:
            near[what] = ("close" if found is wanted else "missing" if found is None else "unexpected", "")
        else:
            near[what] = _compare(found.double(), wanted.double(), limits)
    wrong = [f"{what}: {how}" for what, (how, _) in near.items() if how != "close"]
    return Finding(
        not wrong, expected, wrong or expected, "; ".join(f"{w} {d}" for w, (_, d) in near.items() if d)
    )


def _relation(scene: Scene, body: Body) -> Finding:
    """An equation between the tensors of one adapter and of its layer, in float64."""
    layer, _ = _declared_layer(scene, body["module"])
    weight, _, (adapter,), used = _layer_state(scene, body["of"], body["module"], [body["adapter"]])
    first = None
    if "before" in body:
        first, _, _, seen = _layer_state(scene, body["before"], body["module"], ())
        used = [*used, *seen]
    expected = f"{body['left']} = {body['right']}"
    try:
        left, right = formula.relation([body["left"], body["right"]], layer, weight, first, adapter)
    except formula.Misfit as misfit:
        return Finding(False, expected, "tensors that do not fit the equation", str(misfit))
    except formula.FormulaError as error:
        raise Unjudgeable(f"{OURS}{error}") from None
    limits = _tolerance(scene, body.get("tolerance", "forward"), used) or (0.0, 0.0)
    how, detail = _compare(left, right, limits)
    return Finding(how == "close", expected, expected if how == "close" else how, detail)


def _combination(scene: Scene, body: Body) -> Finding:
    """The combined adapter's delta is what the judge's own arithmetic makes of the others'."""
    layer, _ = _declared_layer(scene, body["module"])
    names = [*dict.fromkeys(body["adapters"]), body["adapter"]]
    weight, _, adapters, used = _layer_state(scene, body["of"], body["module"], names)
    expected = f"{body['kind']} of {', '.join(body['adapters'])}"
    try:
        by_name = {adapter.name: formula.scaled_factors(adapter, layer, weight) for adapter in adapters}
    except formula.Misfit as misfit:
        return Finding(False, expected, "tensors that do not fit the formula", str(misfit))
    parts, (s, A, B) = [by_name[name] for name in body["adapters"]], by_name[body["adapter"]]
    if misfits := [name for name, (_, a, b) in by_name.items() if b.shape[1] != a.shape[0]]:
        return Finding(False, expected, f"factors that have no product: {', '.join(misfits)}")
    weights, kind, density = body["weights"], body["kind"], body.get("density", 1.0)
    sign = body.get("majority_sign_method", "total")
    limits = _tolerance(scene, body.get("tolerance", "forward"), used) or (0.0, 0.0)
    if kind.startswith("dare") and density < 1:
        deltas = [scaling * b @ a for scaling, a, b in parts]
        wrong = script_parts.not_dropped(s * B @ A, deltas, weights, kind, density, sign, *limits)
        return Finding(not wrong, expected, wrong or expected)
    wanted = script_parts.combined(parts, weights, kind, density, sign, body.get("rank", 0))
    how, detail = _compare(s * B @ A, wanted, limits)
    return Finding(how == "close", expected, expected if how == "close" else how, detail)


def _declared_layer(scene: Scene, module: str) -> tuple[str, Mapping[str, Any]]:
    """Class and arguments of the one layer that the case's model declares at this path."""
    chains = [model.get("chain", ()) for model in scene.case.program["models"].values()]
    chains = [chain for chain in chains if module.removeprefix(ROOT) in [link[0] for link in chain]]
    if not chains or any(len(chain) != 1 or chain[0] != chains[0][0] for chain in chains):
        raise Unjudgeable(f"{OURS}a formula check needs a model with {module!r} as its single layer")
    _, layer, *arguments = chains[0][0]
    return layer, dict(*arguments)


def _layer_state(
    scene: Scene, entity: str, module: str, names: Iterable[str]
) -> tuple[torch.Tensor, torch.Tensor | None, list[formula.Adapter], list[Mapping[str, Any]]]:
    """Base weight and bias of a layer, the named adapters on it, and the records of all the tensors used."""
    path = module.removeprefix(ROOT)
    # where methods are mixed, one adapted layer is the base layer of another
    below = re.compile(rf"{re.escape(path)}(\.base_layer)*")
    here = [item for item in scene.tagged(entity) if below.fullmatch(item[1].module.removeprefix(ROOT))]
    base = {tag.tensor: tensor for tensor, tag in here if tag.role == "base"}
    if "weight" not in base:
        raise Unjudgeable(f"{entity} has no base weight at {module!r}")
    used = [base[name] for name in ("weight", "bias") if name in base]
    values = [scene.values(tensor, tensor["name"]) for tensor in used]
    adapters = []
    for name in names:
        config = (scene.record(entity).get("peft_config") or {}).get(name, {})
        card = card_of(config, scene.suite.cards)
        if card is None:
            raise Unjudgeable(f"{entity} has no config with a card for adapter {name!r}")
        shared = (item for item in scene.tagged(entity) if item[1].shared and _is_for(item[1], path))
        places = [*here, *shared]
        own = {tag.tensor: t for t, tag in places if tag.adapter == name and tag.has_role("adapter")}
        used += own.values()
        tensors = {tensor: scene.values(t, t["name"]) for tensor, t in own.items()}
        adapters.append(formula.Adapter(name, card, config.get("fields", {}), tensors))
    return values[0], values[1] if "bias" in base else None, adapters, used


def _is_for(tag: Tag, path: str) -> bool:
    """Whether the layer at `path` uses what is shared: of what is kept by layers' names, that of its own."""
    by_name = tag.tensor.endswith(".<group>")
    return not by_name or tag.bare.rpartition(".")[2] == path.rpartition(".")[2]


# --- Signatures and snapshots


def _parameter(parameter: Mapping[str, Any]) -> str:
    star = {"var-positional": "*", "var-keyword": "**"}.get(parameter.get("kind", ""), "")
    default = f" = {plain.text(parameter['default'])}" if "default" in parameter else ""
    return star + parameter["name"] + default + " (keyword only)" * (parameter.get("kind") == "keyword-only")


def _parameters(scene: Scene, entity: str) -> list[Mapping[str, Any]]:
    record = scene.record(entity)
    if "parameters" not in record:
        raise Unjudgeable(f"{entity} is {describe(record)}, which has no signature")
    return list(record["parameters"])


def _signature(scene: Scene, body: Body) -> Finding:
    found = {parameter["name"]: parameter for parameter in _parameters(scene, body["of"])}
    exact = "parameters" in body
    wanted = body["parameters"] if exact else body["contains"]
    wrong = [p["name"] for p in wanted if p["name"] not in found or not _fits(found[p["name"]], p)]
    # Only the parameters in question are shown, so that a new one does not change what was observed.
    shown = list(found.values()) if exact else [found[p["name"]] for p in wanted if p["name"] in found]
    if body.get("only"):
        wrong += (extra := sorted(found.keys() - {p["name"] for p in wanted}))
        shown += [found[name] for name in extra]
    if [p["name"] for p in shown] != [p["name"] for p in wanted]:
        wrong = wrong or ["number or order of the parameters"]
    detail = f"differs in {', '.join(wrong)}" if wrong else ""
    return Finding(not wrong, [*map(_parameter, wanted)], [*map(_parameter, shown)], detail)


def _fits(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a parameter has the kind, the default or the lack of one that a check states."""
    if wanted.get("kind", found["kind"]) != found["kind"] or (
        wanted.get("required") and not found["required"]
    ):
        return False
    return "default" not in wanted or (
        "default" in found and plain.equal(found["default"], wanted["default"])
    )


def _snapshot(scene: Scene, check: Check) -> Finding:
    """What is observed is the whole text, for it is what a baseline stores."""
    text = "\n".join(VIEWS[check.body["view"]](scene, check.body["of"])) + "\n"
    stored = (scene.snapshots or {}).get(check.id)
    if stored is None:
        return Finding(False, "a stored snapshot", text, "no snapshot is stored for this check")
    diff = difflib.unified_diff(
        stored.splitlines(), text.splitlines(), "stored", "observed", lineterm="", n=0
    )
    return Finding(text == stored, stored, text, "\n".join(diff))


def _view_signature(scene: Scene, entity: str) -> list[str]:
    return [_parameter(parameter) for parameter in _parameters(scene, entity)]


def _view_state_dict(scene: Scene, entity: str) -> list[str]:
    tensors = [tensor for tensor, _ in scene.tagged(entity)]
    return sorted(f"{t['name']} {t.get('shape')} {t['dtype'] or t.get('class')}" for t in tensors)


def _view_module_tree(scene: Scene, entity: str) -> list[str]:
    """Every module with its tensors. Of an adapted layer, which each implementation builds in its own way,
    there is where it stands, what it wraps and which tensors each adapter has: no class names, no helpers.
    """
    tagged, modules = scene.tagged(entity), scene.record(entity).get("modules", ())
    layers = [module["name"] for module in modules if module["adapter"]]
    lines = []
    for name, cls in ((module["name"], module["class"]) for module in modules):
        owner = next((layer for layer in reversed(layers) if name.startswith(f"{layer}.")), None)
        if name in layers:
            own = sorted(
                (tag.tensor, tag.adapter, t["shape"])
                for t, tag in tagged
                if tag.module == name and tag.adapter
            )
            lines += [
                f"{name}: adapted",
                *(f"{name}: {tensor}[{adapter}] {shape}" for tensor, adapter, shape in own),
            ]
        elif owner is None or name[len(owner) + 1 :].partition(".")[0] == "base_layer":
            here = [f"{tag.tensor} {t['shape']}" for t, tag in tagged if t["name"].rpartition(".")[0] == name]
            lines.append(" ".join([f"{name or '(root)'}:", cls, *here]))
    return lines


VIEWS: dict[str, Callable[[Scene, str], list[str]]] = {
    "signature": _view_signature,
    "module_tree": _view_module_tree,
    "state_dict": _view_state_dict,
}


# --- Steps


def _mentions(message: str, words: Iterable[str]) -> bool:
    return all(word.lower() in message.lower() for word in words)


def _warning(scene: Scene, body: Body, wanted: bool) -> Finding:
    """`warns`: a warning of that category mentions all the words; `silent`: none does."""
    category, words = body.get("category", "Warning"), body.get("mentions", ())
    every = scene.step(body["step"])["warnings"]
    fitting = [w for w in every if category in w["mro"] and _mentions(w["message"], words)]
    shown = fitting or (every if wanted else [])
    observed = (
        plain.few(plain.message(f"{w['category']}: {w['message']}", 120) for w in shown) or "no warning"
    )
    expected = f"{'a' if wanted else 'no'} {category}" + (
        f" that mentions {', '.join(words)}" if words else ""
    )
    return Finding(bool(fitting) is wanted, expected, observed, at={"step": body["step"]})


def _error(scene: Scene, body: Body) -> Finding:
    """`raises`: the step failed with an error of that class; `raised`: with one that mentions the words."""
    error = scene.step(body["step"])["error"]
    expected = body.get("error", "an error") + "".join(
        f", mentions {word}" for word in body.get("mentions", ())
    )
    if not error:
        return Finding(False, expected, "nothing raised", at={"step": body["step"]})
    ok = body.get("error", error["type"]) in error["mro"] and _mentions(
        error["message"], body.get("mentions", ())
    )
    return Finding(ok, expected, _error_text(error), at={"step": body["step"]})


def _printed(scene: Scene, body: Body) -> Finding:
    printed, expected = (
        scene.step(body["step"])["printed"].strip(),
        {k: v for k, v in body.items() if k != "step"},
    )
    ok = printed == body.get("exactly", printed).strip() and _mentions(printed, body.get("mentions", ()))
    return Finding(ok, expected, plain.text(printed, 400), at={"step": body["step"]})


def _frame(scene: Scene, body: Body) -> Finding:
    found = violations(body["modifies"], scene.observation["frame"], scene.suite.cards)
    return Finding(
        not found, "nothing else changes", plain.few(found) or "nothing else changes", "\n".join(found[5:])
    )


WORDS: dict[str, Callable[[Scene, Body], Finding]] = {
    "same_object": partial(_identity, same=True),
    "different_objects": partial(_identity, same=False),
    "equal": _equal,
    "instance": _instance,
    "all": _all,
    "none": _none,
    "modules": _modules,
    "keys": _keys,
    "shapes": _shapes,
    "same": _same,
    "close": _close,
    "differ": _differ,
    "formula": _formula,
    "relation": _relation,
    "combination": _combination,
    "signature": _signature,
    "warns": partial(_warning, wanted=True),
    "silent": partial(_warning, wanted=False),
    "raises": _error,
    "raised": _error,
    "printed": _printed,
    "frame": _frame,
}  # and `snapshot`, which knows its check by id
