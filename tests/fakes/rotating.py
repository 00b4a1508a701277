"""Faults of OFT, BOFT, HRA, PSOFT and RoAd: rotations that are none, blocks in wrong places, no checks."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from peft_reference.config import PeftConfig
from peft_reference.methods import boft, hra, oft, psoft, road, rotations
from torch import nn

from .fake import Patches, fake

ORTHOGONAL = [{"method": m, "layer": "one-linear"} for m in ("oft-exact", "hra", "hra-gs", "psoft-strict")]
ON_LINEAR = {"layer": "one-linear"}


def point(method: str, **axes: str) -> list[dict[str, Any]]:
    """One run of each clause, on a linear layer unless told otherwise."""
    return [{"method": method, **ON_LINEAR, **axes}]


@fake(
    "Cayley's transform forgets the inverse, so that nothing is a rotation.",
    caught_by=["orthogonal.keeps-angles:angles", "boft.keeps-angles:angles", "law.forward:as-formula"],
    points=[*ORTHOGONAL, *point("boft")],
)
def cayley_without_an_inverse(patch: Patches) -> None:
    for module in (rotations, oft, boft, psoft):
        if "cayley" in vars(module):
            patch.set(module, "cayley", lambda q: rotations.identity(q) - 2 * q)


@fake(
    "The rotation of OFT is transposed.",
    caught_by=["law.forward:as-formula", "law.merge:as-formula"],
    points=point("oft"),
)
def oft_turns_the_other_way(patch: Patches) -> None:
    patch.replace(oft.OFTLayer, "turn")(
        lambda original, self, adapter, rows, transposed=False, drop=False: original(
            self, adapter, rows, not transposed, drop
        )
    )


@fake(
    "Entries of a skew-symmetric matrix stand column by column.",
    caught_by=["law.forward:as-formula"],
    points=[*point("oft"), *point("psoft")],
)
def skew_entries_by_column(patch: Patches) -> None:
    def skew(entries: torch.Tensor, n: int) -> torch.Tensor:
        columns, rows = torch.tril_indices(n, n, -1)
        upper = entries.new_zeros(*entries.shape[:-1], n, n)
        upper[..., rows, columns] = entries
        return upper - upper.mT

    patch.set(rotations, "skew", skew)


@fake("OFT's series counts its last power twice.", caught_by=["law.forward:as-formula"], points=point("oft"))
def series_counts_its_end_twice(patch: Patches) -> None:
    def series(q: torch.Tensor, terms: int) -> torch.Tensor:
        powers = [torch.linalg.matrix_power(q, k) for k in range(1, terms)]
        return rotations.identity(q) + 2 * torch.stack(powers).sum(0)

    patch.set(rotations, "cayley_neumann", series)


@fake(
    "OFT's constrained variant limits nothing.",
    caught_by=["law.forward:as-formula"],
    points=point("oft-coft"),
)
def coft_limits_nothing(patch: Patches) -> None:
    @patch.replace(oft.OFTLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        return original(self, dataclasses.replace(config, coft=False), name)


@fake(
    "block_share is ignored.",
    caught_by=["oft.block-share:one-block", "oft.block-share:smaller", "law.keys:as-card"],
    points=point("oft-shared"),
)
def blocks_are_never_shared(patch: Patches) -> None:
    @patch.replace(oft.OFTLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        return original(self, dataclasses.replace(config, block_share=False), name)


@fake(
    "Configs of OFT and BOFT take sizes that contradict each other, or none.",
    caught_by=[
        "oft.sizes-exclude:raises-both",
        "oft.old-file:raises",
        "boft.sizes-exclude:raises-both",
        "boft.sizes-exclude:raises-none",
    ],
)
def sizes_are_not_compared(patch: Patches) -> None:
    for owner in (oft.OFTConfig, boft.BOFTConfig):
        patch.set(owner, "__post_init__", PeftConfig.__post_init__)

    @patch.replace(boft.BOFTLayer, "check")
    def check(original: Any, cls: Any, config: Any, base: Any, op: Any, name: str) -> None:
        """Nothing is checked."""

    @patch.replace(boft.BOFTLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        return original(self, dataclasses.replace(config, boft_block_size=4, boft_block_num=0), name)


@fake("OFT without any size takes one block.", caught_by=["oft.sizes-exclude:raises-none"])
def oft_needs_no_size(patch: Patches) -> None:
    @patch.replace(oft.OFTConfig, "__post_init__")
    def post_init(original: Any, self: Any) -> None:
        if not (self.r or self.oft_block_size):
            self.r = 1
        original(self)


@fake(
    "BOFT leaves inputs alone that fill no block.",
    caught_by=["boft.sizes-exclude:raises-size", "boft.sizes-exclude:raises-number"],
)
def boft_rounds_sizes(patch: Patches) -> None:
    @patch.replace(boft.BOFTLayer, "check")
    def check(original: Any, cls: Any, config: Any, base: Any, op: Any, name: str) -> None:
        """Sizes are rounded when the adapter is made."""

    @patch.replace(boft.BOFTLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        return original(self, dataclasses.replace(config, boft_block_size=4, boft_block_num=0), name)


@fake(
    "BOFT has one factor, whatever the config says.",
    caught_by=["boft.factors:factors", "law.keys:as-card"],
    points=point("boft-butterfly"),
    like="0.21.2 without its CUDA extension",
)
def boft_has_one_factor(patch: Patches) -> None:
    @patch.replace(boft.BOFTLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        return original(self, dataclasses.replace(config, boft_n_butterfly_factor=1), name)


@fake(
    "BOFT takes the number of blocks for their size.",
    caught_by=["boft.factors:number"],
)
def boft_number_is_size(patch: Patches) -> None:
    @patch.replace(boft.BOFTLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        size = config.boft_block_num or config.boft_block_size // 2
        return original(self, dataclasses.replace(config, boft_block_size=size * 2, boft_block_num=0), name)


@fake(
    "BOFT's second factor acts on neighbours, as the first.",
    caught_by=["law.forward:as-formula"],
    points=point("boft-butterfly"),
)
def butterfly_without_wings(patch: Patches) -> None:
    @patch.replace(boft.BOFTLayer, "turn")
    def turn(
        original: Any, self: Any, adapter: str, rows: Any, transposed: bool = False, drop: bool = False
    ) -> Any:
        entries = self.boft_R[adapter]
        factors = rotations.cayley((entries - entries.mT) / 2)
        for blocks in reversed(factors) if transposed else factors:
            rows = rotations.times_blocks(rows, blocks if transposed else blocks.mT)
        return rows


@fake(
    "BOFT's factor of an output scales its bias, too.",
    caught_by=["law.forward:as-formula"],
    points=point("boft"),
)
def boft_scales_the_bias(patch: Patches) -> None:
    patch.replace(boft.BOFTLayer, "adapt")(
        lambda original, self, adapter, x, y: y * self.boft_s[adapter].view(-1)
    )


@fake("HRA reflects in the opposite order.", caught_by=["law.forward:as-formula"], points=point("hra"))
def hra_reflects_backwards(patch: Patches) -> None:
    patch.replace(hra.HRALayer, "turn")(
        lambda original, self, adapter, rows, transposed=False, drop=False: original(
            self, adapter, rows, not transposed, drop
        )
    )


@fake("HRA ignores apply_GS.", caught_by=["law.forward:as-formula"], points=point("hra-gs"))
def hra_orthonormalises_nothing(patch: Patches) -> None:
    @patch.replace(hra.HRALayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        return original(self, config, name) | {"hra_apply_GS": False}


@fake("HRA keeps silent about an odd r.", caught_by=["hra.odd:warns"])
def hra_is_silent(patch: Patches) -> None:
    @patch.replace(hra.HRALayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return original(self, config, name)


@fake("HRA drops the odd vector, whatever r says.", caught_by=["hra.odd:no-identity"])
def hra_rounds_r(patch: Patches) -> None:
    @patch.replace(hra.HRALayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        return original(self, dataclasses.replace(config, r=config.r // 2 * 2), name)


@fake("HRA warns about every r.", caught_by=["hra.odd:even-silent"])
def hra_warns_always(patch: Patches) -> None:
    @patch.replace(hra.HRALayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        warnings.warn("vectors may not be paired", stacklevel=2)
        return original(self, config, name)


@fake(
    "PSOFT takes any value.",
    caught_by=[
        "psoft.values:raises-init",
        "psoft.values:raises-decomposition",
        "psoft.values:raises-bound",
        "psoft.no-effect:niter",
        "psoft.no-effect:terms",
        "psoft.no-effect:bound",
    ],
)
def psoft_takes_any_value(patch: Patches) -> None:
    patch.set(psoft.PsoftConfig, "__post_init__", PeftConfig.__post_init__)


@fake(
    "PSOFT corrects a rank that does not fit.",
    caught_by=["psoft.values:raises-rank", "psoft.values:raises-no-rank"],
)
def psoft_corrects_the_rank(patch: Patches) -> None:
    @patch.replace(psoft.PsoftConfig, "__post_init__")
    def post_init(original: Any, self: Any) -> None:
        self.r = min(max(self.r, 1), 4)
        original(self)


@fake("PSOFT warns about options that have an effect.", caught_by=["psoft.no-effect:used"])
def psoft_warns_always(patch: Patches) -> None:
    @patch.replace(psoft.PsoftConfig, "__post_init__")
    def post_init(original: Any, self: Any) -> None:
        original(self)
        warnings.warn("an option may have no effect", stacklevel=2)


@fake(
    "PSOFT takes the last singular vectors for the first.",
    caught_by=["psoft.principal:principal"],
)
def psoft_takes_the_minor_part(patch: Patches) -> None:
    @patch.replace(psoft.PsoftLayer, "principal_factors")
    def principal_factors(original: Any, self: Any, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
        u, s, v = torch.linalg.svd(self.unmerged_weight, full_matrices=False)
        return v[-config.r :], u[:, -config.r :] * s[-config.r :]


@fake(
    "PSOFT shares the singular values among A and B, as PiSSA does.",
    caught_by=["psoft.principal:orthonormal", "orthogonal.keeps-angles:angles"],
    points=point("psoft-strict"),
)
def psoft_is_pissa(patch: Patches) -> None:
    @patch.replace(psoft.PsoftLayer, "principal_factors")
    def principal_factors(original: Any, self: Any, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return original(self, dataclasses.replace(config, ab_svd_init="pissa_init"))


@fake(
    "PSOFT scales B·A, although B has the scaling taken out.",
    caught_by=["psoft.principal:principal"],
)
def psoft_scales_the_principal_part(patch: Patches) -> None:
    @patch.replace(psoft.PsoftLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        contents = original(self, config, name)
        return contents | {"_psoft_B_cache": contents["_psoft_B_cache"] * contents["scaling"]}


@fake(
    "PSOFT's scales stand on the other side of the rotation.",
    caught_by=["law.forward:as-formula"],
    points=point("psoft"),
)
def psoft_swaps_its_sides(patch: Patches) -> None:
    @patch.replace(psoft.Turn, "forward")
    def forward(original: Any, self: Any) -> torch.Tensor:
        return self.vector_a[:, None] * self.rotation() * self.vector_b


@fake(
    "RoAd takes any variant and any group.",
    caught_by=[
        "road.values:raises-variant",
        "road.values:raises-odd",
        "road.values:raises-none",
        "road.values:raises-large",
    ],
)
def road_takes_any_value(patch: Patches) -> None:
    @patch.replace(road.RoadConfig, "__post_init__")
    def post_init(original: Any, self: Any) -> None:
        self.variant = self.variant if self.variant in road.VARIANTS else "road_1"
        self.group_size = 2
        original(self)


@fake(
    "RoAd's variants have twice the parameters that they should have.",
    caught_by=["road.sizes:pairs", "road.sizes:outputs", "road.sizes:both"],
)
def road_has_other_sizes(patch: Patches) -> None:
    @patch.replace(road.RoadLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        contents = original(self, config, name)
        for slot in ("road_theta", "road_alpha"):
            contents[slot] = nn.Parameter(contents[slot].detach().repeat(2))
        return contents


@fake(
    "RoAd pairs neighbours, whatever the size of a group.",
    caught_by=["law.forward:as-formula"],
    points=point("road-groups"),
)
def road_pairs_neighbours(patch: Patches) -> None:
    @patch.replace(road.RoadLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        return original(self, config, name) | {"group_size": 2}


@fake(
    "RoAd turns the weight and leaves the bias when it merges.",
    caught_by=["law.merge:as-formula"],
    points=point("road"),
)
def road_merges_no_bias(patch: Patches) -> None:
    @patch.replace(road.RoadLayer, "fold")
    def fold(original: Any, self: Any, adapter: str, weight: Any, bias: Any) -> Any:
        return original(self, adapter, weight, None)[0], bias
