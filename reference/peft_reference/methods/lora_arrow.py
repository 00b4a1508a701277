"""Arrow: y = W·x + Σₖ wₖ(x)·sₖ·Bₖ·Aₖ·x over task adapters k, for each token those that fit it best.

Ostapenko et al., "Towards Modular LLMs by Building and Reusing a Library of LoRAs",
https://arxiv.org/abs/2405.11157: the prototype vₖ of an adapter is the first right singular vector of Bₖ·Aₖ,
and w(x) = softmax(|vₖ·x| / temperature) over the `top_k` largest. GenKnowSub,
https://aclanthology.org/2025.acl-short.54, first takes the mean of general adapters off every task adapter.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..adapters import walk
from ..config import PeftConfig
from ..model import PeftModel
from ..operators import Operator
from .lora_variant import VARIANTS, UnmergedVariant

if TYPE_CHECKING:
    from .lora_config import LoraConfig
    from .lora_layer import LoraLayer

__all__ = ["ArrowConfig", "create_arrow_model"]

ROUTER = "arrow_router"  # the name of the adapter that routes


@dataclass
class ArrowConfig:
    """How tokens are routed; ValueError for values out of range."""

    top_k: int = 3  # how many adapters act on a token
    router_temperature: float = 1.0
    use_gks: bool = False  # GenKnowSub
    task_adapter_names: list[str] | None = field(default=None, init=False)  # by `create_arrow_model`
    gks_adapter_names: list[str] | None = field(default=None, init=False)
    rng_seed: int | None = None  # of PEFT's iteration for the prototypes; here they are exact

    def __post_init__(self) -> None:
        if self.top_k <= 0 or self.router_temperature <= 0:
            raise ValueError(
                "`top_k` and `router_temperature` should be positive, got "
                f"top_k={self.top_k} and router_temperature={self.router_temperature}."
            )


class Router:
    """One layer's prototypes, computed again when an adapter has changed."""

    def __init__(self, options: ArrowConfig) -> None:
        self.options = options
        self.stamp: Any = None
        self.prototypes = torch.empty(0)

    def weights(self, layer: LoraLayer, names: list[str], x: Tensor) -> Tensor:
        """How much of each adapter each token gets: (..., adapters), zero but for `top_k`."""
        factors = [layer.factors(name) for name in names]
        stamp = [(t.data_ptr(), t._version) for pair in factors for t in pair]
        if stamp != self.stamp:
            self.prototypes = torch.stack([_prototype(A, B) for A, B in factors])
            self.stamp = stamp
        fit = (x.to(self.prototypes.dtype) @ self.prototypes.t()).abs()
        best, chosen = fit.topk(min(self.options.top_k, len(names)), dim=-1)
        shares = torch.softmax(best / self.options.router_temperature, dim=-1)
        return torch.zeros_like(fit).scatter(-1, chosen, shares)


@torch.no_grad()
def _prototype(A: Tensor, B: Tensor) -> Tensor:
    """The first right singular vector of B·A, (in,), by way of matrices of A's rank only."""
    Q, R = torch.linalg.qr(A.double().t())  # (in, r), (r, r)
    _, _, V = torch.linalg.svd(torch.linalg.qr(B.double())[1] @ R.t())
    return (Q @ V[0]).to(torch.promote_types(A.dtype, torch.float32))


