"""Programs as the driver receives them, written by hand, and an implementation to perform them on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from peft_conformance.language import find_specs_dir, read_yaml

VOCABULARY = find_specs_dir() / "vocabulary"
MODELS = read_yaml(VOCABULARY / "models.yaml")["models"]
OPERATIONS = read_yaml(VOCABULARY / "operations.yaml")["operations"]
SLOTS = ["lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"]
BROKEN = Path(__file__).parent / "broken"

Step = dict[str, Any]


def program(
    when: list[Step], *, given: list[Step] | None = None, values: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A program; steps get their index, and the label that `as` or `id` gives them."""
    return {
        "case": "tests.case",
        "given": _numbered(given or []),
        "when": _numbered(when),
        "models": MODELS,
        "slots": SLOTS,
        "prefixes": ["lora_"],
        "operations": OPERATIONS,
        "values": list(values),
    }


def _numbered(steps: list[Step], before: str = "") -> list[Step]:
    result = []
    for number, step in enumerate(steps):
        body = next(iter(step.values()))
        made = step.get("as") or (body.get("id") if isinstance(body, dict) else None)
        numbered = {
            "index": f"{before}{number}" if before else number,
            **({"label": made} if made else {}),
            **step,
        }
        if "within" in step:
            inner = _numbered(step["within"]["steps"], f"{numbered['index']}.")
            numbered["within"] = {**step["within"], "steps": inner}
        result.append(numbered)
    return result


def lora(**fields: Any) -> dict[str, Any]:
    """An inline LoRA config."""
    return {"config": {"class": "LoraConfig", "fields": {"r": 4, "lora_alpha": 6, **fields}}}


def inject(model: str = "m", target: str = "layer", **arguments: Any) -> Step:
    """The step that injects a LoRA adapter into `target`."""
    return {
        "call": "inject_adapter_in_model",
        "args": {"peft_config": lora(target_modules=[target]), "model": model, **arguments},
        "as": "result",
    }


def wrap(model: str = "m", target: str = "layer", **arguments: Any) -> Step:
    """The step that makes a PeftModel called `pm`."""
    config = lora(target_modules=[target])
    return {
        "call": "get_peft_model",
        "args": {"model": model, "peft_config": config, **arguments},
        "as": "pm",
    }


def make(model: str = "one-linear", **options: Any) -> Step:
    """The step that makes the model called `m`."""
    return {"make_model": {"id": "m", "model": model, **options}}


def forget(*modules: str) -> None:
    """Forget imported modules, so that the next import runs their code again."""
    for name in [name for name in sys.modules if name.split(".")[0] in modules]:
        del sys.modules[name]
