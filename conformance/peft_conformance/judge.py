"""What an observation says of the checks of its case: a pure function of both.
 One function for each check word, in `WORDS`; each takes the scene and the check's body and returns a
`Finding`. Where there is nothing to judge (a step failed, an entity was never made, a card does not fit) it
raises `Unjudgeable`, which becomes an `error`: a check that looked at nothing proved nothing.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from peft_conformance import formula, plain
from peft_conformance.cases import Case, Check, Plain, Verdict
from peft_conformance.frame import violations
from peft_conformance.language import Suite
from peft_conformance.roles import ROOT, Record, Tagged, card_of, pair, select, tags, tensors_of, unwrapped

Body = Any
COARSENESS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn")  # by the bits of their mantissa
DIFFER_FACTOR = 10  # what counts as different lies this many tolerances apart
OURS = "our own mistake: "


class Unjudgeable(Exception):
    """There is nothing to judge a check on."""


@dataclass(frozen=True)
class Finding:
    """What a check found: whether it holds, and both sides in few plain words, the same in every run."""

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
    snapshots: Mapping[str, str] | None
    _tags: dict[int, list[Tagged]] = field(default_factory=dict)

    def record(self, entity: str) -> Record:
        """The record of a capture, or of an entity at the end."""
        for place in ("captures", "entities"):
            if entity in self.observation[place]:
                found: Record = self.observation[place][entity]
                return found
        raise Unjudgeable(
            f"{OURS}no step made {entity!r}" + (" because one raised" if self._raised() else "")
        )

    def _raised(self) -> bool:
        return any(step["error"] for step in self.observation["steps"])

    def tagged(self, record: Record) -> list[Tagged]:
        """The tensors of a record with what they are for."""
        if id(record) not in self._tags:
            self._tags[id(record)] = tags(record, self.suite.cards)
        return self._tags[id(record)]

    def step(self, name: str | int) -> Mapping[str, Any]:
        """The step of that label or, in `when`, of that index."""
        for step in self.observation["steps"]:
            if step["label"] == name or (step["phase"] == "when" and step["index"] == name):
                found: Mapping[str, Any] = step
                return found
        raise Unjudgeable(f"{OURS}the case came to no step {name!r}")

    def values(self, tensor: Mapping[str, Any], what: str) -> torch.Tensor:
        """The values of a recorded tensor."""
        key = tensor.get("values")
        if key is None:
            why = (
                "it is on the meta device"
                if tensor.get("device") == "meta"
                else f"{OURS}capture it with `values: true`"
            )
            raise Unjudgeable(f"the values of {what} were not recorded: {why}")
        value: torch.Tensor = self.observation["tensors"][key]
        return value


def judge(
    case: Case, observation: Mapping[str, Any], suite: Suite, snapshots: Mapping[str, str] | None = None
) -> list[Verdict]:
    """One verdict for each check of `case`, in their order.
    `snapshots` holds the stored text by check id; None where they are not compared, which makes such checks
       `info`. A check that holds is `pass`; one that does not is `fail` for MUST and `warn` for SHOULD; MAY and
       UNSPECIFIED are only recorded (`info`). A crash, or a step that failed without being expected to, makes
       all checks `error`, but for those on what earlier steps had to raise.
    """
    scene = Scene(case, observation, suite, snapshots)
    stop = _stop(case, observation)
    return [_verdict(scene, check, stop) for check in case.checks]


@dataclass(frozen=True)
class _Stop:
    """What ended a case before its time; `place` is the step's position, None when nothing is left at all."""

    observed: str
    detail: str
    place: int | None


def _stop(case: Case, observation: Mapping[str, Any]) -> _Stop | None:
    crash = observation["crash"]
    if crash:
        return _Stop(
            plain.message(f"{crash['kind']}: {crash['message']}"),
            "the implementation gave no observation",
            None,
        )
    expected = {check.body["step"] for check in case.checks if check.word == "raises"}
    for place, step in enumerate(observation["steps"]):
        error = step["error"]
        if not error:
            continue
        observed = plain.message(f"{error['type']}: {error['message']}")
        name = f"step {step['label'] or step['index']} of {step['phase']}"
        if error["origin"] == "driver":
            return _Stop(observed, f"{OURS}the driver failed in {name}", place)
        # A name that the implementation does not have is no error that it raised: it satisfies no `raises`.
        missing = "BaseException" not in error["mro"]
        named = step["phase"] == "when" and expected & {step["label"], step["index"]}
        if missing or not named:
            return _Stop(observed, f"{name} failed, which no `raises` expects", place)
    return None


