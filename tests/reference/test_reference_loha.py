"""LoHa's own backward pass: it keeps the factors only, and computes what autograd does of the formula."""

from __future__ import annotations

from typing import Any

import peft_reference as peft
import pytest
import torch
from peft_reference.methods.loha import _Hadamard, hadamard
from torch import Tensor, nn

# shapes of A, B and core
SHAPES = {"plain": ((5, 2), (2, 4), None), "core": ((2, 5), (2, 4), (2, 2, 3, 1))}


def factors(kind: str) -> list[Any]:
    torch.manual_seed(0)
    return [s and torch.randn(s, dtype=torch.float64, requires_grad=True) for s in SHAPES[kind] * 2]


@pytest.mark.parametrize("kind", SHAPES)
def test_gradients_are_those_of_the_formula(kind: str) -> None:
    """First and second ones, in float64."""
    own = factors(kind)
    given = [t for t in own if t is not None]
    weights = torch.randn(hadamard(0.7, *own).shape, dtype=torch.float64)
    seen = []
    for run in (_Hadamard.apply, hadamard):
        first = torch.autograd.grad((run(0.7, *own) * weights).sum(), given, create_graph=True)
        seen.append((*first, *torch.autograd.grad(sum(g.square().sum() for g in first), given)))
    torch.testing.assert_close(*seen)


def layer() -> Any:
    config = peft.LoHaConfig(target_modules=["0"], r=2, init_weights=False)
    return peft.inject_adapter_in_model(config, nn.Sequential(nn.Linear(16, 16)))


def test_nothing_of_the_size_of_the_weight_is_kept() -> None:
    model, kept = layer(), []

    def keep(saved: Tensor) -> Tensor:
        kept.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        model(torch.ones(1, 16))
    assert max(kept) < 16 * 16


def test_autocast_gives_gradients_in_the_dtype_of_the_factors() -> None:
    """Products in bfloat16, made anew outside of autocast."""
    model = layer()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.ones(1, 16)).float().square().sum()
    trained = [p for p in model.parameters() if p.requires_grad]
    own = torch.autograd.grad(loss, trained)
    expected = torch.autograd.grad(model(torch.ones(1, 16)).square().sum(), trained)
    assert all(g.dtype is torch.float32 for g in own)
    torch.testing.assert_close(own, expected, rtol=0.1, atol=0.5)


def test_transforms_of_torch_func() -> None:
    """They see the formula: a gradient for each sample."""
    model = layer()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(changed: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, changed, (x,)).square().sum()

    x = torch.randn(3, 16)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    whole = torch.func.grad(loss)(parameters, x)
    torch.testing.assert_close({name: g.sum(0) for name, g in each.items()}, whole)
