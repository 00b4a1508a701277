"""Perform a case on an implementation and record what is there to see, as plain data. Nothing here knows what
is right.

`run_case` does the steps of a program one by one. Every step leaves a record (error, warnings, print-out);
every entity that the steps made leaves one too, at the end, at each `capture`, and, for what `given` made,
before and after `when`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import itertools
import json
import re
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors import safe_open
from torch import nn

from peft_conformance import models
from peft_conformance.damage import DAMAGES
from peft_conformance.isolation import global_state, isolated, seed_all
from peft_conformance.records import TEXT_LIMIT, Record, Recorder, mro
from peft_conformance.roles import AUX
from peft_conformance.script_parts import train
from peft_conformance.surface import survey

Observation = dict[str, Any]  # JSON, but for "tensors": {key: tensor}, which travels as a safetensors file

# Arguments that name an entity or a config; every other argument is a literal.
ENTITY_ARGUMENTS = frozenset(
    [
        "model",
        "base_model",
        "arrow_config",
        "task_specific_adapter_paths",
        "general_adapter_paths",
        "state_dict",
        "peft_model_state_dict",
        "eva_state_dict",
        "model_id",
        "save_directory",
        "pretrained_model_name_or_path",
        "path_initial_model_for_weight_conversion",
    ]
)
SOURCES = ("model", "base_model", "pretrained_model_name_or_path")  # what a result descends from
CONFIG_ARGUMENTS = frozenset(["peft_config", "config", "lora_config"])
CLASS_ARGUMENTS = frozenset(["config_cls", "model_cls"])
PUBLIC_CONTEXTS = {"dora_caching": "helpers.DoraCaching"}  # contexts that are no method of the model
LAYER_CLASSES = {
    "BaseTunerLayer": "tuners.tuners_utils.BaseTunerLayer",
    "LoraLayer": "tuners.lora.LoraLayer",
    "IA3Layer": "tuners.ia3.IA3Layer",
    "LoHaLayer": "tuners.loha.LoHaLayer",
    "ModulesToSaveWrapper": "utils.ModulesToSaveWrapper",
}
NOISE = 0.3  # standard deviation of `perturb`: large beside initial values, small beside overflow


class Missing(LookupError):
    """The implementation has not left what a step works on: a tensor, a key, a file."""


class MissingFunction(Missing):
    """The implementation does not offer a public name."""


class Foreign(Exception):
    """Carries an exception that came out of the implementation, to tell it from a mistake of ours."""


class _PrintOut(io.StringIO):
    """The beginning of a print-out; a flood does not fill the memory."""

    def write(self, text: str) -> int:
        super().write(text[: max(0, TEXT_LIMIT - self.tell())])
        return len(text)


class Interrupt(Exception):
    """Our own way out of a `within` block."""


@dataclass(frozen=True)
class Subject:
    """The implementation as the driver sees it: a root module and the public names below it."""

    root: types.ModuleType
    identity: dict[str, Any] = field(
        default_factory=dict
    )  # name, version, api_level, module: told in observations
    names: Mapping[str, str] = field(default_factory=dict)  # public name -> where this implementation has it

    def find(self, name: str) -> tuple[Any, Any]:
        """What the dotted public `name` stands for, and what holds it; raises `MissingFunction`."""
        owner: Any = None
        found: Any = self.root
        for part in self.names.get(name, name).split("."):
            if not hasattr(found, part) and isinstance(found, types.ModuleType):
                _import_below(found, part)
            if not hasattr(found, part):
                raise MissingFunction(
                    f"{self.identity.get('name', self.root.__name__)} does not offer {name}"
                )
            owner, found = found, getattr(found, part)
        return found, owner


def _import_below(package: types.ModuleType, part: str) -> None:
    name = f"{package.__name__}.{part}"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith(error.name or "?"):  # it is there, and needs something that is not
            raise Foreign from error


@dataclass(frozen=True)
class Entity:
    """A thing that a step has made, and what is known about where it came from."""

    value: Any
    kind: str | None = None  # of its record, where the value alone does not tell
    made: dict[str, Any] | None = None  # the `make_model` step it descends from
    note: Record = field(default_factory=dict)  # more fields for its record


def run_case(program: dict[str, Any], subject: Subject) -> Observation:
    """Do the steps of `program` (a `Case.program`) on `subject` and tell what happened.

    Whatever the implementation raises is recorded, not raised. The result holds `case, implementation, crash,
    steps, entities, captures, frame` as JSON, and `tensors` by the keys that records give as `values`.
    """
    with isolated() as (folder, caught):
        return _Run(program, subject, folder, caught).perform()


class _Run:
    """One performance of a program."""

    def __init__(
        self, program: dict[str, Any], subject: Subject, folder: Path, caught: list[warnings.WarningMessage]
    ):
        self.program, self.subject, self.folder, self.caught = program, subject, folder, caught
        self.entities: dict[str, Entity] = {}
        self.steps: list[Record] = []
        self.captures: dict[str, Record] = {}
        self.recorder = Recorder(program.get("layer_slots", program.get("slots", ())))
        self.stopped = False

    def perform(self) -> Observation:
        for step in self.program.get("given", ()):
            self._step(step, "given")
        given = list(self.entities)
        before = {"entities": {id: self._record(id) for id in given}}
        before["globals"] = global_state(
            self.folder
        )  # last: to look at a model runs code of the implementation
        for step in self.program.get("when", ()):
            self._step(step, "when")
        globals_after = global_state(self.folder)
        values = self.program.get("values", ())
        final = {id: self._record(id, with_values=id in values) for id in self.entities}
        return {
            "case": self.program.get("case"),
            "implementation": self.subject.identity,
            "crash": None,
            "steps": self.steps,
            "entities": final,
            "captures": self.captures,
            "frame": {
                "before": before,
                "after": {"globals": globals_after, "entities": {id: final[id] for id in given}},
            },
            "tensors": self.recorder.tensors,
        }

    def _record(self, id: str, key: str | None = None, *, with_values: bool = False) -> Record:
        """The record of an entity; its values, where wanted, under `key` (by default the entity's own)."""
        entity = self.entity(id)
        with_values = with_values or entity.kind == "tensor"  # outputs are what `close` compares
        values = (key or id) if with_values else None
        return self.recorder.record(entity.value, entity.kind, values) | entity.note

    def entity(self, id: str) -> Entity:
        """The entity called `id`; a name that no step has made is a mistake of the specs."""
        if id not in self.entities:
            raise KeyError(f"no step has made {id!r}; there are: {', '.join(self.entities) or 'none'}")
        return self.entities[id]

    def model(self, id: str) -> nn.Module:
        """The torch module called `id`."""
        value = self.entity(id).value
        if not isinstance(value, nn.Module):
            raise Missing(f"{id} is no torch module but {type(value).__name__}")
        return value

    # --- performing steps

    def _step(self, step: dict[str, Any], phase: str) -> None:
        if self.stopped:
            return
        record: Record = {"phase": phase, "index": step["index"], "label": step.get("label")}
        record |= {"error": None, "warnings": [], "printed": ""}
        self.steps.append(record)
        word = next((word for word in STEPS if word in step), None)
        try:
            with self._watched(record):
                if word == "within":
                    self._within(step["within"], phase)
                elif word:
                    STEPS[word](self, step if word == "call" else step[word])
                elif "survey" in step:  # no word of the language: no clause takes it
                    self._survey(step["survey"])
                else:
                    raise KeyError(f"no step of the language in {sorted(step)}")
        except (Exception, SystemExit) as error:
            record["error"] = _error(error)
            # Only an attempt may fail, and only by what the implementation itself has raised.
            self.stopped = not (step.get("attempt") and isinstance(error, Foreign))

    @contextmanager
    def _watched(self, record: Record) -> Iterator[None]:
        """Gather the warnings and the print-out of a step in its record; steps within it have taken
        theirs.
        """
        start, printed = len(self.caught), _PrintOut()
        try:
            with contextlib.redirect_stdout(printed):
                yield
        finally:
            record["warnings"] = [
                {
                    "category": w.category.__name__,
                    "mro": mro(w.category),
                    "message": str(w.message)[:TEXT_LIMIT],
                }
                for w in self.caught[start:]
            ]
            del self.caught[start:]
            record["printed"] = printed.getvalue()

    def _within(self, body: dict[str, Any], phase: str) -> None:
        if body["context"] in PUBLIC_CONTEXTS:
            context = self.subject.find(PUBLIC_CONTEXTS[body["context"]])[0]
        else:
            context = getattr(self.model(body["on"]), body["context"])
        with contextlib.suppress(Interrupt), _foreign(), context():
            for step in body["steps"]:
                self._step(step, phase)
            if self.stopped or body.get("interrupt"):
                raise Interrupt("the block is left by an exception")

    def _call(self, step: dict[str, Any]) -> None:
        name, arguments = (
            step["call"],
            {key: self._argument(key, value) for key, value in step.get("args", {}).items() if key != "data"},
        )
        if "data" in step.get("args", {}):
            arguments |= self._data(name, step["args"]["model"], step["args"]["data"])
        if "on" in step:
            receiver = self.entity(step["on"])
            target = receiver.value
            method = name.rpartition(".")[2]
            with _foreign():
                if name == "BaseTuner.set_adapter":  # PeftModel has a method of its own by that name
                    target = target.base_model
                result = getattr(target, self.subject.names.get(name, method))(**arguments)
            made = receiver.made
            folder = step.get("args", {}).get("save_directory")
            if isinstance(folder, str):  # what it holds descends from the model
                self.entities[folder] = replace(self.entity(folder), made=made)
        else:
            function, _ = self.subject.find(self.program["operations"][name]["path"])
            with _foreign():
                result = function(**arguments)
            sources = [step.get("args", {}).get(key) for key in SOURCES]
            made = next((self.entity(source).made for source in sources if source), None)
        if "as" in step:
            kind = "model" if isinstance(result, nn.Module) else None
            if isinstance(result, dict) and self.program["operations"][name].get("result") == "state_dict":
                kind = "state_dict"  # also when it is empty
            self.entities[step["as"]] = Entity(result, kind, made)

    def _data(self, call: str, model: str, seeds: list[int]) -> dict[str, Any]:
        """The model's own inputs, in the form that a function which looks at data takes them."""
        batches = [self._input({"of": model, "input_seed": seed}) for seed in seeds]

        def feed(to: Any, batch: tuple[list[Any], dict[str, Any]]) -> Any:
            return to(*batch[0], **batch[1])

        if call == "preprocess_corda":
            return {"run_model": lambda: [feed(self.model(model), batch) for batch in batches]}
        whole = {"prepare_model_inputs_fn": None, "prepare_layer_inputs_fn": None}
        return {"dataloader": batches, "forward_fn": feed, **whole, "show_progress_bar": False}

    def _argument(self, key: str, value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"inside"}:
            return str(self.entity(value["inside"]).value / "adapter")
        if key in CONFIG_ARGUMENTS:
            return self._config(value["config"]) if isinstance(value, dict) else self.entity(value).value
        if key in ENTITY_ARGUMENTS:
            if isinstance(value, list):
                return [self._argument(key, item) for item in value]
            entity = self.entity(value)
            return str(entity.value) if entity.kind == "folder" else entity.value
        if key in CLASS_ARGUMENTS:
            return self.subject.find(value)[0]
        if key == "layer_cls":
            return self.subject.find(LAYER_CLASSES[value])[0]
        return copy.deepcopy(value)

    def _config(self, spec: dict[str, Any] | str) -> Any:
        if spec == "none":
            return None
        if spec == "not-a-config":
            return {"peft_type": "LORA", "r": 4}
        if spec == "unknown":
            spec = {"class": "PeftConfig", "fields": {"peft_type": "UNKNOWN"}}
        assert isinstance(spec, dict)
        cls, _ = self.subject.find(spec["class"])
        fields = {key: self._public(value) for key, value in spec["fields"].items()}
        with _foreign():
            return cls(**fields)

    def _public(self, value: Any) -> Any:
        """A literal, or what `{public: name}` stands for, such as a member of an enumeration."""
        if isinstance(value, dict) and value.keys() == {"public"}:
            return self.subject.find(value["public"])[0]
        if isinstance(value, dict):
            return {key: self._public(item) for key, item in value.items()}
        return [self._public(item) for item in value] if isinstance(value, list) else value

    # --- things to start from

    def _make_model(self, body: dict[str, Any]) -> None:
        options = {key: body[key] for key in ("seed", "dtype", "device", "training") if key in body}
        model = models.build(self.program["models"][body["model"]], **options)
        self.entities[body["id"]] = Entity(model, "model", body)

    def _make_config(self, body: dict[str, Any]) -> None:
        config = self._config(body if "class" in body else body["config"])
        self.entities[body["id"]] = Entity(config)

    def _make_folder(self, body: dict[str, Any]) -> None:
        folder = self.folder / body["id"]
        folder.mkdir()
        made = None
        if "model" in body:
            source = self.entity(body["model"])
            model, made = cast("Any", source.value), source.made
            model.save_pretrained(folder)
            model.name_or_path = model.config.name_or_path = str(folder)
        self.entities[body["id"]] = Entity(folder, "folder", made)

    def _compile(self, body: dict[str, Any]) -> None:
        source = self.entity(body["of"])
        compiled: Any = torch.compile(self.model(body["of"]), backend="eager")
        self.entities[body["id"]] = Entity(compiled, "model", source.made)

    def _edit_state_dict(self, body: dict[str, Any]) -> None:
        source = self.entity(body["of"])
        tensors = dict(source.value)

        def matching(pattern: str) -> list[str]:
            found = [key for key in tensors if re.fullmatch(pattern, key)]
            if not found:
                raise Missing(
                    f"no key of {body['of']} matches {pattern!r}; it has: {', '.join(tensors) or 'none'}"
                )
            return found

        if "keep" in body:
            kept = {key for pattern in body["keep"] for key in matching(pattern)}
            tensors = {key: value for key, value in tensors.items() if key in kept}
        for pattern in body.get("drop", ()):
            for key in matching(pattern):
                del tensors[key]
        if prefix := body.get("strip_prefix"):
            matching(re.escape(prefix) + ".*")
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        tensors = {body.get("add_prefix", "") + key: value for key, value in tensors.items()}
        if "fill" in body:
            tensors = {key: _filled(value, body["fill"]) for key, value in tensors.items()}
        if "dtype" in body:
            tensors = {key: value.to(models.DTYPES[body["dtype"]]) for key, value in tensors.items()}
        for key, spec in body.get("insert", {}).items():
            blank = torch.empty(spec.get("shape", []), dtype=models.DTYPES[spec.get("dtype", "float32")])
            tensors[key] = _filled(blank.to(spec.get("device", "cpu")), spec.get("fill", 0))
        self.entities[body["id"]] = Entity(tensors, "state_dict", source.made)

    def _edit_file(self, body: dict[str, Any]) -> None:
        folder = self.entity(body["folder"]).value
        path = folder / body["file"]
        if "write" in body:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body["write"], encoding="utf-8")
        elif not path.is_file():
            there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            raise Missing(
                f"no file {body['file']} in {body['folder']}; it holds: {', '.join(there) or 'nothing'}"
            )
        if "set_fields" in body or "remove_fields" in body:
            removed = body.get("remove_fields", ())
            fields = json.loads(path.read_text(encoding="utf-8")) | body.get("set_fields", {})
            fields = {key: value for key, value in fields.items() if key not in removed}
            path.write_text(json.dumps(fields, indent=2), encoding="utf-8")
        if "truncate" in body:
            path.write_bytes(path.read_bytes()[: body["truncate"]])
        if "damage" in body:
            DAMAGES[body["damage"]](path)
        if body.get("delete"):
            path.unlink()

    # --- running and changing models

    def _input(self, body: dict[str, Any]) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """What a step gives to its model, by position and by keyword, tensors first."""
        made = self.entity(body["of"]).made
        assert made is not None, f"{body['of']} does not descend from a make_model step"
        tensors = models.make_input(
            self.program["models"][made["model"]],
            body.get("input", "default"),
            seed=body.get("input_seed", 0),
            dtype=made.get("dtype", "float32"),
            device=made.get("device", "cpu"),  # wherever the implementation may have moved the model
        )
        args = [tensors.pop(None)] if None in tensors else []
        named = {"adapter_names": list(body["adapter_names"])} if "adapter_names" in body else {}
        return args, {str(k): v for k, v in tensors.items()} | named

    def _output(self, body: dict[str, Any]) -> tuple[Any, torch.Tensor]:
        """The model's output, and the (first) input it was given."""
        model, (args, kwargs) = self.model(body["of"]), self._input(body)
        value = next(iter([*args, *kwargs.values()]))
        with _foreign():
            output = model(*args, **kwargs)
        if not isinstance(output, torch.Tensor):
            for name in [body["output"]] if "output" in body else models.OUTPUTS:
                if isinstance(getattr(output, name, None), torch.Tensor):
                    return getattr(output, name), value
        return output, value

    def _forward(self, body: dict[str, Any]) -> None:
        output, value = self._output(body)
        key = f"{body['id']}/input"
        self.recorder.tensors[key] = value.detach().cpu().clone()
        kind = "tensor" if isinstance(output, torch.Tensor) else None
        self.entities[body["id"]] = Entity(output, kind, note={"input": key, "of": body["of"]})

    def _generate(self, body: dict[str, Any]) -> None:
        _, kwargs = self._input(body)
        args = [kwargs.pop("input_ids")] if body.get("positional") else []
        with _foreign(), models.quiet_transformers():
            tokens = self.model(body["of"]).generate(
                *args, **kwargs, **models.greedy(body.get("new_tokens", 6))
            )  # type: ignore[operator]
        self.entities[body["id"]] = Entity(tokens, "tensor" if isinstance(tokens, torch.Tensor) else None)

    def _train(self, body: dict[str, Any]) -> None:
        _, kwargs = self._input(body)
        steps, checkpointing = body.get("steps", 2), body.get("gradient_checkpointing", False)
        with _foreign(), models.quiet_transformers():
            train(self.model(body["of"]), kwargs, steps, checkpointing, self.folder)

    def _backward(self, body: dict[str, Any]) -> None:
        output, _ = self._output(body)
        with _foreign():
            output.float().square().sum().backward()

    def _perturb(self, body: dict[str, Any]) -> None:
        part, adapter, seed = body.get("part", "adapter"), body.get("adapter"), body.get("seed", 0)
        # Only what trains: noise on bookkeeping and fixed tensors would make an adapter that cannot be.
        slots = {
            "adapter": set(self.program.get("trained", self.program.get("slots", ()))),
            "aux": {*AUX},
        }

        def chosen(name: str) -> bool:
            parts = name.split(".")
            if part == "base":
                return not ({*self.program.get("slots", ())} | slots["aux"]) & set(parts[:-1])
            return any(a in slots[part] and adapter in (None, b) for a, b in itertools.pairwise(parts))

        named = self.model(body["of"]).named_parameters()
        parameters = sorted((n, p) for n, p in named if p.is_floating_point() and chosen(n))
        if not parameters:
            whose = f" of {adapter or 'any adapter'}" if part != "base" else ""
            raise Missing(f"nothing to perturb: {body['of']} has no {part} tensors{whose}")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in parameters:
                if body.get("fill") == "nan":
                    parameter.fill_(torch.nan)
                    continue
                parameter.add_((NOISE * torch.randn(parameter.shape, generator=generator)).to(parameter))

    def _set_tensor(self, body: dict[str, Any]) -> None:
        value, name = self.entity(body["of"]).value, body["name"]
        named = (value.named_parameters, value.named_buffers) if isinstance(value, nn.Module) else ()
        tensors = value if isinstance(value, dict) else {key: t for part in named for key, t in part()}
        if name not in tensors:
            raise Missing(f"no tensor {name!r} in {body['of']}; it has: {', '.join(tensors) or 'none'}")
        old = tensors[name]
        dtype = models.DTYPES[body["dtype"]] if "dtype" in body else old.dtype
        new = _filled(torch.empty(body.get("shape", old.shape), dtype=dtype, device=old.device), body["fill"])
        if isinstance(value, dict):
            value[name] = new
        elif new is None:
            raise ValueError("a model's tensor cannot be none")
        elif new.shape == old.shape and new.dtype == old.dtype:
            with torch.no_grad():
                old.copy_(new)
        else:
            old.data = new

    def _write(self, body: dict[str, Any]) -> None:
        *path, last = body["path"].split(".")
        target = self.entity(body["of"]).value
        with _foreign():
            for part in path:
                target = getattr(target, part)
            setattr(target, last, self._plain(body["value"]))

    def _plain(self, value: Any) -> Any:
        """A copy of plain data; the id of a folder, also as a value of a mapping, stands for its path."""
        if isinstance(value, dict):
            return {key: self._plain(item) for key, item in value.items()}
        entity = self.entities.get(value) if isinstance(value, str) else None
        return str(entity.value) if entity and entity.kind == "folder" else copy.deepcopy(value)

    def _set_mode(self, body: dict[str, Any]) -> None:
        with _foreign():
            self.model(body["of"]).train(body["training"])

    def _seed(self, seed: int) -> None:
        seed_all(seed)

    # --- looking

    def _capture(self, body: dict[str, Any]) -> None:
        wanted = body.get("values") or body["id"] in self.program.get("values", ())
        self.captures[body["id"]] = self._record(body["of"], body["id"], with_values=bool(wanted))

    def _read(self, body: dict[str, Any]) -> None:
        source = self.entity(body["of"])
        value = Files(source.value) if source.kind == "folder" else source.value
        with _foreign():
            for attribute, key in re.findall(r"([A-Za-z_]\w*)|\[([^\]\[]+)\]", body["path"]):
                value = getattr(value, attribute) if attribute else value[_key(value, key)]
        made = source.made if isinstance(value, nn.Module) else None
        self.entities[body["id"]] = Entity(value, "tensor" if isinstance(value, torch.Tensor) else None, made)

    def _survey(self, body: dict[str, Any]) -> None:
        self.entities[body["id"]] = Entity(survey(self.subject, body["paths"]), "value")

    def _look_up(self, body: dict[str, Any]) -> None:
        found, owner = self.subject.find(body["name"])
        if (
            isinstance(owner, type)
            and inspect.isfunction(found)
            and not isinstance(inspect.getattr_static(owner, found.__name__, None), staticmethod)
        ):
            found = _without_self(found)
        is_callable = inspect.isroutine(found) or isinstance(found, type)
        self.entities[body["id"]] = Entity(found, "callable" if is_callable else None)