def _verdict(scene: Scene, check: Check, stop: _Stop | None) -> Verdict:
    def say(verdict: str, finding: Finding) -> Verdict:
        return Verdict(
            scene.case.id,
            check.id,
            verdict,
            finding.expected,
            finding.observed,
            finding.detail,
            dict(finding.at),
        )

    if stop and not (check.word == "raises" and _came_before(scene, check, stop)):
        return say("error", Finding(False, None, stop.observed, stop.detail))
    if check.word not in WORDS:
        return say("error", Finding(False, None, None, f"{OURS}no check is called {check.word!r}"))
    try:
        finding = WORDS[check.word](
            scene, check.body if check.word != "snapshot" else {**check.body, "id": check.id}
        )
    except Unjudgeable as reason:
        return say("error", Finding(False, None, plain.message(str(reason)), "nothing to judge"))
    if check.level in ("MAY", "UNSPECIFIED") or (check.word == "snapshot" and scene.snapshots is None):
        return say("info", finding)
    red = "fail" if check.level.startswith("MUST") else "warn"
    return say("pass" if finding.ok else red, finding)


def _came_before(scene: Scene, check: Check, stop: _Stop) -> bool:
    steps = scene.observation["steps"][: stop.place] if stop.place is not None else ()
    return any(s["phase"] == "when" and check.body["step"] in (s["label"], s["index"]) for s in steps)


# --- Objects and values


def _describe(record: Record) -> str:
    """A record in a word or two, the same in every run."""
    return str(record.get("class") or record.get("name") or record["kind"])


def _token(scene: Scene, entity: str) -> str:
    record = scene.record(entity)
    if "object" not in record:
        raise Unjudgeable(f"{OURS}{entity} is a {record['kind']}, which has no identity")
    return str(record["object"])


def _same_object(scene: Scene, body: Body) -> Finding:
    tokens = {_token(scene, entity) for entity in body}
    found = "one object" if len(tokens) == 1 else _objects(scene, body)
    return Finding(len(tokens) == 1, "one object", found)


def _different_objects(scene: Scene, body: Body) -> Finding:
    tokens = {_token(scene, entity) for entity in body}
    found = "different objects" if len(tokens) == len(body) else _objects(scene, body)
    return Finding(len(tokens) == len(body), "different objects", found)


def _objects(scene: Scene, entities: Sequence[str]) -> str:
    groups: dict[str, list[str]] = {}
    for entity in entities:
        groups.setdefault(_token(scene, entity), []).append(f"{entity} ({_describe(scene.record(entity))})")
    return "; ".join(" is ".join(group) for group in groups.values())


def _equal(scene: Scene, body: Body) -> Finding:
    expected = body["to"] if "to" in body else scene.case.axes[body["to_axis"]]
    record = scene.record(body["of"])
    if record["kind"] != "value":
        return Finding(False, expected, f"a {record['kind']} of class {_describe(record)}")
    return Finding(plain.equal(record["value"], expected), expected, record["value"])


def _instance(scene: Scene, body: Body) -> Finding:
    record = scene.record(body["of"])
    if "mro" not in record:
        raise Unjudgeable(f"{OURS}the class of a {record['kind']} is not recorded")
    wanted = body["of_class"].rpartition(".")[2]
    fits = record["class"] == wanted if body.get("exactly") else wanted in record["mro"]
    words = f"{'not ' if body.get('not') else ''}{'exactly ' if body.get('exactly') else ''}{wanted}"
    return Finding(fits is not body.get("not", False), words, record["class"])


# --- Tensors, modules, keys


