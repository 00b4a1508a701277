"""`PeftMixedModel`: adapters of several methods in one model, one method's layer around another's."""

from __future__ import annotations

from typing import Any

from .adapters import check_not_merged, holders
from .config import PeftConfig
from .injection import BaseTuner
from .layer import BaseTunerLayer
from .model import AdaptedModel
from .registry import PEFT_TYPE_TO_TUNER_MAPPING, PeftType, method_name

COMPATIBLE_TUNER_TYPES = (
    *(PeftType.LORA, PeftType.LOHA, PeftType.LOKR),
    *(PeftType.ADALORA, PeftType.OFT, PeftType.SHIRA),
)


class MixedModel(BaseTuner):
    """A model with adapters of several methods: each gets the layers of its own method."""

    tuner_layer_cls = BaseTunerLayer

    @classmethod
    def method_for(cls, config: PeftConfig) -> type[BaseTuner]:
        """The tuner of the config's method; ValueError if it is not one of `COMPATIBLE_TUNER_TYPES`."""
        peft_type = getattr(config, "peft_type", None)
        if peft_type not in COMPATIBLE_TUNER_TYPES or peft_type not in PEFT_TYPE_TO_TUNER_MAPPING:
            known = ", ".join(t.value for t in COMPATIBLE_TUNER_TYPES)
            given = method_name(peft_type)
            raise ValueError(f"{given} cannot be mixed with other methods. Compatible types: {known}.")
        return PEFT_TYPE_TO_TUNER_MAPPING[peft_type]

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one or several adapters, which act in the order in which they were added; ValueError for
        an unknown name.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        self.check_names(names)
        super().set_adapter([name for name in self.peft_config if name in names], inference_mode)

    def delete_adapter(self, adapter_name: str | list[str]) -> None:
        """Delete one or several adapters and their configs; ValueError if one does not exist or is merged."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        self.check_names(names)
        found = holders(self.model)
        for name in names:
            check_not_merged(found, name)
        for name in names:
            super().delete_adapter(name)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """NotImplementedError: adapters of several methods have no weighted sum that is an adapter."""
        raise NotImplementedError("Weighted combinations are not offered for adapters of several methods.")


class PeftMixedModel(AdaptedModel):
    """A model with adapters of several methods, meant for inference with trained adapters.

    Where two methods adapt one layer, the one that came second wraps the first one's layer, so adapters act
    in the order in which they were added. Models of this kind are not saved: their adapters are, one by one,
    from the `PeftModel`s that trained them. ValueError for a method that is not in `COMPATIBLE_TUNER_TYPES`.
    """

    base_model: MixedModel

    @classmethod
    def tuner_for(cls, config: PeftConfig) -> type[BaseTuner]:
        """`MixedModel`, whatever the method is."""
        return MixedModel

    @property
    def config(self) -> Any:
        """The base model's config, or a placeholder for a model that has none."""
        return getattr(self.get_base_model(), "config", {"model_type": "custom"})

    @property
    def active_adapter(self) -> list[str]:
        """The names of the active adapters."""
        return self.active_adapters

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one or several adapters the active ones, and trainable unless `inference_mode`; the order of
        the names does not matter. ValueError if one is unknown.
        """
        self.base_model.set_adapter(adapter_name, inference_mode)

    def delete_adapter(self, adapter_name: str | list[str]) -> None:
        """Delete one or several adapters and their configs; ValueError if one does not exist or is merged."""
        self.base_model.delete_adapter(adapter_name)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """NotImplementedError: save each adapter from the `PeftModel` that has it."""
        raise NotImplementedError("A mixed model cannot be saved, only its adapters, each from a PeftModel.")

    def get_layer_status(self) -> Any:
        """TypeError: it is offered for models of one method."""
        raise TypeError("get_layer_status is not offered for a PeftMixedModel.")

    def get_model_status(self) -> Any:
        """TypeError: it is offered for models of one method."""
        raise TypeError("get_model_status is not offered for a PeftMixedModel.")
