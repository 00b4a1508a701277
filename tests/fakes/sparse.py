"""Faults of the methods with sparse or spectral tensors, of trained biases, copies and rows."""

from __future__ import annotations

from typing import Any

import torch
from peft_reference.methods import (
    beft,
    c3a,
    fourierft,
    ln_tuning,
    shira,
    spectral,
    supertuning,
    trainable_tokens,
    waveft,
)
from peft_reference.methods import defaults as by_architecture
from torch import Tensor

from .fake import Patches, fake

SPECTRAL = [{"method": "fourierft"}, {"method": "waveft"}]


@fake(
    "C3A takes blocks of any size, and leaves out what they do not cover.",
    caught_by=["sparse.c3a-blocks:raises", "sparse.c3a-blocks:not-adapted", "sparse.c3a-blocks:frame"],
)
def c3a_takes_any_block(patch: Patches) -> None:
    patch.replace(c3a.C3ALayer, "check")(lambda original, *args: None)


@fake("C3A has blocks of one size.", caught_by=["sparse.c3a-blocks:size", "sparse.c3a-blocks:pattern"])
def c3a_blocks_of_two(patch: Patches) -> None:
    patch.replace(c3a, "pattern_value")(lambda original, patterns, name, default: 1)


@fake(
    "A circulant block is transposed: a convolution stands in the place of the correlation.",
    caught_by=["law.forward:as-formula", "law.merge:as-formula"],
    points=[{"method": "c3a"}],
)
def c3a_turns_the_other_way(patch: Patches) -> None:
    def turned(kernel: Tensor) -> Tensor:
        return kernel.flip(-1).roll(1, -1)

    @patch.replace(c3a.C3ALayer, "delta")
    def delta(original: Any, self: Any, adapter: str) -> Tensor:
        kernel, at = turned(self.c3a_kernel[adapter]), torch.arange(self.block_size[adapter])
        blocks = kernel[..., (at - at[:, None]) % len(at)]
        return blocks.transpose(1, 2).reshape(self.out_features, self.in_features) / self.in_features

    @patch.replace(c3a.C3ALayer, "adapt")
    def adapt(original: Any, self: Any, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        return y + torch.nn.functional.linear(x.to(self.delta(adapter).dtype), self.delta(adapter))


@fake(
    "Any number of coefficients is taken.",
    caught_by=["sparse.frequencies:raises", "sparse.frequencies:not-adapted", "sparse.frequencies:frame"],
    points=[{**at, "wrong": 97} for at in SPECTRAL],
)
def any_number_of_coefficients(patch: Patches) -> None:
    patch.replace(spectral.SpectralLayer, "check")(lambda original, *args: None)


@fake(
    "Every layer has one coefficient more than it should.",
    caught_by=["sparse.frequencies:number", "sparse.frequencies:pattern"],
    points=SPECTRAL,
)
def one_coefficient_more(patch: Patches) -> None:
    patch.replace(spectral, "pattern_value")(lambda original, *args: original(*args) + 1)


@fake(
    "The places of coefficients are drawn over the transposed matrix.",
    caught_by=["law.forward:as-formula", "law.merge:as-formula"],
    points=SPECTRAL,
)
def places_by_columns(patch: Patches) -> None:
    @patch.replace(spectral, "drawn_places")
    def drawn_places(original: Any, seed: int, rows: int, columns: int, n: int) -> Tensor:
        return original(seed, columns, rows, n).flip(0)


@fake(
    "FourierFT divides by the root of the size, as an orthonormal transform does.",
    caught_by=["law.forward:as-formula"],
    points=SPECTRAL[:1],
)
def orthonormal_fourier(patch: Patches) -> None:
    @patch.replace(fourierft.FourierFTLayer, "transform")
    def transform(original: Any, self: Any, adapter: str, coefficients: Tensor) -> Tensor:
        return torch.fft.ifft2(coefficients, norm="ortho").real


@fake(
    "WaveFT's high-pass filter is turned round.",
    caught_by=["law.forward:as-formula"],
    points=SPECTRAL[1:],
)
def details_turned_round(patch: Patches) -> None:
    @patch.replace(waveft, "filters")
    def filters(original: Any, *args: Any) -> Any:
        low, high = original(*args)
        return low, high[::-1]


@fake(
    "BEFT adapts queries, too, with a bias for every input.",
    caught_by=["sparse.default-targets:no-queries", "sparse.default-targets:one-bias"],
)
def beft_adapts_queries(patch: Patches) -> None:
    patch.set(beft.BeftModel, "target_module_mapping", by_architecture.ATTENTION)
    patch.replace(beft, "zeros")(lambda original, *shape: original(2, shape[1]))


@fake(
    "BEFT adapts keys, and LN tuning projections.",
    caught_by=[
        *("sparse.default-targets:values", "sparse.default-targets:norms"),
        "sparse.default-targets:no-projections",
    ],
)
def keys_and_projections_by_default(patch: Patches) -> None:
    patch.set(beft.BeftModel, "target_module_mapping", {"llama": ("k_proj",)})
    patch.set(ln_tuning.LNTuningModel, "target_module_mapping", {"llama": ("k_proj",)})


@fake(
    "Trainable tokens adapt the head, train the base as well, and have a row for each token of the model.",
    caught_by=[
        *("sparse.tokens-default:embedding", "sparse.tokens-default:rows"),
        *("sparse.tokens-default:no-matrix", "sparse.tokens-default:base"),
    ],
)
def tokens_of_the_head(patch: Patches) -> None:
    @patch.replace(trainable_tokens.TrainableTokensModel, "default_targets")
    def default_targets(original: Any, cls: Any, model: Any, modules: Any) -> Any:
        return {"llama": "lm_head"}

    @patch.replace(trainable_tokens.TokensLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        self.weight.requires_grad_(True)
        return self.create_rows(list(range(32)))

    @patch.replace(trainable_tokens.TokensLayer, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.weight.requires_grad_(True)


@fake(
    "SHiRA puts its values at the mirrored places of the weight.",
    caught_by=["law.orientation:forward", "law.orientation:merged"],
    points=[{"method": "shira"}],
)
def shira_mirrors_places(patch: Patches) -> None:
    @patch.replace(shira.ShiraLayer, "delta")
    def delta(original: Any, self: Any, adapter: str) -> Tensor:
        return original(self, adapter).t()


@fake("SHiRA's seed decides nothing.", caught_by=["sparse.places:seeded"])
def shira_ignores_its_seed(patch: Patches) -> None:
    @patch.replace(shira, "random_mask")
    def random_mask(original: Any, base_layer: Any, r: int, random_seed: Any = None, **kwargs: Any) -> Tensor:
        return original(base_layer, r)


@fake(
    "SuperTuning trains the first entries of a weight, and gives every alpha as the rank.",
    caught_by=["sparse.places:largest", "sparse.places:smallest", "sparse.super-alpha:twice"],
)
def supertuning_takes_the_first(patch: Patches) -> None:
    @patch.replace(supertuning.SupertuningLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        contents: dict[str, Any] = original(self, config, name)
        places = contents["supertuning_indices"]
        return contents | {"supertuning_indices": torch.arange(len(places), dtype=places.dtype)}

    @patch.replace(supertuning.SupertuningConfig, "__post_init__")
    def __post_init__(original: Any, self: Any) -> None:
        original(self)
        self.lora_alpha = self.r
