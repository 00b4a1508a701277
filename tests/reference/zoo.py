"""Small models and helpers for the tests of the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class MLP(nn.Module):
    def __init__(self, width: int = 12, bias: bool = True) -> None:
        super().__init__()
        self.lin0 = nn.Linear(8, width, bias=bias)
        self.lin1 = nn.Linear(width, 4, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin1(self.lin0(x).relu())


def build(make: Callable[[], nn.Module] = MLP, seed: int = 0) -> Any:
    """The same model every time, in eval mode."""
    torch.manual_seed(seed)
    return make().eval()


def perturb(model: nn.Module, seed: int = 1) -> None:
    """Give everything that trains random values, in an order that does not depend on the implementation."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.3


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a failed call could have left behind: modules, values, trainability, modes, configs."""
    return {
        "modules": {name: (id(module), module.training) for name, module in model.named_modules()},
        "values": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "parameters": {name: (id(p), p.requires_grad) for name, p in model.named_parameters()},
        "configs": dict(getattr(model, "peft_config", {})),
        "has configs": hasattr(model, "peft_config"),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["values"].keys() == after["values"].keys()
    for name, tensor in before["values"].items():
        assert torch.equal(tensor, after["values"][name]), name
    for aspect in ("modules", "parameters", "configs", "has configs"):
        assert before[aspect] == after[aspect], aspect