def _have(tensor: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What a tensor has other than wanted, as short phrases."""
    other = []
    for aspect, value in wanted.items():
        found = tensor.get({"values": "finite"}.get(aspect, aspect))
        if aspect == "values":
            field_, truth = {"zero": ("zero", True), "nonzero": ("zero", False), "finite": ("finite", True),
                             "not-finite": ("finite", False)}[value]  # fmt: skip
            ok, found = tensor.get(field_) is truth, {True: f"not {value}"}.get(field_ in tensor, "no values")
        elif aspect == "grad":
            ok = found not in ("none", None) if value == "not-none" else found == value
        elif aspect == "device":
            ok = str(found).partition(":")[0] == value
        else:
            ok = plain.equal(found, value)
        if not ok:
            other.append(f"{aspect} {plain.text(found)}")
    return other


def _all(scene: Scene, body: Body) -> Finding:
    chosen = select(scene.tagged(_with_tensors(scene, body["of"])), body)
    if not chosen:
        reason = body.get("may_be_empty", "")
        return Finding(bool(reason), body["have"], "no tensor selected", reason)
    found = [(t["name"], ", ".join(other)) for t, _ in chosen if (other := _have(t, body["have"]))]
    observed = plain.few(f"{name}: {other}" for name, other in found) or body["have"]
    at = {"entity": body["of"], "tensor": found[0][0]} if found else {}
    return Finding(not found, body["have"], observed, f"{len(found)} of {len(chosen)} tensors differ", at)


def _none(scene: Scene, body: Body) -> Finding:
    chosen = select(scene.tagged(_with_tensors(scene, body["of"])), body)
    names = [t["name"] for t, _ in chosen if not _have(t, body.get("have", {}))]
    at = {"entity": body["of"], "tensor": names[0]} if names else {}
    return Finding(not names, "no such tensor", plain.few(names) or "no such tensor", at=at)


def _with_tensors(scene: Scene, entity: str) -> Record:
    record = scene.record(entity)
    if record["kind"] not in ("model", "state_dict", "tensor", "folder"):
        raise Unjudgeable(f"{OURS}{entity} is a {record['kind']} ({_describe(record)}), which has no tensors")
    return record


def _modules(scene: Scene, body: Body) -> Finding:
    record = scene.record(body["of"])
    if record["kind"] != "model":
        raise Unjudgeable(f"{OURS}{body['of']} is a {record['kind']}, which has no modules")
    chosen = [
        module
        for module in record["modules"]
        if ("name" not in body or re.fullmatch(body["name"], module["name"]))
        and ("adapted" not in body or (module["adapter"] is not None) is body["adapted"])
    ]
    if not chosen:
        return Finding(False, body["have"], "no module selected")
    found = [
        (m["name"] or "(root)", ", ".join(other)) for m in chosen if (other := _module_has(m, body["have"]))
    ]
    observed = plain.few(f"{name}: {other}" for name, other in found) or body["have"]
    at = {"entity": body["of"], "module": found[0][0]} if found else {}
    return Finding(not found, body["have"], observed, f"{len(found)} of {len(chosen)} modules differ", at)


def _module_has(module: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    adapter = module["adapter"]
    facts = {"class": module["class"], "training": module["training"], "adapted": adapter is not None}
    if adapter is not None:
        facts |= {**adapter, "rank": adapter["r"], "adapters": sorted(adapter["adapters"])}
    other = []
    for aspect, value in wanted.items():
        if aspect not in facts:
            other.append("not adapted")
            continue
        found = facts[aspect]
        if aspect in ("scaling", "rank"):
            known = found if isinstance(found, dict) else {}
            ok = all(
                name in known and math.isclose(known[name], number, rel_tol=1e-9)
                for name, number in value.items()
            )
        else:
            ok = plain.equal(found, sorted(value) if aspect == "adapters" else value)
        if not ok:
            other.append(f"{aspect} {plain.text(found)}")
    return list(dict.fromkeys(other))


def _keys_of(scene: Scene, entity: str) -> list[str]:
    record = scene.record(entity)
    match record["kind"]:
        case "model" | "state_dict":
            return [tensor["name"] for tensor in record["tensors"]]
        case "folder":
            return sorted(record["files"])
        case "config":
            return list(record["fields"])
        case "value" if isinstance(record["value"], dict):
            return list(record["value"])
        case "value" if isinstance(record["value"], list) and all(
            isinstance(v, str) for v in record["value"]
        ):
            return list(record["value"])
    raise Unjudgeable(f"{entity} is a {record['kind']} of class {_describe(record)}, which has no keys")


def _keys(scene: Scene, body: Body) -> Finding:
    keys = _keys_of(scene, body["of"])
    wrong: list[str] = []
    if "exactly" in body or "same_as" in body:
        wanted = body["exactly"] if "exactly" in body else _keys_of(scene, body["same_as"])
        wrong += [f"missing: {key}" for key in sorted(set(wanted) - set(keys))]
        wrong += [f"extra: {key}" for key in sorted(set(keys) - set(wanted))]
    wrong += [f"missing: {key}" for key in body.get("contain", ()) if key not in keys]
    wrong += [f"extra: {key}" for key in body.get("lack", ()) if key in keys]
    if "match" in body:
        wrong += [f"no match: {key}" for key in keys if not re.fullmatch(body["match"], key)]
        wrong += ["no key at all"] * (not keys)
    if "no_match" in body:
        wrong += [f"match: {key}" for key in keys if re.fullmatch(body["no_match"], key)]
    if "fewer_than" in body and len(keys) >= len(many := _keys_of(scene, body["fewer_than"])):
        wrong.append(f"{len(keys)} keys, {body['fewer_than']} has {len(many)}")
    expected = {name: value for name, value in body.items() if name != "of"}
    return Finding(not wrong, expected, plain.few(wrong) or "as expected", at={"entity": body["of"]})


# --- Two sides


def _same(scene: Scene, body: Body) -> Finding:
    left, right = scene.record(body["left"]), scene.record(body["right"])
    wrong: list[str] = []
    for aspect in body["aspects"]:
        match aspect:
            case "files":
                wrong += _differences("file", *(dict.fromkeys(r.get("files", ())) for r in (left, right)))
            case "fields":
                wrong += _differences("field", _fields(left), _fields(right))
            case "active" | "training":
                wrong += _differences("module", *(_states(r, aspect) for r in (left, right)))
            case _:
                wrong += _same_tensors(scene, body, left, right, aspect)
    at = {"entity": body["left"]}
    return Finding(not wrong, f"same {', '.join(body['aspects'])}", plain.few(wrong) or "the same", at=at)


def _differences(word: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """How two mappings differ; two empty ones are no evidence of anything."""
    if not left and not right:
        return [f"no {word} on either side"]
    lines = []
    for name in sorted(left.keys() | right.keys()):
        if name not in left or name not in right:
            lines.append(f"{name}: only {'right' if name in right else 'left'}")
        elif not plain.equal(left[name], right[name]):
            lines.append(f"{name}: {plain.text(left[name], 60)} ≠ {plain.text(right[name], 60)}")
    return lines


def _fields(record: Record) -> dict[str, Any]:
    match record["kind"]:
        case "config":
            return dict(record["fields"])
        case "model":
            configs = (record.get("peft_config") or {}).items()
            return {
                f"{name}.{key}": value for name, config in configs for key, value in _fields(config).items()
            }
        case "folder":
            return {name: file["json"] for name, file in record["files"].items() if "json" in file}
        case "value" if isinstance(record["value"], dict):
            return dict(record["value"])
    return {}


def _states(record: Record, aspect: str) -> dict[str, Any]:
    modules = record.get("modules", ())
    if aspect == "training":
        by_name = {m["name"]: m for m in modules}
        return {unwrapped(m["name"], by_name).removeprefix(ROOT) or "(root)": m["training"] for m in modules}
    states = {m["name"].removeprefix(ROOT): m["adapter"] for m in modules if m["adapter"]}
    return {
        name: {"active": adapter["active"], "disabled": adapter["disabled"]}
        for name, adapter in states.items()
    }


def _same_tensors(scene: Scene, body: Body, left: Record, right: Record, aspect: str) -> list[str]:
    sides = [select(scene.tagged(record), body) for record in (left, right)]
    if not sides[0] and not sides[1]:
        return ["no tensor selected"]
    if aspect == "keys":
        return _differences("key", *(dict.fromkeys(t["name"] for t, _ in side) for side in sides))
    pairs, only_left, only_right = pair(*sides)
    lines = [f"{t['name']}: only left" for t, _ in only_left] + [
        f"{t['name']}: only right" for t, _ in only_right
    ]
    name = {"values": "digest", "identity": "object"}.get(aspect, aspect)
    for (a, _), (b, _) in pairs:
        x, y = a.get(name), b.get(name)
        if (
            x is None
            and y is None
            and not (aspect == "values" and a.get("device") == b.get("device") == "meta")
        ):
            lines.append(f"{a['name']}: {aspect} not recorded")
        elif aspect == "values":
            fits = x == y and all(a.get(k) == b.get(k) for k in ("shape", "dtype"))
            lines += [] if fits else [f"{a['name']}: other values"]
        elif not plain.equal(x, y):
            how = "" if aspect in ("identity", "storage") else f" {plain.text(x)} ≠ {plain.text(y)}"
            lines.append(f"{a['name']}: {'other ' if not how else ''}{aspect}{how}")
    return list(dict.fromkeys(lines))


def _tolerance(scene: Scene, name: str, tensors: Iterable[Mapping[str, Any]]) -> tuple[float, float] | None:
    """(rtol, atol) of a tolerance class for the coarsest of the tensors' dtypes; None means bit for bit."""
    if name not in scene.suite.tolerances:
        raise Unjudgeable(f"{OURS}no tolerance class is called {name!r}")
    entry, tensors = scene.suite.tolerances[name], list(tensors)
    dtypes = {t["dtype"] for t in tensors}
    dtype = max(dtypes & set(COARSENESS), key=COARSENESS.index, default=None)
    on_cuda = any(str(t.get("device")).startswith("cuda") for t in tensors)
    table = {**entry["per_dtype"], **(entry.get("cuda", {}) if on_cuda else {})}
    limits = table.get(dtype)
    return (limits["rtol"], limits["atol"]) if limits else None


def _compare(left: torch.Tensor, right: torch.Tensor, limits: tuple[float, float] | None) -> tuple[str, str]:
    """How `left` stands to `right`: `close`, `not close`, `not finite` or other shapes; and a detail."""
    if left.shape != right.shape:
        return f"shape {list(left.shape)} ≠ {list(right.shape)}", ""
    if limits is None:
        bits = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (left, right)]
        same = left.dtype == right.dtype and torch.equal(*bits)
        return ("close" if same else "not close"), (
            "" if left.dtype == right.dtype else f"{left.dtype}, {right.dtype}"
        )
    x, y = left.double(), right.double()
    if bool(x.isnan().any() or y.isnan().any()):
        return "not finite", "NaN"
    distance = torch.where(
        x == y, torch.zeros_like(x), (x - y).abs()
    )  # equal infinities are no distance apart
    bound = limits[1] + limits[0] * y.abs()
    close = bool(((distance <= bound) & (distance.isfinite())).all())
    worst = float(distance.max()) if distance.numel() else 0.0
    return (
        "close" if close else "not close"
    ), f"largest difference {worst:.3g}, rtol {limits[0]:g}, atol {limits[1]:g}"


