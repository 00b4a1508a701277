"""DoRA: W' = m ⊙ (W + s·B·A) / ‖W + s·B·A‖, with a trained magnitude m and the norm taken over each output.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", https://arxiv.org/abs/2402.09353: equation 5, and
section 4.3 for the norm, which gradients treat as a constant. m begins as ‖W + s·B·A‖, so that a fresh
adapter changes nothing, whatever A and B are.
"""

from __future__ import annotations

from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..operators import OPERATORS, Operator
from .lora_config import LoraConfig
from .lora_layer import LoraLayer
from .lora_variant import VARIANTS, LoraVariant


class DoraCaching:
    """While it is on, layers in eval mode keep the norms that they compute: faster, for more memory.

    `with DoraCaching():` turns it on for a block; `DoraCaching()(enabled=True)` and `(enabled=False)` for
    good. In training mode nothing is kept, and a norm is computed again when its tensors have changed.
    """

    kept: ClassVar[WeakKeyDictionary | None] = None  # magnitude -> (its stamp, norm)

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._outer: list[WeakKeyDictionary | None] = []

    def __enter__(self) -> None:
        self._outer.append(DoraCaching.kept)
        self(self.enabled)

    def __exit__(self, *exception: object) -> None:
        DoraCaching.kept = self._outer.pop()

    def __call__(self, enabled: bool = True) -> None:
        """Turn it on or off until further notice."""
        DoraCaching.kept = WeakKeyDictionary() if enabled else None


class Magnitude(nn.Module):
    """m of one adapter: (out,), for convolutions (1, out, *ones), as it multiplies the layer's output."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class DoraVariant(LoraVariant):
    """LoRA as the direction, and one trained magnitude for each output."""

    operators = OPERATORS
    per_sample = False

    @staticmethod
    def check(config: LoraConfig, base: Any, op: type[Operator], name: str, r: int) -> None:
        """A grouped convolution has no place for the product B·A, and so no norm of the sum."""
        if getattr(base, "groups", 1) > 1:
            raise ValueError(f"'{name}' is a convolution with groups={base.groups}, which DoRA cannot adapt.")

    @staticmethod
    def create(layer: LoraLayer, config: LoraConfig, name: str, contents: dict[str, Any]) -> dict[str, Any]:
        """Add the magnitude, in the base weight's dtype; on the meta device only its shape is known."""
        stored = contents.get("weight")  # what the initialiser makes of the base weight
        weight = (
            layer.unmerged_weight if stored is None else layer.op.canonical(stored).to(layer.weight.dtype)
        )
        shape = (-1,) if weight.dim() == 2 else (1, -1, *[1] * (weight.dim() - 2))
        slots = ("lora_A", "lora_B") if "lora_A" in contents else ("lora_embedding_A", "lora_embedding_B")
        A, B = (getattr(contents[slot], "weight", contents[slot]).detach() for slot in slots)
        if A.is_meta:
            norm = torch.empty(weight.shape[0])
        else:
            norm = _norm(weight, A.to(weight.dtype), B.to(weight.dtype), contents["scaling"])
        return contents | {"lora_magnitude_vector": Magnitude(norm.to(weight.dtype).view(shape))}

    @staticmethod
    def adapt(layer: LoraLayer, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """(y - b)·m/‖·‖ + b, and the low-rank part scaled alike; dropout acts on the base weight's input too.

        The norm is that of the base weight and this adapter, whatever other adapters have made of y.
        """
        ratio = _ratio(layer, adapter)
        dropped = layer.drop_out(adapter, x)
        if dropped is x:
            bias = layer.bias
            plain = y if bias is None else y - bias.view(-1, *[1] * (layer.weight.dim() - 2))
        else:
            plain = layer.op.call(layer.get_base_layer(), dropped, layer.unmerged_weight)
        low_rank = layer.low_rank(adapter, dropped)
        return y + (ratio - 1) * plain + ratio * layer.scaling[adapter] * low_rank

    @staticmethod
    def fold(
        layer: LoraLayer, adapter: str, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """m ⊙ (W + s·B·A) / ‖·‖; the bias is none of its business."""
        ratio = _ratio(layer, adapter).view(-1, *[1] * (weight.dim() - 1))
        return ratio * (weight + layer.delta(adapter)), bias


def _ratio(layer: LoraLayer, adapter: str) -> Tensor:
    """m / ‖W + s·B·A‖ in the magnitude's shape."""
    magnitude = layer.lora_magnitude_vector[adapter]
    weight, (A, B) = layer.unmerged_weight, layer.factors(adapter)
    kept = None if layer.training else DoraCaching.kept
    if kept is None:
        norm = _norm(weight, A, B, layer.scaling[adapter])
    else:
        stamp = (layer.scaling[adapter], *((t.data_ptr(), t._version) for t in (weight, A, B)))
        if magnitude not in kept or kept[magnitude][0] != stamp:
            kept[magnitude] = (stamp, _norm(weight, A, B, layer.scaling[adapter]))
        norm = kept[magnitude][1]
    return magnitude.weight / norm.to(magnitude.weight.dtype).view(magnitude.weight.shape)


@torch.no_grad()
def _norm(weight: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """‖W + s·B·A‖ for each output, (out,): a constant for the gradient, as section 4.3 of the paper says."""
    return (weight.flatten(1) + scaling * (B.flatten(1) @ A.flatten(1))).norm(dim=1)


VARIANTS["use_dora"] = DoraVariant
