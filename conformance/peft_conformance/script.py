"""A failing check as a Python script that stands alone: the steps in plain torch, and the assertion that
fails.

`reproduce` uses only the implementation's public names. What a check looks at in many places is looked at by
small functions whose source goes along (`script_parts`).
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
MODULES = (
    "contextlib", "copy", "dataclasses", "enum", "inspect", "io", "itertools", "json", "math", "os", "random",
    "re", "tempfile", "warnings",
)  # fmt: skip
TEMPORARY = (  # variables of ours, which no entity may be called
    "b0", "b", "bias", "before_process", "both", "caught", "chosen", "config", "error", "expected", "fields",
    "fitting", "found", "keys", "left", "merged", "name", "parameters", "printed", "raised", "right", "s",
    "seen", "state", "stored", "tensor", "W", "W0", "weight", "wrong", "x",
)  # fmt: skip
ASPECTS = {"identity": "object", "rank": "r"}  # words of the language -> words of `look`
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
        self.program = case.program
        self.lines: list[str] = []
        self.imports: set[str] = set()
        self.made: dict[str, dict[str, Any]] = {}  # entity -> the make_model step it descends from
        self.captured: dict[str, str] = {}  # capture -> what it is of
        self.kinds: dict[str, str] = {}
        self.used = {"peft", "torch", "F", "SLOTS", "Path", *TEMPORARY, *PARTS, *MODULES}
        self.used |= {_builder(name) for name in self.program["models"]}

    def text(self) -> str:
        """The whole script."""
        for step in self.program["given"]:
            self.step(step, "given")
        if self.check.word == "frame":
            self.before_when()
        for step in self.program["when"]:
            self.step(step, "when")
        CHECKS[self.check.word](self, self.check.body)
        body = "\n".join(self.lines)
        builders = [
            _function(name, declaration)
            for name, declaration in self.program["models"].items()
            if re.search(rf"\b{_builder(name)}\b", body)
        ]
        parts = self.parts(body)
        code = "\n\n\n".join([*builders, *parts])
        return "\n".join([*self.header(body + code), code + ("\n\n" if code else ""), body, ""])

    def header(self, code: str) -> Iterator[str]:
        """What it shows, how to get at the implementation, and the imports."""
        name, module = self.implementation.name, self.implementation.module
        yield f"# {self.case.id}:{self.check.id}"
        yield from textwrap.wrap(self.case.clause.text, 110, initial_indent="# ", subsequent_indent="# ")
        yield f"# {name} {self.implementation.version}" + (
            f"  (pip install {self.implementation.package}=={self.implementation.version})"
            if self.implementation.package
            else ""
        )
        yield "from __future__ import annotations\n"
        yield from (f"import {name}" for name in MODULES if re.search(rf"\b{name}\.", code))
        if re.search(r"\bPath\b", code):
            yield "from pathlib import Path"
        yield "\nimport torch"
        if "F." in code:
            yield "import torch.nn.functional as F"
        yield "import peft" if module == "peft" else f"import {module} as peft"
        yield from (f"import {module}.{below}" for below in sorted(self.imports))
        if "SLOTS" in code:
            yield f"\nSLOTS = {tuple(self.program['slots'])!r}  # where adapters keep their tensors"
        yield ""

    def parts(self, body: str) -> list[str]:
        """The source of every function that the body needs, directly or not."""
        needed: set[str] = set()
        waiting = [body]
        while waiting:
            text = waiting.pop()
            for name, function in PARTS.items():
                if name not in needed and re.search(rf"\b{name}\(|map\({name}\b", text):
                    needed.add(name)
                    waiting.append(inspect.getsource(function))
        return [inspect.getsource(function).strip() for name, function in PARTS.items() if name in needed]

    def add(self, text: str) -> None:
        """Write a line, or several."""
        self.lines += text.splitlines()

    def var(self, entity: str) -> str:
        """The variable that holds an entity."""
        name = entity.replace("-", "_")
        return name + "_" if keyword.iskeyword(name) or name in self.used or hasattr(builtins, name) else name

    # --- steps

    def step(self, step: dict[str, Any], phase: str) -> None:
        """Write a step; one that a check is about leaves its error, warnings or print-out in a variable."""
        start = len(self.lines)
        word = next(word for word in STEPS if word in step)
        STEPS[word](self, step if word == "call" else step[word])
        wanted = self.check.body.get("step") if isinstance(self.check.body, dict) else None
        is_meant = wanted is not None and (
            step.get("label") == wanted or (phase == "when" and step["index"] == wanted)
        )
        inside = textwrap.indent("\n".join(self.lines[start:]), "    ")
        if is_meant and self.check.word in ("warns", "silent"):
            quiet = "    warnings.simplefilter('always')"
            before = "with warnings.catch_warnings(record=True) as caught:\n" + quiet
        elif is_meant and self.check.word == "printed":
            before = "with contextlib.redirect_stdout(io.StringIO()) as printed:"
        elif is_meant and self.check.word in ("raises", "raised"):
            before = "error = None\ntry:"
            inside += "\nexcept (Exception, SystemExit) as raised:\n    error = raised"
        elif step.get("attempt"):
            before = "with contextlib.suppress(Exception, SystemExit):  # not what this is about"
        else:
            return
        self.lines[start:] = [*before.splitlines(), *inside.splitlines()]

    def make_model(self, body: Body) -> None:
        """A model, built under its seed."""
        self.made[body["id"]], self.kinds[body["id"]] = body, "model"
        to = "".join(f", {key}={value}" for key, value in (
            ("dtype", f"torch.{body['dtype']}" if body.get("dtype", "float32") != "float32" else ""),
            ("device", repr(body["device"]) if body.get("device", "cpu") != "cpu" else ""),
        ) if value)  # fmt: skip
        mode = ".train()" if body.get("training") else ".eval()"
        built = f"{_builder(body['model'])}({body.get('seed', 0)})"
        self.add(f"{self.var(body['id'])} = {built}{f'.to({to[2:]})' if to else ''}{mode}")

    def make_config(self, body: Body) -> None:
        """A config object, or what stands in for one."""
        self.add(f"{self.var(body['id'])} = {self.config(body if 'class' in body else body['config'])}")

    def config(self, spec: Any) -> str:
        """The expression for a config."""
        special = {
            "none": "None",
            "not-a-config": "{'peft_type': 'LORA', 'r': 4}",
            "unknown": "peft.PeftConfig(peft_type='UNKNOWN')",
        }
        if isinstance(spec, str):
            return special[spec]
        return f"{self.public(spec['class'])}({', '.join(f'{k}={v!r}' for k, v in spec['fields'].items())})"

    def public(self, name: str) -> str:
        """The expression for a public name; modules on the way are imported."""
        path = self.implementation.names.get(name, name).split(".")
        modules = [part for part in path[:-1] if part.islower()]
        if len(path) == 1 and path[0].isalpha() and path[0].islower():  # functional, utils, tuners
            modules = path
        if modules:
            self.imports.add(".".join(modules))
        return ".".join(["peft", *path])

    def make_folder(self, body: Body) -> None:
        """An empty folder."""
        self.kinds[body["id"]] = "folder"
        self.add(f"{self.var(body['id'])} = Path(tempfile.mkdtemp())")

    def edit_state_dict(self, body: Body) -> None:
        """A changed copy of a state dict."""
        new, old = self.var(body["id"]), self.var(body["of"])
        self.kinds[body["id"]] = "state_dict"
        conditions = []
        if "keep" in body:
            conditions.append(f"re.fullmatch({'|'.join(body['keep'])!r}, k)")
        if "drop" in body:
            conditions.append(f"not re.fullmatch({'|'.join(body['drop'])!r}, k)")
        key = "k" + (f".removeprefix({body['strip_prefix']!r})" if "strip_prefix" in body else "")
        key = f"{body['add_prefix']!r} + {key}" if "add_prefix" in body else key
        value = _filled("v.shape", "v", body["fill"]) if "fill" in body else "v"
        if "dtype" in body:
            value += f".to(torch.{body['dtype']})"
        only = f" if {' and '.join(conditions)}" if conditions else ""
        self.add(f"{new} = {{{key}: {value} for k, v in {old}.items(){only}}}")
        for name, spec in body.get("insert", {}).items():
            dtype = f"dtype=torch.{spec.get('dtype', 'float32')}, device={spec.get('device', 'cpu')!r}"
            self.add(f"{new}[{name!r}] = {_filled(tuple(spec.get('shape', [])), dtype, spec.get('fill', 0))}")

    def edit_file(self, body: Body) -> None:
        """A file that is written, changed, cut off or removed."""
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
        text, key = models.input_source(
            declaration,
            body.get("input", "default"),
            seed=body.get("input_seed", 0),
            dtype=made.get("dtype", "float32"),
        )
        if made.get("device", "cpu") != "cpu":
            text += f".to(next({model}.parameters()).device)"
        name = declaration.get("transformers", {}).get("class", "")
        attribute = (".logits" if "LM" in name else ".last_hidden_state") if name else ""
        self.inputs = text
        return f"{model}({f'{key}=' if key else ''}{text}){attribute}"

    def forward(self, body: Body) -> None:
        """A model's output for a seeded input."""
        self.kinds[body["id"]] = "tensor"
        self.add(f"{self.var(body['id'])} = {self.output(body)}")

    def backward(self, body: Body) -> None:
        """Gradients of the sum of squares."""
        self.add(f"{self.output(body)}.float().square().sum().backward()")

    def perturb(self, body: Body) -> None:
        """Noise on parameters."""
        arguments = (
            f"{body.get('part', 'adapter')!r}, {body.get('adapter')!r}, {body.get('seed', 0)}, SLOTS, {NOISE}"
        )
        self.add(f"assert perturb({self.var(body['of'])}, {arguments})")

    def set_tensor(self, body: Body) -> None:
        """Other values, or another shape or dtype, for one tensor."""
        target, name = self.var(body["of"]), body["name"]
        is_model = self.kinds.get(body["of"]) == "model"
        old = f"look({target})['tensors'][{name!r}]['object']" if is_model else f"{target}[{name!r}]"
        self.add(f"tensor = {old}")
        shape = tuple(body["shape"]) if "shape" in body else "tensor.shape"
        dtype = f"dtype=torch.{body['dtype']}" if "dtype" in body else "tensor"
        new = _filled(shape, dtype, body["fill"])
        if not is_model:
            self.add(f"{target}[{name!r}] = {new}")
        elif "shape" in body or "dtype" in body:
            self.add(f"tensor.data = {new}")
        else:
            self.add(f"with torch.no_grad():\n    tensor.copy_({new})")

    def write(self, body: Body) -> None:
        """An attribute."""
        self.add(f"{self.var(body['of'])}.{body['path']} = {body['value']!r}")

    def set_mode(self, body: Body) -> None:
        """Training or evaluation mode."""
        self.add(f"{self.var(body['of'])}.train({body['training']})")

    def seed(self, seed: int) -> None:
        """Seeds."""
        self.add(f"torch.manual_seed({seed})\nrandom.seed({seed})")

    def capture(self, body: Body) -> None:
        """A look at an entity, kept for later."""
        self.captured[body["id"]] = body["of"]
        self.kinds[body["id"]] = "capture"
        self.add(f"{self.var(body['id'])} = look({self.var(body['of'])})")

    def read(self, body: Body) -> None:
        """What is found below an entity."""
        path = re.findall(r"([A-Za-z_]\w*)|\[([^\]\[]+)\]", body["path"])
        value = self.var(body["of"])
        if self.kinds.get(body["of"]) == "folder":
            (_, file), *path = path
            value = f"({value} / {file!r})"
            if file.endswith(".json"):
                value = f"json.loads({value}.read_text())"
            elif file.endswith(".safetensors"):
                metadata = path[:1] == [("metadata", "")]
                path = path[1:] if metadata else path
                self.add("from safetensors import safe_open\nfrom safetensors.torch import load_file")
                value = f"safe_open({value}, 'pt').metadata()" if metadata else f"load_file({value})"
            else:
                value += ".read_text()"
        for attribute, key in path:
            item = key if re.fullmatch(r"-?\d+", key) else repr(key)
            value += f".{attribute}" if attribute else f"[{item}]"
        if body["of"] in self.made:
            self.made[body["id"]] = self.made[body["of"]]
        self.add(f"{self.var(body['id'])} = {value}")

    def look_up(self, body: Body) -> None:
        """A public name."""
        self.add(f"{self.var(body['id'])} = {self.public(body['name'])}")

    def within(self, body: Body) -> None:
        """Steps inside a context, left by an exception if asked for."""
        start = len(self.lines)
        for step in body["steps"]:
            self.step(step, "")
        inside = self.lines[start:] + (["raise InterruptedError"] if body.get("interrupt") else [])
        outside = "with contextlib.suppress(InterruptedError), " if body.get("interrupt") else "with "
        head = f"{outside}{self.var(body['on'])}.{body['context']}():"
        self.lines[start:] = [head, *(f"    {line}" for line in inside)]

    def call(self, step: Body) -> None:
        """A call of the implementation."""
        name = step["call"]
        arguments = ", ".join(f"{k}={self.argument(k, v)}" for k, v in step.get("args", {}).items())
        model = step.get("on") or step.get("args", {}).get("model")
        if "on" in step:
            receiver = self.var(step["on"]) + (".base_model" if name == "BaseTuner.set_adapter" else "")
            method = self.implementation.names.get(name, name).rpartition(".")[2]
            text = f"{receiver}.{method}({arguments})"
        else:
            text = f"{self.public(self.program['operations'][name]['path'])}({arguments})"
        if "as" in step:
            text = f"{self.var(step['as'])} = {text}"
            self.kinds[step["as"]] = self.program["operations"][name].get("result", "value")
            if model in self.made:
                self.made[step["as"]] = self.made[model]
        self.add(text)

    def argument(self, key: str, value: Any) -> str:
        """The expression for an argument."""
        if key in CONFIG_ARGUMENTS:
            return self.config(value["config"]) if isinstance(value, dict) else self.var(value)
        if key in ENTITY_ARGUMENTS:
            return f"str({self.var(value)})" if self.kinds.get(value) == "folder" else self.var(value)
        return self.public(LAYER_CLASSES[value]) if key == "layer_cls" else repr(value)

    # --- checks

    def look(self, entity: str) -> str:
        """The expression for a look at an entity: now, or as it was captured."""
        return self.var(entity) if entity in self.captured else f"look({self.var(entity)})"

    def chosen(self, body: Body, of: str = "of") -> str:
        """The expression for the tensors of a look that a selection means."""
        conditions = []
        role = body.get("role")
        if role in ("base", "aux", "adapter"):
            conditions.append(f"t['part'] == {role!r}")
        elif role:
            of_role = [name for name, tensor in self.card()["tensors"].items() if tensor["role"] == role]
            conditions.append(f"t['slot'] in {of_role!r}")
        if "adapter" in body:
            conditions.append(f"t['part'] != 'base' and t['adapter'] in ({body['adapter']!r}, None)")
        if "module" in body:
            below = f"(?:{body['module']})(?:\\..*)?"
            conditions.append(f"re.fullmatch({below!r}, name)")
        if "name" in body:
            conditions.append(f"re.fullmatch({body['name']!r}, name)")
        if "kind" in body:
            conditions.append(f"t['kind'] == {body['kind']!r}")
        tensors = f"{self.look(body[of])}['tensors']"
        return (
            f"{{name: t for name, t in {tensors}.items() if {' and '.join(conditions)}}}"
            if conditions
            else tensors
        )

    def same_object(self, body: Body) -> None:
        """All the same."""
        self.add(f"assert {' is '.join(map(self.var, body))}")

    def different_objects(self, body: Body) -> None:
        """No two the same."""
        names = [self.var(entity) for entity in body]
        self.add(f"assert len({{id(x) for x in ({', '.join(names)})}}) == {len(names)}")

    def all(self, body: Body) -> None:
        """Every selected tensor has it."""
        self.add(f"chosen = {self.chosen(body)}")
        if not body.get("may_be_empty"):
            self.add("assert chosen, 'there is no such tensor'")
        self.add(f"wrong = [name for name, t in chosen.items() if not ({_tensor_has(body['have'])})]")
        self.add("assert not wrong, wrong")

    def none(self, body: Body) -> None:
        """No selected tensor has it."""
        has = _tensor_has(body["have"]) if "have" in body else "True"
        self.add(
            f"found = [name for name, t in {self.chosen(body)}.items() if {has}]\nassert not found, found"
        )

    def modules(self, body: Body) -> None:
        """Every selected module has it."""
        conditions = []
        if "name" in body:
            conditions.append(f"re.fullmatch({body['name']!r}, name.replace('(root)', ''))")
        if "adapted" in body:
            conditions.append(f"m['adapted'] is {body['adapted']}")
        where = f" if {' and '.join(conditions)}" if conditions else ""
        self.add(f"chosen = {{name: m for name, m in {self.look(body['of'])}['modules'].items(){where}}}")
        self.add("assert chosen, 'there is no such module'")
        self.add(f"wrong = [name for name, m in chosen.items() if not ({_module_has(body['have'])})]")
        self.add("assert not wrong, wrong")

    def keys(self, body: Body) -> None:
        """The keys are these."""
        self.add(f"keys = {self.look(body['of'])}['keys']")
        for word, text in (
            ("exactly", "set(keys) == set({0!r})"),
            ("contain", "set({0!r}) <= set(keys)"),
            ("lack", "not set({0!r}) & set(keys)"),
            ("match", "keys and all(re.fullmatch({0!r}, key) for key in keys)"),
            ("no_match", "not any(re.fullmatch({0!r}, key) for key in keys)"),
        ):
            if word in body:
                self.add(f"assert {text.format(body[word])}, keys")
        if "same_as" in body:
            self.add(f"assert set(keys) == set({self.look(body['same_as'])}['keys']), keys")
        if "fewer_than" in body:
            self.add(f"assert len(keys) < len({self.look(body['fewer_than'])}['keys']), keys")

    def same(self, body: Body) -> None:
        """Both sides are the same in these aspects."""
        left, right = self.look(body["left"]), self.look(body["right"])
        aspects = [a for a in body["aspects"] if a not in ("files", "fields", "active", "training", "keys")]
        if {"files"} & set(body["aspects"]):
            self.add(f"assert set({left}['fields']) == set({right}['fields']) != set()")
        if {"fields"} & set(body["aspects"]):
            self.add(f"assert {left}['fields'] == {right}['fields'] != {{}}")
        for aspect in sorted({"active", "training"} & set(body["aspects"])):
            facts = "(m['active'], m['disabled'])" if aspect == "active" else "m['training']"
            name = "name.removeprefix('base_model.model.').replace('.base_layer', '')"
            only = " if m['adapted']" if aspect == "active" else ""
            sides = [
                f"{{{name}: {facts} for name, m in {x}['modules'].items(){only}}}" for x in (left, right)
            ]
            self.add(f"left = {sides[0]}\nright = {sides[1]}\nassert left == right != {{}}")
        if "keys" in body["aspects"]:
            sides = [f"set({self.chosen(body, side)})" for side in ("left", "right")]
            self.add(f"assert {sides[0]} == {sides[1]} != set()")
        if aspects:
            self.add(f"both = pairs({self.chosen(body, 'left')}, {self.chosen(body, 'right')})")
            self.add("assert both, 'there is no such tensor'\nfor name, a, b in both:")
            self.add("    assert a and b, f'{name} is on one side only'")
            for aspect in aspects:
                word = ASPECTS.get(aspect, aspect)
                how = "a['object'] is b['object']" if word == "object" else f"alike(a[{word!r}], b[{word!r}])"
                self.add(f"    assert {how}, f'{{name}}: {aspect}'")

    def equal(self, body: Body) -> None:
        """The value is this one."""
        expected = body["to"] if "to" in body else self.case.axes[body["to_axis"]]
        name = self.var(body["of"])
        if expected is None or isinstance(expected, bool):
            self.add(f"assert {name} is {expected!r}, {name}")
        else:
            self.add(f"assert plain({name}) == {expected!r}, {name}")

    def instance(self, body: Body) -> None:
        """The class is, or inherits from, this one."""
        name, wanted = self.var(body["of"]), body["of_class"].rpartition(".")[2]
        text = f"type({name}).__name__ == {wanted!r}"
        if not body.get("exactly"):
            text = f"{wanted!r} in [c.__name__ for c in type({name}).__mro__]"
        self.add(f"assert {f'not ({text})' if body.get('not') else text}, type({name})")

    def tolerance(self, body: Body) -> str:
        """The arguments of a comparison: as the judge compared, else bit for bit where the check says so."""
        found = re.search(r"rtol ([\d.e+-]+), atol ([\d.e+-]+)", self.verdict.detail)
        default = ("0", "0") if body.get("tolerance") == "exact" else ("1e-5", "1e-5")
        rtol, atol = found.groups() if found else default
        return f"rtol={rtol}, atol={atol}"

    def near(self, body: Body) -> list[tuple[str, str]]:
        """The pairs of expressions to compare; for anything but outputs, inside a loop over pairs."""
        if all(self.kinds.get(body[side]) == "tensor" for side in ("left", "right")):
            return [(self.var(body["left"]), self.var(body["right"]))]
        self.add(f"both = pairs({self.look(body['left'])}['tensors'], {self.look(body['right'])}['tensors'])")
        return []

    def close(self, body: Body) -> None:
        """Equal within the tolerance."""
        compare = "torch.testing.assert_close({}.double(), {}.double(), " + self.tolerance(body) + ")"
        if near := self.near(body):
            self.add(compare.format(*near[0]))
        else:
            self.add("for _, a, b in both:\n    " + compare.format("a['values']", "b['values']"))

    def differ(self, body: Body) -> None:
        """Different beyond the tolerance, and finite."""
        for a, b in self.near(body) or [("", "")]:
            if a:
                self.add(f"assert torch.isfinite({a}).all() and torch.isfinite({b}).all()")
                self.add(f"assert not torch.allclose({a}.double(), {b}.double(), {self.tolerance(body)})")
            else:
                same = f"torch.allclose(a['values'].double(), b['values'].double(), {self.tolerance(body)})"
                self.add(f"assert not all({same} for _, a, b in both)")

    def formula(self, body: Body) -> None:
        """The output, or the merged weight, is what the method's formula says."""
        path = body["module"].removeprefix("base_model.model.")
        links = [link for model in self.program["models"].values() for link in model.get("chain", ())]
        kind, arguments = next((link[1], dict(*link[2:])) for link in links if link[0] == path)
        transposed = formula.LAYERS[kind].transposed
        self.add(f"state = {self.look(body['of'])}")
        self.add("seen = {n.removeprefix('base_model.model.'): t for n, t in state['tensors'].items()}")
        self.base("W0", "b0", "seen", path)
        self.add(f"weight = W = W0.double(){'.mT' if transposed else '.flatten(1)'}")
        self.add("bias = b = 0.0 if b0 is None else b0.double()")
        card = self.card()
        for adapter in body["adapters"]:
            self.add(f"config = state['configs'][{adapter!r}]")
            for target, base in (("weight", "W"), ("bias", "b")):
                if target in card:
                    symbols = formula.parse(card[target])[1] - {"W", "b"}
                    self.symbols(symbols, adapter, kind, card, path, body.get("with", {}))
                    self.add(f"{target} = {target} + ({_python(card[target])} - {base})")
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
            self.add(f"x = {self.inputs_of(body['output'])}\nexpected = {expected}")
            self.add(compare.format(self.var(body["output"]), "expected"))
        else:
            self.add(f"merged = {self.look(body['output'])}['tensors']")
            self.add("merged = {n.removeprefix('base_model.model.'): t for n, t in merged.items()}")
            self.base("merged_weight", "merged_bias", "merged", path)
            self.add(compare.format("merged_weight", "weight"))
            self.add("assert (merged_bias is None) == (bias is None)")
            self.add(f"if bias is not None:\n    {compare.format('merged_bias', 'bias')}")

    def base(self, weight: str, bias: str, seen: str, path: str) -> None:
        """The weight and bias of a layer, wrapped or not."""
        for variable, name in ((weight, "weight"), (bias, "bias")):
            names = (f"{path}.base_layer.{name}", f"{path}.{name}")
            self.add(f"{variable} = next(({seen}[n]['values'] for n in {names!r} if n in {seen}), None)")

    def symbols(
        self, wanted: set[str], adapter: str, kind: str, card: Any, path: str, overrides: dict[str, float]
    ) -> None:
        """Lines that give the symbols of a formula their values."""
        conv = ".flatten(1)" if kind in ("Conv1d", "Conv2d", "Conv3d") else ""
        for symbol in sorted(wanted):
            name = _python(symbol)
            tensors = [
                (tensor, spec)
                for tensor, spec in card["tensors"].items()
                if spec.get("symbol", tensor) == symbol and kind in spec.get("on", [kind])
            ]
            if symbol in overrides:
                self.add(f"{name} = {overrides[symbol]!r}")
            elif tensors:
                slot, _, rest = tensors[0][0].partition(".")
                key = ".".join(filter(None, [path, slot, adapter, rest]))
                value = f"seen[{key!r}]['values'].double()"
                value += conv if rest != "bias" else ""
                self.add(
                    f"{name} = {value}" + (f" if {key!r} in seen else 0.0" if "when" in tensors[0][1] else "")
                )
            elif symbol in card.get("symbols", {}):
                choices = card["symbols"][symbol]
                inner = set().union(*(formula.parse(str(c["value"]))[1] for c in choices))
                self.symbols(inner - {"W", "b"}, adapter, kind, card, path, overrides)
                text = ""
                for choice in choices:
                    tests = " and ".join(f"config[{k!r}] == {v!r}" for k, v in choice.get("when", {}).items())
                    value = re.sub(r"\bsqrt\(", "math.sqrt(", _python(str(choice["value"])))
                    text += f"({value})" + (f" if {tests} else " if tests else "")
                self.add(f"{name} = {text}")
            else:
                self.add(f"{name} = config[{symbol!r}]")

    def card(self) -> Any:
        """The card of the method that the case uses."""
        classes = re.findall(r"'class': '(\w+)'", repr([self.program["given"], self.program["when"]]))
        for file in sorted((find_specs_dir() / "methods").glob("*.yaml")):
            card = read_yaml(file)
            if card["config"]["class"] in classes:
                return card
        raise LookupError(f"no card for {classes}")

    def inputs_of(self, output: str) -> str:
        """The expression for the input that gave an output."""
        for step in [*self.program["given"], *self.program["when"]]:
            for inner in [step, *step.get("within", {}).get("steps", ())]:
                if inner.get("forward", {}).get("id") == output:
                    self.output(inner["forward"])
        return self.inputs

    def signature(self, body: Body) -> None:
        """The parameters are, or contain, these."""
        wanted = body.get("parameters", body.get("contains"))
        of = self.var(body["of"])
        self.add(
            f"parameters = {{n: p for n, p in inspect.signature({of}).parameters.items() if n != 'self'}}"
        )
        if "parameters" in body:
            self.add(f"assert list(parameters) == {[p['name'] for p in wanted]!r}, list(parameters)")
        for p in wanted:
            found = f"parameters[{p['name']!r}]"
            self.add(f"assert {p['name']!r} in parameters, list(parameters)")
            if "kind" in p:
                self.add(f"assert {found}.kind.name == {p['kind'].upper().replace('-', '_')!r}")
            if p.get("required"):
                self.add(f"assert {found}.default is inspect.Parameter.empty")
            if "default" in p:
                self.add(f"assert plain({found}.default) == {p['default']!r}, {found}")

    def snapshot(self, body: Body) -> None:
        """The view reads as stored."""
        text = {
            "signature": f"signature_lines({self.var(body['of'])})",
            "state_dict": f"state_dict_lines({self.var(body['of'])})",
            "module_tree": f"module_tree_lines({self.look(body['of'])})",
        }[body["view"]]
        stored = str(self.verdict.expected).strip("\n").splitlines()
        self.add("stored = [\n" + "".join(f"    {line!r},\n" for line in stored) + "]")
        self.add(f"found = {text}\nassert found == stored, '\\n'.join(found)")

    def warns(self, body: Body) -> None:
        """The step has warned."""
        self.warned(body)
        self.add("assert fitting, [str(w.message) for w in caught]")

    def silent(self, body: Body) -> None:
        """The step has not warned."""
        self.warned(body)
        self.add("assert not fitting, [str(w.message) for w in fitting]")

    def warned(self, body: Body) -> None:
        """The warnings that fit."""
        conditions = [f"{body.get('category', 'Warning')!r} in [c.__name__ for c in w.category.__mro__]"]
        conditions += [f"{word.lower()!r} in str(w.message).lower()" for word in body.get("mentions", ())]
        self.add(f"fitting = [w for w in caught if {' and '.join(conditions)}]")

    def raises(self, body: Body) -> None:
        """The step has raised this class."""
        self.add(f"assert {body['error']!r} in [c.__name__ for c in type(error).__mro__], repr(error)")

    def raised(self, body: Body) -> None:
        """The step's message has these words."""
        self.add("assert error is not None, 'nothing was raised'")
        for word in body["mentions"]:
            self.add(f"assert {word.lower()!r} in str(error).lower(), error")

    def printed(self, body: Body) -> None:
        """The step has printed this."""
        if "exactly" in body:
            self.add(f"assert printed.getvalue().strip() == {body['exactly'].strip()!r}, printed.getvalue()")
        for word in body.get("mentions", ()):
            self.add(f"assert {word.lower()!r} in printed.getvalue().lower(), printed.getvalue()")

    # --- the frame

    def violations(self) -> list[str]:
        """What has changed and should not have, as the judge says it: `entity: where: what`, or `global
        changed`.
        """
        observed = self.verdict.observed
        return [line for line in observed if isinstance(line, str)] if isinstance(observed, list) else []

    def before_when(self) -> None:
        """A look at what must not change."""
        self.add("before_process = process()")
        for entity in self.watched():
            self.add(f"before_{self.var(entity)} = look({self.var(entity)})")

    def watched(self) -> list[str]:
        """The entities that something has changed in."""
        there = [id for step in self.program["given"] if (id := _makes(step)) and id not in self.captured]
        named = {line.partition(": ")[0] for line in self.violations()}
        return [id for id in there if id in named] or there

    def frame(self, body: Body) -> None:
        """The first change that nothing allows has not happened; if none is known, nothing has changed."""
        line = next(iter(self.violations()), "")
        entity, _, rest = line.partition(": ")
        where, _, what = rest.rpartition(": ")
        name = self.var(entity)
        if not rest and line.endswith(" changed"):
            text = f"process()[{line[:-8]!r}] == before_process[{line[:-8]!r}]"
        elif entity not in self.watched():
            names = [self.var(watched) for watched in self.watched()]
            text = f"not [{', '.join(f'*changes(before_{name}, look({name}))' for name in names)}]"
        elif what.startswith("now "):
            text = f"{what[4:]!r} not in [*look({name})['tensors'], *look({name})['modules']]"
        elif "order of the keys" in what:
            text = f"look({name})['keys'] == before_{name}['keys']"
        else:
            text = f"{f'{where}: {_change(what)}'!r} not in changes(before_{name}, look({name}))"
        self.add(f"assert {text}, {line!r}")


