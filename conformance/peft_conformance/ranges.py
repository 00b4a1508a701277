"""Ranges of API levels: PEP 440 specifiers, pre-releases included, and how they lie to each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache

from packaging.specifiers import SpecifierSet
from packaging.version import Version


@cache  # a few hundred ranges and levels, asked for at every point of every matrix
def contains(api_range: str, level: Version | str) -> bool:
    """Whether an API level lies in a PEP 440 range, pre-releases included."""
    return SpecifierSet(api_range).contains(level, prereleases=True)


def probes(*ranges: str) -> list[Version]:
    """Versions on, just below and just above every bound of PEP 440 ranges: enough to tell them apart."""
    found = {Version("0"), Version("99999")}
    for spec in (s for text in ranges for s in SpecifierSet(text)):
        release = Version(spec.version.removesuffix(".*")).release
        bounds = [release, (*release[:-1], release[-1] + 1)]
        if len(release) > 1:
            bounds.append((*release[:-2], release[-2] + 1))  # where `~=` ends
        for bound in bounds:
            found |= {Version(_text(bound)), Version(_text((*bound, 0, 1))), Version(_text(_below(bound)))}
    return sorted(found)


def _text(release: Iterable[int]) -> str:
    return ".".join(map(str, release))


def _below(release: tuple[int, ...]) -> tuple[int, ...]:
    trimmed = list(release)
    while len(trimmed) > 1 and trimmed[-1] == 0:
        trimmed.pop()
    return (*trimmed[:-1], max(trimmed[-1] - 1, 0), 99999 if trimmed[-1] else 0)


def outside(inner: str, outer: str) -> Version | None:
    """A version that lies in `inner` but not in `outer`, or None if `outer` holds all of it."""
    return next((v for v in probes(inner, outer) if contains(inner, v) and not contains(outer, v)), None)


def untiled(parts: Collection[str], whole: str) -> str | None:
    """How `parts` fail to cover every version of `whole` exactly once, or None if they tile it."""
    for version in probes(whole, *parts):
        held = [part for part in parts if contains(part, version)]
        if contains(whole, version) and not held:
            return f"leave a gap: none holds {version}, which is in {whole}"
        if len(held) > 1:
            return f"overlap: {held[0]} and {held[1]} both hold {version}"
        if held and not contains(whole, version):
            return f"reach too far: {held[0]} holds {version}, which is not in {whole}"
    return None