# Word of the language -> how it is done. `within` is done by `_step` itself, for it needs to know where it
# stands.
STEPS: dict[str, Callable[[_Run, Any], None]] = {
    "make_model": _Run._make_model,
    "make_config": _Run._make_config,
    "make_folder": _Run._make_folder,
    "compile": _Run._compile,
    "edit_state_dict": _Run._edit_state_dict,
    "edit_file": _Run._edit_file,
    "forward": _Run._forward,
    "backward": _Run._backward,
    "generate": _Run._generate,
    "train": _Run._train,
    "perturb": _Run._perturb,
    "set_tensor": _Run._set_tensor,
    "capture": _Run._capture,
    "read": _Run._read,
    "write": _Run._write,
    "look_up": _Run._look_up,
    "set_mode": _Run._set_mode,
    "seed": _Run._seed,
    "within": lambda run, body: None,
    "call": _Run._call,
}


class Tensors(dict[str, torch.Tensor]):
    """What a safetensors file holds: its tensors in their order, and its `metadata`."""

    metadata: dict[str, str] | None = None


class Files:
    """The files of a folder by name, JSON as data and safetensors as tensors, whoever wrote them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> Any:
        path = self.folder / name
        if not path.is_file():
            raise Missing(f"no file {name} was written")
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                tensors = Tensors((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118 - no mapping
                tensors.metadata = file.metadata()
            return tensors
        return Card(path.read_text(encoding="utf-8")) if path.suffix == ".md" else path.read_text("utf-8")


class Card(str):
    """The text of a model card, and the YAML in front of it."""

    @property
    def metadata(self) -> Any:
        """The YAML as data; {} if there is none."""
        return yaml.safe_load(self.split("---")[1]) if self.startswith("---") else {}

    @property
    def lines(self) -> list[str]:
        """The text line by line."""
        return self.splitlines()


@contextmanager
def _foreign() -> Iterator[None]:
    """Mark what is raised inside as the implementation's doing."""
    try:
        yield
    except (Interrupt, Foreign, Missing):
        raise
    except (Exception, SystemExit) as error:
        raise Foreign from error


