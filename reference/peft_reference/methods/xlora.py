"""X-LoRA: y' = y + w·Σₙ gₙ(x)·sₙBₙAₙx, LoRA adapters (experts) that a classifier mixes for each token.

Buehler and Buehler, "X-LoRA: Mixture of Low-Rank Adapter Experts", https://arxiv.org/abs/2402.07148: the
model runs twice. The first pass, with every g the same number, gives the last hidden states, from which the
classifier computes g; the second pass is the output. Only the classifier is trained.

Somewhat longer than other files: X-LoRA is a tuner of its own, with experts that it loads, two passes, a log.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import holders, walk
from ..config import PeftConfig
from ..injection import BaseTuner, Injection, check_adapter_name
from ..registry import PeftType, register_peft_method
from ..saving import load_peft_weights
from ..state_dict import adapter_entries, set_peft_model_state_dict
from .lora import LoraModel
from .lora_config import LoraConfig
from .lora_layer import LoraLayer
from .lora_variant import LoraVariant
from .xlora_gates import Classifier, Gate, gates

__all__ = ["XLoraConfig", "XLoraModel"]


@dataclass
class XLoraConfig(PeftConfig):
    """X-LoRA's options, in PEFT's order; `adapters` maps the experts' names to where they are saved."""

    hidden_size: int | None = None  # of the base model
    adapters: dict[str, str] | None = None
    enable_softmax: bool = True  # over the experts
    enable_softmax_topk: bool = False  # over those that `top_k_lora` leaves
    layerwise_scalings: bool = False  # whether each layer has a mixture of its own
    xlora_depth: int = 1  # linear layers of the classifier
    xlora_size: int = 2048  # width between them
    xlora_dropout_p: float = 0.2  # between them
    use_trainable_adapters: bool = False
    softmax_temperature: float = 1.0
    top_k_lora: int | None = None  # how many experts act on a token; None: all
    scaling_pass_value: float | None = 0.0  # g in the first pass; None: one divided by the number of experts
    global_scaling_weight: float = 1.0  # w

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size is None:
            warnings.warn("`hidden_size` was not given and is taken as 4096.", stacklevel=3)
            self.hidden_size = 4096
        if self.adapters is None:
            warnings.warn("`adapters` was not given: there are no experts.", stacklevel=3)
            self.adapters = {}
        if self.enable_softmax_topk and self.top_k_lora is None:
            warnings.warn("`enable_softmax_topk` does nothing without `top_k_lora`.", stacklevel=3)
        if self.enable_softmax_topk and self.enable_softmax:
            warnings.warn("`enable_softmax` and `enable_softmax_topk` are for one another.", stacklevel=3)
        if self.top_k_lora is not None and self.top_k_lora < 1:
            warnings.warn("`top_k_lora` should be at least 1.", stacklevel=3)

    def validate(self) -> None:
        """ValueError: a classifier is part of a whole PeftModel, and is alone there."""
        raise ValueError("X-LoRA is for a PeftModel of its own: use `get_peft_model`.")

    def located(self, folder: str | os.PathLike[str], **kwargs: Any) -> XLoraConfig:
        """With the experts where they were saved, or where `adapters` says."""
        given = kwargs.get("adapters") or {}
        saved = {name: os.path.join(folder, name) for name in self.adapters or {}}
        found = {name: path for name, path in saved.items() if os.path.isdir(path)}
        return dataclasses.replace(self, adapters={**(self.adapters or {}), **found, **given})


class Experts(list[Injection]):
    """The experts on their way into a model."""

    def undo(self) -> None:
        """Leave the model as it was before the first."""
        for injection in reversed(self):
            injection.undo()

    def forget(self) -> None:
        """Drop what `undo` needs."""
        for injection in self:
            injection.forget()


