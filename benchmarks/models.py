"""The models that are adapted, and configs of the methods that are measured."""

from __future__ import annotations

import copy
import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

METHODS = ("LoRA", "IA3", "LoHa", "OFT", "VeRA")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SCALES = 0.05  # of the values adapters get: none is an identity


class Stack(nn.Module):
    """Linear layers of one width, one after the other."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) -> the same."""
        for layer in self.layers:
            x = layer(x)
        return x


def stack(layers: int, width: int = 64) -> Stack:
    """A stack that is the same every time."""
    torch.manual_seed(0)
    return Stack(layers, width).eval()


@functools.cache
def _llama(size: str) -> PreTrainedModel:
    if size == "7B":
        with torch.device("meta"):
            return LlamaForCausalLM(LlamaConfig())
    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def llama(size: str) -> PreTrainedModel:
    """A Llama of 7B parameters without storage, or one of 100M parameters with it; a fresh one."""
    return copy.deepcopy(_llama(size))


def config(library: ModuleType, method: str, targets: Any = "layers.*", rank: int = 8) -> Any:
    """A config with usual options, of all layers of a stack unless targets are given."""
    options: dict[str, dict[str, Any]] = {
        "LoRA": {"r": rank, "lora_alpha": 2 * rank},
        "IA3": {"feedforward_modules": []},
        "LoHa": {"r": rank, "alpha": 2 * rank},
        "OFT": {"oft_block_size": 32, "r": 0},
        "VeRA": {"r": rank},
    }
    name = {"LoRA": "LoraConfig", "VeRA": "VeraConfig"}.get(method, f"{method}Config")
    where = {"target_modules": r".*layers\.\d+" if targets == "layers.*" else targets}
    return getattr(library, name)(**where, **options[method])


def adapted(
    library: ModuleType, method: str, layers: int, width: int = 64, adapters: int = 1, **options: Any
) -> Any:
    """A stack with adapters a0, a1, ..."""
    model = library.get_peft_model(
        stack(layers, width), config(library, method, **options), adapter_name="a0"
    )
    return grown(model, library, method, adapters, **options)


def grown(model: Any, library: ModuleType, method: str, adapters: int, **options: Any) -> Any:
    """The model with as many adapters."""
    for i in range(len(model.peft_config), adapters):
        model.add_adapter(f"a{i}", config(library, method, **options))
    return model.eval()


def alike(models: dict[str, Any]) -> None:
    """Give the adapters of all libraries the same values, which are no identities."""
    libraries, (first, *others) = [*models], models.values()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        values = {
            name: SCALES * torch.randn(p.shape, generator=generator).to(p.dtype)
            for name, p in sorted(first.named_parameters())
            if ".base_layer." not in name and any(part.startswith(PREFIXES) for part in name.split("."))
        }
        for model in (first, *others):
            own = dict(model.named_parameters())
            if missing := [name for name in values if name not in own]:
                raise ValueError(f"{libraries}: not the same parameters: {missing[:3]}")
            for name, value in values.items():
                own[name].copy_(value)


PREFIXES = ("lora_", "ia3_", "hada_", "oft_", "vera_lambda_")
