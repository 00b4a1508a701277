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


class Net(nn.Module):
    """A layer of each kind that most methods adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.lin0 = nn.Linear(16, 8)
        self.lin1 = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin1(self.lin0(self.conv(x).flatten(2)).relu())


# Every method of the reference besides LoRA, with options worth a file of their own: one line each.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "adalora": (
        "AdaLoraConfig",
        {"target_modules": r"conv|lin.", "total_step": 9, "init_r": 4, "target_r": 2},
    ),
    "ia3": ("IA3Config", {"target_modules": ["conv", "lin0"], "feedforward_modules": []}),
    "ia3 feed-forward": (
        "IA3Config",
        {"target_modules": r"conv|lin.", "feedforward_modules": ["conv", "lin1"]},
    ),
    "loha": ("LoHaConfig", {"target_modules": ["conv", "lin0"], "r": 3, "rank_pattern": {"lin0": 2}}),
    "loha core": ("LoHaConfig", {"target_modules": ["conv"], "r": 2, "use_effective_conv2d": True}),
    "lokr": ("LoKrConfig", {"target_modules": ["conv", "lin0"], "r": 1, "alpha": 2}),
    "lokr whole": ("LoKrConfig", {"target_modules": ["conv", "lin1"], "decompose_factor": 2}),
    "lokr both": ("LoKrConfig", {"target_modules": ["lin0"], "r": 1, "alpha": 2, "decompose_both": True}),
    "lokr core": (
        "LoKrConfig",
        {"target_modules": ["conv"], "r": 1, "alpha": 1, "use_effective_conv2d": True},
    ),
    # no convolution: upstream's forward pass takes its overlapping patches apart and adds them up again
    "oft": ("OFTConfig", {"target_modules": ["lin0", "lin1"], "oft_block_size": 4}),
    "oft exact": (
        "OFTConfig",
        {"target_modules": ["lin0"], "oft_block_size": 4, "use_cayley_neumann": False},
    ),
    "oft shared": (
        "OFTConfig",
        {"target_modules": ["lin1"], "oft_block_size": 0, "r": 2, "block_share": True},
    ),
    "shira": ("ShiraConfig", {"target_modules": ["lin0", "lin1"], "r": 1, "random_seed": 0}),
}
DIRECTIONS = [
    pytest.param(peft_reference, upstream, id="to upstream"),
    pytest.param(upstream, peft_reference, id="from upstream"),
]


def adapted(implementation: Any, method: str, dtype: torch.dtype) -> Any:
    """The network with a perturbed adapter of this method."""
    config_class, options = METHODS[method]
    config = getattr(implementation, config_class)(**options)
    model = implementation.get_peft_model(build(Net).to(dtype), config)
    for name, parameter in model.named_parameters():
        if "ranknum" in name:  # bookkeeping, which upstream trains where the base is not float32
            parameter.requires_grad_(False)
    perturb(model)
    return model


@pytest.mark.parametrize("low_cpu", [False, True], ids=["", "low_cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("writer", "reader"), DIRECTIONS)
def test_every_methods_files_interchange(
    writer: Any, reader: Any, method: str, dtype: torch.dtype, low_cpu: bool, tmp_path: Path
) -> None:
    """Same keys and bits in the state dict and in the file, same outputs, merged or not."""
    model, x = adapted(writer, method, dtype), torch.randn(2, 2, 4, 4).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = reader.PeftModel.from_pretrained(build(Net).to(dtype), tmp_path, low_cpu_mem_usage=low_cpu)
    one, two = writer.get_peft_model_state_dict(model), reader.get_peft_model_state_dict(loaded)
    assert one.keys() == two.keys()
    assert all(one[key].dtype == two[key].dtype for key in one)
    rounded = low_cpu and reader is upstream  # upstream takes float32 files through the dtype of the base
    kept = {key: tensor.to(dtype).to(tensor.dtype) if rounded else tensor for key, tensor in one.items()}
    assert all(torch.equal(kept[key], two[key]) for key in one)
    near = {} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(loaded(x), model(x), **near)
    loaded.save_pretrained(tmp_path / "again")
    name = "adapter_model.safetensors"
    assert rounded or (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
    torch.testing.assert_close(loaded.merge_and_unload()(x), model.merge_and_unload()(x), **near)


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_config_has_the_same_fields_and_values(method: str, tmp_path: Path) -> None:
    written = []
    for implementation in (peft_reference, upstream):
        adapted(implementation, method, torch.float32).save_pretrained(tmp_path)
        data = json.loads((tmp_path / "adapter_config.json").read_text())
        del data["peft_version"]
        written.append({k: sorted(v) if isinstance(v, list) else v for k, v in data.items()})
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "options",
    [{}, {"tinit": 2, "tfinal": 3}, {"deltaT": 3, "tfinal": 2}, {"beta1": 0.5, "beta2": 0.9, "target_r": 1}],
)
def test_adalora_allocates_the_same_ranks_step_by_step(options: dict[str, Any]) -> None:
    """Two trainings side by side have the same parameters after every step and keep the same triplets."""
    x = torch.randn(5, 8)
    runs = []
    for implementation in (peft_reference, upstream):
        config = implementation.AdaLoraConfig(
            **{"target_modules": r"lin.", "total_step": 10, "init_r": 4, "target_r": 2, **options}
        )
        model = implementation.get_peft_model(build(MLP), config)
        perturb(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        runs.append((model, torch.optim.SGD(trained, lr=0.05)))
    for step in range(12):
        for model, optimizer in runs:
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            model.base_model.update_and_allocate(step)
        ours, theirs = (dict(model.named_parameters()) for model, _ in runs)
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name])
    ours, theirs = (peft_state_dict(model) for model, _ in runs)
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}


def peft_state_dict(model: Any) -> dict[str, torch.Tensor]:
    implementation = peft_reference if isinstance(model, peft_reference.PeftModel) else upstream
    return implementation.get_peft_model_state_dict(model)
