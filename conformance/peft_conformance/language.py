"""The spec language: the files of a specs folder become a `Suite`, or errors that say what is wrong where.

`reading` is the YAML below it, `schemas` the JSON Schemas in words; `lint` finds what a schema cannot see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_conformance.cases import Check, Clause, Variant
from peft_conformance.reading import Map, Seq, SpecError, SpecErrors, closest, read_yaml
from peft_conformance.schemas import find_specs_dir, schema_errors, validator
from peft_conformance.suite_cache import kept

__all__ = [
    "FOLDERS",
    "Method",
    "SpecError",
    "SpecErrors",
    "Suite",
    "closest",
    "find_specs_dir",
    "injectable",
    "load_suite",
    "read_yaml",
    "schema_errors",
    "validator",
]

FOLDERS = {  # folder below specs/ -> schema of its files
    "api": "clauses",
    "checkpoint": "clauses",
    "laws": "laws",
    "methods": "method",
    "vocabulary": "vocabulary",
    "sources": "sources",
    "profiles": "profile",
}
BESIDE_WORD = {"id", "level", "because"}  # keys of a check beside the one that names it
SECTIONS = {  # of the vocabulary -> what one entry is called
    "models": "model",
    "configs": "config",
    "sets": "set",
    "tolerances": "tolerance",
    "errors": "error class",
    "capabilities": "capability",
    "operations": "operation",
}


@dataclass(frozen=True)
class Method:
    """A method's card, at one of its points: with these options."""

    card: Mapping[str, Any]
    point: Mapping[str, Any] = field(default_factory=dict)

    def fact(self, name: str) -> Any:
        """What the point, or else the card or its config, says; None if none does."""
        return self.point.get(name, self.card.get(name, self.card["config"].get(name)))

    def options(self, *special: str) -> dict[str, Any]:
        """The fields of its configs; `special` names some of `SPECIAL`, which are laid over them."""
        fields = {**self.card["config"]["use"], **self.point.get("fields", {})}
        for name in special:
            fields |= self.fact(name) or {}
        return fields


@dataclass(frozen=True)
class Suite:
    """Everything that a specs folder says. Mappings and lists keep their line numbers (`Map`, `Seq`)."""

    specs: Path
    clauses: tuple[Clause, ...] = ()  # laws included
    cards: dict[str, Map] = field(default_factory=dict)  # PEFT_TYPE -> method card
    models: dict[str, Map] = field(default_factory=dict)
    configs: dict[str, Map] = field(
        default_factory=dict
    )  # a config's class -> the fields that others take over
    sets: dict[str, Map] = field(default_factory=dict)
    tolerances: dict[str, Map] = field(default_factory=dict)
    errors: dict[str, Map] = field(default_factory=dict)
    capabilities: dict[str, str] = field(default_factory=dict)
    operations: dict[str, Map] = field(default_factory=dict)
    sources: dict[str, Map] = field(default_factory=dict)  # document -> its sentence inventory
    profiles: dict[str, Map] = field(default_factory=dict)  # consumer -> what it relies on
    rows: Map = field(default_factory=lambda: Map(1))  # `areas` and `excluded` of the behaviour inventory
    files: dict[Path, Map] = field(default_factory=dict)  # every file that was read

    def clause(self, clause_id: str) -> Clause:
        """The clause of that id. Raises KeyError with the nearest known id."""
        for clause in self.clauses:
            if clause.id == clause_id:
                return clause
        near = closest(clause_id, (c.id for c in self.clauses))
        raise KeyError(f"no clause {clause_id!r}" + (f"; did you mean {near!r}?" if near else ""))

    def set_values(self, name: str, where: Mapping[str, Any] | None = None) -> tuple[str, ...]:
        """The values of a named set; one drawn from the cards lists lower-case methods, at any API level.

        `where` keeps the methods whose facts are (among) those that it says, and that have what `has` lists.
        """
        entry = self.sets.get(name, Map(1))
        if "cards" not in entry:
            return tuple(entry.get("values", ()))
        wanted = entry["cards"]
        names: list[str] = []
        for method, card in sorted(self.cards.items(), key=lambda item: (item[0] != "LORA", item[0])):
            if (
                card["kind"] == wanted.get("kind", card["kind"])
                and ("fields" in wanted or wanted.get("injectable", True) in injectable(card).values())
                and (card.get("complete", False) or "complete" not in wanted)
                and ("fields" in card["config"] or "fields" not in wanted)
            ):
                points = card["config"].get("points", ()) if "points" in wanted else ()
                names += [method.lower(), *(f"{method.lower()}-{point}" for point in points)]
        return tuple(name for name in names if self._fits(name, where or {}))

    def _fits(self, name: str, where: Mapping[str, Any]) -> bool:
        method = self.method(name)
        if method is None or any(not method.fact(fact) for fact in where.get("has", ())):
            return False
        if any(method.fact(fact) for fact in where.get("lacks", ())):
            return False
        return all(
            method.fact(fact) in value if isinstance(value, list) else method.fact(fact) == value
            for fact, value in where.items()
            if fact not in ("has", "lacks")
        )

    def method(self, name: Any) -> Method | None:
        """What `lora`, or `ia3-feedforward` for a point of IA3's card, names; None for what no card has."""
        method, _, point = str(name).partition("-")
        card = self.cards.get(method.upper())
        if card is None or not point:
            return None if card is None else Method(card)
        at = card["config"].get("points", {}).get(point.lower())
        return None if at is None else Method(card, at)

    def file_of(self, entry: Map) -> Path:
        """The file in which a card, an inventory or another whole document stands."""
        return next(file for file, data in self.files.items() if data is entry)


