"""Variants of LoRA: what clauses cannot say, and Arrow, whose config is an object that no clause can make."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft_reference as peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import build

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers of itself
TASKS = ["task_0", "task_1", "task_2"]


def llama() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=32, num_key_value_heads=2, **sizes)
    return transformers.LlamaForCausalLM(config).eval()


def shaken(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


def alora(tokens: list[int], **options: Any) -> Any:
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=tokens, **options
    )
    return shaken(peft.get_peft_model(llama(), config), 1).eval()


def test_alora_refuses_beams_and_copies_samples() -> None:
    model, ids = alora([5, 6]), torch.tensor([[1, 2, 5, 6, 7], [5, 6, 1, 2, 3]])
    with pytest.raises(ValueError, match="beam"):
        model.generate(input_ids=ids, num_beams=2, max_new_tokens=2, pad_token_id=0)
    copies = model.generate(
        input_ids=ids, num_return_sequences=2, do_sample=True, max_new_tokens=2, pad_token_id=0
    )
    assert copies.shape == (4, 7)


@pytest.mark.parametrize("use_cache", [True, False])
def test_alora_generates_what_it_computes(use_cache: bool) -> None:
    model, ids = alora([5, 6], lora_alpha=64), torch.tensor([[1, 2, 5, 6, 7]])
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = model.generate(input_ids=ids, max_new_tokens=5, use_cache=use_cache, **options)
    for _ in range(5):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    assert found.tolist() == ids.tolist()


def test_alora_continues_a_cache_of_the_base_model() -> None:
    transformers = pytest.importorskip("transformers")
    model, ids = alora([5, 6], lora_alpha=64), torch.tensor([[1, 2, 3, 5, 6, 7]])
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cache = transformers.DynamicCache()
    with model.disable_adapter(), torch.no_grad():
        model(input_ids=ids[:, :3], past_key_values=cache, use_cache=True)
    found = model.generate(input_ids=ids, past_key_values=cache, max_new_tokens=4, **options)
    assert found.tolist() == model.generate(input_ids=ids, max_new_tokens=4, **options).tolist()


def test_alora_has_its_own_invocation_for_each_sample() -> None:
    model = alora([5, 6])
    model.add_adapter(
        "other",
        peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[3]),
    )
    shaken(model, 2).eval()
    ids = torch.tensor([[1, 2, 3, 5, 6, 7]] * 3)
    base = llama()(input_ids=ids).logits
    found = model(input_ids=ids, adapter_names=["default", "other", "__base__"]).logits
    acts = ((found - base).abs().amax(-1) > 0).int().tolist()
    assert acts == [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0] * 6]


def saved(folder: Path, seed: int, **options: Any) -> Path:
    config = peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options)
    shaken(peft.get_peft_model(llama(), config), seed).save_pretrained(folder)
    return folder


def arrow(tmp_path: Path, general: bool = False, **options: Any) -> tuple[Any, Any]:
    paths = [saved(tmp_path / f"t{i}", i, lora_alpha=2 + i) for i in range(3)]
    more = [saved(tmp_path / f"g{i}", 10 + i) for i in range(2)] if general else None
    config = peft.ArrowConfig(top_k=2, router_temperature=0.5, use_gks=general, **options)
    model = peft.create_arrow_model(llama(), paths, config, more)
    assert config.task_adapter_names is None  # the caller's own
    return model, model.get_base_model().model.layers[0].self_attn.q_proj


def routed(layer: Any, x: Tensor, names: list[str], top_k: int = 2) -> Tensor:
    """The definition: softmax of how well the first right singular vectors fit, over the best."""
    A, B = ({n: slot[n].weight for n in names} for slot in (layer.lora_A, layer.lora_B))
    fit = torch.stack([(x @ torch.linalg.svd(B[n] @ A[n])[2][0]).abs() for n in names], -1)
    kept = fit >= fit.topk(top_k, -1).values[..., -1:]
    shares = torch.softmax(torch.where(kept, fit / 0.5, -torch.inf), -1)
    parts = [layer.scaling[n] * F.linear(x, B[n] @ A[n]) for n in names]
    return sum(shares[..., i : i + 1] * part for i, part in enumerate(parts))  # type: ignore[return-value]


@torch.no_grad()
def test_arrow_routes_each_token(tmp_path: Path) -> None:
    model, layer = arrow(tmp_path)
    assert model.active_adapters == ["arrow_router"]
    assert list(model.peft_config) == [*TASKS, "arrow_router"]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(layer(x) - layer.base_layer(x), routed(layer, x, TASKS))
    with pytest.raises(NotImplementedError):
        model.merge_adapter()
    model.delete_adapter("task_1")
    rest = ["task_0", "task_2"]
    torch.testing.assert_close(layer(x) - layer.base_layer(x), routed(layer, x, rest))


@torch.no_grad()
def test_genknowsub_takes_the_mean_of_general_adapters_off(tmp_path: Path) -> None:
    model, layer = arrow(tmp_path, general=True)
    assert list(model.peft_config) == [*TASKS, "gks_0", "gks_1", "arrow_router"]
    _, before = arrow(tmp_path / "plain")
    for slot in ("lora_A", "lora_B"):
        mean = sum(getattr(layer, slot)[f"gks_{i}"].weight for i in range(2)) / 2
        for name in TASKS:
            found, was = getattr(layer, slot)[name].weight, getattr(before, slot)[name].weight
            torch.testing.assert_close(found, was - mean)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(layer(x) - layer.base_layer(x), routed(layer, x, TASKS))


def test_arrow_refuses_and_leaves_the_model_alone(tmp_path: Path) -> None:
    good = saved(tmp_path / "good", 1)
    model = llama()
    names = [name for name, _ in model.named_modules()]
    weights = copy.deepcopy(model.state_dict())
    config = peft.ArrowConfig()
    for paths, general, options in (
        ([], None, {}),
        ([good, saved(tmp_path / "rank", 2, r=3)], None, {}),
        ([good, saved(tmp_path / "target", 2, target_modules=["v_proj"])], None, {}),
        ([good], None, {"use_gks": True}),
        ([good, tmp_path / "nothing"], None, {}),
    ):
        config = peft.ArrowConfig(**options)
        with pytest.raises(ValueError, match=r"adapter|first|no "):
            peft.create_arrow_model(model, paths, config, general)
        assert [name for name, _ in model.named_modules()] == names
        assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    for wrong in ({"top_k": 0}, {"router_temperature": 0.0}):
        with pytest.raises(ValueError, match="positive"):
            peft.ArrowConfig(**wrong)
    with pytest.raises(ValueError, match="create_arrow_model"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], arrow_config=config))


def test_arrow_config_is_read_back(tmp_path: Path) -> None:
    model, _ = arrow(tmp_path)
    model.save_pretrained(tmp_path / "out", selected_adapters=["arrow_router"])
    again: Any = peft.PeftConfig.from_pretrained(tmp_path / "out" / "arrow_router")
    assert again.arrow_config.task_adapter_names == TASKS


@pytest.mark.parametrize("init_type", ["batch_average", "batch_average_once", "random"])
def test_velora_takes_the_gradient_from_compressed_inputs(init_type: str) -> None:
    model = build(lambda: nn.Sequential(nn.Linear(8, 6)))
    options = {"num_groups": 3, "scale": 0.5, "init_type": init_type}
    config = peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False, velora_config=options)
    layer: Any = shaken(peft.inject_adapter_in_model(config, model), 1)[0].train()
    x, upstream = torch.randn(5, 8), torch.randn(5, 6)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    (gradient,) = torch.autograd.grad(layer(x), [a], upstream)
    v = layer.lora_velora_embed["default"]
    groups = F.pad(x, (0, 1)).view(5, 3, 3)
    kept = 0.5 * ((groups @ v)[..., None] * v).view(5, 9)[:, :8]
    torch.testing.assert_close(gradient, layer.scaling["default"] * (upstream @ b).t() @ kept)
    if init_type != "random":
        torch.testing.assert_close(v, F.normalize(groups.flatten(0, 1).mean(0), dim=0))
    first = v.clone()
    layer(torch.randn(5, 8))
    assert torch.equal(first, v) == (init_type != "batch_average")


def test_monteclora_noise_is_centred_and_its_loss_trains() -> None:
    model = build(lambda: nn.Sequential(nn.Linear(8, 6)))
    options = {"num_samples": 4, "kl_loss_weight": 1.0, "sample_scaler": 1.0, "use_entropy": True}
    pm: Any = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["0"], r=2, monteclora_config=options)
    )
    sampler = pm.base_model.model[0].lora_monteclora_sampler["default"]
    with torch.no_grad():
        sampler.std_prior.zero_()
        noise = torch.stack([sampler.noise() for _ in range(4000)])
    assert noise.mean(0).abs().max() < 0.15
    pm.train()
    pm._get_monteclora_loss().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in (sampler.expert_weights_prior,))
    assert pm.eval()._get_monteclora_loss() == 0.0