def _change(what: str) -> str:
    """The aspect that `changes` tells, from the judge's words for a change."""
    fixed = {
        "new module": "new",
        "values changed": "values",
        "storage changed": "storage",
        "replaced by another tensor": "object",
        "replaced by another module": "new",
        "adapted in place": "adapted",
        "no longer adapted": "adapted",
        "new": "new",
        "gone": "gone",
    }
    if what in fixed:
        return fixed[what]
    first = what.split(" ")[0]
    aspects = (
        "dtype device shape requires_grad grad kind class training hooks active disabled merged scaling r"
    )
    return "adapters" if first == "adapter" else first if first in aspects.split() else "changed"


def _makes(step: dict[str, Any]) -> str | None:
    """The entity that a step makes, if it makes one that can change."""
    body = next(iter(v for k, v in step.items() if k in STEPS and k not in ("capture", "look_up")), None)
    made = step.get("as") or (body.get("id") if isinstance(body, dict) else None)
    return str(made) if made else None


def _builder(model: str) -> str:
    """The name of the function that builds a model."""
    return "build_" + model.replace("-", "_")


def _function(name: str, declaration: dict[str, Any]) -> str:
    """A function that builds a declared model under a seed and leaves the random state alone."""
    source = textwrap.indent(models.source(declaration).strip(), "    ")
    lines = [f"def {_builder(name)}(seed):", source, ""]
    lines += ["    with torch.random.fork_rng(devices=[]):", "        return build_model(seed)"]
    return "\n".join(lines)


