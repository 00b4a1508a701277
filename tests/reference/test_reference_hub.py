"""Adapters from the Hub, without a network: out of a local cache, and what is said where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft_reference as peft
import pytest
import torch
from zoo import build, perturb

COMMIT = "0" * 40


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, Any]:
    """Options for a cache of `owner/adapter`, which has a sub-folder and a branch."""
    repository = tmp_path / "cache" / "models--owner--adapter"
    for commit, reference, rank in ((COMMIT, "main", 3), ("1" * 40, "branch", 5)):
        snapshot = repository / "snapshots" / commit
        config = peft.LoraConfig(target_modules=["lin0"], r=rank)
        model = peft.get_peft_model(build(), config)
        model.add_adapter("other", peft.LoraConfig(target_modules=["lin1"], r=2))
        perturb(model)
        model.save_pretrained(snapshot)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / reference).write_text(commit)
    return {"cache_dir": str(tmp_path / "cache"), "local_files_only": True}


def test_an_adapter_comes_out_of_the_cache(offline: dict[str, Any]) -> None:
    loaded = peft.PeftModel.from_pretrained(build(), "owner/adapter", **offline)
    assert loaded.peft_config["default"].r == 3
    snapshot = Path(offline["cache_dir"], "models--owner--adapter", "snapshots", COMMIT)
    there = peft.PeftModel.from_pretrained(build(), snapshot)
    x = torch.randn(2, 8)
    assert torch.equal(loaded(x), there(x))
    assert not torch.equal(loaded(x), build()(x))


def test_revision_and_subfolder_choose(offline: dict[str, Any]) -> None:
    assert peft.PeftConfig.from_pretrained("owner/adapter", revision="branch", **offline).r == 5
    assert peft.PeftConfig.from_pretrained("owner/adapter", subfolder="other", **offline).r == 2
    loaded = peft.PeftModel.from_pretrained(build(), "owner/adapter", **offline)
    outcome = loaded.load_adapter("owner/adapter", "more", subfolder="other", **offline)
    assert outcome.missing_keys == []
    assert loaded.base_model.model.lin1.r == {"more": 2}


def test_what_is_not_to_be_had_is_named(offline: dict[str, Any]) -> None:
    model = build()
    with pytest.raises(ValueError, match=r"adapter_config\.json.*'owner/other'.*no such folder"):
        peft.PeftModel.from_pretrained(model, "owner/other", **offline)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors or adapter_model\.bin.*'owner/other'"):
        peft.load_peft_weights("owner/other", **offline)
    with pytest.raises(ValueError, match=r"adapter_config\.json.*'not a repository'"):
        peft.PeftConfig.from_pretrained("not a repository", **offline)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        peft.PeftConfig.from_pretrained("owner/adapter", revision="nowhere", **offline)
    assert not any(hasattr(module, "lora_A") for module in model.modules())


def test_pickled_weights_come_out_of_the_cache_too(offline: dict[str, Any], tmp_path: Path) -> None:
    model = peft.PeftModel.from_pretrained(build(), "owner/adapter", **offline)
    snapshot = Path(offline["cache_dir"], "models--owner--adapter", "snapshots", COMMIT)
    shutil.rmtree(snapshot)
    model.save_pretrained(snapshot, safe_serialization=False)
    weights = peft.load_peft_weights("owner/adapter", **offline)
    assert all(
        torch.equal(weights[key], tensor) for key, tensor in peft.get_peft_model_state_dict(model).items()
    )
