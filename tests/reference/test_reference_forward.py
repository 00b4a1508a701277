"""The forward of LoRA is its formula, whoever hooked, patched, parametrized or replaced the layers that it
consists of, and costs the kernels of the formula written by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft_reference as peft
import pytest
import torch
from peft_reference.methods.rotations import cayley_neumann, skew, times_blocks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

PARTS = ["base", "A", "B"]


def adapted(dtype: torch.dtype = torch.float64, names: tuple[str, ...] = ("one",), **options: Any) -> Any:
    """A linear layer with LoRA adapters that do something, all of them active."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, dtype=dtype))
    for name in names:
        config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0"], init_lora_weights=False, **options)
        peft.inject_adapter_in_model(config, model, name)
    layer: Any = model[0].eval()
    layer.set_adapter(list(names))
    return layer


def parts(layer: Any) -> dict[str, nn.Linear]:
    return {"base": layer.base_layer, "A": layer.lora_A["one"], "B": layer.lora_B["one"]}


def formula(layer: Any, x: Tensor, twice: str = "", weights: dict[str, Tensor] | None = None) -> Tensor:
    """W·x + b + s·B·A·x, where the part called `twice` gives twice its output."""
    found = weights or {name: part.weight for name, part in parts(layer).items()}
    times = {name: 2.0 if name == twice else 1.0 for name in PARTS}
    y = F.linear(x, found["base"], layer.base_layer.bias) * times["base"]
    return y + 3.0 * times["A"] * times["B"] * (x @ found["A"].t() @ found["B"].t())


def hook(part: nn.Module) -> None:
    part.register_forward_hook(lambda module, args, output: 2 * output)


def hook_before(part: nn.Module) -> None:
    part.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    if (bias := part.bias) is not None:  # so that the output is doubled, as with the others
        part.bias = nn.Parameter(2 * bias.detach(), requires_grad=False)


def patch(part: Any) -> None:
    plain = part.forward
    part.forward = lambda x: 2 * plain(x)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(part: Any) -> None:
    parametrize.register_parametrization(part, "weight", Twice())
    if part.bias is not None:
        parametrize.register_parametrization(part, "bias", Twice())


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def replaced(part: Any) -> None:
    part.__class__ = Doubled


CHANGES = [hook, patch, parametrized, replaced, hook_before]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6)], ids=["matrix", "sequence"])
def test_a_changed_part_is_what_acts(change: Callable[[Any], None], name: str, shape: Any) -> None:
    """Whatever is done to the base layer, A or B of an adapted layer, its forward goes through it."""
    layer, x = adapted(), torch.randn(*shape, dtype=torch.float64)
    expected = formula(layer, x, twice=name)
    change(parts(layer)[name])
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_gradient_hooks_of_a_part_run(kind: str, name: str) -> None:
    layer, seen = adapted(), []
    getattr(parts(layer)[name], kind)(lambda *args: seen.append(name))
    layer(torch.randn(4, 6, dtype=torch.float64, requires_grad=True)).sum().backward()
    assert seen == [name]


def test_global_hooks_see_every_part() -> None:
    layer, seen = adapted(), []
    handle = register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        layer(torch.randn(4, 6, dtype=torch.float64))
    finally:
        handle.remove()
    assert [id(module) for module in seen] == [id(part) for part in (*parts(layer).values(), layer)]


def test_the_parameters_of_the_moment_act() -> None:
    """Others that are put in for one call, loaded by assignment or converted are used from then on."""
    layer, x = adapted(), torch.randn(4, 6, dtype=torch.float64)
    layer(x)
    others = {name: torch.randn_like(part.weight) for name, part in parts(layer).items()}
    keys = {"base_layer.weight": "base", "lora_A.one.weight": "A", "lora_B.one.weight": "B"}
    state = {key: others[name] for key, name in keys.items()}
    before = formula(layer, x)
    expected = formula(layer, x, weights=others)
    torch.testing.assert_close(torch.func.functional_call(layer, state, (x,)), expected)
    torch.testing.assert_close(layer(x), before)
    layer.load_state_dict({**layer.state_dict(), **state}, assign=True)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.float()(x.float()), expected.float())


@pytest.mark.parametrize("shape", [(6,), (4, 6), (0, 6), (2, 3, 6)], ids=str)
@pytest.mark.parametrize("lora_bias", [False, True])
@pytest.mark.parametrize("names", [("one",), ("one", "two", "three")], ids=len)
def test_forward_and_gradients_are_those_of_the_merged_weight(
    shape: Any, lora_bias: bool, names: tuple[str, ...]
) -> None:
    layer = adapted(names=names, lora_bias=lora_bias)
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    weight, bias = layer.weight, layer.bias
    for name in names:
        weight, bias = layer.fold(name, weight, bias)
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(y, expected)
    wrt = [x, *(p for p in layer.parameters() if p.requires_grad)]
    grad = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, wrt, grad), torch.autograd.grad(expected, wrt, grad))


@pytest.mark.parametrize("adapter", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6)], ids=["matrix", "sequence"])
def test_dtypes(base: torch.dtype, adapter: torch.dtype, shape: Any) -> None:
    """The adapter computes in its own dtype, the sum in the wider of the two; the output has the base's."""
    layer = adapted(base)
    for name in "AB":
        parts(layer)[name].to(adapter)
    x = torch.randn(*shape, dtype=base)
    exact = x.double()
    weights = {name: part.weight.double() for name, part in parts(layer).items()}
    expected = exact @ weights["base"].t() + layer.bias.double()
    expected = expected + 3.0 * (exact @ weights["A"].t() @ weights["B"].t())
    assert layer(x).dtype is base
    torch.testing.assert_close(
        layer(x),
        expected.to(base),
        **({"rtol": 0.05, "atol": 0.05} if torch.bfloat16 in (base, adapter) else {}),
    )
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y, expected.to(torch.bfloat16), rtol=0.05, atol=0.05)


class Kernels(TorchDispatchMode):
    """Which kernels run, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("names", [("one",), ("one", "two", "three")], ids=len)
def test_forward_on_a_matrix_is_two_kernels_for_each_adapter(names: tuple[str, ...]) -> None:
    layer = adapted(names=names)
    with torch.no_grad(), Kernels() as ran:
        layer(torch.randn(4, 6, dtype=torch.float64))
    assert ran.names == ["randn", "addmm", *["mm", "addmm"] * len(names)]


@pytest.mark.parametrize("shape", [(6,), (4, 6), (0, 6), (2, 3, 6)], ids=str)
def test_rows_times_blocks_are_rows_times_the_block_diagonal(shape: Any) -> None:
    torch.manual_seed(0)
    rows, blocks = torch.randn(*shape, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(times_blocks(rows, blocks), rows @ torch.block_diag(*blocks))


def test_skew_matrices_and_their_series() -> None:
    """Entries go above the diagonal row by row; the series is I + 2Q + 2Q² + … + Qᵏ."""
    one, two, three = entries = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    q = torch.tensor([[0, one, two], [-one, 0, three], [-two, -three, 0]], dtype=torch.float64)
    torch.testing.assert_close(skew(entries, 3), q)
    eye, power = torch.eye(3, dtype=torch.float64), torch.linalg.matrix_power
    series = {1: eye, 2: eye + 2 * q, 3: eye + 2 * q + 2 * power(q, 2) + power(q, 3)}
    series[4] = series[3]
    series[5] = eye + 2 * q + 2 * power(q, 2) + 2 * power(q, 3) + power(q, 4)
    for terms, expected in series.items():
        torch.testing.assert_close(cayley_neumann(q, terms), expected)
