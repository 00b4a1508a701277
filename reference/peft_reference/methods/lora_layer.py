"""A layer with LoRA adapters, plain or variants of it.

Somewhat longer than other files: what the variants and the compound layers build upon is in one class.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import PeftWarning, UnsupportedOptionError
from ..layer import BaseTunerLayer
from ..operators import OPERATORS, Embedding, MultiheadAttention, Operator, add_low_rank, low_rank
from ..tying import TiedFactor
from . import lora_init
from .lora_config import LoraConfig
from .lora_start import low_rank_contents
from .lora_variant import LoraVariant
from .parts import rank_of


class LoraLayer(BaseTunerLayer):
    """A layer with LoRA adapters: A and B are the weights of two layers, bare parameters on an embedding."""

    prefix = "lora_"
    operators = (*OPERATORS, MultiheadAttention)
    slots: ClassVar[dict[str, type]] = {
        **dict.fromkeys(("r", "lora_alpha", "scaling", "lora_variant", "frozen_slots"), dict),
        **dict.fromkeys(("lora_dropout", "lora_A", "lora_B"), nn.ModuleDict),
        **dict.fromkeys(("lora_embedding_A", "lora_embedding_B"), nn.ParameterDict),
        "lora_magnitude_vector": nn.ModuleDict,  # DoRA's; always there, as in PEFT
    }
    r: dict[str, int]
    scaling: dict[str, float]
    lora_variant: dict[str, type[LoraVariant]]  # only of adapters that are not plain LoRA
    frozen_slots: dict[str, tuple[str, ...]]  # of adapters some of whose tensors never train
    lora_dropout: nn.ModuleDict
    lora_A: Any
    lora_B: Any
    lora_embedding_A: nn.ParameterDict
    lora_embedding_B: nn.ParameterDict
    lora_magnitude_vector: Any
    lora_diag: Any  # this one and those below: of variants
    lora_velora_embed: Any
    velora: dict[str, Any]
    lora_monteclora_sampler: Any
    lora_arrow: dict[str, Any]
    adapter_layer_names = (
        *("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    )
    matrix_slots = ("lora_A", "lora_B")
    dropout_slot = "lora_dropout"

    @classmethod
    def class_for(cls, op: type[Operator]) -> type[LoraLayer]:
        """`LoraLayer` but for the layers that are more than a weight and a bias."""
        return COMPOUND.get(op, cls)

    @classmethod
    def check(cls, config: LoraConfig, base: Any, op: type[Operator], name: str) -> None:
        """The rank must be positive, and a multiple of a convolution's groups."""
        r = rank_of(config, name)
        if not 0 <= config.lora_dropout <= 1:
            raise ValueError(f"`lora_dropout` should be a probability, got {config.lora_dropout}.")
        groups = getattr(base, "groups", 1)
        if r % groups:
            raise ValueError(f"'{name}' has groups={groups}: the rank has to be divisible by that, got {r}.")
        if groups > 1:
            warnings.warn(
                f"LoRA on '{name}', a convolution with groups={groups}, cannot be merged.", stacklevel=6
            )
        if config.lora_bias and op.bias(base) is None:
            warnings.warn(
                f"`lora_bias=True` but '{name}' has no bias: it cannot be merged.", PeftWarning, stacklevel=6
            )
        lora_init.check_init(config, base, op, name, r)
        if config.variant:
            if op not in config.variant.operators:
                raise ValueError(f"'{name}' is a {op.__name__}, which {config.variant.__name__} is not for.")
            config.variant.check(config, base, op, name, r)

    def create(self, config: LoraConfig, name: str) -> dict[str, Any]:
        """A, B, the numbers that belong to them, and what the variant adds."""
        contents = low_rank_contents(self, config, name)
        if config.variant is not None:
            contents["lora_variant"] = config.variant
            contents = config.variant.create(self, config, name, contents)
        if "weight" in contents and self.merged:
            raise ValueError(
                f"The adapter changes the base weight of '{name}', into which adapters are merged: unmerge "
                "them first."
            )
        return contents

    def attach(self, adapter: str, contents: dict[str, Any]) -> None:
        """As for every method; a variant's own slots appear with its first adapter."""
        variant: Any = contents.get("lora_variant")
        for slot, kind in variant.slots.items() if variant else ():
            if slot not in self.slots:
                vars(self)["slots"] = {**self.slots, slot: kind}  # of this layer, not of the class
                setattr(self, slot, kind())
                if slot in variant.trained_slots:
                    vars(self)["adapter_layer_names"] = (*self.adapter_layer_names, slot)
        super().attach(adapter, contents)

    def new_factors(self, r: int, bias: bool) -> tuple[nn.Module, nn.Module]:
        """Two new layers whose product has rank r."""
        return self.op.factors(self.get_base_layer(), self.in_features, r, self.out_features, bias)

    def share(self, leader: BaseTunerLayer, adapter: str, contents: dict[str, Any]) -> dict[str, Any]:
        """The leader's factors; an embedding's A and B, transposed, are a linear layer's B and A."""
        if self.op is leader.op or not isinstance(leader, LoraLayer):
            return dict(contents)
        if "lora_variant" in contents:
            raise UnsupportedOptionError("Only plain LoRA can be tied to that of another layer.")
        numbers = {slot: contents[slot] for slot in ("r", "lora_alpha", "scaling", "lora_dropout")}
        return numbers | {
            "lora_A": TiedFactor(leader.lora_embedding_B, adapter),
            "lora_B": TiedFactor(leader.lora_embedding_A, adapter),
        }

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A (r, in, *kernel) and B (out, r, *ones) of an adapter."""
        if self.op is Embedding:
            return self.lora_embedding_A[adapter], self.lora_embedding_B[adapter]
        return self.lora_A[adapter].weight, self.lora_B[adapter].weight

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """As for every method, except that MiCA's B never trains."""
        super().set_requires_grad(adapter_names, requires_grad)
        for adapter in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            for slot in self.frozen_slots.get(adapter, ()):
                if adapter in getattr(self, slot):
                    getattr(self, slot)[adapter].requires_grad_(False)

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """As for every method, except that a checkpoint calls the magnitude by its slot alone."""
        for live, saved, tensor in super().state_entries(adapter):
            yield live, saved.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"), tensor

    def delta(self, adapter: str) -> Tensor:
        """s·B·A as (out, in, *kernel), or what the variant adds to the weight."""
        self.check_groups()
        return self.lora_variant.get(adapter, LoraVariant).delta(self, adapter)

    def product(self, adapter: str, A: Tensor, B: Tensor) -> Tensor:
        """s·B·A of these factors, as (out, in, *kernel)."""
        product = B.flatten(1) @ A.flatten(1)  # (out, r) @ (r, in·kernel)
        return product.mul_(self.scaling[adapter]).view(-1, *A.shape[1:])  # in place: one copy of it less

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + s·B(A(dropout(x))), unless a variant says otherwise."""
        if adapter in self.lora_variant:
            return self.lora_variant[adapter].adapt(self, adapter, x, y)
        if self.training:
            x = self.drop_out(adapter, x)
        if self.op is Embedding:
            return y.add(self.low_rank(adapter, x), alpha=self.scaling[adapter])
        slots: Any = self._modules  # nn.Module's own attribute lookup is slow
        A, B = slots["lora_A"]._modules[adapter], slots["lora_B"]._modules[adapter]
        return add_low_rank(y, A, B, x, self.scaling[adapter])

    def low_rank(self, adapter: str, x: Tensor) -> Tensor:
        """B(A(x)), which never builds the product B·A."""
        if self.op is Embedding:
            A, B = self.factors(adapter)
            return self.op.call(self.get_base_layer(), x, A) @ B.t()  # (..., r) @ (r, out)
        return low_rank(self.lora_A[adapter], self.lora_B[adapter], x)

    def fold(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W' and b' with one adapter, as its variant says."""
        return self.lora_variant.get(adapter, LoraVariant).fold(self, adapter, weight, bias)

    def fold_low_rank(
        self, adapter: str, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """W + s·B·A, and where `lora_bias` asks for it, b + s·b_B."""
        lora_bias = self.lora_B[adapter].bias if adapter in self.lora_B else None
        if lora_bias is not None and bias is not None:
            bias = bias + self.scaling[adapter] * lora_bias
        return weight + self.delta(adapter), bias

    def check_per_sample(self, adapter: str) -> None:
        """ValueError for a variant that PEFT does not mix with others in a batch."""
        variant = self.lora_variant.get(adapter)
        if variant and not variant.per_sample:
            raise ValueError(f"`adapter_names` cannot be used with '{adapter}', a {variant.__name__}.")

    def check_mergeable(self, adapter: str) -> None:
        """Neither with groups, nor a LoRA bias into a layer without one, nor every variant."""
        self.check_groups()
        self.lora_variant.get(adapter, LoraVariant).check_mergeable(self, adapter)
        if self.bias is None and adapter in self.lora_B and self.lora_B[adapter].bias is not None:
            raise RuntimeError("`lora_bias=True` cannot be merged into a layer without bias.")

    def check_groups(self) -> None:
        """With groups, A reads all channels: the product is dense and has no place in a grouped weight."""
        if getattr(self.get_base_layer(), "groups", 1) > 1:
            raise NotImplementedError(
                "LoRA's delta is dense and cannot be merged into a convolution with groups > 1."
            )


COMPOUND: dict[type[Operator], type[LoraLayer]] = {}  # layers that are adapted in more than one place
