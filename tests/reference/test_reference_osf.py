"""What the language of the specs cannot see of OSF: the values of gradients."""

from __future__ import annotations

from typing import Any

import peft_reference
import pytest
import torch
from torch import nn

upstream = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")


def trained(implementation: Any, n_in: int, n_out: int) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(n_in, n_out))
    config = implementation.OSFConfig(target_modules=["0"], effective_rank=2)
    implementation.inject_adapter_in_model(config, model)
    model(torch.randn(5, n_in)).square().sum().backward()
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("size", [(8, 12), (12, 8), (8, 8)])
def test_gradients_are_orthogonal_to_what_is_kept_as_upstream(size: tuple[int, int]) -> None:
    ours, theirs = (trained(implementation, *size) for implementation in (peft_reference, upstream))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(nn.Linear(*size).weight.detach(), full_matrices=False)
    gradients = {name.rpartition(".")[2]: parameter.grad for name, parameter in ours.items()}
    up, across = gradients["U_low"], gradients["V_low"]
    assert up is not None
    assert across is not None
    assert (left[:, :2].T @ up).abs().max() < 1e-5
    assert (across @ right[:2].T).abs().max() < 1e-5
