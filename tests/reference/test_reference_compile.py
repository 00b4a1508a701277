"""Adapted models compile whole: no graph breaks, in any method, on any layer it adapts, whatever is active.

What it computes then is compared with the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import peft_reference as peft
import pytest
import torch
from peft_conformance.models import make_input
from test_reference_every_method import SUITE, config, fresh, pairs
from torch import nn
from zoo import perturb

pytestmark = pytest.mark.filterwarnings("ignore")

# method -> why its graph breaks
BREAKS = {
    "frod": "U is made anew when V has changed, which a graph cannot ask",
    "poly": "the tasks are passed to the layers in a context variable, which a graph cannot set",
}


def points() -> Iterator[Any]:
    """Each config on a linear layer, each method on the layers that are none as well."""
    for point in pairs():
        method, layer = point.values
        if layer == "one-linear" or ("-" not in method and layer in ("one-conv2d", "one-embedding")):
            yield point


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def adapted(method: str, layer: str, names: tuple[str, ...]) -> Any:
    """The layer in a chain, with adapters that do something; without the wrappers of `PeftModel`."""
    made: Any = SUITE.method(method)
    for package in made.card.get("packages", ()):
        pytest.importorskip(package)
    model = peft.get_peft_model(fresh(layer), config(peft, method), names[0])
    for name in names[1:]:
        model.add_adapter(name, config(peft, method))
    perturb(model)
    for seed, name in enumerate(names[1:], start=2):
        model.set_adapter(name)
        perturb(model, seed)
    return model.base_model


def whole(model: nn.Module) -> Any:
    """The model compiled, with an error where the graph breaks; anew, as after `torch._dynamo.reset`."""
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="eager")


def computed(model: nn.Module, run: Callable[..., Any], x: torch.Tensor, **arguments: Any) -> list[Any]:
    torch.manual_seed(3)  # dropout and what else is drawn
    loss = run(x, **arguments).square().sum()
    return list(
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    )


@pytest.mark.parametrize(("method", "layer"), list(points()))
def test_every_method_compiles_whole(method: str, layer: str) -> None:
    """In training mode: the output and the gradients are those of the model as it is."""
    model = adapted(method, layer, ("one",)).train()
    (x,) = make_input(SUITE.models[layer]).values()
    arguments = {}
    if SUITE.method(method).fact("forward_arguments"):
        x, arguments = x[:, None], {"task_ids": torch.tensor([0, 2, 1, 1, 0])}
    own = computed(model, model, x, **arguments)
    if method.partition("-")[0] in BREAKS:
        with pytest.raises(torch._dynamo.exc.Unsupported):
            computed(model, whole(model), x, **arguments)
        return
    compiled = computed(model, whole(model), x, **arguments)
    torch.testing.assert_close(compiled, own, rtol=1e-4, atol=1e-4)


METHODS = ["lora", "ia3", "loha", "oft"]


@pytest.mark.parametrize("method", METHODS)
def test_one_compiled_model_follows_what_is_active(method: str) -> None:
    """Two adapters, the other one, none, merged: the same compiled model, compiled again without a break."""
    model = adapted(method, "one-linear", ("one", "two"))
    (x,) = make_input(SUITE.models["one-linear"]).values()
    compiled, seen = whole(model), []

    def look() -> None:
        seen.append(model(x))
        torch.testing.assert_close(compiled(x), seen[-1], rtol=1e-4, atol=1e-5)

    look()
    model.set_adapter("one")
    look()
    model.set_adapter(["one", "two"])
    look()
    model.disable_adapter_layers()
    look()
    model.enable_adapter_layers()
    model.merge_adapter(["one"])
    look()
    model.unmerge_adapter()
    look()
    assert not torch.allclose(seen[0], seen[1])


def test_a_small_llama_compiles_whole() -> None:
    """LoRA on all linear layers, two adapters, forward and backward."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=16, **size))
    options = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options), "one")
    adapted.add_adapter("two", peft.LoraConfig(**options))
    adapted.base_model.set_adapter(["one", "two"])
    ids = torch.arange(6).view(1, 6)
    compiled = torch.compile(adapted, fullgraph=True, backend="aot_eager")
    trained = [p for p in adapted.parameters() if p.requires_grad]
    losses = [run(input_ids=ids, labels=ids).loss for run in (adapted, compiled)]
    grads = [torch.autograd.grad(loss, trained) for loss in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(grads[1], grads[0])
