"""What VeRA, PVeRA and RandLoRA share: random matrices that are the same for all layers and never trained.

They come from `projection_prng_key`, drawn on the CPU, so that a checkpoint need not contain them. All
adapters of a model have the same key, and those of the same sizes the same tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..buffers import BufferDict
from ..config import PeftConfig
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Conv1D, Linear, Operator
from . import defaults
from .parts import normal, zeros

Shape = tuple[int, ...]


def warn_if_not_saved(config: Any, seed: str = "projection_prng_key") -> None:
    """UserWarning that a checkpoint without its projections depends on torch's generator.

    For `__post_init__` to call; `seed` is the field that they are drawn with.
    """
    if not config.save_projection:
        warnings.warn(
            f"The projections are not saved: they are drawn again with `{seed}` when the adapter is loaded, "
            "which may differ in another version of torch.",
            stacklevel=4,
        )


def first_vectors(config: Any, n_out: int, r: int) -> tuple[nn.Parameter, nn.Parameter]:
    """b (out) and d (r) of VeRA and PVeRA: an identity, unless the config says otherwise."""
    if config.init_weights:
        return zeros(n_out), nn.Parameter(torch.full((r,), float(config.d_initial)))
    return nn.Parameter(torch.ones(n_out)), normal(r)


class ProjectionLayer(BaseTunerLayer):
    """A layer that uses a corner of the model-wide projections."""

    operators = (Linear, Conv1D)
    save_projection: dict[str, bool]  # a slot of each method

    @classmethod
    def check(cls, config: Any, base: Any, op: type[Operator], name: str) -> None:
        """The rank must be positive."""
        if config.r <= 0:
            raise ValueError(f"The rank of '{name}' should be positive, got r={config.r}.")

    def shared_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """The projections, if they are saved."""
        return super().shared_entries(adapter) if self.save_projection.get(adapter) else iter(())


class ProjectionModel(BaseTuner):
    """A model whose adapters have projections."""

    tuner_layer_cls: ClassVar[type[BaseTunerLayer]] = ProjectionLayer
    target_module_mapping = defaults.ATTENTION

    @classmethod
    def settle(cls, config: Any, model: nn.Module, adapter_name: str) -> dict[str, Any]:
        """ValueError unless key and saving are those of the other adapters."""
        others: Mapping[str, PeftConfig] = getattr(model, "peft_config", None) or {}
        for name, other in others.items():
            for field in ("projection_prng_key", "save_projection"):
                own, theirs = getattr(config, field), getattr(other, field)
                if name != adapter_name and own != theirs:
                    raise ValueError(f"`{field}`={own}, but adapter '{name}' has {theirs}: it has to be one.")
        return {}

    @classmethod
    def shapes(cls, config: Any, n_in: int, n_out: int) -> dict[str, Shape]:
        """Shared slot -> the shape it needs for layers of up to so many inputs and outputs."""
        raise NotImplementedError

    @classmethod
    def draw(cls, config: Any, slot: str, shapes: dict[str, Shape], generator: torch.Generator) -> Tensor:
        """One projection: Kaiming-uniform, in float32."""
        return nn.init.kaiming_uniform_(torch.empty(shapes[slot], device="cpu"), generator=generator)

    @classmethod
    def create_shared(
        cls, config: Any, layers: Mapping[str, BaseTunerLayer], held: Mapping[str, BufferDict]
    ) -> dict[str, Any]:
        """Those of another adapter if the shapes are equal, else fresh ones; never on meta, for a checkpoint
        may lack them.

        ValueError if the first adapter's are smaller than what is needed, as in PEFT.
        """
        sizes = [layer.op.features(layer.get_base_layer()) for layer in layers.values()]
        shapes = cls.shapes(config, *(max(size) for size in zip(*sizes, strict=True)))
        for slot, shape in shapes.items():
            for first in list(held[slot])[:1]:
                there = tuple(held[slot][first].shape)
                if any(has < needed for has, needed in zip(there, shape, strict=True)):
                    raise ValueError(
                        f"{slot} of adapter '{first}' has the shape {there}, and {shape} is needed: add the "
                        "adapter for larger layers, or of a higher rank, first."
                    )
        known = held[next(iter(shapes))]
        same = next((a for a in known if all(held[slot][a].shape == shapes[slot] for slot in shapes)), None)
        if same is not None:
            return {slot: held[slot][same] for slot in shapes}
        weight = next(iter(layers.values())).weight
        device = "cpu" if weight.device.type == "meta" else weight.device
        generator = torch.Generator("cpu").manual_seed(config.projection_prng_key)
        return {
            slot: cls.rounded(cls.draw(config, slot, shapes, generator), weight).to(device) for slot in shapes
        }

    @classmethod
    def rounded(cls, projection: Tensor, weight: Tensor) -> Tensor:
        """With the values that the base weight's dtype has, in float32 at least, as PEFT computes with."""
        return projection.to(weight.dtype).to(torch.promote_types(weight.dtype, torch.float32))
