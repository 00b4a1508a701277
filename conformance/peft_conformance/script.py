"""A failing check as a Python script that stands alone: the steps in plain torch, and the assertion that
fails.

`reproduce` uses only the implementation's public names. What the check needs from an earlier moment (a
capture, the state before `when`) is remembered at that moment, and nothing else is.
"""

from __future__ import annotations

import builtins
import inspect
import keyword
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from peft_conformance import damage, models, script_parts
from peft_conformance.cases import Case, Check, Verdict
from peft_conformance.damage import DAMAGES
from peft_conformance.driver import (
    CLASS_ARGUMENTS,
    CONFIG_ARGUMENTS,
    ENTITY_ARGUMENTS,
    LAYER_CLASSES,
    NOISE,
    PUBLIC_CONTEXTS,
    SOURCES,
)
from peft_conformance.implementations import Implementation
from peft_conformance.language import find_specs_dir, read_yaml
from peft_conformance.roles import AUX
from peft_conformance.script_checks import CHECKS, IS_ADAPTED, OF_TENSOR, frame_before

PARTS = {
    name: f for part in (script_parts, damage) for name, f in vars(part).items() if inspect.isfunction(f)
}
MODULES = ["contextlib", "copy", "dataclasses", "enum", "inspect", "io", "json", "math", "os", "random", "re"]
MODULES += ["tempfile", "warnings"]
OURS = {  # variables of the script's own, which no entity may be called: in every script, and by check word
    "": "F Path SLOTS error fields generator n name p peft tensor torch",
    "relation": "W W0 config left right tensors x",
    "frame": "after before names now was",
    "formula": "W W0 b b0 bias config expected merged tensors weight x",
    "combination": "A B s config deltas parts tensors wanted wrong",
    "signature": "parameters",
    "snapshot": "lines",
    "keys": "keys",
}
Body = Any


def reproduce(case: Case, verdict: Verdict, implementation: Implementation) -> str:
    """A script that fails as this check of this case has failed, with the implementation's public API alone.

    Run where the implementation can be imported, it raises AssertionError, or the very error that the
    implementation raised; once the implementation does what the check demands, it ends quietly.
    """
    check = next(c for c in case.checks if c.id == verdict.check)
    return Script(case, check, verdict, implementation).text()


