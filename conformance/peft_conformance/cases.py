"""What a clause becomes: cases at points of its matrix, each a program to perform and checks to judge.

The records here are plain and frozen; they are the contract between loader, driver, judge and runner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from peft_conformance.steps import configs, flat

Matrix = Literal["full", "pairwise", "smoke"]  # how many points of a clause become cases
Plain = Any  # null, boolean, number, string, list or mapping of the same: whatever JSON can hold


@dataclass(frozen=True)
class Check:
    """One assertion of a clause: `word` names what is compared, `body` says with what."""

    id: str
    word: str  # a key of the schema's checks, or the derived words `raises` and `frame`
    body: Plain
    level: str  # the clause's level, unless the check states its own
    line: int  # where it stands in the clause's file
    because: str | None = None


@dataclass(frozen=True)
class Variant:
    """The checks of a clause for one API range."""

    api: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Clause:
    """One normative sentence with its source and the scenario that shows it."""

    id: str
    level: str
    text: str
    sources: tuple[dict[str, Any], ...]
    api: str
    profile: str
    topic: str
    file: Path
    line: int
    given: tuple[dict[str, Any], ...]
    when: tuple[dict[str, Any], ...]
    modifies: tuple[dict[str, Any], ...]
    variants: tuple[Variant, ...]  # a clause with a plain `then` has one, over its whole range
    matrix: dict[str, tuple[Any, ...]] = field(
        default_factory=dict
    )  # named sets resolved, at every API level
    axis_sets: dict[str, str] = field(default_factory=dict)  # axis -> the named set that it runs over
    exclude: tuple[dict[str, Any], ...] = ()
    requires: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    decided: str | None = None
    law: bool = False
    layers: str = "listed"  # of a law: the layers of its matrix that the method's card lists, or the `others`
    lines: dict[str, int] = field(
        default_factory=dict, repr=False, compare=False
    )  # key of the clause -> its line

    @cached_property  # read at every point of the matrix, and the same at each
    def steps(self) -> tuple[dict[str, Any], ...]:
        """What is given and done, in order, steps inside `within` after the one that holds them."""
        return tuple(flat([*self.given, *self.when]))

    @cached_property
    def configs(self) -> tuple[dict[str, Any], ...]:
        """Every config that its steps make."""
        return tuple(configs([*self.given, *self.when]))


@dataclass(frozen=True)
class Case:
    """A clause at one point of its matrix: executed once, judged check by check."""

    clause: Clause
    axes: dict[str, Any]
    program: dict[str, Any]  # what the driver receives: steps with every axis filled in, nothing expected
    checks: tuple[Check, ...]  # with every axis filled in; includes the derived `raises` and `frame` checks
    requires: tuple[
        str, ...
    ] = ()  # capabilities: the clause's own, its models', and `method-<name>` of each config

    @property
    def id(self) -> str:
        """`clause[axis=value,...]`, the axes in alphabetical order."""
        return case_id(self.clause.id, self.axes)


def case_id(clause: str, axes: Mapping[str, Any]) -> str:
    """The id of a clause's case at a point of its matrix."""
    if not axes:
        return clause
    return f"{clause}[{','.join(f'{k}={plain_text(v)}' for k, v in sorted(axes.items()))}]"


def plain_text(value: Any) -> str:
    """An axis value as it stands in an id: YAML's spelling, so `true` rather than `True`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Verdict:
    """What the judge says of one check of one case."""

    case: str
    check: str
    verdict: str  # pass, fail, warn, info, error, blocked, unsupported, not-applicable, not-run, ...
    expected: Plain = None
    observed: Plain = None
    detail: str = ""
    at: dict[str, Any] = field(default_factory=dict)  # where in the observation: tensor, module, key, step
    judged: str | None = None  # the verdict before known failures were looked at, where they had a say