def injectable(card: Mapping[str, Any]) -> dict[str, bool]:
    """API range -> whether a card's method can be injected there."""
    value = card["injectable"]
    return value if isinstance(value, dict) else {">=0": value}


def load_suite(specs_dir: Path) -> Suite:
    """Read, check against the schemas, and assemble all spec files. Raises SpecErrors, all faults at once.

    Our own specs are the same in every process of a run, so that they come from a cache there.
    """
    specs_dir = Path(specs_dir)
    return kept(specs_dir, _load) if specs_dir == find_specs_dir() else _load(specs_dir)


def _load(specs_dir: Path) -> Suite:
    errors: list[SpecError] = []
    files: dict[Path, Map] = {}
    for file in sorted([*specs_dir.rglob("*.yaml"), *specs_dir.rglob("*.yml")]):
        data, faults = _load_file(specs_dir, file)
        errors += faults
        files[file] = data
    if not files:
        errors.append(SpecError(specs_dir, 1, "no spec files here"))
    if errors:
        raise SpecErrors(errors)
    return _assemble(specs_dir, files)


def _load_file(specs_dir: Path, file: Path) -> tuple[Map, list[SpecError]]:
    """What a spec file holds, and every way in which it does not fit its folder's schema."""
    folder = file.relative_to(specs_dir).parts[0]
    if folder not in FOLDERS or file.parent != specs_dir / folder or file.suffix != ".yaml":
        known = ", ".join(f"{name}/*.yaml" for name in FOLDERS)
        return Map(1), [SpecError(file, 1, f"a spec file lies in one of {known}")]
    kind = "rows" if (folder, file.name) == ("sources", "rows.yaml") else FOLDERS[folder]
    try:
        data = read_yaml(file)
    except SpecErrors as failed:
        return Map(1), failed.errors
    errors = schema_errors(file, data, f"{kind}.schema.json")
    header = f"# yaml-language-server: $schema=../schema/{kind}.schema.json"
    if file.read_text("utf-8").split("\n", 1)[0].rstrip() != header:
        errors.append(SpecError(file, 1, f"the first line should be `{header}`"))
    return data, errors