class ArrowVariant(UnmergedVariant):
    """An adapter that acts by way of others; its own A and B are there as in PEFT, and do nothing."""

    slots: ClassVar = {"lora_arrow": dict}
    per_sample = False

    @staticmethod
    def check(config: LoraConfig, base: Any, op: type[Operator], name: str, r: int) -> None:
        """ValueError without adapters to route to."""
        if not config.arrow_config.task_adapter_names:  # type: ignore[union-attr]
            raise ValueError("Arrow needs adapters to route to: use `create_arrow_model`.")

    @staticmethod
    def create(layer: LoraLayer, config: LoraConfig, name: str, contents: dict[str, Any]) -> dict[str, Any]:
        """Add the router; A and B never train."""
        router = Router(config.arrow_config)  # type: ignore[arg-type]
        return contents | {"lora_arrow": router, "frozen_slots": ("lora_A", "lora_B")}

    @staticmethod
    def adapt(layer: LoraLayer, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + Σₖ wₖ(x)·sₖ·Bₖ(Aₖ(x)) over the task adapters that are still there."""
        router = layer.lora_arrow[adapter]
        names = [name for name in router.options.task_adapter_names if layer.has_adapter(name)]
        for name, weight in zip(
            names, router.weights(layer, names, x).unbind(-1) if names else (), strict=True
        ):
            low_rank = layer.low_rank(name, layer.drop_out(name, x))
            y = y + layer.scaling[name] * weight[..., None].to(low_rank.dtype) * low_rank
        return y


def create_arrow_model(
    base_model: nn.Module,
    task_specific_adapter_paths: Sequence[str | os.PathLike[str]],
    arrow_config: ArrowConfig,
    general_adapter_paths: Sequence[str | os.PathLike[str]] | None = None,
    **adapter_kwargs: Any,
) -> PeftModel:
    """Load LoRA adapters as `task_0`, `task_1`, ... and route among them with `arrow_router`, then active.

    With `use_gks`, the general adapters are loaded as `gks_0`, ... and the mean of their A and of their B is
    subtracted from those of each task adapter. `adapter_kwargs` go to `PeftModel.from_pretrained`. ValueError
    without task adapters (or, with `use_gks`, general ones), and for ranks or targets that differ; the model
    is unchanged after an error.
    """
    if not task_specific_adapter_paths:
        raise ValueError("`task_specific_adapter_paths` is empty: Arrow needs adapters to route to.")
    if arrow_config.use_gks and not general_adapter_paths:
        raise ValueError("GenKnowSub (use_gks=True) needs `general_adapter_paths`.")
    general = (general_adapter_paths or ()) if arrow_config.use_gks else ()
    paths = {f"task_{i}": path for i, path in enumerate(task_specific_adapter_paths)}
    gks = {f"gks_{i}": path for i, path in enumerate(general)}
    first = _same_config(paths | gks)
    model: Any = None
    try:
        for name, path in (paths | gks).items():
            if model is None:
                model = PeftModel.from_pretrained(base_model, path, adapter_name=name, **adapter_kwargs)
            else:
                model.load_adapter(path, adapter_name=name, **adapter_kwargs)
        if gks:
            _subtract(model, list(paths), list(gks))
        options = copy.copy(arrow_config)
        options.task_adapter_names, options.gks_adapter_names = list(paths), list(gks)
        router = type(first)(
            r=first.r, target_modules=first.target_modules, task_type=first.task_type, arrow_config=options
        )
        model.add_adapter(ROUTER, router)
        model.set_adapter(ROUTER)
    except BaseException:
        if model is not None:
            model.unload()
        raise
    return model


def _same_config(paths: dict[str, Any]) -> Any:
    """The config of the first adapter; ValueError if another has another rank or other targets."""
    configs: dict[str, Any] = {name: PeftConfig.from_pretrained(path) for name, path in paths.items()}
    first = next(iter(configs.values()))
    for name, config in configs.items():
        for field_name in ("r", "target_modules"):
            mine, other = getattr(config, field_name), getattr(first, field_name)
            if mine != other:
                raise ValueError(f"'{name}' has {field_name}={mine}, and the first adapter {other}.")
    return first


@torch.no_grad()
def _subtract(model: PeftModel, tasks: list[str], general: list[str]) -> None:
    """A - mean A and B - mean B for every task adapter, the means taken over the general ones."""
    for _, layer in walk(model.get_base_model()):
        for slot in (getattr(layer, name) for name in ("lora_A", "lora_B") if hasattr(layer, name)):
            mean = sum(slot[name].weight for name in general) / len(general)
            for name in tasks:
                slot[name].weight.sub_(mean)


VARIANTS["arrow_config"] = ArrowVariant
