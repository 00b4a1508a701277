"""LN tuning: a copy of the layer, usually a norm, is trained and stands in its place: (W', b') = (N, c).

Zhao et al., "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning",
https://arxiv.org/abs/2312.11420. Any module that has parameters can be tuned so.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import AnyModule, Operator
from ..registry import PeftType, register_peft_method
from . import defaults

__all__ = ["LNTuningConfig", "LNTuningModel"]


@dataclass
class LNTuningConfig(PeftConfig):
    """LN tuning's options, in PEFT's order."""

    target_modules: list[str] | set[str] | str | None = None  # by default the norms of the architecture
    exclude_modules: list[str] | set[str] | str | None = None
    modules_to_save: list[str] | str | None = None


def without_values(module: nn.Module) -> nn.Module:
    """The module with its saved tensors on the meta device; what no checkpoint has keeps its values."""
    for part in module.modules():
        for key, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[key] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        for key in part._buffers.keys() - part._non_persistent_buffers_set:
            buffer = part._buffers[key]
            part._buffers[key] = None if buffer is None else buffer.to("meta")
    return module


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating point tensors, also those in a tuple, in this type."""
    if isinstance(value, tuple):
        return tuple(cast(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class LNTuningLayer(BaseTunerLayer):
    """A module with trained copies, one of which is used at a time."""

    prefix = "ln_tuning_"
    operators = (AnyModule,)
    slots: ClassVar[dict[str, type]] = {"ln_tuning_layers": nn.ModuleDict}
    ln_tuning_layers: nn.ModuleDict
    adapter_layer_names = ("ln_tuning_layers",)
    _saved_state: dict[str, Tensor]

    @classmethod
    def operator_for(cls, module: nn.Module) -> type[Operator] | None:
        """Any module that has a tensor to train."""
        return AnyModule if any(p.is_floating_point() for p in module.parameters()) else None

    def create(self, config: LNTuningConfig, name: str) -> dict[str, Any]:
        """The copy."""
        copied = copy.deepcopy(self.get_base_layer())
        return {"ln_tuning_layers": without_values(copied) if torch.empty(0).is_meta else copied}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the active copy, or of the module itself; ValueError if several copies are active."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        active = [name for name in self._active_adapter if name in self._adapters]
        if self._disable_adapters or self.merged_adapters or not active:
            return self.base_layer(*args, **kwargs)
        if len(active) > 1:
            raise ValueError(f"LN tuning can use one adapter at a time; {active} are active.")
        chosen = self.ln_tuning_layers[active[0]]
        own, dtype = self.weight.dtype, self.op.weight(chosen).dtype
        if dtype is own:
            return chosen(*args, **kwargs)
        kwargs = {key: cast(value, dtype) for key, value in kwargs.items()}
        return cast(chosen(*cast(args, dtype), **kwargs), own)

    def check_per_sample(self, adapter: str) -> None:
        """ValueError: one copy is used for the whole batch."""
        raise ValueError("LN tuning cannot use different adapters for the samples of a batch.")

    def mergeable_adapters(self, adapter_names: list[str] | None = None) -> list[str]:
        """As for any layer; ValueError if that would make more than one."""
        names = super().mergeable_adapters(adapter_names)
        if len(names) + len(self.merged_adapters) > 1:
            raise ValueError(f"LN tuning can merge one adapter, not {[*self.merged_adapters, *names]}.")
        return names

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the copy's tensors into the module."""
        for name in self.mergeable_adapters(adapter_names):
            base = self.get_base_layer()
            if safe_merge:
                self.merged_base([name], safe_merge)
            self._saved_state = {key: tensor.clone() for key, tensor in base.state_dict().items()}
            base.load_state_dict(self.ln_tuning_layers[name].state_dict())
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the module's own tensors back, bit for bit."""
        if self.merged_adapters:
            self.get_base_layer().load_state_dict(self._saved_state)
            del self._saved_state
        self.merged_adapters.clear()

    def merged_base(self, adapters: list[str], safe_merge: bool) -> tuple[Tensor, Tensor | None]:
        """One of the copy's tensors; ValueError if `safe_merge` meets a NaN or inf in any."""
        tensors = [*self.ln_tuning_layers[adapters[0]].parameters()]
        if safe_merge and not all(tensor.isfinite().all() for tensor in tensors):
            raise ValueError(
                f"Merging adapter '{adapters[0]}' would put NaN or infinite values into a module."
            )
        return tensors[0], None


class LNTuningModel(BaseTuner):
    """A model with LN tuning adapters."""

    tuner_layer_cls = LNTuningLayer
    target_module_mapping = defaults.NORMS


register_peft_method(PeftType.LN_TUNING, LNTuningConfig, LNTuningModel)
