"""How often the graph of an adapted linear layer breaks under `torch.compile`, for every method."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from peft_conformance.expand import fill
from peft_conformance.language import Suite, find_specs_dir, load_suite
from peft_conformance.models import build, make_input

LAYER = "one-linear"
SUITE: Suite = load_suite(find_specs_dir())


def methods() -> list[str]:
    """Those that adapt linear layers and need no package of their own."""
    made = {name: SUITE.method(name) for name in SUITE.set_values("law-methods")}
    return [n for n, m in made.items() if m and "Linear" in m.fact("layers") and "packages" not in m.card]


def breaks(library: ModuleType, method: str) -> int:
    """How many there are in one forward pass in training, with the options of the method's card."""
    made: Any = SUITE.method(method)
    options = fill(made.options(), {})  # plain lists and mappings
    config = getattr(library, made.card["config"]["class"])(target_modules=["layer"], **options)
    model = library.get_peft_model(build(SUITE.models[LAYER]), config).base_model.train()
    (x,) = make_input(SUITE.models[LAYER]).values()
    arguments = {}
    if made.fact("forward_arguments"):
        x, arguments = x[:, None], {"task_ids": torch.zeros(len(x), dtype=torch.long)}
    torch._dynamo.reset()
    return int(torch._dynamo.explain(model)(x, **arguments).graph_break_count)
