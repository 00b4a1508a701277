"""LoRA: W' = W + s·B·A with A (r, in, *kernel) and B (out, r), s = alpha / r.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685; with s =
alpha / √r, Kalajdzievski, "A Rank Stabilization Scaling Factor", https://arxiv.org/abs/2312.03732.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import walk
from ..combining import Combination
from ..injection import BaseTuner
from ..registry import PeftType, register_peft_method
from . import defaults
from .lora_alora import watching
from .lora_config import LoraConfig
from .lora_convert import as_plain_lora
from .lora_kasa import regulariser
from .lora_layer import LoraLayer
from .lora_replication import replicate_layers
from .lora_weighted import add_combined

__all__ = ["LoraModel"]


class LoraModel(BaseTuner):
    """A model with LoRA adapters."""

    tuner_layer_cls = LoraLayer
    as_plain = staticmethod(as_plain_lora)
    target_module_mapping = defaults.ATTENTION

    @classmethod
    def prepare_model(cls, model: nn.Module, config: Any, adapter_name: str) -> Callable[[], Any] | None:
        """`layer_replication`, which comes once: with the first adapter."""
        others = {**(getattr(model, "peft_config", None) or {})}
        others.pop(adapter_name, None)
        if not others:
            return replicate_layers(model, config.layer_replication) if config.layer_replication else None
        for name, other in others.items():
            if config.layer_replication and config.layer_replication != other.layer_replication:
                raise ValueError(
                    f"layer_replication={config.layer_replication} comes too late: adapter '{name}' was "
                    f"added with layer_replication={other.layer_replication}."
                )
        return None

    @classmethod
    def check_targets(cls, model: nn.Module, names: Collection[str]) -> None:
        """ValueError for the two modules of Mamba that compute in kernels of their own, past any adapter."""
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        bypassed = [name for name in names if name.rpartition(".")[2] in ("out_proj", "conv1d")]
        if bypassed and model_type in ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"):
            raise ValueError(
                f"{', '.join(bypassed)} cannot be adapted in a model of type {model_type!r}: Mamba's kernels "
                "read the base weights."
            )

    @classmethod
    def settle(cls, config: Any, model: nn.Module, adapter_name: str) -> dict[str, Any]:
        """ValueError for KaSA, which changes base weights, beside adapters without it, and the reverse."""
        others = (getattr(model, "peft_config", None) or {}).items()
        name, other = next((item for item in others if item[0] != adapter_name), (None, config))
        wanted, there = (getattr(c, "kasa_config", None) is not None for c in (config, other))
        if wanted != there:  # one tells: the others are like it
            raise ValueError(
                f"KaSA changes the base weights, so that either all adapters use it or none: '{name}' "
                f"{'does' if there else 'does not'}."
            )
        return super().settle(config, model, adapter_name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted model's output; aLoRA adapters act from their invocation in the token ids on."""
        if not (invocations := self._invocations()):
            return self.model(*args, **kwargs)
        with watching(self.model, invocations, kwargs.get("input_ids", args[0] if args else None)):
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's `generate` gives; aLoRA adapters act from their invocation in the prompt on.

        ValueError for beams with aLoRA.
        """
        if not (invocations := self._invocations()):
            return self.model.generate(*args, **kwargs)  # type: ignore[operator]
        config = kwargs.get("generation_config") or getattr(self.model, "generation_config", None)
        if (kwargs.get("num_beams") or getattr(config, "num_beams", None) or 1) > 1:
            raise ValueError("aLoRA does not work with beam search, which reorders the samples.")
        prompt = next((kwargs[key] for key in ("input_ids", "inputs") if kwargs.get(key) is not None), None)
        prompt = args[0] if prompt is None and args else prompt
        with watching(self.model, invocations, prompt, generates=True):
            return self.model.generate(*args, **kwargs)  # type: ignore[operator]

    def _invocations(self) -> dict[str, list[int]]:
        """The invocation tokens of each aLoRA adapter."""
        tokens = {n: getattr(c, "alora_invocation_tokens", None) for n, c in self.peft_config.items()}
        return {name: found for name, found in tokens.items() if found}

    def _get_kasa_loss(self, adapter_names: str | list[str] | None = None) -> Tensor | float:
        """The sum of KaSA's regularisers, weighted as each config says, over all layers that have one of the
        adapters (default: the active ones); 0.0 if none has. To be added to the loss.
        """
        terms = [
            regulariser(layer, name, self.peft_config[name].kasa_config)  # type: ignore[attr-defined]
            for layer, name in self._with("lora_diag", adapter_names)
        ]
        return torch.stack(terms).sum() if terms else 0.0

    def _get_monteclora_loss(self, adapter_names: str | list[str] | None = None) -> Tensor | float:
        """The mean of MonteCLoRA's losses over all samplers in training mode of the adapters (default: the
        active ones); 0.0 if there are none. To be added to the loss.
        """
        samplers = [
            layer.lora_monteclora_sampler[name]
            for layer, name in self._with("lora_monteclora_sampler", adapter_names)
        ]
        terms = [sampler.loss() for sampler in samplers if sampler.training]
        return torch.stack(terms).mean() if terms else 0.0

    def _with(self, slot: str, adapter_names: str | list[str] | None) -> list[tuple[Any, str]]:
        """Layers and which of these adapters (default: the active ones) have something in this slot there."""
        names = self.active_adapters if adapter_names is None else adapter_names
        return [
            (layer, name)
            for _, layer in walk(self.model)
            for name in ([names] if isinstance(names, str) else names)
            if isinstance(layer, LoraLayer) and name in getattr(layer, slot, ())
        ]

    def check_merge_allowed(self) -> None:
        """ValueError with replicated layers: several adapters would be written into one weight."""
        if any(getattr(config, "layer_replication", None) for config in self.peft_config.values()):
            raise ValueError(
                "Adapters on replicated layers share base weights, so that they cannot be merged."
            )

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: str = "total",
    ) -> None:
        """Add one adapter, inactive and frozen, that is several others with weights, positive or negative.

        `cat` is exactly the weighted sum of their deltas, of the sum of their ranks; `svd` the best
        approximation of it of rank `svd_rank` (default: the largest of theirs). `linear` adds the factors
        instead, each with the root of its weight and scaling. `magnitude_prune`, `ties`, `dare_linear` and
        `dare_ties` do so with the share `density` of the entries, or with `_svd` treat the deltas like that.
        One adapter alone is always `linear`, and a name that exists is left as it is.

        ValueError, before anything changes, for an unknown type or adapter, another number of weights than of
        adapters, ranks that differ (unless `cat` or svd), `modules_to_save` of the same module, names mixed
        with a regular expression in `target_modules`, target parameters, and variants of LoRA.
        """
        if adapter_name in self.peft_config:
            return
        self.check_names(adapters)
        if not adapters or len(adapters) != len(weights):
            raise ValueError(f"One weight for each adapter is needed, got {len(weights)} for {adapters}.")
        combination = Combination(
            "linear" if len(adapters) == 1 else combination_type,
            density,
            majority_sign_method,
            svd_clamp,
            svd_full_matrices,
            svd_driver,
        )
        add_combined(self, list(zip(adapters, weights, strict=True)), adapter_name, combination, svd_rank)


register_peft_method(PeftType.LORA, LoraConfig, LoraModel)