def _value_pairs(scene: Scene, body: Body) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    left, right = (_with_tensors(scene, body[side]) for side in ("left", "right"))
    pairs, only_left, only_right = pair(scene.tagged(left), scene.tagged(right))
    if only_left or only_right or not pairs:
        names = [t["name"] for t, _ in (*only_left, *only_right)]
        raise Unjudgeable(
            f"{body['left']} and {body['right']} do not hold the same tensors: {plain.few(names)}"
        )
    return [(a, b) for (a, _), (b, _) in pairs]


def _near(scene: Scene, body: Body, factor: float) -> list[tuple[str, str, str]]:
    """For each pair of tensors: its name, how it compares within `factor` tolerances, and the detail."""
    found = []
    for a, b in _value_pairs(scene, body):
        limits = _tolerance(scene, body.get("tolerance", "forward"), (a, b))
        x, y = (scene.values(t, body[side]) for t, side in ((a, "left"), (b, "right")))
        how, detail = _compare(x, y, limits and (limits[0] * factor, limits[1] * factor))
        found.append((a["name"], how, detail))
    return found


def _close(scene: Scene, body: Body) -> Finding:
    wrong = [(name, how, detail) for name, how, detail in _near(scene, body, 1) if how != "close"]
    observed = [f"{name}: {how}" if name else how for name, how, _ in wrong]
    return Finding(not wrong, "close", plain.few(observed) or "close", wrong[0][2] if wrong else "")


