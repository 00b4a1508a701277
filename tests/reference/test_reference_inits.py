"""Initialised adapters agree with upstream PEFT: the same start, the same files, the same outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft_reference
import peft_reference.tuners.lora.config
import peft_reference.tuners.lora.corda
import peft_reference.tuners.lora.loraga
import pytest
import torch
from torch import nn
from zoo import MLP, build, perturb

upstream = pytest.importorskip("peft")
pytest.importorskip("peft.tuners.lora.corda")
pytestmark = pytest.mark.filterwarnings("ignore")

DIRECTIONS = [
    pytest.param(peft_reference, upstream, id="to upstream"),
    pytest.param(upstream, peft_reference, id="from upstream"),
]
DTYPES = [torch.float32, torch.bfloat16]
DATA = torch.randn(64, 8, generator=torch.Generator().manual_seed(3)) * torch.linspace(4, 0.5, 8) + 1
AIM = torch.randn(64, 4, generator=torch.Generator().manual_seed(4))
FROM_WEIGHTS = ["pissa", "pissa_niter_4", "olora", "orthogonal", "mica", "gaussian", True, False]
FROM_DATA = ["eva", "corda ipm", "corda kpm"]
# LoRA-GA is not among them: A and B are of different singular vectors, whose signs are free, so the residual
# is another in every process. Only the converted adapter can be moved.


def names(path: str, implementation: Any) -> Any:
    """What an implementation has at a dotted path."""
    for part in path.split("."):
        implementation = getattr(implementation, part)
    return implementation


def prepared(implementation: Any, init: Any, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A base model and a config; where the initialisation needs it, the model has seen the data."""
    model = build().to(dtype)
    name, _, method = str(init).partition(" ")
    fields: dict[str, Any] = {"target_modules": ["lin0", "lin1"], "r": 2, "lora_alpha": 3}
    if name not in ("eva", "corda", "lora_ga"):
        return model, implementation.LoraConfig(init_lora_weights=init, **fields)
    options = {
        "eva": lambda: {"eva_config": implementation.EvaConfig(rho=1.5)},
        "corda": lambda: {
            "corda_config": names("tuners.lora.config.CordaConfig", implementation)(corda_method=method)
        },
        "lora_ga": lambda: {"lora_ga_config": implementation.LoraGAConfig()},
    }
    config = implementation.LoraConfig(init_lora_weights=name, **options[name](), **fields)
    if name == "corda":
        run: Callable[[], Any] = lambda: model(DATA.to(dtype))  # noqa: E731
        names("tuners.lora.corda.preprocess_corda", implementation)(model, config, run_model=run)
    if name == "lora_ga":

        def step() -> None:
            (model(DATA.to(dtype)).float() - AIM).square().mean().backward()

        names("tuners.lora.loraga.preprocess_loraga", implementation)(model, config, step)
        model.zero_grad()
    return model, config


def adapted(implementation: Any, init: Any, dtype: torch.dtype) -> Any:
    """A PeftModel whose adapter has its initial values."""
    model, config = prepared(implementation, init, dtype)
    peft_model = implementation.get_peft_model(model, config)
    if init == "eva":
        implementation.initialize_lora_eva_weights(
            peft_model,
            [DATA[:32].to(dtype), DATA[32:].to(dtype)],
            forward_fn=lambda model, batch: model(batch),
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=None,
            show_progress_bar=False,
        )
    return peft_model


def products(implementation: Any, model: Any) -> dict[str, torch.Tensor]:
    """Layer -> B·A: the part of two factors that does not depend on the signs of singular vectors."""
    state = {k: v.float() for k, v in implementation.get_peft_model_state_dict(model).items()}
    return {k[:-14]: state[f"{k[:-14]}.lora_B.weight"] @ state[k] for k in state if ".lora_A." in k}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("init", ["pissa", "olora", "mica", *FROM_DATA, "lora_ga"])
