"""TinyLoRA: W' = W + B·(Σ vᵢ·Pᵢ)·A, where B·A is the best approximation of W of rank r, the Pᵢ (r, r) are
random and only v (u) is trained, one for each group of layers.

Morris et al., "Learning to Reason in 13 Parameters", https://arxiv.org/abs/2602.04118.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..buffers import BufferDict
from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Conv1D, Embedding, Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import dropout
from .projections import warn_if_not_saved

__all__ = ["TinyLoraConfig", "TinyLoraModel"]


@dataclass
class TinyLoraConfig(PeftConfig):
    """TinyLoRA's options, in PEFT's order. ValueError for sizes below 1 or a tying outside of 0 to 1; a
    UserWarning if the projections are not saved.
    """

    r: int = 2
    u: int = 64  # numbers that are trained for each group
    weight_tying: float = 0.0  # 0: each layer is a group; 1: there is one
    projection_seed: int = 42  # of P
    save_projection: bool = True  # whether a checkpoint has P
    init_v_bound: float = 0.02
    target_modules: list[str] | set[str] | str | None = None
    tinylora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"  # which base biases to train and save: none, all, tinylora_only
    modules_to_save: list[str] | None = None
    init_weights: bool | str = True  # True: v = 0; "uniform": within the bound; False: N(0, 1)
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r <= 0 or self.u <= 0:
            raise ValueError(f"`r` and `u` should be positive, got r={self.r} and u={self.u}.")
        if not 0 <= self.weight_tying <= 1:
            raise ValueError(f"`weight_tying` should be between 0 and 1, got {self.weight_tying}.")
        warn_if_not_saved(self, "projection_seed")


class TinyLoraLayer(BaseTunerLayer):
    """A layer with TinyLoRA adapters: A (r, in), B (out, r) and P (u, r, r); A (r, dim) and B (num, r) of an
    embedding.
    """

    prefix = "tinylora_"
    operators = (Linear, Conv1D, Embedding)
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("r", "u", "group", "save_projection"), dict),
        "tinylora_dropout": nn.ModuleDict,
        **dict.fromkeys(("tinylora_A", "tinylora_B", "tinylora_P"), BufferDict),
    }
    shared_slots: ClassVar[dict[str, type]] = {"tinylora_v": nn.ModuleDict}
    adapter_layer_names = ("tinylora_v",)
    dropout_slot = "tinylora_dropout"
    group: dict[str, str]
    save_projection: dict[str, bool]
    tinylora_A: BufferDict
    tinylora_B: BufferDict
    tinylora_P: BufferDict
    tinylora_v: nn.ModuleDict

    @classmethod
    def check(cls, config: TinyLoraConfig, base: Any, op: type[Operator], name: str) -> None:
        """The weight has that rank."""
        if config.r > min(base.weight.shape):
            raise ValueError(f"r={config.r} is more than the smaller side of '{name}' has.")

    def create_with(self, config: TinyLoraConfig, name: str, shared: dict[str, Any]) -> dict[str, Any]:
        """The decomposition of the weight, in float32 at least, and P, which a checkpoint may lack; neither
        is on meta.
        """
        index, group = shared[name]
        weight = self.unmerged_weight.detach()
        if self.op is Embedding:
            weight = weight.t()  # as it is stored
        exact = weight if weight.dtype is torch.float64 else weight.float()
        left, s, right = torch.linalg.svd(exact, full_matrices=False)
        root = s[: config.r].sqrt()
        generator = torch.Generator("cpu").manual_seed(config.projection_seed + index)
        P = torch.randn(config.u, config.r, config.r, generator=generator, device="cpu") / config.r**0.5
        return {
            **{"r": config.r, "u": config.u, "group": group, "save_projection": config.save_projection},
            "tinylora_dropout": dropout(config.tinylora_dropout),
            "tinylora_A": root[:, None] * right[: config.r],
            "tinylora_B": left[:, : config.r] * root,
            "tinylora_P": P if weight.is_meta else P.to(weight.device),
        }

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """A and B, and P if it is saved."""
        for entry in super().state_entries(adapter):
            if entry[1] != "tinylora_P" or self.save_projection[adapter]:
                yield entry

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """B·(Σ vᵢ·Pᵢ) and A, in the dtype of v."""
        vectors: Any = self.tinylora_v[adapter]
        v = vectors[self.group[adapter]]
        A, B, P = (getattr(self, f"tinylora_{slot}")[adapter].to(v.dtype) for slot in "ABP")
        return B @ torch.einsum("u,uij->ij", v, P), A

    def delta(self, adapter: str) -> Tensor:
        """B·(Σ vᵢ·Pᵢ)·A."""
        B, A = self.factors(adapter)
        return (B @ A).t() if self.op is Embedding else B @ A

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """The same, applied to x, or to the rows of B that x names."""
        B, A = self.factors(adapter)
        if self.op is Embedding:
            return y + self.op.call(self.get_base_layer(), x, B.t()) @ A
        return y + F.linear(F.linear(self.drop_out(adapter, x.to(A.dtype)), A), B)


class TinyLoraModel(BaseTuner):
    """A model with TinyLoRA adapters."""

    tuner_layer_cls = TinyLoraLayer
    target_module_mapping = defaults.ATTENTION

    @classmethod
    def create_shared(
        cls, config: TinyLoraConfig, layers: Mapping[str, BaseTunerLayer], held: Mapping[str, Any]
    ) -> dict[str, Any]:
        """v of each group; and, for each layer by its name, its number and its group. Neighbours share one,
        and the last group has what is left over.
        """
        groups = max(1, round(len(layers) * (1 - config.weight_tying)))
        size = len(layers) // groups
        like = next(iter(layers.values()))
        vectors = [torch.zeros(config.u) for _ in range(groups)]
        for v in vectors:
            if config.init_weights == "uniform":
                v.uniform_(-config.init_v_bound, config.init_v_bound)
            elif not config.init_weights:
                v.normal_()
        parameters = {str(i): nn.Parameter(v.to(like.weight.dtype)) for i, v in enumerate(vectors)}
        places = {name: (i, str(min(i // size, groups - 1))) for i, name in enumerate(layers)}
        return {"tinylora_v": nn.ParameterDict(parameters).train(like.training), **places}


register_peft_method(PeftType.TINYLORA, TinyLoraConfig, TinyLoraModel)