class Script:
    """A script while it is written."""

    def __init__(self, case: Case, check: Check, verdict: Verdict, implementation: Implementation) -> None:
        self.case, self.check, self.verdict, self.implementation = case, check, verdict, implementation
        self.program, self.body = case.program, check.body
        self.lines: list[str] = []
        self.imports: set[str] = set()
        self.made: dict[str, dict[str, Any]] = {}  # entity -> the make_model step it descends from
        self.captured: dict[str, str] = {}  # capture -> what it is of
        self.kinds: dict[str, str] = {}
        self.inputs: dict[str, str] = {}  # output -> the expression of its input
        self.remembered: set[str] = set()
        ours = f"{OURS['']} {OURS.get(check.word, 'caught chosen fitting module printed')}"
        self.taken = {*ours.split(), *PARTS, *MODULES}
        self.crowded = len(self.program["models"]) > 1  # their classes may have one name

    def text(self) -> str:
        """The whole script."""
        for step in self.program["given"]:
            self.step(step, "given")
        if self.check.word == "frame":
            frame_before(self)
        for step in self.program["when"]:
            self.step(step, "when")
        CHECKS[self.check.word](self, self.body)
        body = "\n".join(self.lines)
        parts = list(self._parts(body))
        sources = [self._model_source(name) for name in self.program["models"] if self.build(name) in body]
        code = "\n\n\n".join([*sources, *parts])
        seeds = "torch.manual_seed(0)"
        return "\n".join([*self._header(code + body), *(["", code, "", ""] if code else []), seeds, body, ""])

    def _header(self, code: str) -> Iterator[str]:
        i = self.implementation
        name, module, version, package = i.name, i.module, i.version, i.package
        yield f"# {self.case.id}:{self.check.id}"
        yield from textwrap.wrap(self.case.clause.text, 108, initial_indent="# ", subsequent_indent="# ")
        yield f"# {name} {version}" + (f": pip install {package}=={version}" if package else "")
        yield "from __future__ import annotations\n"
        yield from (f"import {name}" for name in MODULES if re.search(rf"(?<![.\w]){name}\.", code))
        if "Path(" in code:
            yield "from pathlib import Path"
        if re.search(r"\bAny\b", code):
            yield "from typing import Any"
        yield "\nimport torch"
        if "F." in code:
            yield "import torch.nn.functional as F"
        yield "import peft" if module == "peft" else f"import {module} as peft"
        yield from (f"import {module}.{below}" for below in sorted(self.imports))
        if "SLOTS" in code:
            yield f"\nSLOTS = {self.slots()!r}  # where layers keep their adapters"
        yield ""

    def _parts(self, body: str) -> Iterator[str]:
        """The source of every function that the body needs, directly or not."""
        needed, waiting = set[str](), [body]
        while waiting:
            text = waiting.pop()
            new = {name for name in PARTS if name not in needed and re.search(rf"(?<![.\w]){name}\(", text)}
            waiting += [inspect.getsource(PARTS[name]) for name in new]
            needed |= new
        yield from (inspect.getsource(PARTS[name]).strip() for name in PARTS if name in needed)

    def build(self, model: str) -> str:
        """The expression for a new model: its class where that is alone, else a function that has the class
        inside.
        """
        declaration = self.program["models"][model]
        if self.crowded or "chain" not in declaration:
            return f"build_{model.replace('-', '_')}()"
        return f"{declaration.get('class_name', 'Chain')}()"

    def _model_source(self, model: str) -> str:
        source, _, returned = models.source(self.program["models"][model]).strip().rpartition("    return ")
        source = source.replace("def build_model(seed):\n    torch.manual_seed(seed)\n", "").strip()
        if not self.build(model).startswith("build_"):
            return source
        return f"def {self.build(model)}:\n{textwrap.indent(source, '    ')}\n\n    return {returned}"

    def add(self, text: str) -> None:
        """Write a line, or several."""
        self.lines += text.splitlines()

    def var(self, entity: str) -> str:
        """The variable that holds an entity."""
        name = entity.replace("-", "_")
        taken = name in self.taken or keyword.iskeyword(name) or hasattr(builtins, name)
        return f"{name}_" if taken or name.startswith("build_") else name

    # --- steps

    def step(self, step: dict[str, Any], phase: str) -> None:
        """Write a step; the one that the check is about leaves its error, warnings or print-out behind."""
        start = len(self.lines)
        word = next(word for word in STEPS if word in step)
        STEPS[word](self, step if word == "call" else step[word])
        wanted = self.body.get("step") if isinstance(self.body, dict) else None
        is_meant = wanted is not None and (
            step.get("label") == wanted or (phase == "when" and step["index"] == wanted)
        )
        inside = textwrap.indent("\n".join(self.lines[start:]), "    ")
        if is_meant and self.check.word in ("warns", "silent"):
            before = (
                "with warnings.catch_warnings(record=True) as caught:\n    warnings.simplefilter('always')"
            )
        elif is_meant and self.check.word == "printed":
            before = "with contextlib.redirect_stdout(io.StringIO()) as printed:"
        elif is_meant and self.check.word in ("raises", "raised"):
            before = "error = None\ntry:"
            inside += "\nexcept (Exception, SystemExit) as raised:\n    error = raised"
        elif step.get("attempt"):
            before = "with contextlib.suppress(Exception, SystemExit):"
        else:
            return
        self.lines[start:] = [*before.splitlines(), *inside.splitlines()]

    def _make_model(self, body: Body) -> None:
        self.made[body["id"]], self.kinds[body["id"]] = body, "model"
        to = f".to(torch.{body['dtype']})" if body.get("dtype", "float32") != "float32" else ""
        declaration = self.program["models"][body["model"]]
        device = "meta" if declaration.get("weightless") else body.get("device", "cpu")
        to += f".to({device!r})" if device not in ("cpu", "meta") else ""
        mode = "" if body.get("training") else ".eval()"
        mode = ".train()" if body.get("training") and "transformers" in declaration else mode
        on_meta = ", torch.device('meta')" if device == "meta" else ""
        self.add(f"with torch.random.fork_rng(devices=[]){on_meta}:")
        self.add(f"    torch.manual_seed({body.get('seed', 0)})")
        self.add(f"    {self.var(body['id'])} = {self.build(body['model'])}{to}{mode}")

    def _make_config(self, body: Body) -> None:
        self.kinds[body["id"]] = "config"
        self.add(f"{self.var(body['id'])} = {self._config(body if 'class' in body else body['config'])}")

    def _config(self, spec: Any) -> str:
        special = {
            "none": "None",
            "not-a-config": "{'peft_type': 'LORA', 'r': 4}",
            "unknown": "peft.PeftConfig(peft_type='UNKNOWN')",
        }
        if isinstance(spec, str):
            return special[spec]
        fields = ", ".join(f"{name}={self._field(value)}" for name, value in spec["fields"].items())
        return f"{self.public(spec['class'])}({fields})"

    def _field(self, value: Any) -> str:
        is_public = isinstance(value, dict) and value.keys() == {"public"}
        return self.public(value["public"]) if is_public else repr(value)

    def public(self, name: str) -> str:
        """The expression for a public name; the modules on the way are imported."""
        path = self.implementation.names.get(name, name).split(".")
        modules = [part for part in path[:-1] if part.islower()]
        if len(path) == 1 and path[0].isalpha() and path[0].islower():  # functional, utils, tuners
            modules = path
        if modules:
            self.imports.add(".".join(modules))
        return ".".join(["peft", *path])

    def _make_folder(self, body: Body) -> None:
        self.kinds[body["id"]], name = "folder", self.var(body["id"])
        self.add(f"{name} = Path(tempfile.mkdtemp())")
        if "model" in body:
            model, self.made[body["id"]] = self.var(body["model"]), self.made[body["model"]]
            self.add(f"{model}.save_pretrained({name})")
            self.add(f"{model}.name_or_path = {model}.config.name_or_path = str({name})")

    def _compile(self, body: Body) -> None:
        self.kinds[body["id"]], self.made[body["id"]] = "model", self.made[body["of"]]
        self.add(f"{self.var(body['id'])} = torch.compile({self.var(body['of'])}, backend='eager')")

    def _edit_state_dict(self, body: Body) -> None:
        new, old = self.var(body["id"]), self.var(body["of"])
        self.kinds[body["id"]] = "state_dict"
        conditions = [f"re.fullmatch({'|'.join(body['keep'])!r}, n)"] if "keep" in body else []
        conditions += [f"not re.fullmatch({'|'.join(body['drop'])!r}, n)"] if "drop" in body else []
        key = f"n.removeprefix({body['strip_prefix']!r})" if "strip_prefix" in body else "n"
        key = f"{body['add_prefix']!r} + {key}" if "add_prefix" in body else key
        value = _filled("p.shape", "p", body["fill"]) if "fill" in body else "p"
        value += f".to(torch.{body['dtype']})" if "dtype" in body else ""
        only = f" if {' and '.join(conditions)}" if conditions else ""
        self.add(f"{new} = {{{key}: {value} for n, p in {old}.items(){only}}}")
        for name, spec in body.get("insert", {}).items():
            to = f"dtype=torch.{spec.get('dtype', 'float32')}, device={spec.get('device', 'cpu')!r}"
            self.add(f"{new}[{name!r}] = {_filled(tuple(spec.get('shape', [])), to, spec.get('fill', 0))}")

    def _edit_file(self, body: Body) -> None:
        path = f"({self.var(body['folder'])} / {body['file']!r})"
        if "write" in body:
            self.add(
                f"{path}.parent.mkdir(parents=True, exist_ok=True)\n{path}.write_text({body['write']!r})"
            )
        if "set_fields" in body or "remove_fields" in body:
            self.add(f"fields = json.loads({path}.read_text()) | {body.get('set_fields', {})!r}")
            if removed := body.get("remove_fields"):
                self.add(f"fields = {{k: v for k, v in fields.items() if k not in {removed!r}}}")
            self.add(f"{path}.write_text(json.dumps(fields))")
        if "truncate" in body:
            self.add(f"{path}.write_bytes({path}.read_bytes()[:{body['truncate']}])")
        if "damage" in body:
            self.add(f"{DAMAGES[body['damage']].__name__}({path})")
        if body.get("delete"):
            self.add(f"{path}.unlink()")

    def output(self, body: Body) -> str:
        """The expression for a model's output."""
        made, model = self.made[body["of"]], self.var(body["of"])
        name = self.program["models"][made["model"]].get("transformers", {}).get("class", "")
        first = ".start_logits" if "QuestionAnswering" in name else ".logits"
        attribute = (first if re.search("LM|For[A-Z]", name) else ".last_hidden_state") if name else ""
        if "output" in body:
            attribute = f".{body['output']}"
        given = self.given(body)
        self.inputs[body.get("id", "")] = next(iter(given.values()))
        return f"{model}({self.arguments(given)}){attribute}"

    def given(self, body: Body) -> dict[str | None, str]:
        """The expressions for what a step gives to its model, by keyword."""
        made, model = self.made[body["of"]], self.var(body["of"])
        options = {"seed": body.get("input_seed", 0), "dtype": made.get("dtype", "float32")}
        declaration = self.program["models"][made["model"]]
        given = models.input_source(declaration, body.get("input", "default"), **options)
        to = f".to(next({model}.parameters()).device)" if made.get("device", "cpu") != "cpu" else ""
        named = {"adapter_names": repr(body["adapter_names"])} if "adapter_names" in body else {}
        return {key: text + to for key, text in given.items()} | named

    @staticmethod
    def arguments(given: dict[str | None, str]) -> str:
        """The arguments of a call."""
        return ", ".join(f"{key}={text}" if key else text for key, text in given.items())

    def _forward(self, body: Body) -> None:
        self.kinds[body["id"]] = "tensor"
        self.add(f"{self.var(body['id'])} = {self.output(body)}")

    def _generate(self, body: Body) -> None:
        given = self.given(body)
        if body.get("positional"):
            given = {None: given.pop("input_ids"), **given}
        self.kinds[body["id"]] = "tensor"
        options = models.greedy(body.get("new_tokens", 6))
        arguments = self.arguments({**given, **{key: repr(value) for key, value in options.items()}})
        self.add(f"{self.var(body['id'])} = {self.var(body['of'])}.generate({arguments})")

    def _train(self, body: Body) -> None:
        steps, checkpointing = body.get("steps", 2), body.get("gradient_checkpointing", False)
        batch = f"dict({self.arguments(self.given(body))})"
        folder = "tempfile.mkdtemp()"
        self.add(f"train({self.var(body['of'])}, {batch}, {steps}, {checkpointing}, {folder})")

    def _backward(self, body: Body) -> None:
        self.add(f"{self.output(body)}.float().square().sum().backward()")

    def _perturb(self, body: Body) -> None:
        part = body.get("part", "adapter")
        condition = self.names("trainable" if part == "adapter" else part, body.get("adapter"))
        parameters = f"sorted({self.var(body['of'])}.named_parameters())"
        self.add(f"chosen = [p for n, p in {parameters} if {condition} and p.is_floating_point()]")
        if body.get("fill") == "nan":
            self.add("assert chosen\nfor p in chosen:\n    p.data.fill_(float('nan'))")
            return
        self.add(f"assert chosen\ngenerator = torch.Generator().manual_seed({body.get('seed', 0)})")
        self.add("for p in chosen:")
        self.add(f"    p.data += ({NOISE} * torch.randn(p.shape, generator=generator)).to(p)")

    def _set_tensor(self, body: Body) -> None:
        target, name = self.var(body["of"]), body["name"]
        is_model = self.kinds.get(body["of"]) == "model"
        self.add(f"tensor = {f'dict(items({target}))' if is_model else target}[{name!r}]")
        shape = tuple(body["shape"]) if "shape" in body else "tensor.shape"
        new = _filled(shape, f"torch.{body['dtype']}" if "dtype" in body else "tensor", body["fill"])
        if not is_model:
            self.add(f"{target}[{name!r}] = {new}")
        elif "shape" in body or "dtype" in body:
            self.add(f"tensor.data = {new}")
        else:
            self.add(f"tensor.data.copy_({new})")

    def _write(self, body: Body) -> None:
        def text(value: Any) -> str:
            if isinstance(value, dict):
                return "{" + ", ".join(f"{key!r}: {text(item)}" for key, item in value.items()) + "}"
            is_folder = isinstance(value, str) and self.kinds.get(value) == "folder"
            return f"str({self.var(value)})" if is_folder else repr(value)

        self.add(f"{self.var(body['of'])}.{body['path']} = {text(body['value'])}")

    def _set_mode(self, body: Body) -> None:
        self.add(f"{self.var(body['of'])}.train({body['training']})")

    def _seed(self, seed: int) -> None:
        self.add(f"torch.manual_seed({seed})\nrandom.seed({seed})")

    def _capture(self, body: Body) -> None:
        """What the check wants to know of a capture is found out, or even judged, at this moment."""
        self.captured[body["id"]] = body["of"]
        word = self.check.word
        if word in ("all", "none", "modules", "keys") and self.body["of"] == body["id"]:
            CHECKS[word](self, self.body)
            self.remembered.add(body["id"])
        elif isinstance(self.body, dict) and body["id"] in self.body.values():
            self.remember(body["id"])

    def _read(self, body: Body) -> None:
        path = re.findall(r"([A-Za-z_]\w*)|\[([^\]\[]+)\]", body["path"])
        value = self.var(body["of"])
        if self.kinds.get(body["of"]) == "folder":
            (_, file), *path = path
            value = f"({value} / {file!r})"
            if file.endswith(".json"):
                value = f"json.loads({value}.read_text())"
            elif file.endswith(".safetensors"):
                self.add("from safetensors import safe_open\nfrom safetensors.torch import load_file")
                value = (
                    f"safe_open({value}, 'pt').metadata()"
                    if "metadata" in body["path"]
                    else f"load_file({value})"
                )
                path = [part for part in path if part != ("metadata", "")]
            elif path and path[0][0] in ("metadata", "lines"):  # of a model card
                value = f"card_{path.pop(0)[0]}({value})"
            else:
                value += ".read_text()"
        for attribute, key in path:
            value += (
                f".{attribute}" if attribute else f"[{key if re.fullmatch('-?[0-9]+', key) else repr(key)}]"
            )
        if body["of"] in self.made:
            self.made[body["id"]] = self.made[body["of"]]
        self.add(f"{self.var(body['id'])} = {value}")

    def _look_up(self, body: Body) -> None:
        self.add(f"{self.var(body['id'])} = {self.public(body['name'])}")

    def _within(self, body: Body) -> None:
        start = len(self.lines)
        for step in body["steps"]:
            self.step(step, "")
        inside = self.lines[start:] + (["raise InterruptedError"] if body.get("interrupt") else [])
        outside = "with contextlib.suppress(InterruptedError), " if body.get("interrupt") else "with "
        public = PUBLIC_CONTEXTS.get(body["context"])
        head = (
            f"{outside}{self.public(public) if public else self.var(body['on']) + '.' + body['context']}():"
        )
        self.lines[start:] = [head, *(f"    {line}" for line in inside or ["pass"])]

    def _call(self, step: Body) -> None:
        name, args = step["call"], step.get("args", {})
        entity = step.get("on") or next((args[key] for key in SOURCES if key in args), None)
        arguments = ", ".join(f"{k}={self._argument(k, v)}" for k, v in args.items() if k != "data")
        if "data" in args:
            arguments += self._data(name, args["model"], args["data"])
        if "on" in step:
            receiver = self.var(step["on"]) + (".base_model" if name == "BaseTuner.set_adapter" else "")
            method = self.implementation.names.get(name, name).rpartition(".")[2]
            text = f"{receiver}.{method}({arguments})"
        else:
            text = f"{self.public(self.program['operations'][name]['path'])}({arguments})"
        if "as" in step:
            text = f"{self.var(step['as'])} = {text}"
            self.kinds[step["as"]] = self.program["operations"][name].get("result", "value")
            if entity in self.made:
                self.made[step["as"]] = self.made[entity]
        if isinstance(folder := args.get("save_directory"), str) and entity in self.made:
            self.made[folder] = self.made[entity]
        self.add(text)

    def _data(self, call: str, model: str, seeds: list[int]) -> str:
        """The arguments that hand a function the model's own inputs to look at."""
        inputs = [self.arguments(self.given({"of": model, "input_seed": seed})) for seed in seeds]
        if call == "preprocess_corda":
            return f", run_model=lambda: [{', '.join(f'{self.var(model)}({given})' for given in inputs)}]"
        batches = ", ".join(f"lambda to: to({given})" for given in inputs)
        whole = "prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False"
        return f", dataloader=[{batches}], forward_fn=lambda to, batch: batch(to), {whole}"

    def _argument(self, key: str, value: Any) -> str:
        if isinstance(value, dict) and set(value) == {"inside"}:
            return f"str({self.var(value['inside'])} / 'adapter')"
        if key in CONFIG_ARGUMENTS:
            return self._config(value["config"]) if isinstance(value, dict) else self.var(value)
        if key in ENTITY_ARGUMENTS:
            if isinstance(value, list):
                return f"[{', '.join(self._argument(key, item) for item in value)}]"
            return f"str({self.var(value)})" if self.kinds.get(value) == "folder" else self.var(value)
        if key in CLASS_ARGUMENTS:
            return self.public(value)
        return self.public(LAYER_CLASSES[value]) if key == "layer_cls" else repr(value)

    # --- what an entity holds, now or remembered

    def names(self, role: str | None, adapter: str | None, of: str = "model") -> str:
        """The condition that a tensor's name `n` in an entity of this kind belongs to a role, and to an
        adapter.
        """
        slots, aux = "|".join(self.slots()), "|".join(AUX)
        if role not in (None, "adapter", "base", "aux"):
            slots = "|".join(self.slots(role)) or "(?!)"  # a card may have no tensor of the role
        if role == "base" or (role is None and adapter is None):
            slots += f"|{aux}" if of == "model" else ""
            return f"not re.search(r'(^|\\.)({slots})(\\.|$)', n)" if role else "True"
        slots = aux if role == "aux" else slots if role else f"{slots}|{aux}"
        # A key of a state dict names no adapter.
        whose = f"({re.escape(adapter)}|weight|bias|$)" if adapter else ""
        return f"re.search(r'(^|\\.)({slots})(\\.|$){whose}', n)"

    def items(self, entity: str, kind: str | None = None) -> str:
        """The expression for the names and tensors of an entity."""
        of = self.kinds.get(self.captured.get(entity, entity))
        name = self.var(self.captured.get(entity, entity))
        if kind:
            return f"{name}.named_{kind}s(remove_duplicate=False)"
        if of == "folder":
            self.add("from safetensors.torch import load_file")
            return f"[i for f in sorted({name}.rglob('*.safetensors')) for i in load_file(f).items()]"
        return f"{name}.items()" if of == "state_dict" else f"items({name})"

    def chosen(self, body: Body, entity: str, value: str, key: str = "n") -> str:
        """The expression for a mapping from the names of selected tensors `p` to something of theirs."""
        conditions = []
        if "role" in body or "adapter" in body:
            of = self.kinds.get(self.captured.get(entity, entity), "model")
            conditions.append(self.names(body.get("role"), body.get("adapter"), of))
        if "module" in body:
            inside = f"(base_model\\.model\\.)?({body['module']})(\\..*)?"
            conditions.append(f"re.fullmatch({inside!r}, n)")
        if "name" in body:
            conditions.append(f"re.fullmatch({body['name']!r}, n)")
        where = f" if {' and '.join(conditions)}" if conditions else ""
        return f"{{{key}: {value} for n, p in {self.items(entity, body.get('kind'))}{where}}}"

    def remember(self, entity: str) -> None:
        """Keep what the check compares: of a capture at its moment, of anything else at the end."""
        if entity in self.remembered:
            return
        self.remembered.add(entity)
        name, source = self.var(entity), self.var(self.captured.get(entity, entity))
        if self.check.word == "same":
            for aspect in self.body["aspects"]:
                self.add(f"{name}_{aspect} = {self.view(entity, source, aspect)}")
        elif self.check.word == "keys":
            self.add(f"{name}_keys = {self.keys_of(entity)}")
        else:  # close, differ, formula
            self.add(f"{name}_values = {self.chosen({}, entity, 'p.detach().clone()', self.short({}))}")
            if self.check.word in ("formula", "relation", "combination"):
                configs = f"getattr({source}, 'peft_config', {{}})"
                self.add(f"{name}_config = {{k: copy.copy(c) for k, c in {configs}.items()}}")

    def view(self, entity: str, source: str, aspect: str) -> str:
        """The expression for one aspect of an entity."""
        of = self.kinds.get(self.captured.get(entity, entity))
        plainly = "name.removeprefix('base_model.model.')"
        if aspect in ("files", "keys"):
            return (
                f"sorted({self.keys_of(entity)})"
                if aspect == "files"
                else f"sorted({self.chosen(self.body, entity, '0')})"
            )
        if aspect == "fields":
            fields = {
                "model": f"{{n: plain(vars(c)) for n, c in {source}.peft_config.items()}}",
                "folder": f"{{f.name: json.loads(f.read_text()) for f in {source}.rglob('*.json')}}",
            }
            return fields.get(
                of or "", f"plain(vars({source})) if hasattr({source}, '__dict__') else plain({source})"
            )
        if aspect in ("active", "training"):
            value = (
                "(list(module.active_adapters), module.disable_adapters)"
                if aspect == "active"
                else "module.training"
            )
            where = f" if {IS_ADAPTED}" if aspect == "active" else ""
            bare = plainly if aspect == "active" else f"{plainly}.replace('.base_layer', '')"
            return f"{{{bare}: {value} for name, module in {source}.named_modules(){where}}}"
        return self.chosen(self.body, entity, OF_TENSOR[aspect], self.short(self.body))

    def short(self, body: Body) -> str:
        """The expression for a tensor's name `n` without what wrapping put into it, and without the adapter's
        name where the other side may have another one or none.
        """
        sides = (
            {self.kinds.get(self.captured.get(body.get(s), body.get(s))) for s in ("left", "right")}
            if body
            else set()
        )
        inside = r"^base_model\.model\.|\bbase_layer\.|\boriginal_module\."
        if "adapter" in body or len(sides) > 1:
            adapters = "|".join(sorted(map(re.escape, self.adapters()))).replace("'", "\\'")
            inside += rf"|\bmodules_to_save\.|\.({adapters})(?=\.(weight|bias)$|$)"
        return f"re.sub(r'{inside}', '', n)"

    def adapters(self) -> set[str]:
        """The names that adapters have in this case."""
        found = {"default"}
        for step in [*self.program["given"], *self.program["when"]]:
            for key in ("adapter_name", "adapter_names"):
                value = step.get("args", {}).get(key, [])
                found |= {value} if isinstance(value, str) else set(value)
        return found

    def keys_of(self, entity: str) -> str:
        """The expression for the keys of an entity."""
        source = self.captured.get(entity, entity)
        name, of = self.var(source), self.kinds.get(source)
        known = {
            "folder": f"[f.relative_to({name}).as_posix() for f in {name}.rglob('*') if f.is_file()]",
            "config": f"[f.name for f in dataclasses.fields({name})]",
            "model": f"[n for n, p in {self.items(entity)}]",
        }
        return known.get(of or "", f"list({name})")

    def cards(self) -> list[Any]:
        """The cards of the methods that the case uses."""
        classes = set(re.findall(r"'class': '(\w+)'", repr([self.program["given"], self.program["when"]])))
        return [card for card in _cards() if card["config"]["class"] in classes]

    def slots(self, role: str | None = None) -> tuple[str, ...]:
        """Where layers keep the tensors (of a role) of these methods; of all, if they have no card."""
        tensors = [pair for card in self.cards() for pair in card.get("tensors", {}).items()]
        found = {
            name.partition(".")[0]
            for name, tensor in tensors
            if role in (None, tensor["role"])
            or (role == "saved" and tensor["role"] != "unsaved")
            or (role == "shared" and tensor.get("shared"))
        }
        return tuple(sorted(found)) if tensors else tuple(self.program["slots"])


