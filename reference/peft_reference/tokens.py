"""Rows of an embedding, or of an output head, that are trained while all others stay: trainable tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import BaseTunerLayer
from .operators import Embedding, Linear, operator_of


class TrainableTokensLayer(BaseTunerLayer):
    """An embedding or a linear layer with some rows replaced: W'[i] = t_i for every chosen token i.

    `trainable_tokens_delta[adapter]` holds the rows themselves, (tokens, dim), not what is added to the
    base's; the name is PEFT's. They begin as the base's rows. One adapter can act at a time.
    """

    prefix = "trainable_tokens_"
    operators = (Embedding, Linear)
    slots: ClassVar[dict[str, type]] = {"token_indices": dict, "trainable_tokens_delta": nn.ParameterDict}
    token_indices: dict[str, list[int]]
    trainable_tokens_delta: nn.ParameterDict
    adapter_layer_names = ("trainable_tokens_delta",)

    @classmethod
    def check_module(cls, module: nn.Module, name: str) -> None:
        """ValueError for a module without rows for tokens."""
        if operator_of(module) not in cls.operators:
            raise ValueError(f"'{name}' is a {type(module).__name__}, which has no rows for tokens.")

    @staticmethod
    def check_tokens(indices: list[int], weight: Tensor, name: str) -> None:
        """IndexError for a token that has no row."""
        wrong = [index for index in indices if not 0 <= index < len(weight)]
        if wrong:
            raise IndexError(f"'{name}' has {len(weight)} rows: there is no token {wrong}.")

    def create_rows(self, indices: list[int], as_base: bool = True) -> dict[str, Any]:
        """The slots of one adapter that trains the rows of these tokens; random ones if not as the base's."""
        rows = torch.randn(len(indices), self.weight.shape[1])
        if as_base and rows.device.type != "meta":
            rows = self.op.canonical(self.unmerged_weight).detach()[indices]
        return {"token_indices": list(indices), "trainable_tokens_delta": nn.Parameter(rows)}

    def share(self, leader: BaseTunerLayer, adapter: str, contents: dict[str, Any]) -> dict[str, Any]:
        """The very rows of the leader."""
        return dict(contents)

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """A checkpoint has the rows once, where they lead."""
        if adapter not in self.tied_to:
            yield from super().state_entries(adapter)

    def fold(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight with the adapter's rows in place of the base's."""
        rows, stored = self.trainable_tokens_delta[adapter], self.op.canonical(weight)
        replaced = stored.index_copy(0, self._indices(adapter), rows.to(stored.dtype))
        return self.op.canonical(replaced), bias

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """A head's outputs for the tokens are replaced. An embedding is looked up again, by its own forward:
        it may do more.
        """
        base: Any = self.get_base_layer()
        if self.op is Embedding:
            weight, _ = self.fold(adapter, self.op.canonical(self.weight), None)
            again = torch.func.functional_call(base, {"weight": self.op.canonical(weight)}, (x,))
            return torch.where(torch.isin(x, self._indices(adapter)).unsqueeze(-1), again, y)
        rows, indices = self.trainable_tokens_delta[adapter], self._indices(adapter)
        bias = None if base.bias is None else base.bias[indices].to(rows.dtype)
        return y.index_copy(-1, indices, F.linear(x.to(rows.dtype), rows, bias).to(y.dtype))

    def _indices(self, adapter: str) -> Tensor:
        return torch.tensor(self.token_indices[adapter], device=self.weight.device)

    def check_set_adapter(self, adapter_names: list[str]) -> None:
        """ValueError if more than one of these adapters has rows here."""
        with_rows = [name for name in adapter_names if self.has_adapter(name)]
        if len(with_rows) > 1:
            raise ValueError(f"{with_rows} train tokens of one module: only one of them can be active.")


class TrainableTokensWrapper(nn.Module):
    """What stands in the place of a module with trained tokens; its parts have PEFT's paths."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.training = module.training
        self.token_adapter = TrainableTokensLayer(module, operator_of(module))  # type: ignore[arg-type]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted module's output."""
        return self.token_adapter(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "token_adapter" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.token_adapter.get_base_layer(), name)
