"""FRoD: W' = U·(S + diag(l))·Vᵀ, where W = U·diag(l₀)·Vᵀ, and V is the same for all layers of a name.

Wan et al., "FRoD: Full-Rank Efficient Fine-Tuning with Rotational Degrees for Fast Convergence",
https://arxiv.org/abs/2512.23485. l (in) begins with l₀, and S (in, in) with zeros: it has values at a few
places off the diagonal, the same for all those layers. With the layers' weights one below the other, Q·R,
and Z the eigenvectors of the mean of (QᵢᵀQᵢ + αI)⁻¹ over the layers, V is RᵀZ. U is in no file: its columns
and l₀ are the directions and lengths of those of W·V⁻ᵀ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..buffers import BufferGroups
from ..config import PeftConfig
from ..errors import UnsupportedOptionError
from ..layer import BaseTunerLayer
from ..operators import Conv1D, Linear, Operator
from ..registry import PeftType, register_peft_method
from .parts import dropout, zeros
from .projections import ProjectionModel

__all__ = ["FrodConfig", "FrodModel"]
SHARED = ("frod_V", "frod_s_indices", "frod_s_size")


@dataclass
class FrodConfig(PeftConfig):
    """FRoD's options, in PEFT's order. ValueError for a `sparse_rate` that is no share."""

    target_modules: list[str] | set[str] | str | None = None
    projection_prng_key: int = 0  # seed of the places of S
    save_projection: bool = True  # whether a checkpoint has V and those places
    frod_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"  # which base biases to train and save: none, all, frod_only
    modules_to_save: list[str] | None = None
    init_weights: bool = True  # an identity; else with draws from N(0, 0.1²) added
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    sparse_rate: float = 0.01  # share of the entries of S that have a value
    regularization_alpha: float = 1e-3  # α
    progressbar: bool = True  # while the weights are decomposed
    runtime_offload_base_weight: bool = False  # not offered by the reference

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparse_rate <= 1:
            raise ValueError(f"`sparse_rate` should be between 0 and 1, got {self.sparse_rate}.")


class FrodLayer(BaseTunerLayer):
    """A layer with FRoD adapters."""

    prefix = "frod_"
    operators = (Linear, Conv1D)
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("save_projection", "group", "parts_of_weight"), dict),
        "frod_dropout": nn.ModuleDict,
        "frod_lambda_l": nn.ParameterDict,
        "frod_lambda_s_values": nn.ParameterDict,
    }
    shared_slots: ClassVar[dict[str, type]] = dict.fromkeys(SHARED, BufferGroups)
    adapter_layer_names = ("frod_lambda_l", "frod_lambda_s_values")
    dropout_slot = "frod_dropout"
    save_projection: dict[str, bool]
    group: dict[str, str]  # by whose V it is
    parts_of_weight: dict[str, tuple[Any, ...]]  # U and l₀, and what they were made of
    frod_lambda_l: nn.ParameterDict
    frod_lambda_s_values: nn.ParameterDict
    frod_V: BufferGroups
    frod_s_indices: BufferGroups

    @classmethod
    def check(cls, config: FrodConfig, base: Any, op: type[Operator], name: str) -> None:
        """The base weights stay where they are."""
        if config.runtime_offload_base_weight:
            raise UnsupportedOptionError("FRoD's runtime_offload_base_weight is not implemented.")

    def create_with(self, config: FrodConfig, name: str, shared: dict[str, Any]) -> dict[str, Any]:
        """l (in) and the values of S (nonzero)."""
        group = name.rpartition(".")[2]
        V, places = shared["frod_V"][group], shared["frod_s_indices"][group]
        _, lengths = directions(self.unmerged_weight.detach(), V)
        diagonal, values = torch.empty(self.in_features).copy_(lengths), zeros(places.shape[1])
        if not config.init_weights:
            diagonal = diagonal + 0.1 * torch.randn(self.in_features)
            nn.init.normal_(values, std=0.1)
        return {
            "save_projection": config.save_projection,
            "group": group,
            "frod_dropout": dropout(config.frod_dropout),
            "frod_lambda_l": nn.Parameter(diagonal),
            "frod_lambda_s_values": values,
        }

    def shared_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """V, places and size of S for each name of layers, if they are saved."""
        for slot in self.shared_slots if self.save_projection.get(adapter) else ():
            for group, tensor in getattr(self, slot)[adapter].items():
                yield f"{slot}.{group}.{adapter}", f"{slot}.{group}", tensor

    def decomposition(self, adapter: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """U, l - l₀, the places of S and V of this layer. U and l₀ are made anew if V is another."""
        group, diagonal = self.group[adapter], self.frod_lambda_l[adapter]
        V = self.frod_V[adapter][group]
        of, version, U, lengths = self.parts_of_weight.get(adapter, (None,) * 4)
        now = 0 if V.is_inference() else V._version
        if of is not V or version != now:
            with torch.no_grad():
                U, lengths = directions(self.unmerged_weight, V)
            # exactly what l began with, whose dtype is that of the weight
            U, lengths = U.to(V.dtype), lengths.to(self.weight.dtype).to(V.dtype)
            self.parts_of_weight[adapter] = (V, now, U, lengths)
        return U, diagonal.to(V.dtype) - lengths, self.frod_s_indices[adapter][group], V

    def delta(self, adapter: str) -> Tensor:
        """U·(S + diag(l - l₀))·Vᵀ."""
        U, change, (rows, columns), V = self.decomposition(adapter)
        values = self.frod_lambda_s_values[adapter].to(V.dtype)
        return U @ change.diag().index_put((rows, columns), values, accumulate=True) @ V.t()

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + U((S + diag(l - l₀))(Vᵀ(dropout(x))))."""
        U, change, (rows, columns), V = self.decomposition(adapter)
        h = self.drop_out(adapter, x.to(V.dtype)) @ V
        turned = h[..., columns] * self.frod_lambda_s_values[adapter].to(V.dtype)
        return y + F.linear((h * change).index_add(-1, rows, turned), U)