def _error(error: BaseException) -> Record:
    """The record of an error, with where it was raised, ours and theirs told apart."""
    if isinstance(error, Foreign) and error.__cause__:
        cause, origin, names = error.__cause__, "implementation", mro(type(error.__cause__))
    elif isinstance(error, Missing):  # no `raises` of a clause may be satisfied by what is not there
        cause, origin, names = error, "implementation", [type(error).__name__]
    else:
        cause, origin, names = error, "driver", mro(type(error))
    message = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else str(cause)
    frames = [
        f"{_short(f.filename)}:{f.lineno} in {f.name}" for f in traceback.extract_tb(cause.__traceback__)
    ]
    return {
        "type": type(cause).__name__,
        "mro": names,
        "message": message[:TEXT_LIMIT],
        "origin": origin,
        "traceback": "\n".join(frames[-6:]),
    }


def _short(filename: str) -> str:
    """A file by its last three parts: enough to find it, the same on every machine."""
    return "/".join(Path(filename).parts[-3:])


def _filled(tensor: torch.Tensor, fill: float | str | list[float]) -> torch.Tensor | None:
    """A new tensor like `tensor` with one value everywhere, several in turn, or seeded normal numbers; `None`
    for "none".
    """
    if fill == "none":
        return None
    if fill == "normal":
        return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor)
    if isinstance(fill, list):
        turns = torch.arange(tensor.numel()) % len(fill)
        return torch.tensor(fill, dtype=torch.float64)[turns].reshape(tensor.shape).to(tensor)
    # By way of float64, for not every dtype can be filled.
    return torch.full(tensor.shape, float(fill), dtype=torch.float64).to(tensor)


def _key(container: Any, key: str) -> Any:
    """A key as written in a path: a number for a sequence, text for a mapping."""
    is_sequence = not isinstance(container, Mapping) and not hasattr(container, "keys")
    return int(key) if is_sequence and re.fullmatch(r"-?\d+", key) else key


def _without_self(method: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in for a method with the signature that its callers see."""

    def seen(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    seen.__name__, seen.__module__ = method.__name__, method.__module__
    signature = inspect.signature(method)
    seen.__dict__["__signature__"] = signature.replace(parameters=list(signature.parameters.values())[1:])
    return seen