def _differ(scene: Scene, body: Body) -> Finding:
    """Of several tensors one must differ at least, and all must be finite and of the same shapes."""
    found = _near(scene, body, DIFFER_FACTOR)
    strange = [how for _, how, _ in found if how not in ("close", "not close")]
    ok = not strange and any(how == "not close" for _, how, _ in found)
    return Finding(
        ok, "clearly different", strange[0] if strange else "different" if ok else "close", found[0][2]
    )


def _formula(scene: Scene, body: Body) -> Finding:
    if "output" not in body:
        raise Unjudgeable(
            f"{OURS}a formula check needs `output`: what a forward step made, or a capture of a merged model"
        )
    state, output = scene.record(body["of"]), scene.record(body["output"])
    kind, arguments = _declared_layer(scene, body["module"])
    weight, bias, adapters, used = _layer_state(scene, state, body)
    try:
        effective = formula.effective(kind, weight, bias, adapters, body.get("with", {}))
        if output["kind"] == "model":
            *merged, _, seen = _layer_state(scene, output, {**body, "adapters": []})
            pairs = list(zip(("weight", "bias"), merged, effective, strict=True))
        else:
            x = scene.observation["tensors"][output["input"]]
            computed = formula.apply_layer(kind, arguments, x, *effective)
            pairs, seen = [("output", scene.values(output, body["output"]), computed)], [output]
    except formula.Misfit as misfit:
        return Finding(False, "as the formula says", "tensors that do not fit the formula", str(misfit))
    except formula.FormulaError as error:
        raise Unjudgeable(f"{OURS}{error}") from None
    limits = _tolerance(scene, body.get("tolerance", "forward"), (*seen, *used))
    wrong, details = [], []
    for what, found, computed in pairs:
        if found is None or computed is None:
            wrong += [] if found is computed else [f"{what}: {'none' if found is None else 'unexpected'}"]
            continue
        how, detail = _compare(found.double(), computed.double(), limits or (0.0, 0.0))
        details.append(f"{what}: {detail}")
        wrong += [] if how == "close" else [f"{what}: {how}"]
    return Finding(not wrong, "as the formula says", wrong or "as the formula says", "; ".join(details))