class XLoraModel(BaseTuner):
    """A model with LoRA experts and a classifier, which only a `PeftModel` can have, and only one.

    AttributeError for a model without a config; ValueError for one that uses its cache, for a classifier
    without layers, for no experts, and for an expert whose file lacks weights. Nothing has changed then.
    """

    tuner_layer_cls = LoraLayer

    def __init__(
        self,
        model: Any,
        peft_config: XLoraConfig,
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        nn.Module.__init__(self)
        check_adapter_name(adapter_name)
        if model.config.use_cache:
            raise ValueError("`use_cache` must be False in the config of a model that runs twice.")
        if peft_config.xlora_depth < 1:
            raise ValueError(f"`xlora_depth` should be positive, got {peft_config.xlora_depth}.")
        if not peft_config.adapters or adapter_name in peft_config.adapters:
            raise ValueError(f"X-LoRA needs experts, none called {adapter_name!r}: give it `adapters`.")
        self.model, self.xlora_config, self.adapter_name = model, peft_config, adapter_name
        self.training = model.training
        self.experts = list(peft_config.adapters)
        self.injection: Any = Experts()
        try:
            for name, path in peft_config.adapters.items():
                self._load(name, path)
            layers = [m for _, m in walk(model) if isinstance(m, LoraLayer)]
            for i, layer in enumerate(layers):
                for n, name in enumerate(self.experts):
                    if layer.has_adapter(name):
                        plain = layer.lora_variant.get(name, LoraVariant)
                        layer.lora_variant[name] = Gate(plain, peft_config, i, n)  # type: ignore[assignment]
            self.internal_xlora_classifier = Classifier(peft_config, adapter_name, len(layers))
        except BaseException:
            self.injection.undo()
            raise
        weight = next(model.parameters())
        self.internal_xlora_classifier.to(weight.device, weight.dtype).train(self.training)
        self.internal_xlora_classifier.requires_grad_(not peft_config.inference_mode)
        model.peft_config[adapter_name] = peft_config
        self._activate()
        self._latest: Tensor | None = None
        self._log: list[Tensor] = []
        self._logging = False

    def _load(self, name: str, path: str) -> None:
        """Add one expert to the model."""
        config: Any = LoraConfig.from_pretrained(path)
        config.inference_mode = not self.xlora_config.use_trainable_adapters
        self.injection.append(Injection(self.model, LoraModel, config, name, False).apply())
        set_peft_model_state_dict(self.model, weights := load_peft_weights(path), name)
        known = {key.removeprefix("base_model.model.") for key in weights}
        if lacking := [e.saved for e in adapter_entries(self.model, config, name) if e.saved not in known]:
            raise ValueError(f"The expert '{name}' has no weights {lacking} in {path}.")

    def _disabled(self) -> bool:
        return any(layer.disable_adapters for layer in holders(self.model))

    def _activate(self) -> None:
        """Let all experts act; they train if the config says so."""
        super().set_adapter(self.experts, not self.xlora_config.use_trainable_adapters)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """ValueError for anything but X-LoRA's own adapter, which is always active."""
        if adapter_name not in (self.adapter_name, [self.adapter_name]):
            raise ValueError("The experts of X-LoRA act together: none of them can be set.")
        self.internal_xlora_classifier.requires_grad_(not inference_mode)

    def enable_adapter_layers(self) -> None:
        """Let the experts act again."""
        super().enable_adapter_layers()
        self._activate()

    def check_merge_allowed(self) -> None:
        """NotImplementedError: what the experts add depends on the input."""
        raise NotImplementedError("X-LoRA cannot be merged: what it adds depends on the input.")

    @torch.no_grad()
    def _hidden(self, *args: Any, **kwargs: Any) -> Tensor:
        """The last hidden states of the first pass."""
        value = self.xlora_config.scaling_pass_value
        token = gates.set(1 / len(self.experts) if value is None else float(value))
        try:
            given = {key: kwargs[key] for key in kwargs if key != "labels"}
            given |= {"output_hidden_states": True, "return_dict": True}
            return self.model(*args, **given).hidden_states[-1]
        finally:
            gates.reset(token)

    def _gates_for(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the second pass is computed with."""
        self._latest = self.internal_xlora_classifier(self._hidden(*args, **kwargs))
        if self._logging:
            self._log.append(self._latest)
        return self._latest

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the second pass; with the experts disabled, of the base model."""
        if self._disabled():
            return self.model(*args, **kwargs)
        token = gates.set(self._gates_for(*args, **kwargs))
        try:
            return self.model(*args, **kwargs)
        finally:
            gates.reset(token)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own `generate` returns; each of its calls of the model is one of two passes."""
        token = gates.set(None)

        def first_pass(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not isinstance(gates.get(), float) and not self._disabled():
                gates.set(self._gates_for(*args, **kwargs))

        hook = self.model.register_forward_pre_hook(first_pass, with_kwargs=True)
        try:
            generate: Any = self.model.generate
            return generate(*args, **{"use_cache": False, **kwargs})
        finally:
            hook.remove()
            gates.reset(token)

    # What was computed, and options that may be changed ------------------------------------------

    def get_latest_scalings(self) -> Tensor | None:
        """g of the last call, [batch, length, layers, experts]; None before any."""
        return self._latest

    def enable_scalings_logging(self) -> None:
        """Keep g of every call from now on."""
        self._logging = True

    def disable_scalings_logging(self) -> None:
        """Keep no more; what was kept stays."""
        self._logging = False

    def clear_scalings_log(self) -> None:
        """Forget what was kept."""
        self._log.clear()

    def get_scalings_log(self) -> list[Tensor]:
        """What was kept, as a new list."""
        return list(self._log)

    def get_bucketed_scalings_log(self) -> dict[int, tuple[list[int], list[Tensor]]]:
        """Length of a sequence -> positions in the log, and what stands there."""
        buckets: dict[int, tuple[list[int], list[Tensor]]] = {}
        for i, mixture in enumerate(self._log):
            positions, kept = buckets.setdefault(mixture.shape[1], ([], []))
            positions.append(i)
            kept.append(mixture)
        return buckets

    def set_topk_lora(self, value: int | None) -> None:
        """How many experts act on a token, None for all; the config says so from then on."""
        self.xlora_config.top_k_lora = value

    def set_global_scaling_weight(self, weight: float) -> None:
        """The factor of everything that experts add; the config says so from then on."""
        self.xlora_config.global_scaling_weight = weight

    def get_global_scaling_weight(self) -> float:
        """That factor."""
        return self.xlora_config.global_scaling_weight

    def set_scaling_pass_value(self, value: float | None) -> None:
        """g in the first pass; None for one divided by the number of experts."""
        self.xlora_config.scaling_pass_value = value


register_peft_method(PeftType.XLORA, XLoraConfig, XLoraModel)
