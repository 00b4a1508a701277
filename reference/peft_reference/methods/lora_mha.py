"""LoRA on `torch.nn.MultiheadAttention`: the input projection (query, key and value in one) and the output
projection are adapted together, each with factors of its own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from ..operators import MultiheadAttention, Operator
from .lora_config import LoraConfig
from .lora_layer import COMPOUND, LoraLayer


class LoraMultiheadAttention(LoraLayer):
    """The adapted input projection; the output projection is a `LoraLayer` at `base_layer.out_proj`.

    torch's attention reads its weights and never calls its parts, so the adapted weights are built for each
    call; dropout on an adapter's input has no place in it.
    """

    opaque = False

    @classmethod
    def check(cls, config: LoraConfig, base: Any, op: type[Operator], name: str) -> None:
        """ValueError where keys or values have another size than queries, and for variants of LoRA."""
        super().check(config, base, op, name)
        if not base._qkv_same_embed_dim:
            raise ValueError(
                f"'{name}': attention needs keys and values of the embedding's size to be adapted."
            )
        if config.variant:
            raise ValueError(
                f"'{name}' is a MultiheadAttention, which variants of LoRA such as DoRA cannot adapt."
            )

    def parts(self) -> dict[str, nn.Module]:
        """The output projection."""
        return {"out_proj": self.get_base_layer().out_proj}  # type: ignore[dict-item]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What torch's attention returns, with the active adapters' weights."""
        if kwargs.pop("adapter_names", None) is not None:
            raise TypeError("MultiheadAttention cannot use another adapter for each sample of a batch.")
        base = self.get_base_layer()
        out: Any = base.out_proj
        weights = _named("in_proj_", self) | _named("out_proj.base_layer.", out)
        return functional_call(base, weights, (x, *args), kwargs) if weights else base(x, *args, **kwargs)


def _named(prefix: str, layer: LoraLayer) -> dict[str, Tensor]:
    """The adapted weight and bias of one projection under the base's names; {} if nothing acts on it."""
    if layer.disable_adapters and layer.merged:
        layer.unmerge()
    active = [name for name in layer.active_adapters if layer.has_adapter(name)]
    if layer.disable_adapters or layer.merged or not active:
        return {}
    weight, bias = layer.weight, layer.bias
    for adapter in active:
        weight, bias = layer.fold(adapter, weight, bias)
    adapted = {f"{prefix}weight": weight, f"{prefix}bias": bias}
    return {name: value.to(layer.weight.dtype) for name, value in adapted.items() if value is not None}


COMPOUND[MultiheadAttention] = LoraMultiheadAttention
