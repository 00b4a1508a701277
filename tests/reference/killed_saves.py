"""Save adapters over each other while being killed, and look at what is left; run by
`test_reference_killed.py`.

Arguments: a folder to work in, and "in place" to write files without care. Prints one line of JSON: how often
each adapter was found, and how many kills came in the middle of a save.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft_reference as peft
import torch
from peft_reference import saving
from zoo import build, perturb

ROUNDS = 60
MOVES = ("rename", "replace", "unlink", "rmdir", "mkdir")


def adapter(seed: int, **fields: Any) -> Any:
    model = peft.get_peft_model(build(), peft.LoraConfig(**fields))
    perturb(model, seed)
    return model


ADAPTERS = {  # of other ranks, targets and formats, so that no part of one goes with the rest of the other
    "pickled": (adapter(1, target_modules=["lin0"], r=3), False),
    "tensors": (adapter(2, target_modules=["lin0", "lin1"], r=5, lora_alpha=9), True),
    "other tensors": (adapter(3, target_modules=["lin1"], r=2), True),
}


def save(name: str, folder: Path) -> None:
    model, safe = ADAPTERS[name]
    model.save_pretrained(folder, safe_serialization=safe)


def found(folder: Path) -> str:
    """The adapter that is there, whole; AssertionError if there is none."""
    for name, (model, _) in ADAPTERS.items():
        config, loaded = model.peft_config["default"], peft.PeftConfig.from_pretrained(folder)
        if (config.r, config.lora_alpha, config.target_modules) == (
            loaded.r,
            loaded.lora_alpha,
            loaded.target_modules,
        ):
            wanted, there = peft.get_peft_model_state_dict(model), peft.load_peft_weights(folder)
            assert wanted.keys() == there.keys(), f"the config of {name} beside {list(there)}"
            assert all(torch.equal(wanted[key], there[key]) for key in wanted), f"weights not of {name}"
            peft.PeftModel.from_pretrained(build(), folder)
            return name
    raise AssertionError("a config that nobody saved")


def in_child(work: Callable[[], Any], wait: float | None = None) -> int:
    """Do some work in another process, killed after `wait` seconds; its exit status."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def save_for_ever(folder: Path, first: int) -> None:
    names = list(ADAPTERS)
    while True:
        save(names[first % len(names)], folder)
        first += 1


def die_at(move: int, name: str, folder: Path) -> None:
    """Save an adapter, and be killed just before the files' names change for the `move`th time."""
    moves = 0

    def counted(original: Any) -> Any:
        def act(*args: Any, **kwargs: Any) -> Any:
            nonlocal moves
            if moves == move:
                os.kill(os.getpid(), signal.SIGKILL)
            moves += 1
            return original(*args, **kwargs)

        return act

    for function in MOVES:
        setattr(saving.os, function, counted(getattr(os, function)))
    save(name, folder)


def write_in_place(folder: Path, files: dict[str, Any]) -> None:
    """What `write_files` must not be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content) if isinstance(content, str) else content(folder / name)


def main() -> None:
    warnings.simplefilter("ignore")
    if "in place" in sys.argv:
        saving.write_files = write_in_place
    folder, dice = Path(sys.argv[1]), random.Random(0)
    seen = dict.fromkeys(ADAPTERS, 0)
    amid = 0
    save("tensors", folder)
    for kills in range(ROUNDS):
        status = in_child(lambda first=kills: save_for_ever(folder, first), dice.uniform(0.002, 0.1))  # type: ignore[misc]
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        left = [path for path in folder.iterdir() if path.name.startswith(".sav")]
        amid += bool(left)
        seen[found(folder)] += 1
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
    for old in ADAPTERS:
        for new in ADAPTERS:
            move = 0
            while True:
                save(old, folder)
                status = in_child(lambda move=move, new=new: die_at(move, new, folder))  # type: ignore[misc]
                there = found(folder)
                assert there in (old, new), f"{there} after {old} and {new}"
                if not os.WIFSIGNALED(status):
                    assert there == new
                    break
                move += 1
            assert move >= 4, "the save was not interrupted"
    print(json.dumps({"seen": seen, "amid": amid}))


main()
