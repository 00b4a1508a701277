"""Small functions that a reproduction script carries with it: `script` copies their source, those it needs.

Plain torch and the standard library, nothing of ours; the script defines `SLOTS`, the containers of adapters'
tensors.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import inspect
import itertools
import json
import os
import random
import re
import warnings
from pathlib import Path
from typing import Any

import torch

SLOTS: tuple[str, ...] = ()


def plain(x: Any) -> Any:
    """Enums, dtypes, sets and tuples as strings and lists."""
    if isinstance(x, enum.Enum):
        return plain(x.value)
    if isinstance(x, dict):
        return {str(plain(key)): plain(value) for key, value in x.items()}
    if isinstance(x, (set, frozenset)):
        return sorted(map(plain, x), key=repr)
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, type):
        return {"class": x.__name__}
    return x if x is None or isinstance(x, (bool, int, float, str)) else str(x).removeprefix("torch.")


def perturb(
    model: torch.nn.Module, part: str, adapter: str | None, seed: int, slots: Any, scale: float
) -> int:
    """Add seeded noise to the parameters of an adapter, to copies of saved modules (`aux`), or to all others
    (`base`); returns how many there were.
    """
    containers = {"adapter": [*slots], "aux": ["modules_to_save"], "base": [*slots, "modules_to_save"]}[part]

    def chosen(name: str) -> bool:
        parts = name.split(".")
        if part == "base":
            return not set(containers) & set(parts[:-1])
        return any(a in containers and adapter in (None, b) for a, b in itertools.pairwise(parts))

    found = sorted((n, p) for n, p in model.named_parameters() if p.is_floating_point() and chosen(n))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in found:
            p.add_((torch.randn(p.shape, generator=generator) * scale).to(p))
    return len(found)


def look(x: Any) -> dict[str, Any]:
    """What there is to see of `x` at this moment: its keys, tensors, modules and fields."""
    seen: dict[str, Any] = {"keys": [], "tensors": {}, "modules": {}, "fields": {}, "configs": {}}
    tensors: dict[str, Any] = {}
    is_model = isinstance(x, torch.nn.Module)
    if is_model:
        parameters, buffers = (f(remove_duplicate=False) for f in (x.named_parameters, x.named_buffers))
        tensors = {**dict(parameters), **dict(buffers)}
        for name, module in x.named_modules(remove_duplicate=False):
            hooks = [v for k, v in vars(module).items() if k.endswith("_hooks") and isinstance(v, dict)]
            facts = {"class": type(module).__name__, "object": module, "training": module.training}
            facts |= {"hooks": sum(map(len, hooks)), "adapted": False}
            if hasattr(module, "base_layer") and hasattr(module, "active_adapters"):
                facts |= {"active": list(module.active_adapters), "merged": list(module.merged_adapters)}
                facts |= {"disabled": module.disable_adapters, "adapted": True}
                facts |= {
                    "scaling": dict(getattr(module, "scaling", {})),
                    "r": dict(getattr(module, "r", {})),
                }
                facts["adapters"] = sorted({a for slot in SLOTS for a in getattr(module, slot, {})})
            seen["modules"][name or "(root)"] = facts
        for name in ("active_adapter", "active_adapters"):
            found = getattr(x, name, None)
            if found is not None and not callable(found):
                seen["fields"][name] = plain(found)
        configs = getattr(x, "peft_config", None)
        for name, config in configs.items() if isinstance(configs, dict) else ():
            seen["configs"][name] = {k: copy.deepcopy(plain(v)) for k, v in vars(config).items()}
            seen["fields"][f"peft_config[{name}]"] = True
            seen["fields"] |= {f"peft_config[{name}][{k}]": v for k, v in seen["configs"][name].items()}
    elif isinstance(x, torch.Tensor):
        tensors = {"": x}
    elif dataclasses.is_dataclass(x):
        seen["fields"] = {f.name: copy.deepcopy(plain(getattr(x, f.name))) for f in dataclasses.fields(x)}
    elif isinstance(x, Path):
        files = sorted(p for p in x.rglob("*") if p.is_file())
        seen["fields"] = {p.relative_to(x).as_posix(): p.read_bytes() for p in files}
    elif isinstance(x, dict) and all(v is None or isinstance(v, torch.Tensor) for v in x.values()):
        tensors = x
    elif isinstance(x, dict):
        seen["fields"] = copy.deepcopy(x)
    else:
        seen["keys"] = list(x) if isinstance(x, (list, tuple, set)) else []
    for name, t in tensors.items():
        place = re.search(rf"(?:^|\.)({'|'.join(SLOTS)})(?:\.([^.]+))?" if SLOTS else "$^", name)
        saved = re.search(r"(?:^|\.)modules_to_save\.([^.]+)\.", name) if is_model else None
        bare = re.sub(r"\b(base_layer|original_module)\.", "", name.removeprefix("base_model.model."))
        adapter = place[2] if place and is_model else saved[1] if saved else None
        facts = {"part": "adapter" if place else "aux" if saved else "base", "adapter": adapter}
        facts["slot"] = name[place.start(1) :].replace(f".{adapter}", "", 1) if place else None
        facts["bare"] = (
            bare.replace(f".{adapter}", "", 1).replace(".modules_to_save", "") if adapter else bare
        )
        if t is not None:
            data = None if t.is_meta else t.detach().clone()
            facts |= {"object": t, "storage": t.untyped_storage(), "values": data, "shape": list(t.shape)}
            facts |= {"dtype": str(t.dtype).removeprefix("torch."), "device": t.device.type}
            facts["finite"] = data is not None and bool(torch.isfinite(data.float()).all())
            facts["zero"] = data is not None and not bool((data.float() != 0).any())
            facts["requires_grad"] = t.requires_grad
            facts["kind"] = "parameter" if isinstance(t, torch.nn.Parameter) else "buffer"
            grad = t.grad if t.is_leaf else None
            facts["grad"] = "none" if grad is None else "nonzero" if bool(grad.any()) else "zero"
        seen["tensors"][name] = facts
    seen["keys"] = seen["keys"] or list(seen["tensors"]) or list(seen["fields"])
    return seen


def alike(a: Any, b: Any) -> bool:
    """Whether two tensors are the same bit for bit, two other values equal."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, (torch.nn.Module, torch.UntypedStorage)):
        return a is b
    return bool(a == b)


