"""METHODS.md: every method on one page, as its card states it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from packaging.version import Version

from peft_conformance.facts import fitting, usual_fields
from peft_conformance.implementations import API_LEVEL
from peft_conformance.language import Method, Suite, injectable

HEAD = """# The methods

Written by `peft-conformance methods` from the cards in [`specs/methods/`](specs/methods); do not edit.

W (out, in) and b (out) are the base layer's, kernels flattened into `in`; an embedding is a layer on one-hot
rows. The other letters are the card's tensors and symbols. A formula is that of the usual options on the
first kind of layer; the card has the others, the shapes of the tensors, and every field of the config.
"""
KINDS = {
    "layer": "Methods that adapt layers",
    "block": "Methods that wrap blocks of a model",
    "prompt": "Methods that learn a prompt: they adapt no layer",
}
TOGETHER = {"sum": "their changes add up", "compose": "one after the other", "one": "one at a time"}


def overview(suite: Suite) -> str:
    """The page, as Markdown."""
    return "\n".join([HEAD, *_sections(suite)]).rstrip() + "\n"


def _sections(suite: Suite) -> Iterator[str]:
    for kind, title in KINDS.items():
        cards = [card for _, card in sorted(suite.cards.items()) if card["kind"] == kind]
        if not cards:
            continue
        yield f"## {title}\n"
        for card in cards:
            yield f"### {card['method']}\n"
            yield from (f"- {line}" for line in _facts(card))
            yield ""


def _facts(card: Mapping[str, Any]) -> Iterator[str]:
    title = card.get("title", card["method"])
    paper = f"[{title}]({card['paper']})" if "paper" in card else title
    file = f"specs/methods/{card['method'].lower()}.yaml"
    yield f"{paper}; `{card['config']['class']}`, [card]({file}), API {card.get('api', '>=0')}"
    for name, letter in (("weight", "W'"), ("bias", "b'")):
        if name in card:
            yield f"{letter} = `{_usual(card, card[name])}`"
    if "no_formula" in card:
        yield f"no formula: {card['no_formula']}"
    if symbols := {name: _usual(card, choices) for name, choices in card.get("symbols", {}).items()}:
        yield "where " + ", ".join(f"{name} = `{value}`" for name, value in symbols.items())
    if card.get("layers"):
        yield f"on {', '.join(card['layers'])}; {_abilities(card)}"
    elif card["kind"] == "layer":
        yield _abilities(card)
    if points := card["config"].get("points"):
        yield "also under the laws: " + ", ".join(
            f"{name} ({_fields(point['fields'])})" for name, point in points.items()
        )


def _usual(card: Mapping[str, Any], formula: str | Sequence[Mapping[str, Any]]) -> str:
    """A formula, or of several the one that fits the config of most cases on the first kind of layer."""
    fields = usual_fields(Method(card), Version(API_LEVEL))
    return formula if isinstance(formula, str) else str(fitting(formula, card["layers"][0], fields))


def _abilities(card: Mapping[str, Any]) -> str:
    said = [
        "merges" if card.get("mergeable") else "does not merge",
        "an identity at first" if card.get("identity_at_init") else "no identity at first",
    ]
    if "active_together" in card:
        said.append(f"several active: {TOGETHER[card['active_together']]}")
    if ranges := [api for api, yes in injectable(card).items() if yes]:
        said.append("can be injected" + ("" if ranges == [">=0"] else f" in API {' or '.join(ranges)}"))
    else:
        said.append("cannot be injected")
    return "; ".join(said)


def _fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value!r}`" for name, value in fields.items())
