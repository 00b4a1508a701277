"""Observations written by hand: what the judge is tested on, without a driver or an implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft_conformance.cases import Case, Check, Clause, Variant, Verdict
from peft_conformance.judge import judge
from peft_conformance.language import Suite, read_yaml

ROOT = Path(__file__).parents[2]
LORA = read_yaml(ROOT / "specs/methods/lora.yaml")
# A method that is no real one: every role, a parameter in the slot itself, a tensor shared by all layers.
ODD = {
    "method": "ODD",
    "kind": "layer",
    "prefix": "odd_",
    "config": {"class": "OddConfig", "use": {}},
    "tensors": {
        "odd_scale": {"shape": ["out"], "role": "trainable"},
        "odd_mask": {"shape": ["out"], "role": "frozen"},
        "odd_norm": {"shape": ["out"], "role": "saved-buffer"},
        "odd_count": {"shape": ["out"], "role": "unsaved"},
        "odd_bank.weight": {"shape": [4, 4], "role": "saved-buffer", "shared": True},
        "odd_parts.<group>": {"shape": [4], "role": "trainable", "shared": True},
        "odd_basis": {"shape": [4], "role": "saved-buffer", "shared": True, "saved_when": "keep"},
    },
}
TOLERANCES = {
    "exact": {"about": "bit for bit", "per_dtype": {}},
    "forward": {
        "about": "rounding",
        "per_dtype": {
            "float64": {"rtol": 1e-9, "atol": 1e-9},
            "float32": {"rtol": 1e-5, "atol": 1e-5},
            "bfloat16": {"rtol": 2e-2, "atol": 2e-2},
        },
        "cuda": {"float32": {"rtol": 1e-4, "atol": 1e-4}},
    },
}
CARDS = {"LORA": LORA, "ODD": ODD}
SUITE = Suite(specs=ROOT / "specs", cards=CARDS, tolerances=TOLERANCES)


def tensor(name: str, **facts: Any) -> dict[str, Any]:
    """A parameter as the driver records it; `facts` say what is different about this one."""
    return {
        "name": name,
        "kind": "parameter",
        "shape": [4, 4],
        "dtype": "float32",
        "device": "cpu",
        "requires_grad": False,
        "grad": "none",
        "object": f"#{name}",
        "storage": f"#s-{name}",
        "digest": f"d-{name}",
        "finite": True,
        "zero": False,
        **facts,
    }


def module(name: str, cls: str = "Linear", **facts: Any) -> dict[str, Any]:
    return {
        "name": name,
        "class": cls,
        "object": f"#m-{name}",
        "training": True,
        "hooks": 0,
        "adapter": None,
        **facts,
    }


def layer(name: str, *adapters: str, **facts: Any) -> dict[str, Any]:
    """An adapted layer, its first adapter active."""
    state = {
        "active": list(adapters[:1]),
        "merged": [],
        "disabled": False,
        "scaling": dict.fromkeys(adapters, 1.5),
        "r": dict.fromkeys(adapters, 4),
        "adapters": sorted(adapters),
        **facts,
    }
    return module(name, "lora.Linear", object=f"#m-{name}-adapted", adapter=state)


def config(name: str = "default", **fields: Any) -> dict[str, Any]:
    return {
        "kind": "config",
        "object": f"#config-{name}",
        "class": "LoraConfig",
        "mro": ["LoraConfig", "PeftConfig", "object"],
        "fields": {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": False,
            "lora_bias": False,
            **fields,
        },
    }


def model(
    tensors: list[dict], modules: list[dict], configs: dict | None = None, **facts: Any
) -> dict[str, Any]:
    return {
        "kind": "model",
        "object": "#m-",
        "class": "DummyModel",
        "mro": ["DummyModel", "Module", "object"],
        "tensors": tensors,
        "modules": [module("", "DummyModel"), *modules],
        "peft_config": configs,
        "text": "…",
        **facts,
    }


def plain_model() -> dict[str, Any]:
    """embedding, linear and head, nothing adapted."""
    names = ["embedding.weight", "linear.weight", "linear.bias", "head.weight"]
    return model(
        [tensor(name, requires_grad=True) for name in names],
        [module("embedding", "Embedding"), module("linear"), module("head")],
    )


def adapted_model(*adapters: str) -> dict[str, Any]:
    """The same model and objects with LoRA adapters on `linear`; the first one is active and trains."""
    adapters = adapters or ("default",)
    tensors = [tensor("embedding.weight")]
    tensors += [
        tensor(
            f"linear.base_layer.{n}", object=f"#linear.{n}", storage=f"#s-linear.{n}", digest=f"d-linear.{n}"
        )
        for n in ("weight", "bias")
    ]
    tensors += [
        tensor(f"linear.{slot}.{a}.weight", requires_grad=a == adapters[0])
        for slot in ("lora_A", "lora_B")
        for a in adapters
    ]
    tensors += [tensor("head.weight")]
    modules = [module("embedding", "Embedding"), layer("linear", *adapters)]
    modules += [module("linear.base_layer", object="#m-linear")]
    for slot in ("lora_A", "lora_B"):
        modules += [module(f"linear.{slot}", "ModuleDict")]
        modules += [module(f"linear.{slot}.{a}") for a in adapters]
    modules += [module("head")]
    return model(tensors, modules, {a: config(a) for a in adapters})


def state_dict(*names: str, **facts: Any) -> dict[str, Any]:
    tensors = [tensor(name, **facts) for name in names]
    for item in tensors:
        del item["kind"], item["requires_grad"], item["grad"]
    return {"kind": "state_dict", "object": "#sd", "class": "dict", "tensors": tensors}


def value(content: Any, **facts: Any) -> dict[str, Any]:
    cls = type(content).__name__
    return {
        "kind": "value",
        "object": f"#{content!r}",
        "value": content,
        "class": cls,
        "mro": [cls, "object"],
        **facts,
    }


def output(key: str, dtype: str = "float32", **facts: Any) -> dict[str, Any]:
    """What a forward step made; its values are `tensors[key]`."""
    return {
        "kind": "tensor",
        "object": f"#{key}",
        "shape": [2, 4],
        "dtype": dtype,
        "device": "cpu",
        "digest": f"d-{key}",
        "requires_grad": True,
        "finite": True,
        "zero": False,
        "values": key,
        "input": "x",
        "of": "m",
        **facts,
    }


def function(*parameters: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "callable", "object": "#f", "name": "f", "module": "lib", "parameters": list(parameters)}


def parameter(name: str, kind: str = "positional-or-keyword", **default: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "required": "default" not in default, **default}


def folder(**files: dict[str, Any]) -> dict[str, Any]:
    named = {
        name.replace("__", "."): {"size": 9, "digest": f"d-{name}", **file} for name, file in files.items()
    }
    return {"kind": "folder", "object": "#folder", "files": named}


def step(label: str | None = None, index: int = 0, phase: str = "when", **facts: Any) -> dict[str, Any]:
    return {
        "phase": phase,
        "index": index,
        "label": label,
        "error": None,
        "warnings": [],
        "printed": "",
        **facts,
    }


def error(cls: str = "ValueError", message: str = "no such adapter", **facts: Any) -> dict[str, Any]:
    mro = [cls, "Exception", "BaseException", "object"]
    return {"type": cls, "mro": mro, "message": message, "origin": "implementation", "traceback": "", **facts}


def warning(message: str, cls: str = "UserWarning") -> dict[str, Any]:
    return {
        "category": cls,
        "mro": [cls, "Warning", "Exception", "BaseException", "object"],
        "message": message,
    }


GLOBALS = {
    "rng": "r0",
    "warnings-filters": "w0",
    "default-dtype": "float32",
    "grad-mode": True,
    "cwd": "start",
}


def observation(
    entities: dict[str, Any] | None = None, *, before: dict[str, Any] | None = None, **facts: Any
) -> dict[str, Any]:
    """An observation with these entities at the end, which were `before` (else the same) before `when`."""
    entities = entities or {}
    return {
        "case": "a.b",
        "implementation": {},
        "crash": None,
        "steps": [],
        "entities": entities,
        "captures": {},
        "frame": {
            "before": {"entities": before or entities, "globals": GLOBALS},
            "after": {"entities": entities, "globals": GLOBALS},
        },
        "tensors": {},
        **facts,
    }


def case(*checks: Check, axes: dict[str, Any] | None = None, models: dict[str, Any] | None = None) -> Case:
    clause = Clause(
        id="a.b",
        level="MUST",
        text="Something holds.",
        sources=(),
        api=">=0",
        profile="functional",
        topic="t",
        file=Path("a.yaml"),
        line=1,
        given=(),
        when=(),
        modifies=(),
        variants=(Variant(">=0", checks),),
    )
    return Case(clause, axes or {}, {"given": [], "when": [], "models": models or {}}, checks)


def ask(word: str, body: Any, seen: dict[str, Any], level: str = "MUST", **more: Any) -> Verdict:
    """The verdict of one check on an observation."""
    snapshots = more.pop("snapshots", None)
    (verdict,) = judge(case(Check("check", word, body, level, 1), **more), seen, SUITE, snapshots)
    return verdict


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
