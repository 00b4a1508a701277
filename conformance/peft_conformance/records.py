"""Things as plain data: what a model, a config, a state dict, a folder or a function looks like."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

Record = dict[str, Any]

TEXT_LIMIT = 4000  # characters of a message or print-out that are kept
HOOKS = tuple(
    f"_{name}_hooks"
    for name in (
        "forward",
        "forward_pre",
        "backward",
        "backward_pre",
        "state_dict",
        "state_dict_pre",
        "load_state_dict_pre",
        "load_state_dict_post",
    )
)
SIMPLE = (
    bool,
    int,
    float,
    str,
    list,
    tuple,
    set,
    frozenset,
    Mapping,
    enum.Enum,
    torch.dtype,
    torch.device,
    Path,
)


def plain(value: Any) -> Any:
    """`value` as JSON can hold it.

    Sets are sorted, tuples become lists, enums their value, dtypes and devices their name, `nan` and `inf`
    text, and everything else `{"class": name}`, with the `fields` of a dataclass.
    """
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (torch.dtype, torch.device, Path)):
        return str(value).removeprefix("torch.")
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name, None)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, "fields": fields}
    return {"class": value.__name__ if isinstance(value, type) else type(value).__name__}


def mro(cls: type) -> list[str]:
    """The names of a class and everything it inherits from."""
    return [base.__name__ for base in cls.__mro__]


def is_config(value: Any) -> bool:
    """Whether `value` is a PEFT config: a dataclass that states its PEFT type."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and hasattr(value, "peft_type")


def signature(function: Callable[..., Any]) -> list[Record]:
    """The parameters of a function or constructor: name, kind, required, and the default if there is one."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = []
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # of a class of the interpreter's own kind, as exceptions are
        return []
    for p in parameters.values():
        required = p.default is p.empty and p.kind not in variable
        record = {"name": p.name, "kind": p.kind.name.lower().replace("_", "-"), "required": required}
        found.append(record if p.default is p.empty else record | {"default": plain(_default(function, p))})
    return found


def _default(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The default of a parameter; where a dataclass makes it afresh for each object, one that it makes."""
    field = getattr(function, "__dataclass_fields__", {}).get(parameter.name)
    if field is None or field.default_factory is dataclasses.MISSING:
        return parameter.default
    return field.default_factory()


