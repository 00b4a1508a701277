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
from typing import Any

from peft_conformance import formula, models, script_parts
from peft_conformance.cases import Case, Check, Verdict
from peft_conformance.driver import CONFIG_ARGUMENTS, ENTITY_ARGUMENTS, LAYER_CLASSES, NOISE
from peft_conformance.implementations import Implementation
from peft_conformance.language import find_specs_dir, read_yaml

PARTS = {name: f for name, f in vars(script_parts).items() if inspect.isfunction(f)}
MODULES = ["contextlib", "copy", "dataclasses", "enum", "inspect", "io", "json", "math", "os", "random", "re"]
MODULES += ["tempfile", "warnings"]
OURS = {  # variables of the script's own, which no entity may be called
    "F", "Path", "SLOTS", "W", "W0", "after", "b0", "before", "bias", "caught", "chosen", "config", "error",
    "expected", "fields", "fitting", "found", "generator", "keys", "lines", "merged", "module", "n", "name",
    "names", "now", "p", "parameters", "peft", "printed", "raised", "tensor", "tensors", "torch", "was",
    "weight", "x",
}  # fmt: skip
IS_ADAPTED = "hasattr(module, 'base_layer') and hasattr(module, 'active_adapters')"
OF_TENSOR = {  # aspect -> what of a tensor `p` is compared
    "values": "p.detach().clone()",
    "identity": "p",
    "storage": "p.untyped_storage()",
    "shape": "p.shape",
    "dtype": "p.dtype",
    "device": "p.device",
    "requires_grad": "p.requires_grad",
    "grad": "None if p.grad is None else bool(p.grad.any())",
}
OF_MODULE = {  # aspect -> what of a module is compared
    "class": "type(module)",
    "training": "module.training",
    "hooks": "[len(v) for k, v in vars(module).items() if k.endswith('_hooks')]",
    "active": "list(getattr(module, 'active_adapters', []))",
    "merged": "list(getattr(module, 'merged_adapters', []))",
    "disabled": "getattr(module, 'disable_adapters', None)",
    "scaling": "dict(getattr(module, 'scaling', {}))",
    "r": "dict(getattr(module, 'r', {}))",
}
OF_PROCESS = {
    "rng": "torch.get_rng_state().tolist(), random.getstate()",
    "warnings-filters": "list(warnings.filters)",
    "default-dtype": "torch.get_default_dtype()",
    "grad-mode": "torch.is_grad_enabled()",
    "cwd": "os.getcwd()",
}
SAME = {  # aspect -> how two remembered values are found to be the same
    "values": "torch.equal({0}, {1}) and {0}.dtype == {1}.dtype",
    "identity": "{0} is {1}",
    "storage": "{0}.data_ptr() == {1}.data_ptr()",
}
Body = Any


def reproduce(case: Case, verdict: Verdict, implementation: Implementation) -> str:
    """A script that fails as this check of this case has failed, with the implementation's public API alone.

    Run where the implementation can be imported, it raises AssertionError, or the very error that the
    implementation raised; once the implementation does what the check demands, it ends quietly.
    """
    check = next(c for c in case.checks if c.id == verdict.check)
    return _Script(case, check, verdict, implementation).text()


