"""The oracle's grammar and arithmetic, on closed forms worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft_conformance.formula import Adapter, FormulaError, Misfit, apply_layer, effective, evaluate, parse
from scenes import LORA, SUITE, ask, config, layer, model, module, numbers, observation, output, tensor

A = torch.tensor([[1.0, 2.0]])  # (r, in) = (1, 2)
B = torch.tensor([[1.0], [0.0], [-1.0]])  # (out, r) = (3, 1)
W = torch.zeros(3, 2)
M = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
SWAP, KEEP = [[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]
SYMBOLS: dict[str, Any] = {"swaps": torch.tensor([[SWAP, KEEP], [SWAP, KEEP]])}
SYMBOLS |= {"u": torch.tensor([[0.0, 1.0], [1.0, -1.0]])}
SYMBOLS |= {"M": M, "at": torch.tensor([[1, 0, 1], [2, 1, 2]])}
SYMBOLS |= {"A": A, "B": B, "W": W, "s": 0.5, "r": 2, "in": 1, "v": torch.tensor([1.0, 2.0, 3.0])}


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("1 + 2 * 3", 7),
        ("-(2 ** 3) / 4", -2.0),
        ("6 / sqrt(4)", 3.0),
        ("s * r", 1.0),
        ("W + s * (B @ A)", [[0.5, 1.0], [0.0, 0.0], [-0.5, -1.0]]),
        ("A[:, :in]", [[1.0]]),
        ("v[:, None] * A", [[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]),
        ("v[1:]", [2.0, 3.0]),
        ("v[-1]", 3.0),
        ("v[::r]", [1.0, 3.0]),
        ("v[:r - 1]", [1.0]),
        ("sqrt(v * v)", [1.0, 2.0, 3.0]),
        ("kron(A, B)", [[1.0, 2.0], [0.0, 0.0], [-1.0, -2.0]]),
        ("transpose(A)", [[1.0], [2.0]]),
        ("diag(v)[0]", [1.0, 0.0, 0.0]),
        ("take(v, at)", [[2.0, 1.0, 2.0], [3.0, 2.0, 3.0]]),
        ("relu(B @ A)", [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]),
        ("tanh(v[:1])", [(math.e - 1 / math.e) / (math.e + 1 / math.e)]),
        ("repeat(A, r)", [[1.0, 1.0, 2.0, 2.0]]),
        ("cycle(A, 5)", [[1.0, 2.0, 1.0, 2.0, 1.0]]),
        ("shuffle(kron(v[1:], v[:r])[:, None], r)", [[2.0], [3.0], [4.0], [6.0]]),
        ("grid(stack(M), 1)", [[[[1.0]], [[2.0]]], [[[3.0]], [[4.0]]]]),
        ("grid(kron(stack(M), transpose(A) @ A), 2)[1, 0]", [[3.0, 6.0], [6.0, 12.0]]),
        ("relu(B)", [[1.0], [0.0], [0.0]]),
        ("qr(skew(v[:1], r))", [[0.0, 1.0], [1.0, 0.0]]),  # R = diag(-1, 1)
        ("norm(B @ A * 2)", [math.sqrt(20), 0.0, math.sqrt(20)]),
        ("skew(v, 3)", [[0.0, 1.0, 2.0], [-1.0, 0.0, 3.0], [-2.0, -3.0, 0.0]]),
        ("cayley(skew(v[:1], r))", [[0.0, -1.0], [1.0, 0.0]]),  # (I - Q)(I + Q)⁻¹ of Q = [[0, 1], [-1, 0]]
        ("neumann(skew(v[:1], 2), 3)", [[-1.0, 1.0], [-1.0, -1.0]]),  # I + 2Q + 2Q² + Q³ with Q² = -I
        ("householder(u)", [[0.0, 1.0], [-1.0, 0.0]]),  # diag(1, -1), then the exchange of both
        ("butterfly(swaps)", [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),  # 0, 1, then 0, 2
        ("quarter(reshape(M, 1, 2, 2))", [[[-3.0, -4.0], [1.0, 2.0]]]),
        ("reshape(v, 3 / 1, -1)", [[1.0], [2.0], [3.0]]),
        ("shorten(diag(v), 2)", [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]),
        ("cos(v - v)[0] + sin(v - v)[0]", 1.0),
        ("inv(diag(v[:2]))", [[1.0, 0.0], [0.0, 0.5]]),
        ("low_rank(diag(v), 1)", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 3.0]]),
        ("minor_space(diag(v), 2)", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]),
        ("one(B @ A[:, :1])", [[1.0]]),
        ("near_root(12)", 3),
        ("near_root(7)", 1),
        ("rms(v[:, None] * 0 + 2)", 2.0),
        ("split(B @ A, 3)", [[[1.0, 2.0]], [[0.0, 0.0]], [[-1.0, -2.0]]]),
        ("stack(M)", [[1.0, 2.0], [3.0, 4.0]]),
        ("softmax(M[0] * 0)", [[0.5, 0.5]]),
        ("min(3, 2) + max(3, 2) * 10", 32),
        ("ceil(7 / 2)", 4),
        ("with_rows(A, 1)", [[1.0, 2.0]]),
        ("with_rows(A, 2)", [[1.0], [2.0]]),
        ("topk_softmax(M * 0, 2)[0]", [[0.5, 0.5]]),
        ("topk_softmax(M, 1)", [[[0.0, 1.0]], [[0.0, 1.0]]]),
        ("sigmoid(v * 0)", [0.5, 0.5, 0.5]),
        ("shares(M[1] - 2)", [[1 / 3, 2 / 3]]),
        ("mean_row(stack(M))", [2.0, 3.0]),
        ("weighted(v[:r], M)", [[7.0, 10.0]]),  # 1·(1, 2) + 2·(3, 4)
        ("weighted(transpose(A), split(stack(M)[:, None], r))", [[[1.0, 2.0]], [[6.0, 8.0]]]),
        ("block_diag(M)", [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]]),
        ("scatter(r, 3, at, v)", [[0.0, 2.0, 0.0], [0.0, 0.0, 4.0]]),  # 1 and 3 fall on the same place
        ("scatter(r, 3, at[0], v)", [[2.0, 4.0, 0.0], [0.0, 0.0, 0.0]]),  # places of the flattened matrix
        ("replace_rows(diag(v), at[0][:r], v[None])", [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, 0.0, 3.0]]),
        ("circulant(v)", [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 3.0, 1.0]]),
        (
            "blocks(M[None, :, :, :] * A[0][:, None, None, None])",
            [[1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0]],
        ),
        ("inverse_fourier(A)", [[1.5, -0.5]]),  # the mean, and half the difference
        ("inverse_fourier(diag(v[:r]))", [[0.75, -0.25], [-0.25, 0.75]]),  # (1 + 2·(-1)^(row + column)) / 4
        ("daubechies(1) * sqrt(2)", [1.0, 1.0]),
        (
            "idwt2(scatter(r, r, v[:r] - v[:r], v[:r]), v[:r])",
            [[3.0, 6.0], [6.0, 12.0]],
        ),  # 1 + 2 in the low half
        (
            "idwt2(scatter(r, r, v[:1], v[:1]), v[:r])",
            [[2.0, 4.0], [-1.0, -2.0]],
        ),  # rows in detail, columns smooth
    ],
)
def test_a_formula_has_the_value_worked_out_by_hand(formula: str, value: Any) -> None:
    found = evaluate(formula, SYMBOLS)
    assert (found.tolist() if isinstance(found, torch.Tensor) else found) == value
    assert not isinstance(found, torch.Tensor) or found.dtype == torch.float64


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("W + C", "no symbol 'C'; there are A, B, M, W"),
        ("frob(A)", "no function 'frob'; there are block_diag"),
        ("A.T", "'A.T' (Attribute) is not in the grammar"),
        ("A and B", "column"),
        ("A == B", "(Compare)"),
        ("__import__('os')", "no function '__import__'"),
        ("sqrt(x=4)", "(Call)"),
        ("(lambda: 1)()", "column"),
        ("A // B", "(BinOp)"),
        ("'text'", "(Constant)"),
        ("True", "no symbol 'True'"),
        ("A[None:]", "(Constant)"),
        ("[1, 2]", "(List)"),
        ("A +", "column"),
        ("1j", "(Constant)"),
    ],
)
def test_what_is_outside_the_grammar_is_named(formula: str, says: str) -> None:
    with pytest.raises(FormulaError) as caught:
        evaluate(formula, SYMBOLS)
    assert repr(formula) in str(caught.value)
    assert says in str(caught.value)
    assert not isinstance(caught.value, Misfit)


@pytest.mark.parametrize("formula", ["A @ B @ W", "v + A", "v[7]", "1 / 0", "sqrt(-1)", "v[A]"])
def test_operands_that_do_not_fit_are_named_with_their_shapes(formula: str) -> None:
    with pytest.raises(Misfit, match="formula "):
        evaluate(formula, SYMBOLS)


def test_parse_tells_the_symbols_and_reserved_words_are_symbols() -> None:
    assert parse("W + s * kron(A[:, :in], lambda)")[1] == {"W", "s", "A", "in", "lambda"}


def adapter(
    a: torch.Tensor, b: torch.Tensor, name: str = "default", bias: torch.Tensor | None = None, **fields: Any
) -> Adapter:
    tensors = {"lora_A.weight": a, "lora_B.weight": b} | ({} if bias is None else {"lora_B.bias": bias})
    return Adapter(name, LORA, config(**fields)["fields"], tensors)


def test_lora_scales_by_alpha_over_rank_or_its_root() -> None:
    weight, bias = effective("Linear", W, torch.ones(3), [adapter(A, B)], {})  # 6 / 4
    assert weight.tolist() == [[1.5, 3.0], [0.0, 0.0], [-1.5, -3.0]]
    assert bias is not None
    assert bias.tolist() == [1.0, 1.0, 1.0]
    assert effective("Linear", W, None, [adapter(A, B, use_rslora=True)], {})[0][0].tolist() == [
        3.0,
        6.0,
    ]  # 6 / 2
    assert effective("Linear", W, None, [adapter(A, B)], {"r": 1})[0][0].tolist() == [6.0, 12.0]
    assert effective("Linear", W, None, [adapter(A, B)], {"s": 2.0})[0][0].tolist() == [2.0, 4.0]


def test_a_weight_may_depend_on_the_layers_input() -> None:
    card = {"method": "GATED", "tensors": {}, "weight": "W + mean_row(x)[None, :]"}
    gated = [Adapter("default", card, {}, {})]
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    assert effective("Linear", W, None, gated, {}, x)[0][0].tolist() == [4.0, 5.0]
    with pytest.raises(FormulaError, match="no symbol 'x'"):
        effective("Linear", W, None, gated, {})


def test_no_adapter_leaves_the_layer_alone() -> None:
    weight, bias = effective("Linear", B, None, [], {})
    assert (weight.tolist(), bias) == (B.tolist(), None)


def test_an_adapters_bias_can_stand_on_a_layer_without_one() -> None:
    bias = effective(
        "Linear", W, None, [adapter(A, B, bias=torch.tensor([2.0, 0.0, 4.0]), lora_bias=True)], {}
    )[1]
    assert bias is not None
    assert bias.tolist() == [3.0, 0.0, 6.0]


def test_several_adapters_add_their_changes_to_the_base() -> None:
    both = effective("Linear", B @ A, None, [adapter(A, B), adapter(A, -2 * B, "other")], {"s": 1.0})[0]
    assert both.tolist() == torch.zeros(3, 2).tolist()


def test_composing_adapters_change_what_the_one_before_left() -> None:
    def doubling(together: str) -> list[Adapter]:
        card = {
            "method": "TWICE",
            "tensors": {},
            "weight": "W + W",
            "bias": "b * 3",
            "active_together": together,
        }
        return [Adapter(name, card, {}, {}) for name in ("a", "b")]

    two = torch.full((1, 1), 2.0)
    assert [x.item() for x in effective("Linear", two, two[0], doubling("compose"), {})] == [8.0, 18.0]
    assert [x.item() for x in effective("Linear", two, two[0], doubling("sum"), {})] == [6.0, 10.0]
    with pytest.raises(FormulaError, match="one adapter at a time, given 2"):
        effective("Linear", two, None, doubling("one"), {})


CHOOSY = {
    "method": "CHOOSY",
    "tensors": {"l": {"role": "trainable", "shape": [1, "in", "*ones"]}},
    "weight": [
        {"when": {"wide": ["layer"]}, "on": ["Conv2d"], "value": "W * repeat(l, kernel)"},
        {"when": {"wide": []}, "value": "W + W"},
    ],
}


def test_the_first_formula_that_fits_config_and_layer_is_used() -> None:
    tensors = {"l": torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1)}
    wide = Adapter("a", CHOOSY, {"wide": ["layer"]}, tensors)
    weight, _ = effective("Conv2d", torch.ones(1, 2, 1, 2), None, [wide], {})
    assert weight.tolist() == [[[[2.0, 2.0]], [[3.0, 3.0]]]]
    narrow = Adapter("a", CHOOSY, {"wide": []}, tensors)
    assert effective("Linear", torch.ones(1, 2), None, [narrow], {})[0].tolist() == [[2.0, 2.0]]
    with pytest.raises(FormulaError, match="card CHOOSY: no value of 'weight' fits the config"):
        effective("Linear", torch.ones(1, 2), None, [wide], {})


def test_a_layer_without_bias_is_given_none() -> None:
    tensors = {"l": {"role": "trainable", "shape": ["out", 1]}}
    card = {"method": "SCALE", "tensors": tensors, "weight": "l * W", "bias": "b * l[:, 0]"}
    scaled = Adapter("a", card, {}, {"l": torch.tensor([[2.0], [1.0], [0.5]])})
    weight, bias = effective("Linear", torch.ones(3, 2), None, [scaled], {})
    assert (weight.tolist(), bias) == ([[2.0, 2.0], [1.0, 1.0], [0.5, 0.5]], None)
    bias = effective("Linear", torch.ones(3, 2), torch.ones(3), [scaled], {})[1]
    assert bias is not None
    assert bias.tolist() == [2.0, 1.0, 0.5]


def test_options_can_mean_less_on_a_layer_without_bias() -> None:
    tensors = {"e": {"role": "trainable", "shape": ["out"], "when": {"of_bias": ["vector", "number"]}}}
    card = {"method": "SHIFT", "tensors": tensors, "weight": "W", "bias": "b + e"}
    card |= {"config": {"without_bias": {"of_bias": "none"}}}
    for fields in ({"of_bias": "vector"}, {"of_bias": "number"}):
        shift = Adapter("a", card, fields, {"e": torch.tensor([1.0, 2.0, 3.0])})
        bias = effective("Linear", torch.ones(3, 2), torch.ones(3), [shift], {})[1]
        assert bias is not None
        assert bias.tolist() == [2.0, 3.0, 4.0]
        without = Adapter("a", card, fields, {})
        assert effective("Linear", torch.ones(3, 2), None, [without], {})[1] is None
        with pytest.raises(Misfit, match="has no tensor e"):
            effective("Linear", torch.ones(3, 2), torch.ones(3), [without], {})


def test_a_bias_of_the_adapter_is_scaled_and_added() -> None:
    b_bias = torch.tensor([2.0, 0.0, 4.0])
    bias = effective("Linear", W, torch.ones(3), [adapter(A, B, bias=b_bias, lora_bias=True)], {})[1]
    assert bias is not None
    assert bias.tolist() == [4.0, 1.0, 7.0]
    with pytest.raises(Misfit, match=r"has no tensor lora_B\.bias"):
        effective("Linear", W, torch.ones(3), [adapter(A, B, lora_bias=True)], {})


def test_tensors_of_wrong_shape_do_not_fit() -> None:
    with pytest.raises(Misfit, match=r"shape \[3, 1\], shape \[2, 1\]"):
        effective("Linear", W, None, [adapter(A.mT, B)], {})
    with pytest.raises(Misfit, match="W \\+"):
        effective("Linear", W, None, [adapter(torch.ones(1, 5), B)], {})
    with pytest.raises(Misfit, match=r"gives a weight of shape \[3, 2\], the layer's is \[3, 1\]"):
        effective("Linear", torch.zeros(3, 1), None, [adapter(A, B)], {})  # broadcasting hides it
    with pytest.raises(Misfit, match=r"gives a bias of shape \[3\], the layer's is \[1\]"):
        effective(
            "Linear",
            torch.zeros(1, 2),
            torch.zeros(1),
            [adapter(A, B[:1], bias=torch.ones(3), lora_bias=True)],
            {},
        )
    with pytest.raises(Misfit, match=r"Linear of input \[1, 5\] and weight \[3, 2\]"):
        apply_layer("Linear", {}, torch.ones(1, 5), W.double(), None)


def test_a_transposed_layer_and_an_embedding_store_their_weight_the_other_way() -> None:
    stored = effective("Conv1D", W.mT, None, [adapter(A, B)], {"s": 1.0})[0]
    assert stored.tolist() == (B @ A).mT.tolist()
    x = torch.tensor([[1.0, 1.0]])
    assert apply_layer("Conv1D", {"nf": 3, "nx": 2}, x, stored, None).tolist() == [[3.0, 0.0, -3.0]]
    on_embedding = Adapter(
        "a", LORA, config()["fields"], {"lora_embedding_A": A, "lora_embedding_B": B}
    )  # num 2, dim 3
    table = effective("Embedding", W.mT, None, [on_embedding], {"s": 1.0})[0]
    assert apply_layer("Embedding", {}, torch.tensor([1]), table, None).tolist() == [[2.0, 0.0, -2.0]]


@pytest.mark.parametrize(("kind", "kernel"), [("Conv1d", (3,)), ("Conv2d", (3, 2)), ("Conv3d", (2, 1, 3))])
def test_a_convolution_flattens_its_kernel(kind: str, kernel: tuple[int, ...]) -> None:
    dims, ones = len(kernel), (1,) * len(kernel)
    weight, bias = numbers(5, 4, *kernel), numbers(5)
    a, b = numbers(2, 4, *kernel, seed=1), numbers(5, 2, *ones, seed=2)
    x = numbers(1, 4, *(k + 3 for k in kernel), seed=3)
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    arguments = {
        "in_channels": 4,
        "out_channels": 5,
        "kernel_size": kernel,
        "stride": 2,
        "padding": 1,
        "dilation": 1,
    }
    state = effective(kind, weight, bias, [adapter(a, b)], {})
    computed = apply_layer(kind, arguments, x, *state)
    x, weight, bias, a, b = (t.double() for t in (x, weight, bias, a, b))
    by_hand = conv(x, weight, bias, stride=2, padding=1) + 1.5 * conv(conv(x, a, stride=2, padding=1), b)
    torch.testing.assert_close(computed, by_hand)


def test_padding_may_go_round() -> None:
    x, ones = torch.tensor([[[1.0, 2.0, 4.0]]]), torch.ones(1, 1, 3)
    arguments = {"padding": 1, "padding_mode": "circular"}
    assert apply_layer("Conv1d", arguments, x, ones.double(), None).tolist() == [[[7.0, 7.0, 7.0]]]
    arguments = {"padding": [1], "padding_mode": "replicate"}
    assert apply_layer("Conv1d", arguments, x, ones.double(), None).tolist() == [[[4.0, 7.0, 10.0]]]


def test_what_the_oracle_does_not_know_is_said() -> None:
    with pytest.raises(FormulaError, match="no oracle for layers of type LayerNorm"):
        effective("LayerNorm", W, None, [], {})
    nothing = {**LORA, "symbols": {"s": [{"when": {"use_rslora": "never"}, "value": "1"}]}}
    tensors = {"lora_A.weight": A, "lora_B.weight": B}
    with pytest.raises(FormulaError, match="no value of 's' fits the config"):
        effective("Linear", W, None, [Adapter("a", nothing, config()["fields"], tensors)], {})


# --- The check word


def single_layer(values: dict[str, torch.Tensor], merged: bool = False) -> dict[str, Any]:
    """A model whose only layer is `layer`, with the tensors of `values`, adapted unless `merged`."""
    names = ["layer.weight", "layer.bias"] if merged else ["layer.base_layer.weight", "layer.base_layer.bias"]
    names += [] if merged else ["layer.lora_A.default.weight", "layer.lora_B.default.weight"]
    tensors = [tensor(name, values=f"{merged}/{name}") for name in names]
    modules = [module("layer")] if merged else [layer("layer", "default"), module("layer.base_layer")]
    return model(tensors, modules, None if merged else {"default": config()})


CHAIN = {"one": {"chain": [["layer", "Linear", {"in_features": 8, "out_features": 12}]]}}
BODY = {"output": "y", "of": "m", "module": "layer", "adapters": ["default"]}


def scene(delta: float = 0.0, **facts: Any) -> dict[str, Any]:
    w, b, a, bb, x = (
        numbers(*shape, seed=i) for i, shape in enumerate([(12, 8), (12,), (4, 8), (12, 4), (5, 8)])
    )
    effective_weight = w + 1.5 * bb @ a
    entities = {"m": single_layer({}), "merged": single_layer({}, merged=True), "y": output("y"), **facts}
    names = [
        "layer.base_layer.weight",
        "layer.base_layer.bias",
        "layer.lora_A.default.weight",
        "layer.lora_B.default.weight",
    ]
    values = dict(zip((f"False/{name}" for name in names), (w, b, a, bb), strict=True))
    values |= {"True/layer.weight": effective_weight + delta, "True/layer.bias": b}
    return observation(entities, tensors={**values, "x": x, "y": F.linear(x, effective_weight, b) + delta})


def test_an_output_that_the_formula_gives_passes() -> None:
    assert ask("formula", BODY, scene(), models=CHAIN).verdict == "pass"
    assert ask("formula", {**BODY, "output": "merged"}, scene(), models=CHAIN).verdict == "pass"
    assert (
        ask("formula", {**BODY, "module": "base_model.model.layer"}, scene(), models=CHAIN).verdict == "pass"
    )


@pytest.mark.parametrize(
    ("change", "observed"),
    [
        ({"adapters": []}, ["output: not close"]),
        ({"with": {"r": 2}}, ["output: not close"]),
        ({"with": {"s": 1.4}}, ["output: not close"]),
        ({"output": "merged", "with": {"s": 1.4}}, ["weight: not close"]),
    ],
)
def test_an_output_that_the_formula_does_not_give_fails(change: dict[str, Any], observed: list[str]) -> None:
    verdict = ask("formula", {**BODY, **change}, scene(), models=CHAIN)
    assert (verdict.verdict, verdict.observed) == ("fail", observed)
    assert "apart" in verdict.detail


def test_a_small_difference_is_rounding_and_a_large_one_is_not() -> None:
    assert ask("formula", BODY, scene(5e-6), models=CHAIN).verdict == "pass"
    assert ask("formula", BODY, scene(1e-2), models=CHAIN).verdict == "fail"


def test_tensors_that_do_not_fit_fail_and_missing_ones_too() -> None:
    seen = scene()
    seen["tensors"]["False/layer.lora_A.default.weight"] = numbers(3, 8)
    verdict = ask("formula", BODY, seen, models=CHAIN)
    assert (verdict.verdict, verdict.observed) == ("fail", "tensors that do not fit the formula")
    seen = scene()
    seen["entities"]["m"]["tensors"].pop()
    assert "has no tensor lora_B.weight" in ask("formula", BODY, seen, models=CHAIN).detail
    seen = scene()
    seen["entities"]["merged"]["tensors"].pop()
    verdict = ask("formula", {**BODY, "output": "merged"}, seen, models=CHAIN)
    assert (verdict.verdict, verdict.observed) == ("fail", ["bias: missing"])


@pytest.mark.parametrize(
    ("change", "models", "says"),
    [
        ({"module": "other"}, CHAIN, "needs a model with 'other' as its single layer"),
        ({}, {"two": {"chain": [["layer", "Linear", {}], ["head", "Linear", {}]]}}, "single layer"),
        ({}, {"norm": {"chain": [["layer", "LayerNorm", {}]]}}, "no oracle for layers of type LayerNorm"),
        ({"adapters": ["other"]}, CHAIN, "no config with a card for adapter 'other'"),
    ],
)
def test_what_cannot_be_computed_is_an_error(
    change: dict[str, Any], models: dict[str, Any], says: str
) -> None:
    verdict = ask("formula", {**BODY, **change}, scene(), models=models)
    assert verdict.verdict == "error"
    assert says in str(verdict.observed)


def test_the_cards_formulas_are_in_the_grammar() -> None:
    for card in SUITE.cards.values():
        choices = [card[what] for what in ("weight", "bias") if what in card]
        every = [c["value"] for part in choices if not isinstance(part, str) for c in part]
        for formula in [*every, *(part for part in choices if isinstance(part, str))]:
            parse(formula)
    assert math.isclose(evaluate(LORA["symbols"]["s"][0]["value"], {"lora_alpha": 6, "r": 4}), 3)


def test_a_formula_may_name_the_base_whatever_others_have_made_of_it() -> None:
    card = {
        "method": "SCALED",
        "tensors": {},
        "weight": "W / norm(W0)[:, None]",
        "active_together": "compose",
    }
    weight = torch.tensor([[0.0, 4.0]])
    both = effective("Linear", weight, None, [Adapter(name, card, {}, {}) for name in "ab"], {})[0]
    assert both.tolist() == [[0.0, 0.25]]  # divided by the length of the base, twice


def test_a_relation_holds_between_a_layer_s_tensors_or_says_how_far_it_is() -> None:
    body = {"of": "m", "before": "merged", "module": "layer", "adapter": "default"}
    holds = {"left": "W + s * (B @ A)", "right": "W0"}
    assert ask("relation", {**body, **holds}, scene(), models=CHAIN).verdict == "pass"
    verdict = ask("relation", {**body, **holds}, scene(1e-2), models=CHAIN)
    assert (verdict.verdict, verdict.observed) == ("fail", "not close")
    assert "apart" in verdict.detail
    misfit = ask("relation", {**body, "left": "A @ W", "right": "W0"}, scene(), models=CHAIN)
    assert (misfit.verdict, misfit.observed) == ("fail", "tensors that do not fit the equation")
    assert ask("relation", {**body, "left": "C", "right": "W0"}, scene(), models=CHAIN).verdict == "error"
