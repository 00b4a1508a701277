"""How LoRA's A and B start: one function for each value of `init_lora_weights`, and the table of them.

W (out, in) is the base weight, s the scaling. A start that changes the base weight returns W_res with
W_res + s·B·A = W, so the adapted layer begins as the base layer. EVA, CorDA and LoRA-GA look at data first:
`lora_eva.py`, `lora_corda.py`, `lora_ga.py`; LoftQ has a file of its own as well, `lora_loftq.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..operators import Conv1D, Embedding, Linear, Operator


class Site(NamedTuple):
    """Where an adapter is about to start."""

    W: Tensor  # (out, in), float32 or wider
    r: int
    s: float
    base: Any  # the layer itself
    config: Any  # the LoraConfig
    name: str


class Start(NamedTuple):
    """What an adapter starts with."""

    A: Tensor  # (r, in)
    B: Tensor  # (out, r)
    W: Tensor | None = None  # (out, in): the base weight from now on, if it changes
    trains_B: bool = True


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V with U·diag(S)·V = matrix, largest first."""
    return torch.linalg.svd(matrix, full_matrices=False)  # (out, k), (k,), (k, in) with k = min(out, in)


def without(site: Site, A: Tensor, B: Tensor) -> Start:
    """The start that leaves the output alone: W_res = W - s·B·A."""
    return Start(A, B, site.W - site.s * (B @ A))


def pissa(site: Site) -> Start:
    """W = U·S·V: B = U_r·√(S_r/s), A = √(S_r/s)·V_r, W_res = W - s·B·A; `pissa_niter_N` takes a randomised
    SVD with N subspace iterations.

    Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation", arXiv 2404.02948.
    """
    iterations = pissa_iterations(site.config.init_lora_weights)
    if iterations is None:
        U, S, V = svd(site.W)
    else:
        U, S, V_t = torch.svd_lowrank(site.W, q=site.r, niter=iterations)
        V = V_t.t()
    root = (S[: site.r] / site.s).sqrt()
    return without(site, root[:, None] * V[: site.r], U[:, : site.r] * root)


def pissa_iterations(name: str) -> int | None:
    """N of `pissa_niter_N`, None for `pissa`; ValueError for anything else."""
    found = re.fullmatch(r"pissa(?:_niter_(\d+))?", name.lower())
    if not found:
        raise ValueError(
            f"init_lora_weights={name!r} should be 'pissa', or 'pissa_niter_' and a number of iterations."
        )
    return None if found[1] is None else int(found[1])


def olora(site: Site) -> Start:
    """W = Q·R: B = Q_r (orthonormal columns), A = R_r, W_res = W - s·B·A.

    Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", arXiv 2406.01775.
    """
    Q, R = torch.linalg.qr(site.W)
    return without(site, R[: site.r], Q[:, : site.r])


def orthogonal(site: Site) -> Start:
    """B·A = 0 with neither zero: A = Q_1ᵀ·X, B = Y·Q_2 for the even and the odd rows Q_1, Q_2 (r/2, r) of a
    random orthogonal matrix, and small random X (r/2, in), Y (out, r/2). W stays.

    The rows of different halves are orthogonal, so the adapter is the identity although both factors train.
    """
    out_features, in_features = site.W.shape
    like = {"dtype": site.W.dtype, "device": site.W.device}
    Q, _ = torch.linalg.qr(torch.randn(site.r, site.r, **like))  # type: ignore[call-overload]
    X = torch.randn(site.r // 2, in_features, **like) / 10  # type: ignore[call-overload]
    Y = torch.randn(out_features, site.r // 2, **like) / 10  # type: ignore[call-overload]
    return Start(Q[0::2].t() @ X, Y @ Q[1::2])


def mica(site: Site) -> Start:
    """W = U·S·V: B = the last r columns of U, which never train; A = 0. W stays.

    "MiCA: Minor Component Adaptation", arXiv 2604.01694.
    """
    U, _, _ = svd(site.W)
    A = torch.zeros(site.r, site.W.shape[1], dtype=site.W.dtype, device=site.W.device)
    return Start(A, U[:, -site.r :], trains_B=False)


def small_rank(config: Any, base: Any, name: str, r: int) -> None:
    """ValueError if the layer has fewer singular vectors than the rank."""
    if r > min(base.weight.shape):
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} needs r <= min(in, out), got r={r} for "
            f"'{name}', whose weight is {tuple(base.weight.shape)}."
        )


def even_rank(config: Any, base: Any, name: str, r: int) -> None:
    """ValueError if the rank has no halves."""
    if r % 2:
        raise ValueError(f"init_lora_weights='orthogonal' needs an even rank, got r={r} for '{name}'.")


class Initialiser(NamedTuple):
    """One row of the table: the function, what it wants of a layer, whether W becomes another."""

    start: Callable[[Site], Start]
    check: Callable[[Any, Any, str, int], None]  # (config, base, name, r)
    changes_base: bool


INITIALISERS = {
    "pissa": Initialiser(pissa, small_rank, True),
    "olora": Initialiser(olora, small_rank, True),
    "orthogonal": Initialiser(orthogonal, even_rank, False),
    "mica": Initialiser(mica, small_rank, False),
}
_PLAIN = ("true", "false", "gaussian")


def init_name(config: Any) -> str:
    """The initialiser that a config means: 'true', 'false', 'gaussian', 'eva' or a key of the table; any
    case. ValueError for an unknown one.
    """
    init = config.init_lora_weights
    name = str(init).lower()
    if isinstance(init, bool) or (isinstance(init, str) and name in ("gaussian", "eva", *INITIALISERS)):
        return name
    if isinstance(init, str) and name.startswith("pissa"):
        pissa_iterations(init)
        return "pissa"
    known = ", ".join(["gaussian", "eva", "pissa_niter_N", *INITIALISERS])
    raise ValueError(f"init_lora_weights={init!r} is not known: use True, False, one of {known}.")


def changes_base(config: Any) -> bool:
    """Whether adapters with this config start by changing the base weight."""
    name = str(getattr(config, "init_lora_weights", "")).lower().partition("_niter_")[0]
    return name in INITIALISERS and INITIALISERS[name].changes_base


def check_init(config: Any, base: Any, op: type[Operator], name: str, r: int) -> None:
    """ValueError if the initialiser is not for this layer or rank."""
    init = init_name(config)
    if init in _PLAIN or (op is Embedding and init != "mica"):
        return
    if op not in (Linear, Conv1D, Embedding):
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} is for linear layers, and '{name}' is a "
            f"{op.__name__}."
        )
    if init in INITIALISERS:
        INITIALISERS[init].check(config, base, name, r)


def initialiser(config: Any, op: type[Operator], on_meta: bool) -> Callable[[Site], Start] | None:
    """What gives a layer's A and B other values than LoRA's own; None if nothing does.

    Embeddings know MiCA only; all other initialisers leave them LoRA's start, as in PEFT. For an adapter on
    the meta device, whose values come later, only the base weight and what trains matter.
    """
    init = init_name(config)
    if init not in INITIALISERS or (op is Embedding and init != "mica") or (on_meta and init == "orthogonal"):
        return None
    return INITIALISERS[init].start