class Recorder:
    """Makes the records of one case.

    Same object, same token: whatever got a token is kept alive, so that no address is used twice. Tensor
    values that a record is to have are collected in `tensors`.
    """

    def __init__(self, slots: Iterable[str] = ()) -> None:
        self.slots = tuple(slots)
        self._slots = frozenset(self.slots)
        self.tensors: dict[str, torch.Tensor] = {}
        self._tokens: dict[int, tuple[str, Any]] = {}
        self._storages: dict[int, tuple[str, Any]] = {}
        self._of_class: dict[type, set[str]] = {}  # the slots that a class has by itself
        self._counted: dict[tuple[str, torch.dtype], Record] = {}

    def token(self, value: Any) -> str:
        """The name of this very object within the case."""
        return self._tokens.setdefault(id(value), (f"#{len(self._tokens)}", value))[0]

    def record(self, value: Any, kind: str | None = None, values: str | None = None) -> Record:
        """The record of `value`.

        `kind` is given where the value alone does not tell; `values` is the key to keep tensor values under.
        """
        kind = kind or self.kind(value)
        return {"kind": kind, "object": self.token(value)} | getattr(self, f"_{kind}")(value, values)

    def kind(self, value: Any) -> str:
        """The kind of record that suits a value found by reading or calling."""
        if isinstance(value, torch.Tensor):
            return "tensor"
        if is_config(value):
            return "config"
        if hasattr(value, "missing_keys") and hasattr(value, "unexpected_keys"):
            return "outcome"
        if isinstance(value, Mapping) and value and all(isinstance(v, torch.Tensor) for v in value.values()):
            return "state_dict"
        return "value" if value is None or isinstance(value, SIMPLE) else "object"

    # --- one method for each kind

    def _tensor(self, value: torch.Tensor, values: str | None) -> Record:
        return self._numbers(value, values) | {"requires_grad": value.requires_grad}

    def _value(self, value: Any, values: str | None) -> Record:
        return {"value": plain(value), "class": type(value).__name__, "mro": mro(type(value))}

    def _object(self, value: Any, values: str | None) -> Record:
        record: Record = {"class": type(value).__name__, "mro": mro(type(value)), "text": repr(value)[:200]}
        if isinstance(value, types.ModuleType):
            record["exports"] = plain(getattr(value, "__all__", None))
        return record

    def _outcome(self, value: Any, values: str | None) -> Record:
        found = {name: plain(getattr(value, name)) for name in ("missing_keys", "unexpected_keys")}
        return found | {"class": type(value).__name__, "mro": mro(type(value))}

    def _config(self, value: Any, values: str | None) -> Record:
        fields = {f.name: plain(getattr(value, f.name, None)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, "mro": mro(type(value)), "fields": fields}

    def _callable(self, value: Any, values: str | None) -> Record:
        return {
            "name": value.__name__,
            "module": value.__module__,
            "class": type(value).__name__,
            "mro": mro(value if isinstance(value, type) else type(value)),
            "parameters": signature(value),
        }

    def _state_dict(self, value: Mapping[str, Any], values: str | None) -> Record:
        tensors: list[Record] = []
        for name, item in value.items():
            if isinstance(item, torch.Tensor):
                tensors.append({"name": name} | self._numbers(item, f"{values}/{name}" if values else None))
            else:
                tensors.append({"name": name, "dtype": None, "class": type(item).__name__})
        return {"class": type(value).__name__, "mro": mro(type(value)), "tensors": tensors}

    def _model(self, value: nn.Module, values: str | None) -> Record:
        tensors = []
        modules = list(value.named_modules(remove_duplicate=False))
        for kind, named in (
            ("parameter", _members(value, modules, "named_parameters", "_parameters")),
            ("buffer", _members(value, modules, "named_buffers", "_buffers")),
            ("attribute", self._kept_apart(modules)),
        ):
            for name, tensor in named:
                gradient = "none" if tensor.grad is None else "nonzero" if bool(tensor.grad.any()) else "zero"
                tensors.append(
                    {"name": name, "kind": kind, "requires_grad": tensor.requires_grad, "grad": gradient}
                    | self._numbers(tensor, f"{values}/{name}" if values else None)
                )
        configs = getattr(value, "peft_config", None)
        record = {
            "class": type(value).__name__,
            "mro": mro(type(value)),
            "tensors": tensors,
            "modules": [self._module(name, part) for name, part in modules],
            "peft_config": {str(name): self.record(config) for name, config in configs.items()}
            if isinstance(configs, Mapping)
            else None,
            "text": repr(value),
        }
        for name in ("active_adapter", "active_adapters"):
            found = _attribute(value, name)
            if found is not None and not callable(found):  # transformers models have methods of these names
                record[name] = plain(found)
        return record

    def _kept_apart(self, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors of adapters that a layer keeps in a plain dict, neither parameters nor buffers."""
        for path, module in modules:
            own = vars(module)
            # Most modules keep nothing: one look at their few attributes, not one for each of the many slots.
            for slot in () if self._slots.isdisjoint(own) else self.slots:
                container = own.get(slot)
                for adapter, item in container.items() if isinstance(container, dict) else ():
                    if isinstance(item, torch.Tensor):
                        yield f"{path}.{slot}.{adapter}".removeprefix("."), item

    def _folder(self, value: Path, values: str | None) -> Record:
        files = {}
        for path in sorted(p for p in value.rglob("*") if p.is_file()):
            content = path.read_bytes()
            record: Record = {"size": len(content), "digest": blake2b(content, digest_size=8).hexdigest()}
            if path.suffix == ".json":
                record |= _json(content)
            if path.suffix == ".safetensors":
                record |= self._safetensors(path)
            files[path.relative_to(value).as_posix()] = record
        return {"files": files}

    # --- parts

    def _numbers(self, tensor: torch.Tensor, values: str | None) -> Record:
        storage = tensor.untyped_storage()
        tokens = self._storages
        record: Record = {
            "shape": list(tensor.shape),
            "dtype": plain(tensor.dtype),
            "device": tensor.device.type,
            "object": self.token(tensor),
            "storage": tokens.setdefault(storage._cdata, (f"#s{len(tokens)}", storage))[0],
            "digest": None,
        }
        if tensor.device.type != "meta":
            cpu = tensor.detach().cpu().contiguous()
            numbers = cpu.float() if cpu.is_floating_point() and cpu.element_size() == 1 else cpu
            content = cpu.reshape(-1).view(torch.uint8).numpy().tobytes()
            digest = record["digest"] = blake2b(content, digest_size=8).hexdigest()
            counted = self._counted.get((digest, tensor.dtype))
            if counted is None:  # most tensors of a case are seen again as they were
                nonzeros = int(torch.count_nonzero(numbers))
                finite = bool(torch.isfinite(numbers).all())
                counted = {"finite": finite, "nonzeros": nonzeros, "zero": not nonzeros}
                self._counted[digest, tensor.dtype] = counted
            record |= counted
            if values:
                self.tensors[values] = cpu.clone()
                record["values"] = values
        return record

    def _module(self, name: str, module: nn.Module) -> Record:
        adapter: Record | None = None
        if _attribute(module, "base_layer") is not None and _attribute(module, "active_adapters") is not None:
            adapter = {
                "active": plain(_attribute(module, "active_adapters")),
                "merged": plain(_attribute(module, "merged_adapters")),
                "disabled": plain(_attribute(module, "disable_adapters")),
                "scaling": plain(_attribute(module, "scaling")),
                "r": plain(_attribute(module, "r")),
                "adapters": sorted(set(self._slot_names(module))),
            }
        return {
            "name": name,
            "class": type(module).__name__,
            "object": self.token(module),
            "training": module.training,
            "hooks": sum(len(getattr(module, hooks, ())) for hooks in HOOKS),
            "adapter": adapter,
        }

    def _slot_names(self, module: nn.Module) -> Iterator[str]:
        for slot in self._held_slots(module):
            container = getattr(module, slot, None)  # also of an implementation's own kind, for buffers
            if isinstance(container, (nn.Module, Mapping)) and callable(getattr(container, "keys", None)):
                yield from container.keys()  # type: ignore[operator]

    def _held_slots(self, module: nn.Module) -> Iterable[str]:
        """The slots that a module has, found from what it holds: there are many slots, and it has few."""
        own, cls = vars(module), type(module)
        if not _looks_up_as_torch(cls):
            return self.slots
        if cls not in self._of_class:
            self._of_class[cls] = {slot for slot in self.slots if hasattr(cls, slot)}
        held = own.keys() | own["_modules"].keys() | own["_parameters"].keys() | own["_buffers"].keys()
        return (self._slots & held) | self._of_class[cls]

    def _safetensors(self, path: Path) -> Record:
        try:
            with safe_open(path, framework="pt") as file:
                content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
                return {"tensors": self._state_dict(content, None)["tensors"], "metadata": file.metadata()}
        except (SafetensorError, OSError) as error:
            return {"unreadable": str(error)[:TEXT_LIMIT]}


def _members(
    model: nn.Module, modules: Iterable[tuple[str, nn.Module]], walk: str, members: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """What `model.walk(remove_duplicate=False)` yields; where that is torch's own, from one walk for all."""
    if getattr(type(model), walk) is not getattr(nn.Module, walk):
        yield from getattr(model, walk)(remove_duplicate=False)
        return
    for path, module in modules:
        for name, tensor in vars(module)[members].items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _attribute(value: Any, name: str) -> Any:
    """An attribute, or None where there is none or where a property refuses to answer."""
    if isinstance(value, nn.Module) and _lacks(value, name):
        return None
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def _lacks(module: nn.Module, name: str) -> bool:
    """Whether torch's own lookup is in force and would find nothing: told without its exception, at half the
    cost.
    """
    own, cls = module.__dict__, type(module)
    return (
        name not in own
        and name not in own["_modules"]
        and name not in own["_parameters"]
        and name not in own["_buffers"]
        and _looks_up_as_torch(cls)
        and not hasattr(cls, name)
    )


def _looks_up_as_torch(cls: type[nn.Module]) -> bool:
    """Whether torch's own lookup of attributes is in force."""
    return cls.__getattr__ is nn.Module.__getattr__ and cls.__getattribute__ is object.__getattribute__


def _json(content: bytes) -> Record:
    try:
        return {"json": plain(json.loads(content))}
    except (ValueError, RecursionError) as error:
        return {"unreadable": str(error)[:TEXT_LIMIT]}
