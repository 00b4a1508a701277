"""The seam for LoRA's variants: another use of A and B, asked for by one option of `LoraConfig`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ..operators import Conv1D, Linear, Operator

if TYPE_CHECKING:
    from .lora_config import LoraConfig
    from .lora_layer import LoraLayer


class LoraVariant:
    """What one option changes. A class without instances; the defaults are plain LoRA's.

    `LoraLayer` asks an adapter's variant before it does what plain LoRA does.
    """

    operators: ClassVar[tuple[type[Operator], ...]] = (Linear, Conv1D)  # the kinds of layer it is made for
    initialisers: ClassVar[tuple[str, ...] | None] = None  # the `init_lora_weights` it takes; None: all
    slots: ClassVar[dict[str, type]] = {}  # what it keeps beside A and B, there once a layer needs them
    trained_slots: ClassVar[tuple[str, ...]] = ()  # those of them whose tensors are trained
    per_sample: ClassVar[bool] = True  # whether an adapter can be named for some samples of a batch

    @staticmethod
    def check(config: LoraConfig, base: Any, op: type[Operator], name: str, r: int) -> None:
        """Raise if `config` cannot adapt this layer. Runs for every target before anything is created."""

    @staticmethod
    def create(layer: LoraLayer, config: LoraConfig, name: str, contents: dict[str, Any]) -> dict[str, Any]:
        """The slots' contents for one adapter, given those of plain LoRA."""
        return contents

    @staticmethod
    def delta(layer: LoraLayer, adapter: str) -> Tensor:
        """What one adapter adds to the (canonical) base weight: s·B·A."""
        return layer.product(adapter, *layer.factors(adapter))

    @staticmethod
    def adapt(layer: LoraLayer, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """The output `y` for the input `x`, changed by one adapter."""
        return y.add(layer.low_rank(adapter, layer.drop_out(adapter, x)), alpha=layer.scaling[adapter])

    @staticmethod
    def fold(
        layer: LoraLayer, adapter: str, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The (canonical) weight and bias with one adapter merged in."""
        return layer.fold_low_rank(adapter, weight, bias)

    @staticmethod
    def check_mergeable(layer: LoraLayer, adapter: str) -> None:
        """Raise if this adapter cannot be written into the base weight."""


class UnmergedVariant(LoraVariant):
    """A variant whose change depends on the input, so that no weight holds it."""

    @staticmethod
    def delta(layer: LoraLayer, adapter: str) -> Tensor:
        """NotImplementedError: there is none."""
        raise NotImplementedError(
            f"'{adapter}' changes the output by what the input is: it has no delta and cannot be merged."
        )

    @classmethod
    def check_mergeable(cls, layer: LoraLayer, adapter: str) -> None:
        """NotImplementedError."""
        cls.delta(layer, adapter)


VARIANTS: dict[str, type[LoraVariant]] = {}  # by the option that asks for it
