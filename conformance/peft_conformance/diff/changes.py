"""What differs between two observations of one program, whether or not a clause judges it.

What has to differ between two runs is left aside: tokens are compared as equivalence relations (which things
are one object, before and after), addresses and paths are masked, a release's own version is no change, and
numbers are told apart from facts. Each difference is told once, at the first moment at which it is seen.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from peft_conformance import plain
from peft_conformance.diff.change import NOTHING, Change
from peft_conformance.diff.comparison import Comparison
from peft_conformance.diff.timeline import Observation, Story, masked
from peft_conformance.roles import Record

FOLDER = re.compile(r"(?:/[\w.+~-]+)*/peft-conformance-\w{8}")  # of a case, wherever it was performed


def changes(story: Story, left: Observation, right: Observation) -> list[Change]:
    """What differs, each difference once. A program that only one side finishes is compared up to there."""
    texts = [_neutral(side) for side in (left, right)]
    if texts[0] == texts[1]:  # tokens are given in the order of the steps: most programs leave the same text
        return []
    left, right = (
        {**json.loads(text), "tensors": side["tensors"]}
        for text, side in zip(texts, (left, right), strict=True)
    )
    crashes = [side["crash"] for side in (left, right)]
    if any(crashes):
        kinds = [crash["kind"] if crash else "an observation" for crash in crashes]
        subject = "performing the program"
        acts = story.between(0, len(story.steps))
        return [Change("outcome", subject, kinds[0], kinds[1], acts)] if kinds[0] != kinds[1] else []
    found, apart = _steps(story, left, right)
    if not apart:
        found += Comparison(story, left, right).perform()
    once: dict[Change, Change] = {}
    for change in found:
        first = once.setdefault(change, change)
        once[change] = replace(first, slots=first.slots | change.slots)
    return list(once.values())


def _neutral(observation: Observation) -> str:
    """An observation as text that tells neither who was observed nor where the folder of its case was."""
    told = {key: value for key, value in observation.items() if key not in ("implementation", "tensors")}
    text = json.dumps(told)
    if "/peft-conformance-" in text:
        text = FOLDER.sub("<folder>", text)
    version = str(observation["implementation"].get("version", ""))
    if re.match(r"\d+\.\d", version) and version in text:
        text = re.sub(rf"(?<![\d.]){re.escape(version)}(?![\d])", "<version>", text)
    return text


def _steps(story: Story, left: Observation, right: Observation) -> tuple[list[Change], bool]:
    """Errors, warnings and print-outs; and whether the two parted ways, so that no more can be compared."""
    found: list[Change] = []
    for was, now in zip(left["steps"], right["steps"], strict=False):
        what = story.step_name(was)
        errors = [record["error"] for record in (was, now)]
        ends = [error["type"] if error else "returns" for error in errors]
        if ends[0] != ends[1]:
            found.append(_parted(what, errors))
            return found, True
        if errors[0] and masked(errors[0]["message"]) != masked(errors[1]["message"]):
            words = [masked(error["message"]) for error in errors]
            found.append(Change("message", f"{ends[0]} of {what}", words[0], words[1]))
        warned = [
            dict.fromkeys((w["category"], masked(w["message"])) for w in record["warnings"])
            for record in (was, now)
        ]
        for category, message in sorted(warned[0].keys() ^ warned[1].keys()):  # how often is no fact
            said = [message if (category, message) in side else NOTHING for side in warned]
            found.append(Change("warning", category, said[0], said[1], (what.removesuffix(" again"),)))
        if bool(was["printed"].strip()) != bool(now["printed"].strip()):
            words = [masked(record["printed"]) or NOTHING for record in (was, now)]
            found.append(Change("message", f"print-out of {what}", words[0], words[1]))
    return found, len(left["steps"]) != len(right["steps"]) or bool(
        left["steps"] and left["steps"][-1]["error"]
    )


def _parted(what: str, errors: list[Record | None]) -> Change:
    """The change of a step that one side ends otherwise than the other."""
    missing = [bool(error and error["type"] == "MissingFunction") for error in errors]
    if any(missing) and not all(missing):
        name = next(e["message"] for e, gone in zip(errors, missing, strict=True) if gone and e).split()[-1]
        offered = ["not offered" if gone else "offered" for gone in missing]
        return Change("offers", f"`{name}`", offered[0], offered[1])
    # Beside an error of another class its words say little; beside a return they tell what it is about.
    words = [f": {plain.text(masked(e['message']), 120)}" if e and None in errors else "" for e in errors]
    ends = [f"raises {e['type']}{said}" if e else "returns" for e, said in zip(errors, words, strict=True)]
    return Change("outcome", what, ends[0], ends[1], (what.removesuffix(" again"),))