class _Script:
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
        declared = [d.get("class_name") for d in self.program["models"].values()]
        self.crowded = len(declared) > 1  # several models: each class gets a place of its own

    def text(self) -> str:
        for step in self.program["given"]:
            self.step(step, "given")
        if self.check.word == "frame":
            self.frame_before()
        for step in self.program["when"]:
            self.step(step, "when")
        CHECKS[self.check.word](self, self.body)
        body = "\n".join(self.lines)
        parts = list(self.parts(body))
        sources = [self.model_source(name) for name in self.program["models"] if _builder(name) in body]
        code = "\n\n\n".join([*sources, *parts])
        return "\n".join([*self.header(code + body), *([code, "\n"] if code else []), body, ""])

    def header(self, code: str) -> Iterator[str]:
        name, module, version = (
            self.implementation.name,
            self.implementation.module,
            self.implementation.version,
        )
        package = self.implementation.package
        yield f"# {self.case.id}:{self.check.id}"
        yield from textwrap.wrap(self.case.clause.text, 108, initial_indent="# ", subsequent_indent="# ")
        yield f"# {name} {version}" + (f": pip install {package}=={version}" if package else "")
        yield "from __future__ import annotations\n"
        yield from (f"import {name}" for name in MODULES if re.search(rf"\b{name}\.", code))
        if "Path(" in code:
            yield "from pathlib import Path"
        yield "\nimport torch"
        if "F." in code:
            yield "import torch.nn.functional as F"
        yield "import peft" if module == "peft" else f"import {module} as peft"
        yield from (f"import {module}.{below}" for below in sorted(self.imports))
        if "SLOTS" in code:
            yield f"\nSLOTS = {tuple(self.program['slots'])!r}  # where layers keep their adapters"
        yield "\n"

    def parts(self, body: str) -> Iterator[str]:
        """The source of every function that the body needs, directly or not."""
        needed, waiting = set[str](), [body]
        while waiting:
            text = waiting.pop()
            new = {name for name in PARTS if name not in needed and re.search(rf"\b{name}\(", text)}
            waiting += [inspect.getsource(PARTS[name]) for name in new]
            needed |= new
        yield from (inspect.getsource(PARTS[name]).strip() for name in PARTS if name in needed)

    def model_source(self, name: str) -> str:
        source = (
            models.source(self.program["models"][name]).strip().replace("    torch.manual_seed(seed)\n", "")
        )
        source = source.replace("def build_model(seed):", f"def {_builder(name)}():")
        if not self.crowded:
            return source
        last = f"return {_builder(name)}()"
        return f"def {_builder(name)}():\n{textwrap.indent(source, '    ')}\n\n    {last}"

    def add(self, text: str) -> None:
        self.lines += text.splitlines()

    def var(self, entity: str) -> str:
        """The variable that holds an entity."""
        name = entity.replace("-", "_")
        taken = name in OURS or name in PARTS or name in MODULES or name.startswith("build_")
        return name + "_" if taken or keyword.iskeyword(name) or hasattr(builtins, name) else name

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

    def make_model(self, body: Body) -> None:
        self.made[body["id"]], self.kinds[body["id"]] = body, "model"
        to = f".to(torch.{body['dtype']})" if body.get("dtype", "float32") != "float32" else ""
        to += f".to({body['device']!r})" if body.get("device", "cpu") != "cpu" else ""
        mode = "" if body.get("training") else ".eval()"
        mode = (
            ".train()"
            if body.get("training") and "transformers" in self.program["models"][body["model"]]
            else mode
        )
        self.add("with torch.random.fork_rng(devices=[]):")
        self.add(f"    torch.manual_seed({body.get('seed', 0)})")
        self.add(f"    {self.var(body['id'])} = {_builder(body['model'])}(){to}{mode}")

    def make_config(self, body: Body) -> None:
        self.kinds[body["id"]] = "config"
        self.add(f"{self.var(body['id'])} = {self.config(body if 'class' in body else body['config'])}")

    def config(self, spec: Any) -> str:
        special = {
            "none": "None",
            "not-a-config": "{'peft_type': 'LORA', 'r': 4}",
            "unknown": "peft.PeftConfig(peft_type='UNKNOWN')",
        }
        if isinstance(spec, str):
            return special[spec]
        return f"{self.public(spec['class'])}({', '.join(f'{k}={v!r}' for k, v in spec['fields'].items())})"

    def public(self, name: str) -> str:
        """The expression for a public name; the modules on the way are imported."""
        path = self.implementation.names.get(name, name).split(".")
        modules = [part for part in path[:-1] if part.islower()]
        if len(path) == 1 and path[0].isalpha() and path[0].islower():  # functional, utils, tuners
            modules = path
        if modules:
            self.imports.add(".".join(modules))
        return ".".join(["peft", *path])

    def make_folder(self, body: Body) -> None:
        self.kinds[body["id"]] = "folder"
        self.add(f"{self.var(body['id'])} = Path(tempfile.mkdtemp())")

    def edit_state_dict(self, body: Body) -> None:
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

    def edit_file(self, body: Body) -> None:
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
        if body.get("delete"):
            self.add(f"{path}.unlink()")

    def output(self, body: Body) -> str:
        """The expression for a model's output."""
        made, model = self.made[body["of"]], self.var(body["of"])
        declaration = self.program["models"][made["model"]]
        options = {"seed": body.get("input_seed", 0), "dtype": made.get("dtype", "float32")}
        text, key = models.input_source(declaration, body.get("input", "default"), **options)
        if made.get("device", "cpu") != "cpu":
            text += f".to(next({model}.parameters()).device)"
        name = declaration.get("transformers", {}).get("class", "")
        attribute = (".logits" if "LM" in name else ".last_hidden_state") if name else ""
        self.inputs[body.get("id", "")] = text
        return f"{model}({f'{key}=' if key else ''}{text}){attribute}"

    def forward(self, body: Body) -> None:
        self.kinds[body["id"]] = "tensor"
        self.add(f"{self.var(body['id'])} = {self.output(body)}")

    def backward(self, body: Body) -> None:
        self.add(f"{self.output(body)}.float().square().sum().backward()")

    def perturb(self, body: Body) -> None:
        part = {"adapter": "adapter", "base": "base", "aux": "aux"}[body.get("part", "adapter")]
        condition = self.names(part, body.get("adapter"))
        parameters = f"sorted({self.var(body['of'])}.named_parameters())"
        self.add(f"chosen = [p for n, p in {parameters} if {condition} and p.is_floating_point()]")
        self.add(f"assert chosen\ngenerator = torch.Generator().manual_seed({body.get('seed', 0)})")
        self.add("for p in chosen:")
        self.add(f"    p.data += ({NOISE} * torch.randn(p.shape, generator=generator)).to(p)")

    def set_tensor(self, body: Body) -> None:
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

    def write(self, body: Body) -> None:
        self.add(f"{self.var(body['of'])}.{body['path']} = {body['value']!r}")

    def set_mode(self, body: Body) -> None:
        self.add(f"{self.var(body['of'])}.train({body['training']})")

    def seed(self, seed: int) -> None:
        self.add(f"torch.manual_seed({seed})\nrandom.seed({seed})")

    def capture(self, body: Body) -> None:
        """What the check wants to know of a capture is found out, or even judged, at this moment."""
        self.captured[body["id"]] = body["of"]
        word = self.check.word
        if word in ("all", "none", "modules", "keys") and self.body["of"] == body["id"]:
            CHECKS[word](self, self.body)
            self.remembered.add(body["id"])
        elif isinstance(self.body, dict) and body["id"] in self.body.values():
            self.remember(body["id"])

    def read(self, body: Body) -> None:
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
            else:
                value += ".read_text()"
        for attribute, key in path:
            value += (
                f".{attribute}" if attribute else f"[{key if re.fullmatch('-?[0-9]+', key) else repr(key)}]"
            )
        if body["of"] in self.made:
            self.made[body["id"]] = self.made[body["of"]]
        self.add(f"{self.var(body['id'])} = {value}")

    def look_up(self, body: Body) -> None:
        self.add(f"{self.var(body['id'])} = {self.public(body['name'])}")

    def within(self, body: Body) -> None:
        start = len(self.lines)
        for step in body["steps"]:
            self.step(step, "")
        inside = self.lines[start:] + (["raise InterruptedError"] if body.get("interrupt") else [])
        outside = "with contextlib.suppress(InterruptedError), " if body.get("interrupt") else "with "
        head = f"{outside}{self.var(body['on'])}.{body['context']}():"
        self.lines[start:] = [head, *(f"    {line}" for line in inside or ["pass"])]

    def call(self, step: Body) -> None:
        name, entity = step["call"], step.get("on") or step.get("args", {}).get("model")
        arguments = ", ".join(f"{k}={self.argument(k, v)}" for k, v in step.get("args", {}).items())
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
        self.add(text)

    def argument(self, key: str, value: Any) -> str:
        if key in CONFIG_ARGUMENTS:
            return self.config(value["config"]) if isinstance(value, dict) else self.var(value)
        if key in ENTITY_ARGUMENTS:
            return f"str({self.var(value)})" if self.kinds.get(value) == "folder" else self.var(value)
        return self.public(LAYER_CLASSES[value]) if key == "layer_cls" else repr(value)

    # --- tensors of an entity, now or remembered

    def names(self, role: str | None, adapter: str | None) -> str:
        """The condition that a tensor's name `n` belongs to a role, and to an adapter."""
        slots = "|".join(self.program["slots"])
        if role not in (None, "adapter", "base", "aux"):
            tensors = self.card()["tensors"]
            of_role = {name.partition(".")[0] for name, tensor in tensors.items() if tensor["role"] == role}
            slots = "|".join(sorted(of_role)) or "(?!)"  # a card may have no tensor of the role
        if role == "base" or (role is None and adapter is None):
            return f"not re.search(r'(^|\\.)({slots}|modules_to_save)\\.', n)" if role else "True"
        slots = "modules_to_save" if role == "aux" else slots if role else f"{slots}|modules_to_save"
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
        known = {"model": f"{name}.state_dict(keep_vars=True).items()", "state_dict": f"{name}.items()"}
        return known.get(of or "", f"items({name})")

    def chosen(self, body: Body, entity: str, value: str, key: str = "n") -> str:
        """The expression for a mapping from the names of selected tensors `p` to something of theirs."""
        conditions = []
        if "role" in body or "adapter" in body:
            conditions.append(self.names(body.get("role"), body.get("adapter")))
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
            if self.check.word == "formula":
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

    # --- checks

    def same_object(self, body: Body) -> None:
        self.add(f"assert {' is '.join(map(self.var, body))}")

    def different_objects(self, body: Body) -> None:
        names = [self.var(entity) for entity in body]
        self.add(f"assert len({{id(x) for x in ({', '.join(names)})}}) == {len(names)}")

    def all(self, body: Body) -> None:
        if body["of"] in self.remembered:
            return
        self.add(f"chosen = {self.chosen(body, body['of'], 'p')}")
        if not body.get("may_be_empty"):
            self.add("assert chosen, 'there is no such tensor'")
        self.add(f"for name, p in chosen.items():\n    assert {_tensor_has(body['have'])}, name")

    def none(self, body: Body) -> None:
        if body["of"] in self.remembered:
            return
        self.add(f"chosen = {self.chosen(body, body['of'], 'p')}")
        has = _tensor_has(body["have"]) if "have" in body else "True"
        self.add(f"for name, p in chosen.items():\n    assert not ({has}), name")

    def modules(self, body: Body) -> None:
        if body["of"] in self.remembered:
            return
        source = self.var(self.captured.get(body["of"], body["of"]))
        conditions = [f"re.fullmatch({body['name']!r}, n)"] if "name" in body else []
        if "adapted" in body:
            conditions.append(IS_ADAPTED if body["adapted"] else f"not ({IS_ADAPTED})")
        where = f" if {' and '.join(conditions)}" if conditions else ""
        self.add(f"chosen = {{n: module for n, module in {source}.named_modules(){where}}}")
        self.add("assert chosen, 'there is no such module'\nfor name, module in chosen.items():")
        self.add(f"    assert {_module_has(body['have'])}, name")

    def keys_of(self, entity: str) -> str:
        source = self.captured.get(entity, entity)
        name, of = self.var(source), self.kinds.get(source)
        known = {
            "folder": f"[f.relative_to({name}).as_posix() for f in {name}.rglob('*') if f.is_file()]",
            "config": f"[f.name for f in dataclasses.fields({name})]",
            "model": f"[n for n, p in {self.items(entity)}]",
        }
        return known.get(of or "", f"list({name})")

    def keys(self, body: Body) -> None:
        if body["of"] in self.remembered:
            return
        self.add(f"keys = {self.keys_of(body['of'])}")
        for word, text in (
            ("exactly", "set(keys) == set({0!r})"),
            ("contain", "set({0!r}) <= set(keys)"),
            ("lack", "not set({0!r}) & set(keys)"),
            ("match", "keys and all(re.fullmatch({0!r}, key) for key in keys)"),
            ("no_match", "not any(re.fullmatch({0!r}, key) for key in keys)"),
        ):
            if word in body:
                self.add(f"assert {text.format(body[word])}, keys")
        for word, text in (("same_as", "set(keys) == set({0})"), ("fewer_than", "len(keys) < len({0})")):
            if word in body:
                self.remember(body[word])
                self.add(f"assert {text.format(self.var(body[word]) + '_keys')}, keys")

    def same(self, body: Body) -> None:
        for side in ("left", "right"):
            self.remember(body[side])
        for aspect in body["aspects"]:
            a, b = (f"{self.var(body[side])}_{aspect}" for side in ("left", "right"))
            self.add(f"assert {a}, 'there is nothing to compare'")
            if aspect not in SAME:
                self.add(f"assert {a} == {b}, ({a}, {b})")
                continue
            self.add(f"assert {a}.keys() == {b}.keys(), {a}.keys() ^ {b}.keys()\nfor name in {a}:")
            self.add(f"    assert {SAME[aspect].format(f'{a}[name]', f'{b}[name]')}, name")

    def equal(self, body: Body) -> None:
        expected = body["to"] if "to" in body else self.case.axes[body["to_axis"]]
        name = self.var(body["of"])
        if expected is None or isinstance(expected, bool):
            self.add(f"assert {name} is {expected!r}, {name}")
        else:
            self.add(f"assert plain({name}) == {expected!r}, {name}")

    def instance(self, body: Body) -> None:
        name, wanted = self.var(body["of"]), body["of_class"].rpartition(".")[2]
        text = f"{wanted!r} in [c.__name__ for c in type({name}).__mro__]"
        if body.get("exactly"):
            text = f"type({name}).__name__ == {wanted!r}"
        self.add(f"assert {f'not ({text})' if body.get('not') else text}, type({name})")

    def tolerance(self, body: Body) -> str:
        """The limits of a comparison: those that the judge has told, else none but rounding."""
        found = re.search(r"rtol ([\d.e+-]+), atol ([\d.e+-]+)", self.verdict.detail)
        default = ("0", "0") if body.get("tolerance") == "exact" else ("1e-5", "1e-5")
        return "rtol={}, atol={}".format(*(found.groups() if found else default))

    def both(self, body: Body) -> tuple[str, str, str]:
        """The beginning of a line that compares, and what it compares: two outputs, or the tensors of two
        things.
        """
        if all(self.kinds.get(body[side]) == "tensor" for side in ("left", "right")):
            return "", self.var(body["left"]), self.var(body["right"])
        for side in ("left", "right"):
            self.remember(body[side])
        a, b = (f"{self.var(body[side])}_values" for side in ("left", "right"))
        self.add(f"assert {a}.keys() == {b}.keys() != set()\nfor name in {a}:")
        return "    ", f"{a}[name]", f"{b}[name]"

    def close(self, body: Body) -> None:
        start, a, b = self.both(body)
        self.add(f"{start}torch.testing.assert_close({a}.double(), {b}.double(), {self.tolerance(body)})")

    def differ(self, body: Body) -> None:
        start, a, b = self.both(body)
        near = f"torch.allclose({a}.double(), {b}.double(), {self.tolerance(body)})"
        if start:  # one of several tensors has to differ
            head = self.lines.pop()
            self.add(f"assert not all({near} {head.rstrip(':')})")
        else:
            self.add(f"assert {a}.isfinite().all() and {b}.isfinite().all()\nassert not {near}")

    def signature(self, body: Body) -> None:
        wanted, of = body.get("parameters", body.get("contains")), self.var(body["of"])
        self.add(
            f"parameters = {{n: p for n, p in inspect.signature({of}).parameters.items() if n != 'self'}}"
        )
        if "parameters" in body:
            self.add(f"assert list(parameters) == {[p['name'] for p in wanted]!r}, list(parameters)")
        else:
            self.add(f"assert {{*{[p['name'] for p in wanted]!r}}} <= parameters.keys(), list(parameters)")
        for p in wanted:
            found = f"parameters[{p['name']!r}]"
            if "kind" in p:
                self.add(f"assert {found}.kind.name == {p['kind'].upper().replace('-', '_')!r}")
            if p.get("required"):
                self.add(f"assert {found}.default is inspect.Parameter.empty, {found}")
            if "default" in p:
                value = p["default"]
                simple = value is None or isinstance(value, bool)
                text = f"{found}.default is {value!r}" if simple else f"plain({found}.default) == {value!r}"
                self.add(f"assert {text}, {found}")

    def snapshot(self, body: Body) -> None:
        name = self.var(body["of"])
        text = {
            "signature": f"signature_lines({name})",
            "module_tree": f"module_tree_lines({name})",
            "state_dict": f"state_dict_lines({name})",
        }[body["view"]]
        stored = str(self.verdict.expected).strip("\n").splitlines()
        self.add(f"lines = {text}\nassert lines == [\n" + "".join(f"    {line!r},\n" for line in stored))
        self.add("], '\\n'.join(lines)")

    def warns(self, body: Body) -> None:
        self.fitting(body)
        self.add("assert fitting, [str(w.message) for w in caught]")

    def silent(self, body: Body) -> None:
        self.fitting(body)
        self.add("assert not fitting, fitting")

    def fitting(self, body: Body) -> None:
        conditions = [f"{body.get('category', 'Warning')!r} in [c.__name__ for c in w.category.__mro__]"]
        conditions += [f"{word.lower()!r} in str(w.message).lower()" for word in body.get("mentions", ())]
        self.add(f"fitting = [str(w.message) for w in caught if {' and '.join(conditions)}]")

    def raises(self, body: Body) -> None:
        self.add(f"assert {body['error']!r} in [c.__name__ for c in type(error).__mro__], repr(error)")

    def raised(self, body: Body) -> None:
        self.add("assert error is not None, 'nothing was raised'")
        for word in body["mentions"]:
            self.add(f"assert {word.lower()!r} in str(error).lower(), error")

    def printed(self, body: Body) -> None:
        if "exactly" in body:
            self.add(f"assert printed.getvalue().strip() == {body['exactly'].strip()!r}, printed.getvalue()")
        for word in body.get("mentions", ()):
            self.add(f"assert {word.lower()!r} in printed.getvalue().lower(), printed.getvalue()")

    # --- the formula

    def formula(self, body: Body) -> None:
        path = body["module"].removeprefix("base_model.model.")
        links = [link for model in self.program["models"].values() for link in model.get("chain", ())]
        kind, arguments = next((link[1], dict(*link[2:])) for link in links if link[0] == path)
        transposed = formula.LAYERS[kind].transposed
        self.remember(body["of"])
        state = self.var(body["of"])
        self.add(f"tensors = {{n: p.double() for n, p in {state}_values.items()}}")
        self.add(f"W0, b0 = tensors['{path}.weight'], tensors.get('{path}.bias')")
        self.add(
            f"weight = W = W0{'.mT' if transposed else '.flatten(1)'}\nbias = b = 0.0 if b0 is None else b0"
        )
        card = self.card()
        for adapter in body["adapters"]:
            self.add(f"config = {state}_config[{adapter!r}]")
            wanted = set[str]().union(*(formula.parse(card[t])[1] for t in ("weight", "bias") if t in card))
            self.symbols(wanted - {"W", "b"}, adapter, kind, card, path)
            self.add(f"weight = weight + ({_python(card['weight'])} - W)")
            if "bias" in card:
                self.add(f"bias = bias + ({_python(card['bias'])} - b)")
        self.add(f"weight = {'weight.mT' if transposed else 'weight.reshape(W0.shape)'}")
        self.add("bias = bias if isinstance(bias, torch.Tensor) else None")
        compare = f"torch.testing.assert_close({{}}.double(), {{}}, {self.tolerance(body)})"
        if self.kinds.get(body["output"]) == "tensor":
            used = "".join(f", {k}={v!r}" for k, v in arguments.items() if k in formula.CONV_ARGUMENTS)
            expected = {
                "Linear": "F.linear(x.double(), weight, bias)",
                "Conv1D": "F.linear(x.double(), weight.mT, bias)",
                "Embedding": "F.embedding(x, weight)",
            }.get(kind, f"F.{kind.lower()}(x.double(), weight, bias{used})")
            self.add(f"x = {self.inputs[body['output']]}\nexpected = {expected}")
            self.add(compare.format(self.var(body["output"]), "expected"))
        else:
            self.remember(body["output"])
            self.add(f"merged = {self.var(body['output'])}_values")
            self.add(compare.format(f"merged['{path}.weight']", "weight"))
            self.add(f"if bias is not None:\n    {compare.format(f'''merged['{path}.bias']''', 'bias')}")

    def symbols(self, wanted: set[str], adapter: str, kind: str, card: Any, path: str) -> None:
        """Lines that give the symbols of a formula their values."""
        overrides = self.body.get("with", {})
        conv = ".flatten(1)" if kind in ("Conv1d", "Conv2d", "Conv3d") else ""
        for symbol in sorted(wanted):
            name = _python(symbol)
            tensor, spec = next(
                (
                    (tensor, spec)
                    for tensor, spec in card["tensors"].items()
                    if spec.get("symbol", tensor) == symbol and kind in spec.get("on", [kind])
                ),
                ("", {}),
            )
            if symbol in overrides:
                self.add(f"{name} = {overrides[symbol]!r}")
            elif tensor:
                slot, _, rest = tensor.partition(".")
                key = ".".join(filter(None, [path, slot, adapter, rest]))
                value = f"tensors[{key!r}]{conv if rest != 'bias' else ''}"
                self.add(f"{name} = {value}" + (f" if {key!r} in tensors else 0.0" if "when" in spec else ""))
            elif symbol in card.get("symbols", {}):
                choices = card["symbols"][symbol]
                inner = set[str]().union(*(formula.parse(str(c["value"]))[1] for c in choices))
                self.symbols(inner - {"W", "b"}, adapter, kind, card, path)
                text = ""
                for choice in choices:
                    value = re.sub(r"\bsqrt\(", "math.sqrt(", _python(str(choice["value"])))
                    tests = " and ".join(f"config.{k} == {v!r}" for k, v in choice.get("when", {}).items())
                    text += f"{value} if {tests} else " if tests else value
                self.add(f"{name} = {text}")
            else:
                self.add(f"{name} = config.{symbol}")

    def card(self) -> Any:
        """The card of the method that the case uses."""
        classes = re.findall(r"'class': '(\w+)'", repr([self.program["given"], self.program["when"]]))
        for file in sorted((find_specs_dir() / "methods").glob("*.yaml")):
            card = read_yaml(file)
            if card["config"]["class"] in classes:
                return card
        raise LookupError(f"no card for {classes}")

    # --- the frame

    def violation(self) -> tuple[str, str, str]:
        """Entity, place and change of the first thing that has changed and should not have; as the judge says
        it: `entity: where: what`, or `global changed`.
        """
        lines = self.verdict.observed if isinstance(self.verdict.observed, list) else []
        entity, _, rest = str(lines[0] if lines else "").partition(": ")
        where, _, what = rest.rpartition(": ")
        return entity, where, what

    def frame_before(self) -> None:
        entity, where, what = self.violation()
        if not what:
            entity = entity.removesuffix(" changed")
        self.add(f"before = {self.changing(entity, where, what)}")

    def frame(self, body: Body) -> None:
        entity, where, what = self.violation()
        if not what:
            entity = entity.removesuffix(" changed")
        self.add(f"after = {self.changing(entity, where, what)}")
        aspect = _aspect(what)
        told = repr(f"{entity}: {where}: {what}")
        if aspect == "moved":
            self.add(f"assert {what[4:]!r} not in after, {told}")
        elif aspect in OF_TENSOR or aspect in OF_MODULE:
            # The same tensor or module, which a layer may have wrapped in the meantime.
            old = where.replace(".base_layer", "")
            was = f"before.get({where!r}, before.get({old!r}))" if old != where else f"before.get({where!r})"
            self.add(f"was, now = {was}, after.get({where!r})")
            if aspect == "active":  # an adapter that is gone is no longer active
                layer = f"{self.var(entity)}.get_submodule({where!r})"
                self.add(f"names = [a for slot in SLOTS for a in getattr({layer}, slot, ())]")
                self.add("was = [a for a in was if a in names]")
            same = SAME.get(aspect, "{0} == {1}").format("was", "now")
            self.add(f"assert now is None or {same}, {told}")
        elif aspect == "presence":
            self.add(f"assert ({where!r} in after) == ({where!r} in before), {told}")
        else:
            self.add(f"assert after == before, {told}")

    def changing(self, entity: str, where: str, what: str) -> str:
        """The expression for what the frame looks at before and after: enough to see this change."""
        if entity in OF_PROCESS:
            return OF_PROCESS[entity]
        kind, name, aspect = self.kinds.get(entity), self.var(entity), _aspect(what)
        config = re.fullmatch(r"peft_config\[([^\]]+)\](?:\[([^\]]+)\])?", where)
        if kind == "model" and config:
            stored = f"getattr({name}, 'peft_config', {{}})"
            if not config[2]:
                return (
                    f"id({stored}.get({config[1]!r}))" if "replaced" in what else f"{config[1]!r} in {stored}"
                )
            return f"copy.deepcopy(getattr({stored}.get({config[1]!r}), {config[2]!r}, None))"
        if kind == "model" and where in ("active_adapter", "active_adapters"):
            return f"copy.copy(getattr({name}, {where!r}, None))"
        if kind == "model" and aspect in OF_MODULE:
            return f"{{n or '(root)': {OF_MODULE[aspect]} for n, module in {name}.named_modules()}}"
        if kind == "model" and aspect in ("presence", "moved"):
            return f"{{*{name}.state_dict(), *dict({name}.named_modules())}}"
        if kind == "model" and aspect not in OF_TENSOR:
            return f"str({name})"
        if aspect in OF_TENSOR:
            return self.chosen({}, entity, OF_TENSOR[aspect])
        if kind == "folder":
            return f"{{f.relative_to({name}).as_posix(): f.read_bytes() for f in {name}.rglob('*') if f.is_file()}}"
        if kind == "config":
            return f"copy.deepcopy(vars({name}))"
        return f"list({name})" if kind == "state_dict" else f"copy.deepcopy({name})"


