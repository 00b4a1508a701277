"""AdaMSS: [W' b'] = [W b] + D·V, where the rows of D (out, r) in cluster i are those of Bᵢ·Aᵢ.

Zheng et al., "AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient Fine-Tuning", NeurIPS 2025,
https://openreview.net/forum?id=8ZdWmpYxT0. V (r, in + 1) holds right singular vectors of [W b], and k-means
of the left ones, by scikit-learn, makes the clusters. A checkpoint has V but not the clusters: they follow
from W and `random_seed`, in PEFT's way, or a file would mean something else here.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..buffers import BufferDict
from ..config import PeftConfig
from ..errors import UnsupportedOptionError
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..operators import Linear, Operator
from ..registry import PeftType, register_peft_method
from . import defaults
from .parts import normal, rank_of, zeros

__all__ = ["AdamssConfig", "AdamssModel"]

CLUSTERING_SEED = 123456789  # of k-means, in every release


@dataclass
class AdamssConfig(PeftConfig):
    """AdaMSS's options, in PEFT's order. ValueError for values out of range, ImportError without sklearn.

    The options of `use_asa` are for training loops that prune subspaces; the layers do not read them.
    """

    r: int = 100  # how many singular vectors, as far as there are
    num_subspaces: int = 5  # clusters of rows, as far as there are rows
    subspace_rank: int = 1  # of each Bᵢ·Aᵢ
    target_modules: list[str] | set[str] | str | None = None
    init_weights: str | None = "orthogonal"  # B = 0; None: random
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    use_asa: bool = False  # prune subspaces in training
    asa_target_subspaces: int = 50
    init_warmup: int = 50
    final_warmup: int = 1000
    mask_interval: int = 100
    asa_importance_beta: float = 0.85
    asa_uncertainty_beta: float = 0.85
    asa_schedule_exponent: float = 3.0
    use_dynamic_rank: bool = False
    svd_threshold: float = 0.1
    random_seed: int = 0  # of the singular vectors

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_weights not in ("orthogonal", None):
            raise ValueError(f"init_weights={self.init_weights!r} is neither 'orthogonal' nor None.")
        if self.use_asa:
            for name in ("mask_interval", "asa_target_subspaces", "asa_schedule_exponent"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"`{name}` should be positive, got {getattr(self, name)}.")
            if self.init_warmup >= self.final_warmup:
                raise ValueError(
                    f"`init_warmup` should be below final_warmup={self.final_warmup}, got {self.init_warmup}."
                )
        if importlib.util.find_spec("sklearn") is None:
            raise ImportError("AdaMSS needs scikit-learn: pip install scikit-learn.")

    def validate(self) -> None:
        """Ranks that the singular values decide are not offered."""
        super().validate()
        if self.use_dynamic_rank:
            raise UnsupportedOptionError("`use_dynamic_rank` is not offered: set `subspace_rank`.")


class AdamssLayer(BaseTunerLayer):
    """A layer with AdaMSS adapters."""

    prefix = "adamss_"
    operators = (Linear,)
    slots: ClassVar[dict[str, type]] = {
        "rows": dict,  # of each cluster, one after the other: what makes them is not saved
        "adamss_A": nn.ModuleDict,
        "adamss_B": nn.ModuleDict,
        "adamss_newB": BufferDict,  # V
    }
    adapter_layer_names = ("adamss_A", "adamss_B")
    rows: dict[str, Tensor]
    adamss_A: Any
    adamss_B: Any
    adamss_newB: BufferDict

    @classmethod
    def check(cls, config: AdamssConfig, base: Any, op: type[Operator], name: str) -> None:
        """Ranks and the number of clusters are positive."""
        rank_of(config, name)
        if min(config.num_subspaces, config.subspace_rank) <= 0:
            raise ValueError("`num_subspaces` and `subspace_rank` should be positive.")

    def create(self, config: AdamssConfig, name: str) -> dict[str, Any]:
        """V, and Aᵢ (rᵢ, r) with orthonormal rows and Bᵢ (rowsᵢ, rᵢ) for each cluster."""
        joined = self.unmerged_weight.detach().float()
        if self.bias is not None:
            joined = torch.cat([joined, self.bias.detach().float()[:, None]], 1)
        V, clusters = subspaces(joined.cpu(), config)
        ranks = [min(config.subspace_rank, len(V), len(rows)) for rows in clusters]
        A = [nn.Parameter(torch.empty(rank, len(V))) for rank in ranks]
        for a in A:
            nn.init.orthogonal_(a)
        shapes = [(len(rows), rank) for rows, rank in zip(clusters, ranks, strict=True)]
        B = [zeros(*shape) if config.init_weights else normal(*shape, std=0.02) for shape in shapes]
        return {
            "rows": torch.cat(clusters).to(self.weight.device),
            "adamss_A": nn.ParameterList(A),
            "adamss_B": nn.ParameterList(B),
            "adamss_newB": V.to(A[0].device),
        }

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """D (out, r) and V (r, in + 1), or (r, in) without a bias."""
        pairs = zip(self.adamss_B[adapter], self.adamss_A[adapter], strict=True)
        return torch.cat([B @ A for B, A in pairs])[self.rows[adapter].argsort()], self.adamss_newB[adapter]

    def fold(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with their parts of D·V."""
        D, V = self.factors(adapter)
        change = D @ V.to(D.dtype)
        n_in = self.in_features
        return weight + change[:, :n_in], None if bias is None else bias + change[:, n_in]

    def delta(self, adapter: str) -> Tensor:
        """The weight's part of D·V."""
        D, V = self.factors(adapter)
        return D @ V[:, : self.in_features].to(D.dtype)

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + D·V·[x 1]."""
        D, V = self.factors(adapter)
        V, n_in = V.to(D.dtype), self.in_features
        return y + F.linear(
            F.linear(x.to(D.dtype), V[:, :n_in], V[:, n_in] if V.shape[1] > n_in else None), D
        )


def subspaces(matrix: Tensor, config: AdamssConfig) -> tuple[Tensor, list[Tensor]]:
    """Right singular vectors (r, columns) of a matrix, and the rows of each cluster of the left ones."""
    with warnings.catch_warnings():  # the first import would leave a filter behind
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(config.random_seed)
        U, _, V = torch.svd_lowrank(matrix, q=min(config.r, *matrix.shape), niter=2)
    clusters = min(config.num_subspaces, len(matrix))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        means = KMeans(
            clusters, init="random", n_init=1, max_iter=CLUSTERING_SEED, random_state=CLUSTERING_SEED
        )
        labels = torch.from_numpy(means.fit(U.numpy()).labels_)
    rows = [(labels == cluster).nonzero().flatten() for cluster in range(clusters)]
    return V.mT.contiguous(), [found for found in rows if len(found)]


class AdamssModel(BaseTuner):
    """A model with AdaMSS adapters."""

    tuner_layer_cls = AdamssLayer
    target_module_mapping: ClassVar[dict[str, Any]] = {**defaults.ATTENTION, "vit": defaults.QUERY_VALUE}


register_peft_method(PeftType.ADAMSS, AdamssConfig, AdamssModel)
