"""The last lines of a reproduction script: for each check word, the assertion that fails as the check failed.

Each function writes into a `Script` for a check's body. A frame names the first change that nothing allows.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from peft_conformance import formula

if TYPE_CHECKING:
    from peft_conformance.script import Script

IS_ADAPTED = "hasattr(module, 'base_layer') and hasattr(module, 'active_adapters')"
OF_TENSOR = {  # aspect -> what of a tensor `p` is compared
    "values": "p.detach().clone()",
    "identity": "p",
    "storage": "p.untyped_storage()",
    "shape": "p.shape",
    "dtype": "p.dtype",
    "device": "p.device",
    "requires_grad": "p.requires_grad",
    "grad": "'none' if p.grad is None else bool(p.grad.any())",
}
OF_MODULE = {  # aspect -> what of a module is compared
    "class": "type(module)",
    "training": "module.training",
    "hooks": "[len(v) for k, v in vars(module).items() if k.endswith('_hooks')]",
    "active": "list(getattr(module, 'active_adapters', []))",
    "merged": "list(getattr(module, 'merged_adapters', []))",
    "disabled": "getattr(module, 'disable_adapters', None)",
    "scaling": "dict(getattr(module, 'scaling', {}))",
    "r": "dict(getattr(module, 'r', {}))",
}
OF_PROCESS = {
    "rng": "torch.get_rng_state().tolist(), random.getstate()",
    "warnings-filters": "list(warnings.filters)",
    "default-dtype": "torch.get_default_dtype()",
    "grad-mode": "torch.is_grad_enabled()",
    "cwd": "os.getcwd()",
}
SAME = {  # aspect -> how two remembered values are found to be the same
    "values": "torch.equal({0}, {1}) and {0}.dtype == {1}.dtype",
    "identity": "{0} is {1}",
    "storage": "{0}.data_ptr() == {1}.data_ptr()",
}
Body = Any


# --- checks


def _same_object(script: Script, body: Body) -> None:
    script.add(f"assert {' is '.join(map(script.var, body))}")


def _different_objects(script: Script, body: Body) -> None:
    names = [script.var(entity) for entity in body]
    script.add(f"assert len({{id(x) for x in ({', '.join(names)})}}) == {len(names)}")


def _all(script: Script, body: Body) -> None:
    if body["of"] in script.remembered:
        return
    script.add(f"chosen = {script.chosen(body, body['of'], 'p')}")
    if not body.get("may_be_empty"):
        script.add("assert chosen, 'there is no such tensor'")
    script.add(f"for name, p in chosen.items():\n    assert {_tensor_has(body['have'])}, name")


def _none(script: Script, body: Body) -> None:
    if body["of"] in script.remembered:
        return
    script.add(f"chosen = {script.chosen(body, body['of'], 'p')}")
    has = _tensor_has(body["have"]) if "have" in body else "True"
    script.add(f"for name, p in chosen.items():\n    assert not ({has}), name")


def _modules(script: Script, body: Body) -> None:
    if body["of"] in script.remembered:
        return
    source = script.var(script.captured.get(body["of"], body["of"]))
    conditions = [f"re.fullmatch({body['name']!r}, n)"] if "name" in body else []
    if "adapted" in body:
        conditions.append(IS_ADAPTED if body["adapted"] else f"not ({IS_ADAPTED})")
    where = f" if {' and '.join(conditions)}" if conditions else ""
    script.add(f"chosen = {{n: module for n, module in {source}.named_modules(){where}}}")
    script.add("assert chosen, 'there is no such module'\nfor name, module in chosen.items():")
    script.add(f"    assert {_module_has(body['have'])}, name")


def _keys(script: Script, body: Body) -> None:
    if body["of"] in script.remembered:
        return
    script.add(f"keys = {script.keys_of(body['of'])}")
    for word, text in (
        ("exactly", "set(keys) == set({0!r})"),
        ("contain", "set({0!r}) <= set(keys)"),
        ("lack", "not set({0!r}) & set(keys)"),
        ("match", "keys and all(re.fullmatch({0!r}, key) for key in keys)"),
        ("no_match", "not any(re.fullmatch({0!r}, key) for key in keys)"),
    ):
        if word in body:
            script.add(f"assert {text.format(body[word])}, keys")
    for word, text in (("same_as", "set(keys) == set({0})"), ("fewer_than", "len(keys) < len({0})")):
        if word in body:
            script.remember(body[word])
            script.add(f"assert {text.format(script.var(body[word]) + '_keys')}, keys")


def _same(script: Script, body: Body) -> None:
    for side in ("left", "right"):
        script.remember(body[side])
    for aspect in body["aspects"]:
        a, b = (f"{script.var(body[side])}_{aspect}" for side in ("left", "right"))
        script.add(f"assert {a}, 'there is nothing to compare'")
        if aspect not in SAME:
            script.add(f"assert {a} == {b}, ({a}, {b})")
            continue
        script.add(f"assert {a}.keys() == {b}.keys(), {a}.keys() ^ {b}.keys()\nfor name in {a}:")
        script.add(f"    assert {SAME[aspect].format(f'{a}[name]', f'{b}[name]')}, name")


def _equal(script: Script, body: Body) -> None:
    expected = body["to"] if "to" in body else script.case.axes[body["to_axis"]]
    name = script.var(body["of"])
    if expected is None or isinstance(expected, bool):
        script.add(f"assert {name} is {expected!r}, {name}")
    else:
        script.add(f"assert plain({name}) == {expected!r}, {name}")


def _instance(script: Script, body: Body) -> None:
    name, wanted = script.var(body["of"]), body["of_class"].rpartition(".")[2]
    text = f"{wanted!r} in [c.__name__ for c in type({name}).__mro__]"
    if body.get("exactly"):
        text = f"type({name}).__name__ == {wanted!r}"
    script.add(f"assert {f'not ({text})' if body.get('not') else text}, type({name})")


def _tolerance(script: Script, body: Body) -> str:
    """The limits of a comparison: those that the judge has told, else none but rounding."""
    found = re.search(r"rtol ([\d.e+-]+), atol ([\d.e+-]+)", script.verdict.detail)
    default = ("0", "0") if body.get("tolerance") == "exact" else ("1e-5", "1e-5")
    return "rtol={}, atol={}".format(*(found.groups() if found else default))


def _both(script: Script, body: Body) -> tuple[str, str, str]:
    """The beginning of a line that compares, and what it compares: two outputs, or the tensors of two
    things.
    """
    if all(script.kinds.get(body[side]) == "tensor" for side in ("left", "right")):
        return "", script.var(body["left"]), script.var(body["right"])
    for side in ("left", "right"):
        script.remember(body[side])
    a, b = (f"{script.var(body[side])}_values" for side in ("left", "right"))
    script.add(f"assert {a}.keys() == {b}.keys() != set()\nfor name in {a}:")
    return "    ", f"{a}[name]", f"{b}[name]"


def _samples(body: Body) -> str:
    return f"[{body['samples']}]" if "samples" in body else ""


def _close(script: Script, body: Body) -> None:
    start, a, b = _both(script, body)
    a, b = a + _samples(body), b + _samples(body)
    script.add(f"{start}torch.testing.assert_close({a}.double(), {b}.double(), {_tolerance(script, body)})")


def _differ(script: Script, body: Body) -> None:
    start, a, b = _both(script, body)
    a, b = a + _samples(body), b + _samples(body)
    near = f"torch.allclose({a}.double(), {b}.double(), {_tolerance(script, body)})"
    if start:  # one of several tensors has to differ
        head = script.lines.pop()
        script.add(f"assert not all({near} {head.rstrip(':')})")
    else:
        script.add(f"assert {a}.isfinite().all() and {b}.isfinite().all()\nassert not {near}")


def _signature(script: Script, body: Body) -> None:
    wanted, of = body.get("parameters", body.get("contains")), script.var(body["of"])
    script.add(f"parameters = {{n: p for n, p in inspect.signature({of}).parameters.items() if n != 'self'}}")
    if "parameters" in body:
        script.add(f"assert list(parameters) == {[p['name'] for p in wanted]!r}, list(parameters)")
    else:
        order = "==" if body.get("only") else "<="
        script.add(f"assert {{*{[p['name'] for p in wanted]!r}}} {order} parameters.keys(), list(parameters)")
    for p in wanted:
        found = f"parameters[{p['name']!r}]"
        if "kind" in p:
            script.add(f"assert {found}.kind.name == {p['kind'].upper().replace('-', '_')!r}")
        if p.get("required"):
            script.add(f"assert {found}.default is inspect.Parameter.empty, {found}")
        if "default" in p and isinstance(p["default"], (dict, list)):
            factory = f"{of}.__dataclass_fields__[{p['name']!r}].default_factory"
            script.add(f"assert plain({factory}()) == {p['default']!r}")
        elif "default" in p:
            value = p["default"]
            simple = value is None or isinstance(value, bool)
            text = f"{found}.default is {value!r}" if simple else f"plain({found}.default) == {value!r}"
            script.add(f"assert {text}, {found}")


def _shapes(script: Script, body: Body) -> None:
    script.add(f"found = {{n: list(p.shape) for n, p in {script.var(body['of'])}.items()}}")
    script.add(f"expected = {body.get('exactly', {})!r}")
    script.add("assert len(found) == len(expected), found")
    script.add("for name, shape in expected.items():")
    script.add("    own = [s for n, s in found.items() if f'.{n}'.endswith(f'.{name}')]")
    script.add("    assert len(own) == 1 and len(own[0]) == len(shape), (name, own)")
    script.add("    assert all(w in ('?', n) for w, n in zip(shape, own[0])), (name, own)")


def _snapshot(script: Script, body: Body) -> None:
    name = script.var(body["of"])
    text = {
        "signature": f"signature_lines({name})",
        "module_tree": f"module_tree_lines({name})",
        "state_dict": f"state_dict_lines({name})",
    }[body["view"]]
    stored = str(script.verdict.expected).strip("\n").splitlines()
    script.add(f"lines = {text}\nassert lines == [\n" + "".join(f"    {line!r},\n" for line in stored))
    script.add("], '\\n'.join(lines)")


def _warns(script: Script, body: Body) -> None:
    _fitting(script, body)
    script.add("assert fitting, [str(w.message) for w in caught]")


def _silent(script: Script, body: Body) -> None:
    _fitting(script, body)
    script.add("assert not fitting, fitting")


def _fitting(script: Script, body: Body) -> None:
    conditions = [f"{body.get('category', 'Warning')!r} in [c.__name__ for c in w.category.__mro__]"]
    conditions += [f"{word.lower()!r} in str(w.message).lower()" for word in body.get("mentions", ())]
    script.add(f"fitting = [str(w.message) for w in caught if {' and '.join(conditions)}]")


def _raises(script: Script, body: Body) -> None:
    script.add(f"assert {body['error']!r} in [c.__name__ for c in type(error).__mro__], repr(error)")


def _raised(script: Script, body: Body) -> None:
    script.add("assert error is not None, 'nothing was raised'")
    if "error" in body:
        _raises(script, body)
    for word in body.get("mentions", ()):
        script.add(f"assert {word.lower()!r} in str(error).lower(), error")


def _printed(script: Script, body: Body) -> None:
    if "exactly" in body:
        script.add(f"assert printed.getvalue().strip() == {body['exactly'].strip()!r}, printed.getvalue()")
    for word in body.get("mentions", ()):
        script.add(f"assert {word.lower()!r} in printed.getvalue().lower(), printed.getvalue()")


# --- the formula


def _formula(script: Script, body: Body) -> None:
    path = body["module"].removeprefix("base_model.model.")
    links = [link for model in script.program["models"].values() for link in model.get("chain", ())]
    kind, arguments = next((link[1], dict(*link[2:])) for link in links if link[0] == path)
    transposed = formula.LAYERS[kind].transposed
    script.remember(body["of"])
    state = script.var(body["of"])
    script.add(f"tensors = {{n: p.double() for n, p in {state}_values.items()}}")
    script.add(f"stored, b0 = tensors['{path}.weight'], tensors.get('{path}.bias')")
    script.add(
        f"weight = W = W0 = stored{'.mT' if transposed else '.flatten(1)'}\n"
        "bias = b = 0.0 if b0 is None else b0"
    )
    (card,) = script.cards()
    formulas = {what: _choices(card[what], kind) for what in ("weight", "bias") if what in card}
    for adapter in body["adapters"]:
        script.add(f"config = {state}_config[{adapter!r}]")
        if arguments.get("bias") is False:
            for field, value in card["config"].get("without_bias", {}).items():
                script.add(f"config.{field} = {value!r}")
        wanted = set[str]().union(*(_named(choices) for choices in formulas.values()))
        if "x" in wanted.union(*(_named(_choices(c, kind)) for c in card.get("symbols", {}).values())):
            script.add(f"x = ({script.inputs[body['output']]}).double().flatten(0, -2)")
        _symbols(script, wanted - BASE, adapter, kind, card, path)
        for what, choices in formulas.items():
            script.add(f"{what} = {what} + (({_chosen(choices)}) - {'W' if what == 'weight' else 'b'})")
        if card.get("active_together") == "compose" and adapter != body["adapters"][-1]:
            script.add("W, b = weight, bias")
    script.add(f"weight = {'weight.mT' if transposed else 'weight.reshape(stored.shape)'}")
    script.add("bias = bias if isinstance(bias, torch.Tensor) else None")
    compare = f"torch.testing.assert_close({{}}.double(), {{}}, {_tolerance(script, body)})"
    if script.kinds.get(body["output"]) == "tensor":
        options, x = {k: v for k, v in arguments.items() if k in formula.CONV_ARGUMENTS}, "x.double()"
        if (mode := arguments.get("padding_mode", "zeros")) != "zeros":
            sides = formula.padding_sides(options.pop("padding", 0), int(kind[-2]))
            x = f"F.pad({x}, {sides}, mode={mode!r})"
        used = "".join(f", {k}={v!r}" for k, v in options.items())
        expected = {
            "Linear": "F.linear(x.double(), weight, bias)",
            "Conv1D": "F.linear(x.double(), weight.mT, bias)",
            "Embedding": "F.embedding(x, weight)",
        }.get(kind, f"F.{kind.lower()}({x}, weight, bias{used})")
        script.add(f"x = {script.inputs[body['output']]}\nexpected = {expected}")
        script.add(compare.format(script.var(body["output"]) + _samples(body), "expected" + _samples(body)))
    else:
        script.remember(body["output"])
        script.add(f"merged = {script.var(body['output'])}_values")
        script.add(compare.format(f"merged['{path}.weight']", "weight"))
        script.add(f"if bias is not None:\n    {compare.format(f'''merged['{path}.bias']''', 'bias')}")


BASE = {"W", "W0", "b", "x"}  # symbols that every script of this kind has
SIZES = {"out": "W0.shape[0]", "in": "W0.shape[1]", "kernel": "stored[0, 0].numel()"}


def _choices(formulas: Any, kind: str) -> list[dict[str, Any]]:
    """The formulas that a card offers for layers of this kind, in order."""
    every = [{"value": formulas}] if isinstance(formulas, str) else list(formulas)
    return [choice for choice in every if kind in choice.get("on", [kind])]


def _named(choices: list[dict[str, Any]]) -> set[str]:
    """All symbols of some formulas."""
    return set[str]().union(*(formula.parse(str(choice["value"]))[1] for choice in choices))


def _chosen(choices: list[dict[str, Any]]) -> str:
    """The first formula that fits the config, as an expression."""
    text = ""
    for choice in choices:
        value = re.sub(r"\bsqrt\(", "math.sqrt(", _python(str(choice["value"])))
        tests = " and ".join(_test(name, value) for name, value in choice.get("when", {}).items())
        text += f"{value} if {tests} else " if tests else value
        if not tests:
            break
    return text.removesuffix(" else ")


def _test(name: str, value: Any) -> str:
    """Whether the config has the value that a card states, or one of those that it lists; of options that are
    an object, whether it has those that the card names.
    """
    if isinstance(value, Mapping):
        options = " and ".join(f"config.{name}.{key} == {each!r}" for key, each in value.items())
        return f"config.{name} and {options}"
    return f"config.{name} {'in' if isinstance(value, list) and value else '=='} {value!r}"


def _relation(script: Script, body: Body) -> None:
    path = body["module"].removeprefix("base_model.model.")
    links = [link for model in script.program["models"].values() for link in model.get("chain", ())]
    kind = next(link[1] for link in links if link[0] == path)
    canonical = "mT" if formula.LAYERS[kind].transposed else "flatten(1)"
    for entity in filter(None, (body.get("before"), body["of"])):
        script.remember(entity)
    state = script.var(body["of"])
    script.add(f"tensors = {{n: p.double() for n, p in {state}_values.items()}}")
    script.add(f"W = tensors['{path}.weight'].{canonical}")
    if "before" in body:
        script.add(f"W0 = {script.var(body['before'])}_values['{path}.weight'].double().{canonical}")
    script.add(f"config = {state}_config[{body['adapter']!r}]")
    (card,) = script.cards()
    wanted = set[str]().union(*(formula.parse(body[side])[1] for side in ("left", "right")))
    _symbols(script, wanted - {"W", "W0"}, body["adapter"], kind, card, path)
    left, right = _python(body["left"]), _python(body["right"])
    script.add(f"left, right = (torch.as_tensor(x, dtype=torch.float64) for x in ({left}, {right}))")
    script.add(f"torch.testing.assert_close(left, right, {_tolerance(script, body)})")


def _combination(script: Script, body: Body) -> None:
    path = body["module"].removeprefix("base_model.model.")
    links = [link for model in script.program["models"].values() for link in model.get("chain", ())]
    kind = next(link[1] for link in links if link[0] == path)
    script.remember(body["of"])
    state = script.var(body["of"])
    script.add(f"tensors = {{n: p.double() for n, p in {state}_values.items()}}\nparts = []")
    (card,) = script.cards()
    for adapter in [*body["adapters"], body["adapter"]]:
        script.add(f"config = {state}_config[{adapter!r}]")
        _symbols(script, {"A", "B", "s"}, adapter, kind, card, path)
        script.add("parts.append((s, A, B.flatten(1)))")
    density, sign = body.get("density", 1.0), body.get("majority_sign_method", "total")
    script.add("*parts, (s, A, B) = parts")
    arguments = f"{body['weights']!r}, {body['kind']!r}, {density!r}, {sign!r}"
    if body["kind"].startswith("dare") and density < 1:
        script.add("deltas = [s * b @ a for s, a, b in parts]")
        script.add(
            f"wrong = not_dropped(s * B @ A, deltas, {arguments}, 1e-5, 1e-5)\nassert not wrong, wrong"
        )
    else:
        script.add(f"wanted = combined(parts, {arguments}, {body.get('rank', 0)!r})")
        script.add(f"torch.testing.assert_close(s * B @ A, wanted, {_tolerance(script, body)})")


def _symbols(script: Script, wanted: set[str], adapter: str, kind: str, card: Any, path: str) -> None:
    """Lines that give the symbols of a formula their values."""
    overrides = script.body.get("with", {})
    conv = ".flatten(1)" if kind in ("Conv1d", "Conv2d", "Conv3d") else ""
    for symbol in sorted(wanted):
        name = _python(symbol)
        named = {t: spec for t, spec in card["tensors"].items() if spec.get("symbol", t) == symbol}
        tensor = next((t for t, spec in named.items() if kind in spec.get("on", [kind])), None)
        if symbol in overrides:
            script.add(f"{name} = {overrides[symbol]!r}")
        elif tensor:
            slot, _, rest = tensor.partition(".")
            key = ".".join(filter(None, [path, slot, adapter, rest]))
            value = f"tensors[{key!r}]{conv if rest != 'bias' else ''}"
            script.add(
                f"{name} = {value}" + (f" if {key!r} in tensors else 0.0" if "when" in named[tensor] else "")
            )
        elif named:  # layers of this kind have no such tensor
            script.add(f"{name} = 0.0")
        elif symbol in card.get("symbols", {}):
            choices = _choices(card["symbols"][symbol], kind)
            _symbols(script, _named(choices) - BASE, adapter, kind, card, path)
            script.add(f"{name} = {_chosen(choices)}")
        else:
            script.add(f"{name} = {SIZES.get(symbol, f'config.{symbol}')}")


# --- the frame


def _violation(script: Script) -> tuple[str, str, str]:
    """Entity, place and change of the first thing that has changed and should not have; as the judge says
    it: `entity: where: what`, or `global changed`.
    """
    lines = script.verdict.observed if isinstance(script.verdict.observed, list) else []
    entity, *rest = str(lines[0] if lines else "").split(": ", 2)
    where, what = ["", "", *rest][-2:]
    return entity.removesuffix(" changed") if not what else entity, where, what


def frame_before(script: Script) -> None:
    """Remember, before `when`, what the frame is about."""
    entity, where, what = _violation(script)
    if entity:  # nothing has changed if a step has failed: the script fails there as well
        script.add(f"before = {_changing(script, entity, where, what)}")


def _frame(script: Script, body: Body) -> None:
    entity, where, what = _violation(script)
    if not entity:
        return
    script.add(f"after = {_changing(script, entity, where, what)}")
    aspect, told = _aspect(where, what), repr(": ".join(filter(None, (entity, where, what))))
    # A layer may have been wrapped or unwrapped in the meantime.
    parent, _, leaf = where.rpartition(".")
    inside = f"{parent}.base_layer.{leaf}".lstrip(".")
    names = tuple(dict.fromkeys([where, where.replace(".base_layer", ""), inside, f"{where}.base_layer"]))
    if aspect == "moved":
        script.add(f"assert any(n in after for n in {names!r}), {told}")
    elif aspect in OF_TENSOR or aspect in OF_MODULE:
        script.add(
            f"was = next((before[n] for n in {names!r} if n in before), None)\nnow = after.get({where!r})"
        )
        _of_adapters(script, entity, where, aspect)
        same = SAME.get(aspect, "{0} == {1}").format("was", "now")
        script.add(f"assert was is None or now is None or {same}, {told}")
    elif aspect == "presence":
        script.add(f"assert ({where!r} in after) == ({where!r} in before), {told}")
    else:
        script.add(f"assert after == before, {told}")


def _of_adapters(script: Script, entity: str, where: str, aspect: str) -> None:
    """What belongs to an adapter comes and goes with it."""
    if aspect not in ("active", "merged", "scaling", "r"):
        return
    layer = f"{script.var(entity)}.get_submodule({where!r})"
    script.add(f"names = {{a for slot in SLOTS for a in getattr({layer}, slot, ())}}")
    if aspect in ("active", "merged"):
        script.add("was = [a for a in was or () if a in names]")
    else:
        script.add("now = {a: v for a, v in now.items() if a in was or a not in names}")
        script.add("was = {a: v for a, v in was.items() if a in names}")


def _changing(script: Script, entity: str, where: str, what: str) -> str:
    """The expression for what the frame looks at before and after: enough to see this change."""
    if entity in OF_PROCESS:
        return OF_PROCESS[entity]
    kind, name, aspect = script.kinds.get(entity), script.var(entity), _aspect(where, what)
    config = re.fullmatch(r"peft_config\[([^\]]+)\](?:\[([^\]]+)\])?", where)
    if kind == "model" and config:
        stored = f"getattr({name}, 'peft_config', {{}})"
        if not config[2]:
            return f"id({stored}.get({config[1]!r}))" if "replaced" in what else f"{config[1]!r} in {stored}"
        return f"copy.deepcopy(getattr({stored}.get({config[1]!r}), {config[2]!r}, None))"
    if kind == "model" and where in ("active_adapter", "active_adapters"):
        return f"copy.copy(getattr({name}, {where!r}, None))"
    if kind == "model" and aspect in OF_MODULE:
        return f"{{n or '(root)': {OF_MODULE[aspect]} for n, module in {name}.named_modules()}}"
    if kind == "model" and aspect in ("presence", "moved"):
        return f"{{**dict(items({name})), **dict({name}.named_modules())}}"
    if kind == "model" and aspect not in OF_TENSOR:
        return f"str({name})"
    if aspect in OF_TENSOR:
        return script.chosen({}, entity, OF_TENSOR[aspect])
    if kind == "folder":
        files = f"{name}.rglob('*') if f.is_file()"
        return f"{{f.relative_to({name}).as_posix(): f.read_bytes() for f in {files}}}"
    if kind == "config":
        return f"copy.deepcopy(vars({name}))"
    return f"list({name})" if kind == "state_dict" else f"copy.deepcopy({name})"


def _aspect(where: str, what: str) -> str:
    """The aspect that the judge's words for a change are about."""
    if where.startswith("peft_config["):
        return "other"
    if what in ("new", "gone", "new module"):
        return "presence"
    if what.startswith("now "):
        return "moved"
    fixed = {
        "values changed": "values",
        "storage changed": "storage",
        "replaced by another tensor": "identity",
    }
    first = what.split(" ")[0]
    return fixed.get(what, first if first in OF_TENSOR or first in OF_MODULE else "other")


