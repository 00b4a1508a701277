"""Combinations of adapters, against values worked out by hand on matrices of rank one and on the identity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft_conformance.script_parts import combined, entrywise, not_dropped

A1, B1 = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0], [0.0]])
A2, B2 = torch.tensor([[4.0, 1.0]]), torch.tensor([[-1.0], [2.0]])
PARTS = [(2.0, A1, B1), (0.5, A2, B2)]  # deltas [[6, -12], [0, 0]] and [[-2, -0.5], [4, 1]]
EYE = torch.eye(2)


@pytest.mark.parametrize(
    ("kind", "options", "delta"),
    [
        pytest.param("cat", {}, [[4.0, -12.5], [4.0, 1.0]], id="cat"),
        pytest.param("svd", {"rank": 2}, [[4.0, -12.5], [4.0, 1.0]], id="svd-of-full-rank"),
        pytest.param("dare_linear_svd", {}, [[4.0, -12.5], [4.0, 1.0]], id="nothing-dropped"),
        pytest.param("magnitude_prune_svd", {"density": 0.5}, [[4.0, -12.0], [4.0, 0.0]], id="trimmed"),
        pytest.param("ties_svd", {}, [[6.0, -6.25], [4.0, 1.0]], id="ties"),
        pytest.param("ties_svd", {"density": 0.5}, [[6.0, -12.0], [4.0, 0.0]], id="trimmed-ties"),
    ],
)
def test_products_are_combined_as_worked_out_by_hand(kind: str, options: dict[str, Any], delta: Any) -> None:
    found = combined(PARTS, [1.0, 1.0], kind, **options)
    assert torch.allclose(found, torch.tensor(delta), atol=1e-5)


def test_weights_count_in_cat_and_keep_their_sign() -> None:
    assert combined(PARTS, [0.5, -2.0], "cat").tolist() == [[7.0, -5.0], [-8.0, -2.0]]


def test_truncation_keeps_the_larger_singular_value() -> None:
    parts = [(1.0, EYE * 3, EYE[:, :1] @ EYE[:1]), (1.0, EYE, EYE[:, 1:] @ EYE[1:])]
    found = combined(parts, [1.0, 1.0], "svd", rank=1)
    assert torch.allclose(found, torch.diag(torch.tensor([3.0, 0.0])), atol=1e-6)


def test_factors_take_the_root_of_weight_and_scaling_and_one_of_them_the_sign() -> None:
    assert torch.allclose(combined([PARTS[0]], [-1.5], "linear"), -1.5 * 2 * B1 @ A1)


def test_the_elected_sign_is_that_of_the_sum_or_of_the_majority() -> None:
    tensors = [torch.tensor([-4.0]), torch.tensor([1.0]), torch.tensor([2.0])]
    assert entrywise("ties", tensors, [1.0, 1.0, 1.0], 1.0, "total").item() == -4
    assert entrywise("ties", tensors, [1.0, 1.0, 1.0], 1.0, "frequency").item() == 1.5


def test_dropping_is_told_from_what_it_is_not() -> None:
    tensor = torch.arange(1.0, 9.0)
    kept = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0])

    def wrong(found: torch.Tensor) -> str:
        return not_dropped(found, [tensor], [3.0], "dare_linear_svd", 0.5, "total", 1e-5, 1e-5)

    assert wrong(3 * tensor * kept / 0.5) == ""
    assert "no dropping leaves" in wrong(3 * tensor * kept)
    assert "no dropping leaves" in wrong(tensor * kept / 0.5)
    assert "all entries" in wrong(3 * tensor / 0.5)
    assert "all entries" in wrong(0 * tensor)
