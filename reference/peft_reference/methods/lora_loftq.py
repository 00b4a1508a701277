"""LoftQ: Q_t = q(W - s·B·A), s·B·A = the best approximation of W - Q_t of rank r, and so on; W becomes Q_T.

q rounds to `loftq_bits` bits in blocks and back. Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for
Large Language Models", arXiv 2310.08659, algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .lora_init import INITIALISERS, Initialiser, Site, Start, small_rank, svd
from .lora_options import LoftQConfig


def loftq(site: Site) -> Start:
    """B·A of the last step, and Q_T."""
    options = LoftQConfig(**site.config.loftq_config)
    low_rank = torch.zeros_like(site.W)
    for _ in range(options.loftq_iter):
        Q = quantized(site.W - low_rank, options.loftq_bits)
        U, S, V = svd(site.W - Q)
        root = (S[: site.r] / site.s).sqrt()
        A, B = root[:, None] * V[: site.r], U[:, : site.r] * root
        low_rank = site.s * (B @ A)
    return Start(A, B, Q)


def quantized(weight: Tensor, bits: int, block: int = 64) -> Tensor:
    """`weight` rounded to NormalFloat levels, each block of 64 values scaled by its largest magnitude.

    Dettmers et al., "QLoRA", arXiv 2305.14314, section 3: the levels are quantiles of a normal distribution,
    one more on the positive side than on the negative, with an exact zero.
    """
    outermost = 0.9677083  # the paper's offset, which keeps the quantile finite
    half = 2 ** (bits - 1)
    exact = {"dtype": torch.float64, "device": weight.device}

    def quantiles(count: int) -> Tensor:
        return torch.special.ndtri(torch.linspace(outermost, 0.5, count + 1, **exact)[:-1])  # type: ignore[call-overload]

    levels = torch.cat([-quantiles(half - 1), quantiles(half), quantiles(half)[:1] * 0]).sort().values
    levels = (levels / levels.max()).to(weight)
    blocks = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % block)).view(-1, block)
    scale = blocks.abs().amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    middles = (levels[1:] + levels[:-1]) / 2
    rounded = levels[torch.bucketize(blocks / scale, middles)] * scale
    return rounded.flatten()[: weight.numel()].view_as(weight)


INITIALISERS["loftq"] = Initialiser(loftq, small_rank, True)