def _filled(shape: Any, like: str, fill: float | str) -> str:
    """The expression for a tensor: `like` is a tensor's name, or dtype and device as keywords."""
    if fill == "none":
        return "None"
    numbers = f"torch.full({shape}, float({fill!r}), dtype=torch.float64)"
    if fill == "normal":
        numbers = f"torch.randn({shape}, generator=torch.Generator().manual_seed(0))"
    return f"{numbers}.to({like})"


def _tensor_has(have: dict[str, Any]) -> str:
    values = {
        "zero": "t['zero']",
        "nonzero": "t['values'] is not None and not t['zero']",
        "finite": "t['finite']",
        "not-finite": "t['values'] is not None and not t['finite']",
    }
    return " and ".join(
        values[value]
        if aspect == "values"
        else "t['grad'] != 'none'"
        if value == "not-none"
        else f"t.get({aspect!r}) == {value!r}"
        for aspect, value in have.items()
    )


def _module_has(have: dict[str, Any]) -> str:
    texts = []
    for aspect, value in have.items():
        word = ASPECTS.get(aspect, aspect)
        if aspect in ("scaling", "rank"):
            near = f"math.isclose(m.get({word!r}, {{}}).get(k, math.nan), v)"
            texts.append(f"all({near} for k, v in {value!r}.items())")
        else:
            texts.append(f"m.get({word!r}) == {sorted(value) if aspect == 'adapters' else value!r}")
    return " and ".join(texts)


def _python(text: str) -> str:
    """A formula as Python: the papers' letters include reserved words."""
    return re.sub(r"[A-Za-z_]\w*", lambda m: m[0] + "_" * (keyword.iskeyword(m[0]) and m[0] != "None"), text)


STEP_WORDS = (
    "make_model", "make_config", "make_folder", "edit_state_dict", "edit_file", "forward", "backward",
    "perturb", "set_tensor", "capture", "read", "write", "look_up", "set_mode", "seed", "within", "call",
)  # fmt: skip
CHECK_WORDS = (
    "same_object", "different_objects", "all", "none", "modules", "keys", "same", "equal", "instance",
    "close", "differ", "formula", "signature", "snapshot", "warns", "silent", "raises", "raised", "printed",
    "frame",
)  # fmt: skip
STEPS: dict[str, Callable[[_Script, Any], None]] = {word: getattr(_Script, word) for word in STEP_WORDS}
CHECKS: dict[str, Callable[[_Script, Any], None]] = {word: getattr(_Script, word) for word in CHECK_WORDS}
