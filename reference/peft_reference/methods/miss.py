"""MiSS: W' = W + [Dᵀ Dᵀ …], shards of r columns that share one matrix D (r, out).

Kang and Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure",
https://arxiv.org/abs/2409.15371. With `mini` shards of the outputs share too, so that D is (r, mini_r). With
`bat` each r × r block Wⱼₖ becomes Wⱼₖ + Wⱼₖ·Dⱼ + Dⱼ, with D (out/r, r, r), and several adapters act in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import check_bias, dropout, random, rank_of, zeros

__all__ = ["MissConfig", "MissModel"]


@dataclass
class MissConfig(PeftConfig):
    """MiSS's options, in PEFT's order."""

    r: int = 64  # the width of a shard of the inputs
    miss_dropout: float = 0.0  # of the adapter's input
    mini_r: int = 1  # the width of a shard of the outputs, with mini
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    init_weights: bool | str | None = (
        True  # zeros, as for 'mini' and 'bat', which are variants; False: random
    )
    layers_to_transform: list[int] | int | None = None
    layers_pattern: str | None = None
    bias: str = "none"  # which base biases to train and save: none, all, MiSS_only
    modules_to_save: list[str] | None = None


class MissLayer(BaseTunerLayer):
    """A layer with MiSS adapters."""

    prefix = "miss_"
    operators = (Linear,)
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("miss_r", "miss_mini_r"), dict),
        "miss_dropout": nn.ModuleDict,
        "miss_block": nn.ParameterDict,
    }
    adapter_layer_names = ("miss_block",)
    dropout_slot = "miss_dropout"
    miss_block: nn.ParameterDict

    @classmethod
    def check(cls, config: MissConfig, base: Any, op: type[Operator], name: str) -> None:
        """Shards fit into the weight; those of a variant fill it."""
        r = rank_of(config, name)
        check_bias(config, "MiSS_only", "miss_only")
        n_in, n_out = op.features(base)
        if config.init_weights not in (True, False, None, "mini", "bat"):
            raise ValueError(
                f"init_weights={config.init_weights!r} is none of True, False, 'mini' and 'bat'."
            )
        if r > n_in:
            raise ValueError(f"r={r} is too large for '{name}', which has {n_in} inputs.")
        if config.init_weights == "mini" and (config.mini_r <= 0 or n_out % config.mini_r):
            raise ValueError(f"mini_r={config.mini_r} has to divide the {n_out} outputs of '{name}'.")
        if config.init_weights == "bat" and (n_in % r or n_out % r):
            raise ValueError(f"r={r} has to divide the {n_in} inputs and the {n_out} outputs of '{name}'.")

    def create(self, config: MissConfig, name: str) -> dict[str, Any]:
        """D, zero unless the config says otherwise."""
        r, n_out = config.r, self.out_features
        shapes = {"bat": (n_out // r, r, r), "mini": (r, config.mini_r)}
        shape = shapes.get(str(config.init_weights), (r, n_out))
        return {
            **{"miss_r": r, "miss_mini_r": config.mini_r},
            "miss_dropout": dropout(config.miss_dropout),
            "miss_block": (zeros if config.init_weights else random)(*shape),
        }

    def multiplies(self, adapter: str) -> bool:
        """Whether the adapter multiplies the weight that it meets, which `bat` does."""
        return self.miss_block[adapter].dim() == 3

    def shared(self, adapter: str) -> Tensor:
        """D for all outputs, (r, out)."""
        return self.for_all_outputs(self.miss_block[adapter])

    def for_all_outputs(self, D: Tensor) -> Tensor:
        """D (r, out) of one (r, mini_r); D itself, no copy, where its shards are all outputs."""
        times = self.out_features // D.shape[1]
        return D.repeat(1, times) if times > 1 else D

    def change(self, adapter: str, weight: Tensor) -> Tensor:
        """What the adapter adds to a weight (out, in)."""
        if not self.multiplies(adapter):
            D = self.shared(adapter)
            return D.mT.repeat(1, -(-self.in_features // len(D)))[:, : self.in_features]
        D = self.miss_block[adapter][:, None]
        r = D.shape[-1]
        blocks = weight.to(D.dtype).view(-1, r, self.in_features // r, r).transpose(1, 2)  # (j, k, r, r)
        return (blocks @ D + D).transpose(1, 2).reshape(weight.shape)

    def delta(self, adapter: str) -> Tensor:
        """What the adapter adds to the base weight when it acts alone."""
        return self.change(adapter, self.unmerged_weight)

    def fold(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight with what the adapter adds to it."""
        return weight + self.change(adapter, weight), bias

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """Inputs that share are summed before they meet D; `bat` has to build what it adds."""
        D = self.miss_block[adapter]
        x = self.drop_out(adapter, x).to(D.dtype)
        if D.dim() == 3:
            return y + F.linear(x, self.change(adapter, self.weight_before(adapter)))
        if beyond := -x.shape[-1] % len(D):  # padding by nothing would copy x
            x = F.pad(x, (0, beyond))
        return y + x.unflatten(-1, (-1, len(D))).sum(-2) @ self.for_all_outputs(D)


class MissModel(BaseTuner):
    """A model with MiSS adapters."""

    tuner_layer_cls = MissLayer
    target_module_mapping = defaults.ATTENTION


register_peft_method(PeftType.MISS, MissConfig, MissModel)