def test_adapters_begin_alike(init: str, dtype: torch.dtype) -> None:
    one, two = (adapted(implementation, init, dtype) for implementation in (peft_reference, upstream))
    close = {"rtol": 1e-3, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    keys = [
        (k, v.shape, v.dtype)
        for implementation, model in ((peft_reference, one), (upstream, two))
        for k, v in implementation.get_peft_model_state_dict(model).items()
    ]
    assert keys[: len(keys) // 2] == keys[len(keys) // 2 :]
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert (a.shape, a.dtype, a.requires_grad) == (b.shape, b.dtype, b.requires_grad)
    left, right = products(peft_reference, one), products(upstream, two)
    for name in left if init != "lora_ga" else ():
        torch.testing.assert_close(left[name], right[name], **close)
    for name in ("lin0", "lin1"):
        weights = [getattr(m.base_model.model, name).base_layer.weight.float() for m in (one, two)]
        if init != "lora_ga":
            torch.testing.assert_close(*weights, **close)
        outer = [getattr(m.base_model.model, name).lora_B["default"].weight.float() for m in (one, two)]
        torch.testing.assert_close(*(B @ B.t() for B in outer), **close)
        factors = [getattr(m.base_model.model, name).lora_A["default"].weight.float() for m in (one, two)]
        torch.testing.assert_close(*(A.t() @ A for A in factors), **close)
        assert one.peft_config["default"].rank_pattern == two.peft_config["default"].rank_pattern


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("init", [*FROM_WEIGHTS, *FROM_DATA], ids=str)
@pytest.mark.parametrize(("writer", "reader"), DIRECTIONS)
def test_files_interchange(writer: Any, reader: Any, init: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    model = adapted(writer, init, dtype)
    perturb(model)
    model.eval().save_pretrained(tmp_path)
    if str(init).startswith("pissa_niter"):  # a random decomposition: the reader has to draw the same one
        torch.manual_seed(0)
    base, _ = prepared(reader, init, dtype)
    loaded = reader.PeftModel.from_pretrained(base, tmp_path)
    one = writer.get_peft_model_state_dict(model)
    two = reader.get_peft_model_state_dict(loaded)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    if not str(init).startswith("pissa_niter"):
        close = {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
        torch.testing.assert_close(loaded(DATA.to(dtype)), model(DATA.to(dtype)), **close)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    files = [folder / "adapter_model.safetensors" for folder in (tmp_path, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("init", [*FROM_WEIGHTS, *FROM_DATA], ids=str)
def test_configs_have_the_same_fields_and_values(init: Any, tmp_path: Path) -> None:
    written = []
    for implementation in (peft_reference, upstream):
        adapted(implementation, init, torch.float32).save_pretrained(tmp_path)
        data = json.loads((tmp_path / "adapter_config.json").read_text())
        del data["peft_version"]
        written.append({k: sorted(v) if k == "target_modules" else v for k, v in data.items()})
    assert written[0] == written[1]


@pytest.mark.parametrize("init", ["pissa", "olora", "corda ipm", "lora_ga"])
@pytest.mark.parametrize(("writer", "reader"), DIRECTIONS)
def test_converted_adapters_interchange(writer: Any, reader: Any, init: str, tmp_path: Path) -> None:
    model = adapted(writer, init, torch.float32)
    config = model.peft_config["default"]
    kept, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(tmp_path / "initial")
    config.init_lora_weights = kept
    perturb(model)
    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    loaded = reader.PeftModel.from_pretrained(build(MLP), tmp_path / "plain")
    assert (loaded.peft_config["default"].r, loaded.peft_config["default"].lora_alpha) == (4, 6)
    torch.testing.assert_close(loaded(DATA), model(DATA), rtol=1e-4, atol=1e-4)


def test_an_error_after_the_first_layer_leaves_all_base_weights_bit_for_bit() -> None:
    model, config = prepared(peft_reference, "corda ipm", torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del model.lin1.eigens
    with pytest.raises(ValueError, match="eigens"):
        peft_reference.get_peft_model(model, config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model.lin0, nn.Linear)


def test_loftq_splits_the_weight_into_a_coarse_part_and_a_low_rank_rest() -> None:
    errors = {}
    for bits in (2, 4, 8):
        for rounds in (1, 4):
            model = build(lambda: nn.ModuleDict({"lin0": nn.Linear(64, 64)}))
            weight = nn.init.normal_(model.lin0.weight).detach().clone()
            config = peft_reference.LoraConfig(
                target_modules=["lin0"],
                r=16,
                init_lora_weights="loftq",
                loftq_config=peft_reference.LoftQConfig(loftq_bits=bits, loftq_iter=rounds),
            )
            layer = peft_reference.get_peft_model(model, config).base_model.model.lin0
            coarse = layer.base_layer.weight
            assert len(coarse.flatten()[:64].unique()) <= 2**bits
            rest = (weight - coarse - layer.get_delta_weight("default")).norm()
            assert rest < (weight - coarse).norm()
            errors[bits, rounds] = float(rest)
    assert errors[2, 1] > errors[4, 1] > errors[8, 1]
    assert errors[4, 4] < errors[4, 1]
    assert errors[8, 4] < errors[8, 1]
