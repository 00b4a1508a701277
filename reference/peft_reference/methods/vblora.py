"""VB-LoRA: W' = W + B·A, whose rows and columns are put together from pieces of one bank of vectors.

Li et al., "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks",
https://arxiv.org/abs/2405.15179. The bank (vectors, length) is the same for all layers. Each piece is a
mixture of the k vectors with the largest logits, softmax(those)·bank; A (r, in) has in / length pieces
in each row, B (out, r) out / length in each column. A file may have the k places and all but one of the k
weights instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Conv1D, Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import dropout, normal

__all__ = ["VBLoRAConfig", "VBLoRAModel"]


@dataclass
class VBLoRAConfig(PeftConfig):
    """VB-LoRA's options, in PEFT's order."""

    r: int = 4
    num_vectors: int = 256
    vector_length: int = 256  # has to divide the sizes of each layer
    topk: int = 2
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    save_only_topk_weights: bool = False  # smaller files, from which training cannot go on
    vblora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"  # which base biases to train and save: none, all, vblora_only
    modules_to_save: list[str] | None = None
    init_vector_bank_bound: float = 0.02  # the bank begins with U(-bound, bound)
    init_logits_std: float = 0.1
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None


class VBLoRALayer(BaseTunerLayer):
    """A layer with VB-LoRA adapters."""

    prefix = "vblora_"
    operators = (Linear, Conv1D)
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("topk", "save_only_topk_weights"), dict),
        "vblora_dropout": nn.ModuleDict,
        "vblora_logits_A": nn.ParameterDict,
        "vblora_logits_B": nn.ParameterDict,
    }
    shared_slots: ClassVar[dict[str, type]] = {"vblora_vector_bank": nn.ParameterDict}
    adapter_layer_names = ("vblora_logits_A", "vblora_logits_B", "vblora_vector_bank")
    dropout_slot = "vblora_dropout"
    topk: dict[str, int]
    save_only_topk_weights: dict[str, bool]
    vblora_logits_A: nn.ParameterDict
    vblora_logits_B: nn.ParameterDict
    vblora_vector_bank: nn.ParameterDict

    @classmethod
    def check(cls, config: VBLoRAConfig, base: Any, op: type[Operator], name: str) -> None:
        """Pieces have to fill the layer; numbers are positive, and k no more than there are vectors."""
        for size in op.features(base):
            if config.vector_length <= 0 or size % config.vector_length:
                raise ValueError(
                    f"The sizes of '{name}' have to be divisible by `vector_length`: {size} is not by "
                    f"{config.vector_length}."
                )
        if config.r <= 0 or not 0 < config.topk <= config.num_vectors:
            raise ValueError(
                f"r={config.r} and topk={config.topk} should be positive, and topk at most num_vectors="
                f"{config.num_vectors}."
            )

    def create(self, config: VBLoRAConfig, name: str) -> dict[str, Any]:
        """Logits of each piece: (r, in / length, vectors) and (out / length, r, vectors)."""
        n_in, n_out = (size // config.vector_length for size in (self.in_features, self.out_features))
        std = config.init_logits_std
        return {
            "topk": config.topk,
            "save_only_topk_weights": config.save_only_topk_weights,
            "vblora_dropout": dropout(config.vblora_dropout),
            "vblora_logits_A": normal(config.r, n_in, config.num_vectors, std=std),
            "vblora_logits_B": normal(n_out, config.r, config.num_vectors, std=std),
        }

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """The logits, or what a file that is for inference only has of them."""
        for live, saved, logits in super().state_entries(adapter):
            if not self.save_only_topk_weights[adapter]:
                yield live, saved, logits
                continue
            largest, places = logits.topk(self.topk[adapter], -1)
            number = next(
                t
                for t in (torch.uint8, torch.int16, torch.int32)
                if logits.shape[-1] <= torch.iinfo(t).max + 1
            )
            yield live, f"{saved}_topk_indices", places.to(number)
            yield live, f"{saved}_topk_weights", F.softmax(largest, -1)[..., :-1].contiguous()

    @classmethod
    def from_checkpoint(cls, config: VBLoRAConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """With logits where such pairs have their places: the logarithms of the weights, and -∞ elsewhere."""
        found = dict(tensors)
        for key in [key for key in tensors if key.endswith("_topk_indices")]:
            name = key.removesuffix("_topk_indices")
            weights = found.pop(f"{name}_topk_weights", None)
            if weights is None:
                continue
            places = tensors[key].long()
            weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
            logits = weights.new_full((*places.shape[:-1], config.num_vectors), -torch.inf)
            found[key] = logits.scatter(-1, places, weights.log())
        return found

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r)."""
        bank, k = self.vblora_vector_bank[adapter], self.topk[adapter]

        def pieces(logits: Tensor) -> Tensor:
            largest, places = logits.topk(k, -1)
            return (F.softmax(largest, -1)[..., None] * bank[places]).sum(-2)

        A, B = pieces(self.vblora_logits_A[adapter]), pieces(self.vblora_logits_B[adapter])
        return A.flatten(1), B.transpose(1, 2).flatten(0, 1)

    def delta(self, adapter: str) -> Tensor:
        """B·A."""
        A, B = self.factors(adapter)
        return B @ A

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + B(A(dropout(x))); RuntimeError in training with logits of which a file had the largest only."""
        compiling = torch.compiler.is_compiling()  # a graph cannot ask for values
        if self.training and not compiling and bool(self.vblora_logits_A[adapter][0, 0].isinf().any()):
            raise RuntimeError(
                "The logits are infinite: the adapter was saved with `save_only_topk_weights`, and training "
                "cannot go on with it."
            )
        A, B = self.factors(adapter)
        return y + F.linear(F.linear(self.drop_out(adapter, x.to(A.dtype)), A), B)


class VBLoRAModel(BaseTuner):
    """A model with VB-LoRA adapters."""

    tuner_layer_cls = VBLoRALayer
    target_module_mapping = defaults.ATTENTION

    @classmethod
    def create_shared(
        cls, config: VBLoRAConfig, layers: Mapping[str, BaseTunerLayer], held: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The bank (vectors, length) of a new adapter."""
        bound = config.init_vector_bank_bound
        weight = next(iter(layers.values())).weight
        bank = torch.empty(config.num_vectors, config.vector_length).uniform_(-bound, bound)
        return {"vblora_vector_bank": nn.Parameter(bank.to(weight.dtype))}


register_peft_method(PeftType.VBLORA, VBLoRAConfig, VBLoRAModel)