def _declared_layer(scene: Scene, module: str) -> tuple[str, Mapping[str, Any]]:
    """Class and arguments of the one layer that the case's model declares at this path."""
    path = module.removeprefix(ROOT)
    found = []
    for name, model in scene.case.program["models"].items():
        chain = model.get("chain", ())
        if path in [link[0] for link in chain]:
            if len(chain) > 1:
                raise Unjudgeable(
                    f"{OURS}a formula check needs a single-layer model; {name} has {len(chain)}"
                )
            found.append((chain[0][1], dict(chain[0][2]) if len(chain[0]) > 2 else {}))
    if not found or any(other != found[0] for other in found):
        raise Unjudgeable(f"{OURS}{len(found)} models of the case declare a layer {path!r}; one is needed")
    return found[0]


def _layer_state(
    scene: Scene, state: Record, body: Body
) -> tuple[torch.Tensor, torch.Tensor | None, list[formula.Adapter], list[Mapping[str, Any]]]:
    """Base weight and bias of a layer, the named adapters on it, and the records of all tensors used."""
    path = body["module"].removeprefix(ROOT)
    here = [(t, tag) for t, tag in scene.tagged(state) if tag.module.removeprefix(ROOT) == path]
    base = {tag.tensor: t for t, tag in here if tag.role == "base"}
    if "weight" not in base:
        raise Unjudgeable(f"{body['of']} has no base weight at {body['module']!r}")
    used = [base[name] for name in ("weight", "bias") if name in base]
    adapters = []
    for name in body["adapters"]:
        config = (state.get("peft_config") or {}).get(name)
        card = card_of(config, scene.suite.cards) if config else None
        if config is None or card is None:
            raise Unjudgeable(f"{body['of']} has no config with a card for adapter {name!r}")
        own = {tag.tensor: t for t, tag in here if tag.adapter == name and tag.has_role("adapter")}
        used += own.values()
        tensors = {tensor: scene.values(t, t["name"]) for tensor, t in own.items()}
        adapters.append(formula.Adapter(name, card, config["fields"], tensors))
    weight, bias = (scene.values(base[n], base[n]["name"]) if n in base else None for n in ("weight", "bias"))
    assert weight is not None
    return weight, bias, adapters, used


