"""LoRA on a bare `nn.Parameter`, named in `target_parameters`: W' = W + s·B·A for a matrix; in a stack of
experts (experts, out, in) each one has its own, W'_e = W_e + s·B_e·A_e.

Rank, alpha and scaling as in LoRA, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..operators import Linear, Operator
from .lora import LoraModel
from .lora_config import LoraConfig
from .lora_layer import LoraLayer


class Bare(Operator):
    """A parameter that its module uses as it likes: there is no call, only a weight."""

    where = ("torch.nn", "Parameter")
    factors = Linear.factors


class ParamWrapper(LoraLayer):
    """A module of which one parameter is adapted. Its forward runs with the adapted values in the place of
    the parameter, which itself never moves; several parameters of one module nest.

    A (experts·r, in) holds the experts one after the other; B (out, r·experts) has the experts of each rank
    side by side, as in PEFT.
    """

    operators = (Bare,)
    opaque = False

    def __init__(self, base_layer: nn.Module, parameter_name: str) -> None:
        self.parameter_name = parameter_name
        super().__init__(base_layer, Bare)

    @classmethod
    def check(cls, config: LoraConfig, base: Any, op: type[Operator], name: str) -> None:
        """ValueError: the module around an adapted parameter is no layer that could be adapted as well."""
        raise ValueError(f"'{name}' has adapted parameters and cannot be among target_modules as well.")

    @classmethod
    def check_parameter(cls, config: LoraConfig, base: Any, name: str) -> None:
        """ValueError for what a parameter cannot have: other numbers of dimensions, and options of layers."""
        LoraLayer.check(config, None, Bare, name)
        parameter = base.get_parameter(name.rpartition(".")[2])
        if parameter.dim() not in (2, 3):
            raise ValueError(f"'{name}' has {parameter.dim()} dimensions: only 2d and 3d are supported.")
        for option in ("lora_dropout", "lora_bias", "use_dora", "fan_in_fan_out"):
            if getattr(config, option):
                raise ValueError(f"target_parameters does not work with {option}={getattr(config, option)}.")
        init = config.init_lora_weights
        if not isinstance(init, bool) and init.lower() != "gaussian":
            raise ValueError(f"target_parameters does not work with init_lora_weights={init!r}.")

    @property
    def weight(self) -> Tensor:
        """The adapted parameter."""
        return self.get_base_layer().get_parameter(self.parameter_name)

    @property
    def bias(self) -> Tensor | None:
        """None: a bare parameter has none."""
        return None

    @property
    def num_experts(self) -> int:
        """The size of the first of three dimensions, else 1."""
        return len(self.weight) if self.weight.dim() == 3 else 1

    def features(self) -> tuple[int, int]:
        """(in, out) of the matrix, or of each expert's."""
        return self.weight.shape[-1], self.weight.shape[-2]

    def new_factors(self, r: int, bias: bool) -> tuple[Any, Any]:
        """All experts' A and B."""
        return super().new_factors(r * self.num_experts, bias)

    def nested(self) -> Iterator[ParamWrapper]:
        """This layer and those inside it, one for each adapted parameter of the module."""
        layer: Any = self
        while isinstance(layer, ParamWrapper):
            yield layer
            layer = layer.base_layer

    def delta(self, adapter: str) -> Tensor:
        """s·B·A in the parameter's shape."""
        A, B = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        experts, r = self.num_experts, self.r[adapter]
        stacked = B.view(-1, r, experts).permute(2, 0, 1) @ A.view(experts, r, -1)
        return self.scaling[adapter] * stacked.view(self.weight.shape)

    def effective(self) -> Tensor | None:
        """The parameter with all acting adapters; None if none acts."""
        acting = [] if self.disable_adapters or self.merged else self.active_adapters
        weight = self.weight
        for adapter in filter(self.has_adapter, acting):
            weight, _ = self.fold(adapter, weight, None)
        return None if weight is self.weight else weight.to(self.weight.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes with the adapted parameters."""
        adapted: dict[str, Tensor] = {}
        for layer in self.nested():
            if layer.disable_adapters and layer.merged:
                layer.unmerge()
            if (effective := layer.effective()) is not None:
                adapted[layer.parameter_name] = effective
        module: Any = layer.base_layer
        if not adapted:
            return module(*args, **kwargs)
        return torch.func.functional_call(module, adapted, args, kwargs)

    def _get_name(self) -> str:
        return "lora.ParamWrapper"

    def extra_repr(self) -> str:
        """The parameter's name."""
        return f"parameter_name={self.parameter_name!r}"


LoraModel.parameter_layer_cls = ParamWrapper
