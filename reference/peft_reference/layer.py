"""THE adapted layer: a base layer, the slots of its adapters, and which of them act. Every method is one of
these.

A method subclasses `BaseTunerLayer` and says what its parameters are (`slots`, `create`) and what they mean
(`delta`, or `fold` with `adapt` or `adapt_input` where the change is not a sum). Merging, naming and printing
are here, once; activation and freezing in `holder.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .buffers import UnsavedBufferDict
from .errors import UnsupportedOptionError
from .holder import BASE_NAME, Batch, Holder
from .operators import Operator, call, operator_of


class BaseTunerLayer(Holder):
    """A layer of kind `op` that several adapters can change.

    Children, in this order: `base_layer`, then one container per slot, keyed by adapter name. So a parameter
    is called `<module>.lora_A.<adapter>.weight`, and the base weight `<module>.base_layer.weight`, as in
    PEFT.
    """

    prefix: ClassVar[str]  # what the names of this method's slots begin with
    operators: ClassVar[tuple[type[Operator], ...]]  # the kinds of layer it adapts
    # slot -> kind of container: dict for plain values, ModuleDict, ParameterDict
    slots: ClassVar[dict[str, type]]
    # slots that are one container for all layers of a model: `PeftModel.base_model` has them as well, and a
    # checkpoint names them `base_model.<slot>`. `BaseTuner.create_shared` fills them.
    shared_slots: ClassVar[dict[str, type]] = {}
    needs_peft_model: ClassVar[bool] = True  # whether what is shared has no other place in a checkpoint
    adapter_layer_names: ClassVar[tuple[str, ...]]  # the slots whose tensors are trained
    matrix_slots: ClassVar[tuple[str, ...]] = ()  # the slots whose weights always have two dimensions or more
    opaque: ClassVar[bool] = True  # whether what is inside the base layer is part of it, and never adapted
    dropout_slot: ClassVar[str] = ""  # the slot of the modules that drop inputs of the adapter while training
    changes_input: ClassVar[bool] = False  # whether `adapt_input` does anything: most methods spare the calls

    def __init__(self, base_layer: nn.Module, op: type[Operator]) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.training = base_layer.training
        # adapter -> the layer whose weights it uses here too: it has the same base weight, and merges into it
        self.tied_to: dict[str, BaseTunerLayer] = {}
        for slot, kind in self.slots.items():
            container = kind()
            if isinstance(container, nn.Module):
                container.train(self.training)
            setattr(self, slot, container)
        self.op = op
        self.in_features, self.out_features = self.features()
        self._adapters: dict[str, None] = {}  # the adapters this layer has, in order of arrival
        self.merged_adapters: list[str] = []
        self._saved_base: tuple[Tensor, Tensor | None] | None = None  # weight and bias before the first merge

    # What a method defines -----------------------------------------------------------------------

    @classmethod
    def operator_for(cls, module: nn.Module) -> type[Operator] | None:
        """The kind of layer that a module is; None for one that no method adapts."""
        return operator_of(module)

    @classmethod
    def class_for(cls, op: type[Operator]) -> type[BaseTunerLayer]:
        """The class that adapts layers of kind `op`."""
        return cls

    def parts(self) -> dict[str, nn.Module]:
        """Modules of the base layer that are adapted with it, by path; with any, it is not `opaque`."""
        return {}

    @classmethod
    def check(cls, config: Any, base: Any, op: type[Operator], name: str) -> None:
        """Raise if `config` cannot adapt this layer. Runs for every target before anything is created."""

    @classmethod
    def share_out(cls, config: Any, layers: Mapping[str, BaseTunerLayer]) -> dict[str, Any]:
        """What the layers of one adapter, by name, decide together; it is read like fields of the config."""
        return {}

    def create(self, config: Any, name: str) -> dict[str, Any]:
        """The contents of the slots for one new adapter on the module called `name`, not yet attached.

        Under `weight`, which is no slot: the base weight to begin with, in its own layout, if it changes.
        """
        raise NotImplementedError

    def create_with(self, config: Any, name: str, shared: dict[str, Any]) -> dict[str, Any]:
        """As `create`, where that depends on what the adapter has for the whole model: `create_shared`'s."""
        return self.create(config, name)

    def share(self, leader: BaseTunerLayer, adapter: str, contents: dict[str, Any]) -> dict[str, Any]:
        """The contents of the slots for an adapter that follows the leader's, whose slots get `contents`."""
        raise UnsupportedOptionError(f"{type(self).__name__} cannot follow the adapters of a tied layer.")

    def features(self) -> tuple[int, int]:
        """(in, out) of what is adapted."""
        return self.op.features(self.get_base_layer())

    def delta(self, adapter: str) -> Tensor:
        """What the adapter adds to the base weight: (out, in, *kernel)."""
        raise NotImplementedError

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """The output `y` for the input `x`, changed by one adapter: by definition, the delta applied to `x`,
        after dropout while training.

        A method overrides this where it can do without building the delta.
        """
        delta, x = self.delta(adapter), self.drop_out(adapter, x)
        x = x.to(delta.dtype) if x.is_floating_point() else x  # an embedding's are indices
        return y + self.op.call(self.get_base_layer(), x, delta)

    def drop_out(self, adapter: str, x: Tensor) -> Tensor:
        """The adapter's input, with dropout while training; an embedding's ids cannot be dropped."""
        if self.training and self.dropout_slot and x.is_floating_point():
            return getattr(self, self.dropout_slot)[adapter](x)
        return x

    def adapt_input(self, adapter: str, x: Tensor) -> Tensor:
        """What the base layer gets in place of `x`: x·Rᵀ where W' = W·R. Only asked if `changes_input`."""
        return x

    def fold(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The (canonical) weight and bias with one adapter merged in."""
        return weight + self.delta(adapter), bias

    def check_mergeable(self, adapter: str) -> None:
        """Raise if this adapter cannot be written into the base weight."""

    def check_per_sample(self, adapter: str) -> None:
        """Raise if this adapter cannot be applied to some samples of a batch only."""

    # Forward -------------------------------------------------------------------------------------

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, changed by every active adapter, in the base output's dtype."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        base: Any = self._modules["base_layer"]  # nn.Module's own attribute lookup is slow
        adapt = not self._disable_adapters and not self.merged_adapters
        if adapt and self.changes_input:  # W·R₁·R₂ turns x by R₂ first
            for adapter in reversed(self._active_adapter):
                if adapter in self._adapters:
                    x = self.adapt_input(adapter, x)
        y = base_out = base(x, *args, **kwargs) if args or kwargs else call(base, x)
        if adapt:
            if self.batches and (batch := self.batch()) is not None:
                return self._adapt_per_sample(batch, x, y)
            for adapter in self._active_adapter:
                if adapter in self._adapters:
                    y = self.adapt(adapter, x, y)
        return y if y.dtype is base_out.dtype else y.to(base_out.dtype)

    def _adapt_per_sample(self, batch: Batch, x: Tensor, y: Tensor) -> Tensor:
        """The base output `y` with each sample changed by its own adapter, whichever are active."""

        def adapted(name: str, rows: Tensor) -> Tensor:
            own = y[rows.to(y.device)]
            if name == BASE_NAME or name not in self._adapters:
                return own
            return self.adapt(name, x[rows.to(x.device)], own).to(y.dtype)

        return batch.apply(len(x), adapted)

    # Adapters ------------------------------------------------------------------------------------

    def attach(self, adapter: str, contents: dict[str, Any]) -> None:
        """Put what `create` made into the slots, replacing an adapter of that name."""
        self.detach(adapter)
        for slot, value in contents.items():  # a slot, or `tied_to`
            getattr(self, slot)[adapter] = value
        self._adapters[adapter] = None

    def detach(self, adapter: str) -> dict[str, Any]:
        """Take an adapter out of all slots and return their contents; {} if the layer does not have it."""
        if self._adapters.pop(adapter, self) is self:
            return {}
        taken = {}
        for slot in ("tied_to", *self.slots):
            container: Any = getattr(self, slot)
            if adapter in container:
                taken[slot] = container.pop(adapter)
        return taken

    def delete(self, adapter: str) -> None:
        """Take an adapter out, and what it has for the whole model: it is deleted from all layers."""
        self.detach(adapter)
        for slot in self.shared_slots:
            container = getattr(self, slot)
            if adapter in container:
                container.pop(adapter)

    def has_adapter(self, adapter: str) -> bool:
        """Whether this layer has an adapter of that name."""
        return adapter in self._adapters

    def all_adapters(self) -> list[str]:
        """The names of the adapters this layer has."""
        return list(self._adapters)

    def adapter_parameters(self, adapter: str) -> Iterator[nn.Parameter]:
        """The trained tensors of one adapter; none if the layer does not have it."""
        modules = self._modules
        for slot in self.adapter_layer_names:
            # past the methods of nn.Module: half the calls, which count where hundreds of adapters are frozen
            container: Any = modules[slot] if slot in modules else getattr(self, slot)
            if isinstance(container, nn.ParameterDict):
                if (own := container._parameters.get(adapter)) is not None:
                    yield own
            elif adapter in container:
                value = container[adapter]
                if not isinstance(value, nn.Module):
                    yield value
                elif value._modules:
                    yield from value.parameters()
                else:
                    yield from (p for p in value._parameters.values() if p is not None)

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """(key in the live layer, key in a checkpoint, tensor): the two keys differ by the adapter's name
        only.
        """
        return self._entries(adapter, self.slots)

    def shared_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """The same of what the adapter has for the whole model; every layer that has the adapter tells it."""
        return self._entries(adapter, self.shared_slots if self.has_adapter(adapter) else {})

    @classmethod
    def from_checkpoint(cls, config: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a file has, under the keys and in the form of `state_entries` of a live adapter."""
        return tensors

    def _entries(self, adapter: str, slots: dict[str, type]) -> Iterator[tuple[str, str, Tensor]]:
        for slot in slots:
            container: Any = getattr(self, slot)
            if slots[slot] not in (dict, UnsavedBufferDict) and adapter in container:
                value = container[adapter]
                if isinstance(value, nn.Module):
                    for key, tensor in value.state_dict().items():
                        yield f"{slot}.{adapter}.{key}", f"{slot}.{key}", tensor
                else:
                    yield f"{slot}.{adapter}", slot, value.detach()

    @property
    def active_adapter(self) -> list[str]:
        """The same as `active_adapters`, under PEFT's older name."""
        return self._active_adapter

    # Base layer ----------------------------------------------------------------------------------

    def get_base_layer(self) -> nn.Module:
        """The layer that is adapted; below all adapted layers where methods are mixed."""
        base: Any = self._modules["base_layer"]  # nn.Module's own attribute lookup is slow
        while isinstance(base, BaseTunerLayer):
            base = base._modules["base_layer"]
        return base

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, in its own layout."""
        return self.op.weight(self.get_base_layer())

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.op.bias(self.get_base_layer())

    @property
    def unmerged_weight(self) -> Tensor:
        """The canonical base weight as it is without the adapters that are merged."""
        return self.op.canonical(self.weight if self._saved_base is None else self._saved_base[0])

    @property
    def unmerged_bias(self) -> Tensor | None:
        """The base bias as it is without the adapters that are merged."""
        return self.bias if self._saved_base is None else self._saved_base[1]

    def weight_before(self, adapter: str) -> Tensor:
        """The canonical weight that this adapter meets, changed by all that act before it, inner ones too."""
        weight = self.op.canonical(self.weight)
        inner: list[BaseTunerLayer] = []
        layer: nn.Module = self
        while isinstance(layer, BaseTunerLayer):
            inner.insert(0, layer)
            layer = layer.base_layer
        for other in inner:
            for name in other.active_adapters:
                if other is self and name == adapter:
                    return weight
                if other.has_adapter(name) and not other.merged:
                    weight = other.fold(name, weight, None)[0]
        return weight

    # Merging -------------------------------------------------------------------------------------

    @property
    def merged(self) -> bool:
        """Whether the base weight contains adapters."""
        return bool(self.merged_adapters)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What merging adds to the base weight, in the base weight's own layout."""
        return self.op.canonical(self.delta(adapter))

    def mergeable_adapters(self, adapter_names: list[str] | None = None) -> list[str]:
        """The named adapters (default: the active ones) that this layer has and has not merged; checked."""
        if isinstance(adapter_names, str):
            raise TypeError(f"adapter_names={adapter_names!r} should be a list of names.")
        wanted = self._active_adapter if adapter_names is None else adapter_names
        names = [a for a in wanted if a in self._adapters and a not in self.merged_adapters]
        for adapter in names:
            self.check_mergeable(adapter)
        return names

    @torch.no_grad()
    def merged_base(self, adapters: list[str], safe_merge: bool) -> tuple[Tensor, Tensor | None]:
        """Weight (stored layout) and bias with `adapters` folded in; ValueError if `safe_merge` meets a NaN
        or inf.
        """
        weight, bias = self.op.canonical(self.weight), self.bias
        for adapter in adapters:
            weight, bias = self.fold(adapter, weight, bias)
            if safe_merge and not all(t.isfinite().all() for t in (weight, bias) if t is not None):
                raise ValueError(
                    f"Merging adapter '{adapter}' would put NaN or infinite values into the weights."
                )
        return self.op.canonical(weight), bias

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write adapters into the base weight, in place; the adapters stay."""
        adapters = self.mergeable_adapters(adapter_names)
        own = [adapter for adapter in adapters if adapter not in self.tied_to]
        if own:
            weight, bias = self.merged_base(own, safe_merge)
            if self._saved_base is None:
                self._saved_base = self._base_copy()
            self._write_base(weight, bias)
        self.merged_adapters.extend(adapters)

    @torch.no_grad()
    def before_merge(self) -> Callable[[], None]:
        """A function that takes back all merges that follow, bit for bit; it costs a copy of the weight only
        if something is merged already.
        """
        if not self.merged:
            return self.unmerge
        base, saved, merged = self._base_copy(), self._saved_base, list(self.merged_adapters)

        @torch.no_grad()
        def take_back() -> None:
            self._write_base(*base)
            self._saved_base, self.merged_adapters[:] = saved, merged

        return take_back

    def forget_base(self) -> None:
        """Leave no second copy of the weight: what is merged stays for good."""
        self._saved_base = None

    def _base_copy(self) -> tuple[Tensor, Tensor | None]:
        bias = self.bias
        return self.weight.clone(), None if bias is None else bias.clone()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base weight back, bit for bit."""
        if self._saved_base is not None:
            self._write_base(*self._saved_base)
        self._saved_base = None
        self.merged_adapters.clear()

    def _write_base(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight.copy_(weight)
        own = self.bias
        if own is not None and bias is not None and own is not bias:  # few methods change it
            own.copy_(bias)

    def _get_name(self) -> str:
        return f"{self.prefix.strip('_')}.{self.op.__name__}"  # prints as `lora.Linear`
