"""AdaLoRA: W' = W + alpha / r · B·diag(E)·A, like a decomposition into singular values, pruned as it trains.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
https://arxiv.org/abs/2303.10512: triplets (a column of B, an entry of E, a row of A) that matter least lose
their entry of E, until all matrices together have the target rank; the loss keeps A and B near orthogonality.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Conv1D, Conv2d, Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .adalora_config import AdaLoraConfig
from .adalora_ranks import RankAllocator, key_of
from .parts import dropout

__all__ = ["AdaLoraModel"]


class AdaLoraLayer(BaseTunerLayer):
    """A layer with AdaLoRA adapters: three matrices, and the rank that their product is divided by."""

    prefix = "lora_"
    operators = (Linear, Conv1D, Conv2d)
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("r", "lora_alpha", "scaling", "kept"), dict),
        "lora_dropout": nn.ModuleDict,
        **dict.fromkeys(("lora_A", "lora_B", "lora_E", "ranknum"), nn.ParameterDict),
    }
    lora_A: nn.ParameterDict
    lora_B: nn.ParameterDict
    lora_E: nn.ParameterDict
    ranknum: nn.ParameterDict  # of one number, neither trained nor saved
    scaling: dict[str, float]  # alpha alone
    kept: dict[str, Tensor]  # the triplets that are saved, when training has decided
    adapter_layer_names = ("lora_A", "lora_B", "lora_E")
    dropout_slot = "lora_dropout"

    @classmethod
    def check(cls, config: AdaLoraConfig, base: Any, op: type[Operator], name: str) -> None:
        """The rank is positive, the convolution has no groups."""
        if config.init_r <= 0:
            raise ValueError(f"`init_r` should be positive, got {config.init_r}.")
        if getattr(base, "groups", 1) > 1:
            raise ValueError(
                f"'{name}' has groups={base.groups}, which AdaLoRA's dense matrices cannot have."
            )

    def create(self, config: AdaLoraConfig, name: str) -> dict[str, Any]:
        """A (r, in·kernel) and B (out, r) from N(0, 0.02²), E (r, 1) zero; r is what `rank_pattern` keeps."""
        kept = (config.rank_pattern or {}).get(key_of(name))
        r = config.init_r if kept is None else sum(kept)
        std = 0.02 if config.init_lora_weights else 1.0
        n_in = self.op.canonical(self.weight)[0].numel()
        contents = {
            "lora_A": torch.randn(r, n_in) * std,
            "lora_B": torch.randn(self.out_features, r) * std,
            "lora_E": torch.zeros(r, 1) if config.init_lora_weights else torch.randn(r, 1),
            # in memory at once: no file has it
            "ranknum": torch.full((1,), float(config.init_r), device=self.weight.device),
        }
        made = {slot: nn.Parameter(tensor, slot != "ranknum") for slot, tensor in contents.items()}
        alpha, drops = config.lora_alpha, dropout(config.lora_dropout)
        return {"r": r, "lora_alpha": alpha, "scaling": alpha, "lora_dropout": drops, **made}

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """A, B and E, of which only the triplets that were kept; not `ranknum`."""
        for slot, dim in (("lora_A", 0), ("lora_B", 1), ("lora_E", 0)):
            if adapter in getattr(self, slot):
                tensor = getattr(self, slot)[adapter].detach()
                kept = self.kept.get(adapter)
                yield f"{slot}.{adapter}", slot, tensor if kept is None else tensor.index_select(dim, kept)

    def factors(self, adapter: str) -> tuple[Tensor, Tensor, Any]:
        """B, diag(E)·A, and what their product is scaled by."""
        scale = self.scaling[adapter] / (self.ranknum[adapter] + 1e-5)
        return self.lora_B[adapter], self.lora_E[adapter] * self.lora_A[adapter], scale

    def delta(self, adapter: str) -> Tensor:
        """alpha / r · B·diag(E)·A as (out, in, *kernel)."""
        b, ea, scale = self.factors(adapter)
        return ((b @ ea) * scale).view(self.op.canonical(self.weight).shape)

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """The delta applied to dropout(x), in two small products where the layer is linear."""
        x = self.drop_out(adapter, x.to(self.lora_A[adapter].dtype))
        if self.op is Conv2d:
            return y + self.op.call(self.get_base_layer(), x, self.delta(adapter))
        b, ea, scale = self.factors(adapter)
        return y + F.linear(F.linear(x, ea), b) * scale


class AdaLoraModel(BaseTuner):
    """A model with AdaLoRA adapters, one of which can be trained: call `update_and_allocate` in each step."""

    tuner_layer_cls = AdaLoraLayer
    target_module_mapping = defaults.ADALORA

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._allocator: RankAllocator | None = None

    @classmethod
    def settle(cls, config: AdaLoraConfig, model: nn.Module, adapter_name: str) -> dict[str, Any]:
        """ValueError for a second adapter that is to be trained."""
        others = {**(getattr(model, "peft_config", None) or {})}
        others.pop(adapter_name, None)
        if not config.inference_mode:
            for name, other in others.items():
                if isinstance(other, AdaLoraConfig) and not other.inference_mode:
                    raise ValueError(
                        f"AdaLoRA supports only 1 trainable adapter, and '{name}' is one: give the others "
                        "inference_mode=True."
                    )
        return {}

    @property
    def trainable_adapter_name(self) -> str | None:
        """The adapter whose rank is allocated; None if all are for inference."""
        return next((name for name, c in self.peft_config.items() if not c.inference_mode), None)

    @property
    def rankallocator(self) -> RankAllocator:
        """What allocates the rank of the trainable adapter; ValueError without one."""
        name = self.trainable_adapter_name
        if name is None:
            raise ValueError("No AdaLoRA adapter is trained here: all have inference_mode=True.")
        if self._allocator is None or self._allocator.adapter_name != name:
            self._allocator = RankAllocator(self.model, self.peft_config[name], name)
        return self._allocator

    def update_and_allocate(self, global_step: int) -> None:
        """Take the step's gradients into account and, where the schedule says so, prune entries of E.

        Call after `optimizer.step()` and before the gradients are cleared. When the schedule has ended, the
        triplets that are left are recorded in the config's `rank_pattern`, and only they are saved.
        """
        self.rankallocator.step(global_step)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted model's output; in its `loss`, if it has one, the orthogonality of A and B."""
        output = super().forward(*args, **kwargs)
        name = self.trainable_adapter_name
        if name is not None and isinstance(getattr(output, "loss", None), Tensor):
            weight = self.peft_config[name].orth_reg_weight  # type: ignore[attr-defined]
            output.loss = output.loss + weight * self.rankallocator.orthogonality()
        return output


register_peft_method(PeftType.ADALORA, AdaLoraConfig, AdaLoraModel)
