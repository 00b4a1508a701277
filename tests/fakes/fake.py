"""What a fake is, and how the reference is changed in place and put back."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import peft_reference

FAKES: dict[str, Fake] = {}

for _module in pkgutil.walk_packages(peft_reference.__path__, "peft_reference."):
    importlib.import_module(
        _module.name
    )  # all of it, so that none is imported first while a fake is installed


@dataclass(frozen=True)
class Fake:
    """The reference with one fault."""

    name: str  # of the fault
    about: str  # what is wrong, in a sentence
    caught_by: tuple[str, ...]  # `clause:check` patterns (fnmatch); one match of each has to fail
    install: Callable[[Patches], None]
    like: str | None = None  # the release or library that has, or had, this fault
    points: tuple[dict[str, Any], ...] = (
        {},
    )  # axis values to prefer to the first ones, one run of a clause each

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Make `peft_reference` wrong, in place, and right again afterwards."""
        patches = Patches()
        try:
            self.install(patches)
            yield
        finally:
            patches.undo()


def fake(
    about: str,
    *,
    caught_by: Sequence[str],
    like: str | None = None,
    points: Sequence[dict[str, Any]] = ({},),
) -> Callable[[Callable[[Patches], None]], Fake]:
    """Register a fake, called like the function that installs it."""

    def register(install: Callable[[Patches], None]) -> Fake:
        made = Fake(install.__name__, about, tuple(caught_by), install, like, tuple(points))
        if made.name in FAKES:
            raise ValueError(f"there are two fakes called {made.name}")
        FAKES[made.name] = made
        return made

    return register


class Patches:
    """Changes of the reference that are taken back in reverse order."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []

    def undo(self) -> None:
        """Take back all changes."""
        while self._undo:
            self._undo.pop()()

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Bind `owner.name` to `value`; a function of the reference wherever it has been imported."""
        if name == "__class__":
            self._undo.append(functools.partial(setattr, owner, name, type(owner)))
            setattr(owner, name, value)
            return
        old = inspect.getattr_static(owner, name)
        places = _importers(old) if isinstance(owner, types.ModuleType) and callable(old) else [owner]
        if not places:
            raise ValueError(f"{owner.__name__}.{name} has no name in the reference: patch what calls it")
        for place in places:
            for bound in [key for key, held in vars(place).items() if held is old] or [name]:
                put_back = functools.partial(setattr, place, bound, old)
                self._undo.append(
                    put_back if bound in vars(place) else functools.partial(delattr, place, bound)
                )
                setattr(place, bound, value)

    def item(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        """Set an entry of a table."""
        self._undo.append(
            functools.partial(mapping.__setitem__, key, mapping[key])
            if key in mapping
            else functools.partial(mapping.pop, key)
        )
        mapping[key] = value

    def replace(self, owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
        """Replace a function, method, class method or property; the new one gets the original first.

        The signature that callers see stays, so that only the fault shows.
        """
        old = inspect.getattr_static(owner, name)

        def decorate(new: Callable[..., Any]) -> None:
            if isinstance(old, property):
                value: Any = property(functools.partial(new, old.fget), old.fset, old.fdel)
            elif isinstance(old, (staticmethod, classmethod)):
                value = type(old)(_instead(old.__func__, new))
            else:
                value = _instead(old, new)
            self.set(owner, name, value)

        return decorate


def _instead(original: Callable[..., Any], new: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return new(original, *args, **kwargs)

    return replaced


def _importers(thing: Any) -> list[types.ModuleType]:
    """The modules of the reference in which `thing` has a name."""
    modules = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] == "peft_reference"]
    return [m for m in modules if any(held is thing for held in vars(m).values())]
