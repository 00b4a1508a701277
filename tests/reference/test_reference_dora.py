"""DoRA against upstream: from the same checkpoint, made without a seed, the same keys, files, outputs and
gradients, in both directions.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft_reference as reference
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

upstream = pytest.importorskip("peft")
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


class Every(nn.Module):
    """A layer of each kind, applied to its own part of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 12)
        self.bare = nn.Linear(12, 6, bias=False)
        self.words = nn.Embedding(16, 8)
        self.line = nn.Conv1d(1, 4, 3, stride=2, padding=1)
        self.plane = nn.Conv2d(4, 6, 1)
        self.space = nn.Conv3d(6, 3, 3, padding=1)

    def forward(self, ids: Tensor) -> Tensor:
        """(n,) ids -> a vector."""
        x = self.words(ids)
        y = self.bare(self.linear(x))
        z = self.line(y.unsqueeze(1)).unsqueeze(-1)
        return self.space(self.plane(z).unsqueeze(-1)).flatten()


def build(dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Every().to(dtype).eval()


def adapted(library: Any, dtype: torch.dtype) -> Any:
    config = library.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=list(build(dtype)._modules))
    return library.get_peft_model(build(dtype), config, autocast_adapter_dtype=False)


def checkpoint(model: Any, library: Any) -> dict[str, Tensor]:
    """Random values for every tensor of the adapter; magnitudes near one."""
    state = library.get_peft_model_state_dict(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return {
            key: (torch.randn(state[key].shape) * 0.3 + ("magnitude" in key)).to(state[key].dtype)
            for key in sorted(state)
        }


IDS = torch.arange(5)
DIRECTIONS = [(upstream, reference), (reference, upstream)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("saver", "loader"), DIRECTIONS, ids=["from-upstream", "to-upstream"])
def test_files_go_both_ways(saver: Any, loader: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = adapted(saver, dtype)
        saver.set_peft_model_state_dict(trained, checkpoint(trained, saver))
        trained.save_pretrained(tmp_path / "a")
        loaded = loader.PeftModel.from_pretrained(build(dtype), tmp_path / "a", autocast_adapter_dtype=False)
        loaded.save_pretrained(tmp_path / "b")
        first, again = (load_file(tmp_path / part / "adapter_model.safetensors") for part in "ab")
        assert first.keys() == again.keys()
        assert any(key.endswith("lora_magnitude_vector") for key in first)
        assert all(first[key].dtype is again[key].dtype and first[key].equal(again[key]) for key in first)
        torch.testing.assert_close(loaded(IDS), trained(IDS), **TOLERANCE[dtype])
        merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(IDS), trained(IDS), **TOLERANCE[dtype])


def test_gradients_agree() -> None:
    found = []
    for library in (upstream, reference):
        model = adapted(library, torch.float32)
        library.set_peft_model_state_dict(model, checkpoint(model, library))
        model.train()
        model(IDS).square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append(dict(sorted(gradients.items())))
    theirs, ours = found
    assert theirs.keys() == ours.keys()
    assert any("magnitude" in name for name in ours)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_several_adapters_agree() -> None:
    found = []
    for library in (upstream, reference):
        model = adapted(library, torch.float32)
        values = checkpoint(model, library)
        config = library.LoraConfig(
            r=2, lora_alpha=3, use_dora=True, target_modules=["linear", "plane", "words"]
        )
        model.add_adapter("other", config)
        library.set_peft_model_state_dict(model, values)
        own = library.get_peft_model_state_dict(model, adapter_name="other")
        library.set_peft_model_state_dict(
            model, {key: values[key] * 0.5 for key in own}, adapter_name="other"
        )
        model.base_model.set_adapter(["default", "other"])
        both = model(IDS).detach()
        model.base_model.merge_adapter()
        found.append((both, model(IDS).detach()))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
