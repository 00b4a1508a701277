"""On every kind of layer, forward, merge and the formula W + s·BA are one number."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import peft_reference as peft
import pytest
import torch
from peft_reference.layer import BaseTunerLayer
from torch import Tensor, nn
from zoo import build, perturb

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out")


def transposed_linear() -> nn.Module:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    return pytorch_utils.Conv1D(5, 8)


CASES: dict[str, tuple[Any, Tensor]] = {
    "Linear": (lambda: nn.Linear(8, 5), torch.randn(3, 8)),
    "Linear-no-bias": (lambda: nn.Linear(8, 5, bias=False), torch.randn(2, 3, 8)),
    "Conv1D": (transposed_linear, torch.randn(3, 8)),
    "Embedding": (lambda: nn.Embedding(7, 5, padding_idx=2), torch.tensor([[0, 2, 6]])),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 9)),
    "Conv2d-dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2), torch.randn(2, 4, 9, 9)),
    "Conv2d-circular": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        torch.randn(2, 4, 9, 9),
    ),
    "Conv2d-same": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same"), torch.randn(2, 4, 9, 9)),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 2, bias=False), torch.randn(1, 2, 4, 4, 4)),
}


def adapted(kind: str, **options: Any) -> tuple[Any, Tensor]:
    make, x = CASES[kind]
    model = build(lambda: nn.Sequential(make()))
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["0"], r=3, lora_alpha=6, **options), model)
    perturb(model)
    return model, x


@pytest.mark.parametrize("kind", CASES)
def test_forward_merge_and_formula_agree(kind: str) -> None:
    model, x = adapted(kind)
    layer = model[0]
    by_definition = BaseTunerLayer.adapt(layer, "default", x, layer.base_layer(x))
    output = model(x)
    assert not torch.allclose(output, layer.base_layer(x), atol=1e-3)
    torch.testing.assert_close(output, by_definition)
    layer.merge()
    torch.testing.assert_close(model(x), output)


@pytest.mark.parametrize("kind", CASES)
def test_unmerge_restores_the_base_bit_for_bit(kind: str) -> None:
    model, _ = adapted(kind)
    layer = model[0]
    before = {name: tensor.clone() for name, tensor in layer.base_layer.state_dict().items()}
    where = layer.weight.data_ptr()
    layer.merge()
    assert layer.merged_adapters == ["default"]
    layer.unmerge()
    assert layer.weight.data_ptr() == where
    for name, tensor in layer.base_layer.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("kind", CASES)
def test_an_adapter_can_be_trained(kind: str) -> None:
    model, x = adapted(kind)
    model.train()
    model(x).square().sum().backward()
    with_grad = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_grad == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_grouped_convolution_runs_and_refuses_to_merge() -> None:
    """A reads all channels, so the delta of a grouped convolution has no place in its weight."""
    model = build(lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)))
    with pytest.warns(UserWarning, match="cannot be merged"):
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2))
    perturb(model)
    x = torch.randn(1, 4, 5, 5)
    layer = model.base_model.model[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    halves = [
        torch.conv2d(torch.conv2d(x, a[i : i + 1]), b[3 * i : 3 * i + 3].reshape(3, 1, 1, 1))
        for i in range(2)
    ]
    torch.testing.assert_close(model(x), layer.base_layer(x) + 4 * torch.cat(halves, 1))
    with pytest.raises(NotImplementedError, match="groups"):
        model.merge_adapter()


def test_lora_bias_is_merged_into_the_base_bias() -> None:
    model = build(lambda: nn.Sequential(nn.Linear(8, 5)))
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["0"], r=2, lora_bias=True), model)
    perturb(model)
    x = torch.randn(3, 8)
    output = model(x)
    model[0].merge()
    torch.testing.assert_close(model(x), output)


def test_half_precision_base_with_float32_adapter_keeps_the_base_dtype() -> None:
    model = peft.get_peft_model(
        build(lambda: nn.Sequential(nn.Linear(8, 5))).bfloat16(), peft.LoraConfig(target_modules=["0"])
    )
    perturb(model)
    layer = model.base_model.model[0]
    assert layer.lora_A["default"].weight.dtype == torch.float32
    assert model(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    model.merge_adapter()
    assert layer.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_the_same(copier: Any) -> None:
    model, x = adapted("Conv2d-same")
    torch.testing.assert_close(copier(model)(x), model(x), rtol=0, atol=0)


def test_conv1d_is_found_without_importing_transformers() -> None:
    """`import peft_reference` must not import transformers: a model with Conv1D has done so already."""
    import subprocess

    code = "import sys, peft_reference; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
