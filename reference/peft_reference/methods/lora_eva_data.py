"""What EVA makes of data: which rows of a layer's input count, and their principal directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def forward_fn_dict(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """The forward pass for batches that are dicts of keyword arguments."""
    return model(**inputs)


def prepare_model_inputs_fn_language_modeling(model_input: Mapping[str, Any], peft_config: Any) -> Tensor:
    """The positions (n, 2) of the tokens that count: neither padding nor masked labels (`use_label_mask`)."""
    counts = torch.ones_like(model_input["input_ids"], dtype=torch.bool)
    if model_input.get("attention_mask") is not None:
        counts &= model_input["attention_mask"].bool()
    if peft_config.eva_config.use_label_mask and model_input.get("labels") is not None:
        counts &= model_input["labels"] != peft_config.eva_config.label_mask_value
    return counts.nonzero()


def prepare_layer_inputs_fn_language_modeling(
    layer_input: Any, model_input: Tensor | None, layer_name: str
) -> Tensor:
    """The rows (n, in) of a layer's input (batch, tokens, in) at the positions `model_input`; all if None."""
    x = layer_input[0] if isinstance(layer_input, (tuple, list)) else layer_input
    return x.flatten(0, -2) if model_input is None else x[tuple(model_input.t())]


class RunningPca:
    """The principal directions of rows that come in batches.

    Ross et al., "Incremental Learning for Robust Visual Tracking", 2008: the singular values and directions
    so far, the new rows and the move of the mean together have the SVD of all rows.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0
        self.mean = self.squares = torch.zeros(())
        self.S, self.V = torch.zeros(0), torch.zeros(0, 0)  # (k,), (k, in)
        self.settled = False

    def add(self, rows: Tensor, tau: float) -> None:
        """Take (n, in) rows in; `settled` once no direction moves by more than `tau` allows."""
        rows = rows.to(torch.float64)
        n, mean = len(rows), rows.mean(0)
        parts = [rows - mean]
        squares = parts[0].square().sum()
        if self.count:
            move = (self.mean - mean) * (self.count * n / (self.count + n)) ** 0.5
            parts += [self.S[:, None] * self.V, move[None]]
            squares = squares + self.squares + move.square().sum()
            mean = (self.count * self.mean + n * mean) / (self.count + n)
        _, S, V = torch.linalg.svd(torch.cat(parts), full_matrices=False)
        before, self.S, self.V = self.V, S[: self.most], V[: self.most]
        self.count, self.mean, self.squares = self.count + n, mean, squares
        self.settled = before.shape == self.V.shape and bool(
            ((before * self.V).sum(1).abs() >= tau).all()
        )  # both have unit rows

    @property
    def explained(self) -> Tensor:
        """The share of the variance along each direction: (k,)."""
        return self.S.square() / self.squares


def share_out(ranks: dict[str, int], found: dict[str, RunningPca], rho: float) -> dict[str, int]:
    """New ranks with the same sum: the components that explain most of their layers get it."""
    if rho == 1:
        return ranks
    shares = [(-float(share), name) for name, pca in found.items() for share in pca.explained]
    best = [name for _, name in sorted(shares, key=lambda entry: entry[0])[: sum(ranks.values())]]
    return {name: best.count(name) for name in ranks}


def chosen_rows(pca: RunningPca, rank: int, whiten: bool) -> Tensor:
    """The first `rank` directions, (rank, in); ValueError if there are fewer."""
    if rank > len(pca.V):
        raise ValueError(f"EVA found {len(pca.V)} directions for a rank of {rank}: more data are needed.")
    return (pca.V[:rank] / pca.S[:rank, None].sqrt() if whiten else pca.V[:rank]).contiguous()
