"""Adapters saved by the reference load in upstream PEFT and the other way round, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft_reference
import pytest
import torch
from torch import nn
from zoo import MLP, build, perturb

upstream = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(9, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.body = MLP()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.body(self.conv(self.emb(ids).transpose(1, 2)).transpose(1, 2))


IDS = torch.tensor([[1, 2, 3, 8]])
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["emb", "conv", "lin0"]},
    "patterns": {
        "target_modules": r"body\.lin.",
        "rank_pattern": {"lin1": 2},
        "alpha_pattern": {"^body.lin0": 3},
    },
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "biases": {"target_modules": ["lin0"], "bias": "all"},
    "copy": {"target_modules": ["conv"], "modules_to_save": ["lin1"]},
    "lora bias": {"target_modules": ["lin0"], "lora_bias": True},
}


@pytest.mark.parametrize("low_cpu", [False, True], ids=["", "low_cpu"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("writer", "reader"), [(peft_reference, upstream), (upstream, peft_reference)])
def test_files_interchange(writer: Any, reader: Any, name: str, low_cpu: bool, tmp_path: Path) -> None:
    model = writer.get_peft_model(build(Mixed), writer.LoraConfig(r=3, **OPTIONS[name]))
    perturb(model)
    model.save_pretrained(tmp_path)
    loaded = reader.PeftModel.from_pretrained(build(Mixed), tmp_path, "other", low_cpu_mem_usage=low_cpu)
    one = writer.get_peft_model_state_dict(model)
    two = reader.get_peft_model_state_dict(loaded, adapter_name="other")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    torch.testing.assert_close(loaded(IDS), model(IDS))
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert (again / "other" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("name", OPTIONS)
def test_configs_have_the_same_fields_and_values(name: str, tmp_path: Path) -> None:
    written = []
    for implementation in (peft_reference, upstream):
        model = implementation.get_peft_model(build(Mixed), implementation.LoraConfig(r=3, **OPTIONS[name]))
        model.save_pretrained(tmp_path)
        data = json.loads((tmp_path / "adapter_config.json").read_text())
        del data["peft_version"]
        written.append(
            {k: sorted(v) if k == "target_modules" and isinstance(v, list) else v for k, v in data.items()}
        )
    assert written[0] == written[1]


def test_state_dicts_interchange_between_injected_models() -> None:
    models = []
    for implementation in (peft_reference, upstream):
        config = implementation.LoraConfig(target_modules=["emb", "lin0"], r=3)
        models.append(implementation.inject_adapter_in_model(config, build(Mixed)))
    perturb(models[0])
    state_dict = peft_reference.get_peft_model_state_dict(models[0])
    outcome = upstream.set_peft_model_state_dict(models[1], state_dict)
    assert not outcome.unexpected_keys
    torch.testing.assert_close(models[1](IDS), models[0](IDS))