def _assemble(specs_dir: Path, files: dict[Path, Map]) -> Suite:
    suite = Suite(specs_dir, files=files)
    errors: list[SpecError] = []
    clauses: list[Clause] = []

    def put(table: dict[str, Any], what: str, name: str, value: Any, file: Path, line: int) -> None:
        if name in table:
            errors.append(SpecError(file, line, f"{what} {name!r} is defined twice"))
        table[name] = value

    raw_clauses: list[tuple[Path, Map, Map, int]] = []
    for file, data in files.items():
        folder = file.parent.name
        for section in SECTIONS if folder == "vocabulary" else ():
            entries = data.get(section, Map(1))
            for name, value in entries.items():
                put(getattr(suite, section), SECTIONS[section], name, value, file, entries.lines[name])
        if folder == "methods":
            put(suite.cards, "card", data["method"], data, file, data.lines["method"])
        elif folder == "profiles":
            put(suite.profiles, "profile", data["profile"], data, file, data.lines["profile"])
        elif folder == "sources" and "document" in data:
            put(suite.sources, "document", data["document"], data, file, data.lines["document"])
        elif folder == "sources":
            suite.rows.update(data)
            suite.rows.lines.update(data.lines)
        for key in ("clauses", "laws"):
            items = data.get(key, Seq(1))
            raw_clauses += [(file, data, item, line) for item, line in zip(items, items.lines, strict=True)]
    if errors:
        raise SpecErrors(errors)
    for card in suite.cards.values():
        _take_over(suite, card)
    clauses = [_clause(suite, *raw) for raw in raw_clauses]
    return Suite(**{**vars(suite), "clauses": tuple(clauses)})


def _take_over(suite: Suite, card: Map) -> None:
    """Complete the fields of a card's config by those of what it is based on, which come first."""
    config = holder = card["config"]
    while holder.get("base") in suite.configs:
        holder = suite.configs[holder["base"]]
        merged, own = Map(holder.line), config.get("fields", Map(holder.line))
        for fields in (holder["fields"], own):
            merged.update(fields)
            merged.lines.update(fields.lines)
        config["fields"] = merged
    if "peft_type" in config.get("fields", ()):
        config["fields"]["peft_type"] = {"type": "str", "default": card["method"]}


def _clause(suite: Suite, file: Path, data: Map, raw: Map, line: int) -> Clause:
    def checks(items: Seq) -> tuple[Check, ...]:
        result = []
        for item, at in zip(items, items.lines, strict=True):
            word = next(key for key in item if key not in BESIDE_WORD)
            level = item.get("level", raw["level"])
            result.append(Check(item["id"], word, item[word], level, at, item.get("because")))
        return tuple(result)

    variants = raw.get("variants") or [{"api": raw["api"], "then": raw["then"]}]
    axis_sets = {axis: v["set"] for axis, v in raw.get("matrix", {}).items() if isinstance(v, dict)}
    source = raw["source"]
    return Clause(
        id=raw["id"],
        level=raw["level"],
        text=raw["text"],
        sources=tuple(source) if isinstance(source, list) else (source,),
        api=raw["api"],
        profile=raw["profile"],
        topic=data["topic"],
        file=file,
        line=line,
        given=tuple(raw.get("given", ())),
        when=tuple(raw["when"]),
        modifies=tuple(raw.get("modifies", ())),
        variants=tuple(Variant(v["api"], checks(v["then"])) for v in variants),
        matrix={
            axis: suite.set_values(values["set"], values.get("where")) if axis in axis_sets else tuple(values)
            for axis, values in raw.get("matrix", {}).items()
        },
        axis_sets=axis_sets,
        exclude=tuple(raw.get("exclude", ())),
        requires=tuple(raw.get("requires", ())),
        needs=tuple(raw.get("needs", ())),
        rows=tuple(raw.get("rows", ())),
        decided=raw.get("decided"),
        law="laws" in data,
        layers=raw.get("layers", "listed"),
        lines=raw.lines,
    )