def _aspect(what: str) -> str:
    """The aspect that the judge's words for a change are about."""
    if what in ("new", "gone", "new module"):
        return "presence"
    if what.startswith("now "):
        return "moved"
    fixed = {
        "values changed": "values",
        "storage changed": "storage",
        "replaced by another tensor": "identity",
    }
    first = what.split(" ")[0]
    return fixed.get(what, first if first in OF_TENSOR or first in OF_MODULE else "other")


def _builder(model: str) -> str:
    """The name of the function that builds a model."""
    return "build_" + model.replace("-", "_")


def _filled(shape: Any, like: str, fill: float | str) -> str:
    """The expression for a new tensor, of the dtype and device that `like` says."""
    if fill == "none":
        return "None"
    if fill == "normal":
        return f"torch.randn({shape}, generator=torch.Generator().manual_seed(0)).to({like})"
    return f"torch.full({shape}, float({fill!r}), dtype=torch.float64).to({like})"


def _tensor_has(have: dict[str, Any]) -> str:
    texts = []
    for aspect, value in have.items():
        match aspect:
            case "requires_grad":
                texts.append("p.requires_grad" if value else "not p.requires_grad")
            case "dtype":
                texts.append(f"p.dtype == torch.{value}")
            case "device":
                texts.append(f"p.device.type == {value!r}")
            case "shape":
                texts.append(f"list(p.shape) == {value!r}")
            case "grad":
                some = "p.grad is not None"
                known = {"none": "p.grad is None", "not-none": some, "zero": f"{some} and not p.grad.any()"}
                texts.append(known.get(value, f"{some} and p.grad.any()"))
            case _:
                known = {"zero": "not p.any()", "nonzero": "p.any()", "finite": "p.isfinite().all()"}
                texts.append("not p.is_meta and " + known.get(value, "not p.isfinite().all()"))
    return " and ".join(texts)