def pairs(left: dict[str, Any], right: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Who is who among the tensors of two looks: by name, by object, by bare name; None for who has no
    partner.
    """
    rest, found = dict(right), []
    for name, a in left.items():
        same = [n for n, b in rest.items() if n == name]
        same += [n for n, b in rest.items() if b.get("object") is a.get("object")]
        same += [n for n, b in rest.items() if b["bare"] == a["bare"]]
        found.append((name, a, rest.pop(same[0]) if same else None))
    return found + [(name, None, b) for name, b in rest.items()]


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Where two looks at one thing differ, as `name: aspect`; what goes with an adapter that came or went
    does not count.
    """
    found = []
    for kind in ("tensors", "modules"):
        same = {id(facts.get("object")): name for name, facts in before[kind].items()}
        alias = {facts.get("bare"): name for name, facts in before[kind].items()} if kind == "tensors" else {}
        left = set(before[kind])
        for name, now in after[kind].items():
            alias[name] = name if kind == "tensors" else None
            old = same.get(id(now.get("object")), alias.get(now.get("bare"), alias[name]))
            if old not in before[kind]:
                found.append(f"{name}: new")
                continue
            left -= {old}
            was = before[kind][old]
            gone = set(was.get("adapters", ())) - set(now.get("adapters", ()))
            come = set(now.get("adapters", ())) - set(was.get("adapters", ()))
            for aspect, value in now.items():
                ours = without(was.get(aspect), gone if aspect == "active" else gone | come)
                theirs = without(value, set() if aspect == "active" else gone | come)
                equal = was.get(aspect) is value if aspect == "object" else alike(ours, theirs)
                found += [] if equal or aspect == "bare" else [f"{name}: {aspect}"]
            found += [f"{name}: adapters"] if gone | come else []
        found += [f"{name}: gone" for name in sorted(left)]
    for name in sorted(before["fields"].keys() | after["fields"].keys()):
        if name not in after["fields"]:
            found.append(f"{name}: gone")
        elif name not in before["fields"]:
            found.append(f"{name}: new")
        elif before["fields"][name] != after["fields"][name]:
            found.append(f"{name}: changed")
    return found


def without(value: Any, adapters: set[str]) -> Any:
    """A list or mapping of adapters without some of them."""
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if name not in adapters}
    return [item for item in value if item not in adapters] if isinstance(value, list) else value


def process() -> dict[str, Any]:
    """The process-wide state that a call may touch."""
    return {
        "rng": (torch.get_rng_state().tolist(), random.getstate()),
        "warnings-filters": list(warnings.filters),
        "default-dtype": torch.get_default_dtype(),
        "grad-mode": torch.is_grad_enabled(),
        "cwd": os.getcwd(),
    }


def signature_lines(function: Any) -> list[str]:
    """The parameters of a function, one a line, without `self`."""
    lines = []
    for p in inspect.signature(function).parameters.values():
        if p.name == "self":
            continue
        star = "*" * (p.kind is p.VAR_POSITIONAL) + "**" * (p.kind is p.VAR_KEYWORD)
        default = plain(p.default)
        text = (
            ""
            if p.default is p.empty
            else " = " + (default if isinstance(default, str) else json.dumps(default))
        )
        lines.append(f"{star}{p.name}{text}{' (keyword only)' if p.kind is p.KEYWORD_ONLY else ''}")
    return lines


def state_dict_lines(x: Any) -> list[str]:
    """Names, shapes and dtypes."""
    return sorted(f"{name} {t['shape']} {t['dtype']}" for name, t in look(x)["tensors"].items())


def module_tree_lines(seen: dict[str, Any]) -> list[str]:
    """Every module with its tensors; of an adapted layer its place, its slots and what it wraps."""
    layers = [name for name, m in seen["modules"].items() if m["adapted"]]
    lines = []
    for name, module in seen["modules"].items():
        path = "" if name == "(root)" else f"{name}."
        owner = next((layer for layer in reversed(layers) if name.startswith(f"{layer}.")), None)
        if owner is not None and name[len(owner) + 1 :].split(".")[0] != "base_layer":
            continue
        if name in layers:
            lines.append(f"{name}: adapted")
            slots = []
            for tensor, t in seen["tensors"].items():
                if tensor.startswith(path) and t["part"] == "adapter":
                    short = tensor[len(path) :].replace(f".{t['adapter']}", "", 1)
                    slots.append(f"{name}: {short}[{t['adapter']}] {t['shape']}")
            lines += sorted(slots)
        else:
            own = [
                (n.rpartition(".")[2], t)
                for n, t in seen["tensors"].items()
                if n.rpartition(".")[0] + "." == path
            ]
            own += [(n, t) for n, t in seen["tensors"].items() if not path and "." not in n]
            lines.append(" ".join([f"{name}:", module["class"], *(f"{n} {t['shape']}" for n, t in own)]))
    return lines