# --- Signatures and snapshots


def _parameter(parameter: Mapping[str, Any]) -> str:
    star = {"var-positional": "*", "var-keyword": "**"}.get(parameter.get("kind", ""), "")
    default = f" = {plain.text(parameter['default'])}" if "default" in parameter else ""
    only = " (keyword only)" if parameter.get("kind") == "keyword-only" else ""
    return f"{star}{parameter['name']}{default}{only}"


def _signature(scene: Scene, body: Body) -> Finding:
    found = _parameters(scene, body["of"])
    exact = "parameters" in body
    wanted = body["parameters"] if exact else body["contains"]
    by_name = {p["name"]: p for p in found}
    wrong = [p["name"] for p in wanted if not _fits_parameter(by_name.get(p["name"]), p)]
    if exact and [p["name"] for p in found] != [p["name"] for p in wanted]:
        wrong = wrong or ["order or number of parameters"]
    # Only the parameters in question are shown, so that a new one does not change what was observed.
    shown = found if exact else [by_name[p["name"]] for p in wanted if p["name"] in by_name]
    detail = f"differs in: {', '.join(wrong)}" if wrong else ""
    return Finding(not wrong, [_parameter(p) for p in wanted], [_parameter(p) for p in shown], detail)


def _fits_parameter(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    if found is None or wanted.get("kind", found["kind"]) != found["kind"]:
        return False
    if wanted.get("required") and not found["required"]:
        return False
    return "default" not in wanted or (
        "default" in found and plain.equal(found["default"], wanted["default"])
    )


def _parameters(scene: Scene, entity: str) -> list[Mapping[str, Any]]:
    record = scene.record(entity)
    if "parameters" not in record:
        raise Unjudgeable(f"{entity} is a {record['kind']} ({_describe(record)}), which has no signature")
    return list(record["parameters"])


def _snapshot(scene: Scene, body: Body) -> Finding:
    text = "\n".join(VIEWS[body["view"]](scene, body["of"])) + "\n"
    stored = (scene.snapshots or {}).get(body["id"])
    if stored is None:
        return Finding(False, "a stored snapshot", text, "no snapshot is stored for this check")
    diff = difflib.unified_diff(stored.splitlines(), text.splitlines(), "stored", "observed", "", "", 0, "")
    return Finding(text == stored, stored, text, "\n".join(diff))


def _view_signature(scene: Scene, entity: str) -> list[str]:
    return [_parameter(parameter) for parameter in _parameters(scene, entity)]


def _view_state_dict(scene: Scene, entity: str) -> list[str]:
    tensors = tensors_of(_with_tensors(scene, entity))
    return sorted(f"{t['name']} {t.get('shape')} {t['dtype'] or t.get('class')}" for t in tensors)


def _view_module_tree(scene: Scene, entity: str) -> list[str]:
    """Every module with its tensors. Of an adapted layer, which each implementation builds in its own way,
    there is where it stands, what it wraps and which tensors each adapter has: no class names, no helpers.
    """
    record = scene.record(entity)
    if record["kind"] != "model":
        raise Unjudgeable(f"{OURS}{entity} is a {record['kind']}, which has no module tree")
    layers = [m["name"] for m in record["modules"] if m["adapter"] is not None]
    tagged = scene.tagged(record)
    lines = []
    for module in record["modules"]:
        name = module["name"]
        owner = next((layer for layer in reversed(layers) if name.startswith(f"{layer}.")), None)
        if owner is not None and name[len(owner) + 1 :].split(".")[0] != "base_layer":
            continue
        here = [(t, tag) for t, tag in tagged if t["name"].rpartition(".")[0] == name]
        if name in layers:
            lines.append(f"{name}: adapted")
            slots = [(t, tag) for t, tag in tagged if tag.module == name and tag.has_role("adapter")]
            lines += sorted(f"{name}: {tag.tensor}[{tag.adapter}] {t['shape']}" for t, tag in slots)
        else:
            own = [f"{tag.tensor} {t['shape']}" for t, tag in here]
            lines.append(" ".join([f"{name or '(root)'}:", module["class"], *own]))
    return lines


VIEWS: dict[str, Callable[[Scene, str], list[str]]] = {
    "signature": _view_signature,
    "module_tree": _view_module_tree,
    "state_dict": _view_state_dict,
}


# --- Steps


def _mentions(message: str, words: Iterable[str]) -> bool:
    return all(word.lower() in message.lower() for word in words)


def _warnings(scene: Scene, body: Body) -> tuple[list[str], list[str]]:
    """The warnings of a step that fit, and all of them."""
    category, mentions = body.get("category", "Warning"), body.get("mentions", ())
    found = scene.step(body["step"])["warnings"]
    line = {id(w): plain.message(f"{w['category']}: {w['message']}", 120) for w in found}
    fitting = [line[id(w)] for w in found if category in w["mro"] and _mentions(w["message"], mentions)]
    return fitting, list(line.values())


def _wanted(body: Body) -> str:
    mentions = ", ".join(body.get("mentions", ()))
    return body.get("category", "Warning") + (f" that mentions {mentions}" if mentions else "")


def _warns(scene: Scene, body: Body) -> Finding:
    fitting, every = _warnings(scene, body)
    return Finding(
        bool(fitting), _wanted(body), plain.few(fitting or every) or "no warning", at={"step": body["step"]}
    )


def _silent(scene: Scene, body: Body) -> Finding:
    fitting, _ = _warnings(scene, body)
    return Finding(
        not fitting, f"no {_wanted(body)}", plain.few(fitting) or "no such warning", at={"step": body["step"]}
    )


def _raises(scene: Scene, body: Body) -> Finding:
    error = scene.step(body["step"])["error"]
    observed = plain.message(f"{error['type']}: {error['message']}") if error else "nothing raised"
    return Finding(
        bool(error) and body["error"] in error["mro"], body["error"], observed, at={"step": body["step"]}
    )


def _raised(scene: Scene, body: Body) -> Finding:
    error = scene.step(body["step"])["error"]
    expected = f"an error that mentions {', '.join(body['mentions'])}"
    observed = plain.message(f"{error['type']}: {error['message']}") if error else "nothing raised"
    ok = bool(error) and _mentions(error["message"], body["mentions"])
    return Finding(ok, expected, observed, at={"step": body["step"]})


def _printed(scene: Scene, body: Body) -> Finding:
    printed = scene.step(body["step"])["printed"].strip()
    ok = _mentions(printed, body.get("mentions", ())) and (
        "exactly" not in body or printed == body["exactly"].strip()
    )
    expected = {name: body[name] for name in ("exactly", "mentions") if name in body}
    return Finding(ok, expected, plain.text(printed, 400), at={"step": body["step"]})


def _frame(scene: Scene, body: Body) -> Finding:
    found = violations(body["modifies"], scene.observation["frame"], scene.suite.cards)
    return Finding(
        not found, "nothing else changes", plain.few(found) or "nothing else changed", f"{len(found)} changes"
    )


WORDS: dict[str, Callable[[Scene, Body], Finding]] = {
    "same_object": _same_object,
    "different_objects": _different_objects,
    "equal": _equal,
    "instance": _instance,
    "all": _all,
    "none": _none,
    "modules": _modules,
    "keys": _keys,
    "same": _same,
    "close": _close,
    "differ": _differ,
    "formula": _formula,
    "signature": _signature,
    "snapshot": _snapshot,
    "warns": _warns,
    "silent": _silent,
    "raises": _raises,
    "raised": _raised,
    "printed": _printed,
    "frame": _frame,
}