def _module_has(have: dict[str, Any]) -> str:
    attributes = {"active": "active_adapters", "merged": "merged_adapters", "disabled": "disable_adapters"}
    texts = []
    for aspect, value in have.items():
        match aspect:
            case "class":
                texts.append(f"type(module).__name__ == {value!r}")
            case "training":
                texts.append("module.training" if value else "not module.training")
            case "adapted":
                texts.append(IS_ADAPTED if value else f"not ({IS_ADAPTED})")
            case "scaling" | "rank":
                found = "module.scaling" if aspect == "scaling" else "module.r"
                texts += [f"math.isclose({found}[{name!r}], {number!r})" for name, number in value.items()]
            case "adapters":
                found = "{a for slot in SLOTS for a in getattr(module, slot, {})}"
                texts.append(f"{found} == set({value!r})")
            case _:
                found = f"module.{attributes[aspect]}"
                texts.append(
                    f"{found} is {value!r}" if isinstance(value, bool) else f"list({found}) == {value!r}"
                )
    return " and ".join(texts)


def _python(text: str) -> str:
    """A formula as Python: the papers' letters include reserved words."""
    return re.sub(r"[A-Za-z_]\w*", lambda m: m[0] + "_" * (keyword.iskeyword(m[0]) and m[0] != "None"), text)


_WORDS = {
    "steps": "make_model make_config make_folder edit_state_dict edit_file forward backward perturb set_tensor "
    "capture read write look_up set_mode seed within call",
    "checks": "same_object different_objects all none modules keys same equal instance close differ formula signature "
    "snapshot warns silent raises raised printed frame",
}
Writer = Callable[[_Script, Any], None]
STEPS: dict[str, Writer] = {word: getattr(_Script, word) for word in _WORDS["steps"].split()}
CHECKS: dict[str, Writer] = {word: getattr(_Script, word) for word in _WORDS["checks"].split()}