@cache
def _cards() -> list[Any]:
    return [read_yaml(file) for file in sorted((find_specs_dir() / "methods").glob("*.yaml"))]


def _filled(shape: Any, like: str, fill: float | str | list[float]) -> str:
    """The expression for a new tensor, of the dtype and device that `like` says."""
    if fill == "none":
        return "None"
    if fill == "normal":
        return f"torch.randn({shape}, generator=torch.Generator().manual_seed(0)).to({like})"
    if isinstance(fill, list):
        turns = f"torch.arange(torch.Size({shape}).numel()) % {len(fill)}"
        return f"torch.tensor({fill!r}, dtype=torch.float64)[{turns}].reshape({shape}).to({like})"
    return f"torch.full({shape}, float({fill!r}), dtype=torch.float64).to({like})"


STEPS: dict[str, Callable[[Script, Any], None]] = {
    "make_model": Script._make_model,
    "make_config": Script._make_config,
    "make_folder": Script._make_folder,
    "compile": Script._compile,
    "edit_state_dict": Script._edit_state_dict,
    "edit_file": Script._edit_file,
    "forward": Script._forward,
    "backward": Script._backward,
    "generate": Script._generate,
    "train": Script._train,
    "perturb": Script._perturb,
    "set_tensor": Script._set_tensor,
    "capture": Script._capture,
    "read": Script._read,
    "write": Script._write,
    "look_up": Script._look_up,
    "set_mode": Script._set_mode,
    "seed": Script._seed,
    "within": Script._within,
    "call": Script._call,
}