def _tensor_has(have: dict[str, Any]) -> str:
    texts = []
    for aspect, value in have.items():
        match aspect:
            case "requires_grad":
                texts.append("p.requires_grad" if value else "not p.requires_grad")
            case "dtype":
                texts.append(f"p.dtype == torch.{value}")
            case "device":
                texts.append(f"p.device.type == {value!r}")
            case "shape":
                texts.append(f"list(p.shape) == {value!r}")
            case "nonzeros":
                texts.append(f"int((p != 0).sum()) == {value!r}")
            case "grad":
                some = "p.grad is not None"
                known = {"none": "p.grad is None", "not-none": some, "zero": f"{some} and not p.grad.any()"}
                texts.append(known.get(value, f"{some} and p.grad.any()"))
            case _:
                known = {"zero": "not p.any()", "nonzero": "p.any()", "finite": "p.isfinite().all()"}
                texts.append("not p.is_meta and " + known.get(value, "not p.isfinite().all()"))
    return " and ".join(texts)


def _module_has(have: dict[str, Any]) -> str:
    attributes = {"active": "active_adapters", "merged": "merged_adapters", "disabled": "disable_adapters"}
    texts = []
    for aspect, value in have.items():
        match aspect:
            case "class":
                texts.append(f"type(module).__name__ == {value!r}")
            case "training":
                texts.append("module.training" if value else "not module.training")
            case "adapted":
                texts.append(IS_ADAPTED if value else f"not ({IS_ADAPTED})")
            case "scaling" | "rank":
                found = "module.scaling" if aspect == "scaling" else "module.r"
                texts += [f"math.isclose({found}[{name!r}], {number!r})" for name, number in value.items()]
            case "adapters":
                found = "{a for slot in SLOTS for a in getattr(module, slot, {})}"
                texts.append(f"{found} == set({value!r})")
            case _:
                found = f"module.{attributes[aspect]}"
                texts.append(
                    f"{found} is {value!r}" if isinstance(value, bool) else f"list({found}) == {value!r}"
                )
    return " and ".join(texts)


def _python(text: str) -> str:
    """A formula as Python: the papers' letters include reserved words."""
    return re.sub(r"[A-Za-z_]\w*", lambda m: m[0] + "_" * (keyword.iskeyword(m[0]) and m[0] != "None"), text)


CHECKS: dict[str, Callable[[Script, Any], None]] = {
    "same_object": _same_object,
    "different_objects": _different_objects,
    "all": _all,
    "none": _none,
    "modules": _modules,
    "keys": _keys,
    "same": _same,
    "equal": _equal,
    "instance": _instance,
    "close": _close,
    "differ": _differ,
    "formula": _formula,
    "relation": _relation,
    "combination": _combination,
    "signature": _signature,
    "shapes": _shapes,
    "snapshot": _snapshot,
    "warns": _warns,
    "silent": _silent,
    "raises": _raises,
    "raised": _raised,
    "printed": _printed,
    "frame": _frame,
}