def directions(weight: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of W·V⁻ᵀ as unit vectors, and their lengths, in float64: readers find the same."""
    inverse, info = torch.linalg.inv_ex(V.double())
    if not V.is_meta and info:  # not invertible: the weights have columns of zeros
        inverse = torch.linalg.pinv(V.double())
    columns = weight.double() @ inverse.t()
    lengths = columns.norm(dim=0)
    return columns / lengths.where(lengths > 0, 1), lengths


def joint_basis(weights: list[Tensor], alpha: float) -> Tensor:
    """V (in, in) of weights (out, in), in float32 as PEFT computes it: files may lack it, and with a single
    weight Z is made of rounding errors. Of fewer rows than columns, their right singular vectors.
    """
    rows = torch.cat(weights).float()
    if len(rows) < rows.shape[1]:
        return torch.linalg.svd(rows)[2].t().contiguous()
    Q, R = torch.linalg.qr(rows)
    one = torch.eye(rows.shape[1], device=rows.device)
    inverses = [torch.linalg.inv(q.t() @ q + alpha * one) for q in Q.split([len(w) for w in weights])]
    return R.t() @ torch.linalg.eigh(torch.stack(inverses).mean(0))[1]


def sparse_places(n: int, rate: float, generator: torch.Generator) -> Tensor:
    """Places (2, nonzero) off the diagonal of a matrix (n, n), at least one unless the rate is 0."""
    count = min(max(int(n * n * rate), int(rate > 0)), n * (n - 1))
    drawn = torch.randperm(n * (n - 1), generator=generator, device="cpu")[:count]
    rows, columns = drawn // max(n - 1, 1), drawn % max(n - 1, 1)
    return torch.stack([rows, columns + (columns >= rows)])


class FrodModel(ProjectionModel):
    """A model with FRoD adapters."""

    tuner_layer_cls = FrodLayer

    @classmethod
    def create_shared(
        cls, config: FrodConfig, layers: Mapping[str, BaseTunerLayer], held: Mapping[str, Any]
    ) -> dict[str, Any]:
        """V (in, in), places (2, nonzero) and size (2) of S for the layers of each name; on meta only if the
        weights are, for a checkpoint may lack them. ValueError if those layers' inputs are not as many.
        """
        from tqdm import tqdm  # type: ignore[import-untyped]

        groups: dict[str, list[Tensor]] = {}
        for name, layer in layers.items():
            groups.setdefault(name.rpartition(".")[2], []).append(layer.unmerged_weight.detach())
        for group, weights in groups.items():
            if len({weight.shape[1] for weight in weights}) > 1:
                raise ValueError(f"Layers called '{group}' share a basis: their inputs have to be as many.")
        generator = torch.Generator("cpu").manual_seed(config.projection_prng_key)
        shared: dict[str, dict[str, Tensor]] = {slot: {} for slot in FrodLayer.shared_slots}
        for group, weights in tqdm(sorted(groups.items()), "Decomposing", disable=not config.progressbar):
            first, n = weights[0], weights[0].shape[1]
            V = joint_basis(weights, config.regularization_alpha)
            shared["frod_V"][group] = V.to(torch.promote_types(first.dtype, torch.float32))
            places = sparse_places(n, config.sparse_rate, generator)
            shared["frod_s_indices"][group] = places.to(first.device)
            shared["frod_s_size"][group] = torch.tensor([n, n], device=first.device)
        return shared


register_peft_method(PeftType.FROD, FrodConfig, FrodModel)
