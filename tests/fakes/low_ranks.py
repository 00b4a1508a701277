"""Faults of HiRA, DeLoRA, GraLoRA, DEFT, MiSS and AdaMSS: sizes, scalings, and which parts meet which."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from peft_reference.config import PeftConfig
from peft_reference.methods import adamss, deft, delora, gralora, hira, miss, parts
from torch import nn

from .fake import Patches, fake


def create_with(patch: Patches, layer: Any, **fields: Any) -> None:
    """Let the adapters of a layer be created from a config with other fields."""

    @patch.replace(layer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        return original(self, dataclasses.replace(config, **fields), name)


@fake("A rank that is not positive is taken for 1.", caught_by=["low_rank.rank:*"])
def any_rank(patch: Patches) -> None:
    patch.set(parts, "rank_of", lambda config, name: max(config.r, 1))


@fake("HiRA's product is scaled by 4 / r.", caught_by=["hira.formula:as-formula"])
def hira_scales(patch: Patches) -> None:
    @patch.replace(hira.HiraLayer, "delta")
    def delta(original: Any, self: Any, adapter: str) -> Any:
        return original(self, adapter) * (4 / self.r[adapter])


@fake("HiRA adds the product itself.", caught_by=["law.forward:as-formula"], points=[{"method": "hira"}])
def hira_forgets_the_weight(patch: Patches) -> None:
    @patch.replace(hira.HiraLayer, "delta")
    def delta(original: Any, self: Any, adapter: str) -> Any:
        return original(self, adapter) / self.unmerged_weight


@fake("A Gaussian HiRA has a random B.", caught_by=["hira.gaussian:as-base"])
def hira_draws_both(patch: Patches) -> None:
    create_with(patch, hira.HiraLayer, init_weights=False)


@fake("DeLoRA's patterns are ignored.", caught_by=["delora.patterns:own-rank", "delora.patterns:own-bound"])
def delora_knows_no_patterns(patch: Patches) -> None:
    create_with(patch, delora.DeloraLayer, rank_pattern={}, lambda_pattern={})


@fake(
    "The first pattern of DeLoRA is for all layers.",
    caught_by=["delora.patterns:other-rank", "delora.patterns:other-bound"],
)
def delora_takes_any_pattern(patch: Patches) -> None:
    @patch.replace(delora.DeloraLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        own = {field: list(getattr(config, field).values())[:1] for field in config._patterns}
        for_all = {field: dict.fromkeys([".*"] * len(values), *values) for field, values in own.items()}
        return original(self, dataclasses.replace(config, **for_all), name)


@fake(
    "DeLoRA does not normalise its factors.",
    caught_by=["delora.bound:same", "law.forward:as-formula"],
    points=[{}, {"method": "delora"}],
)
def delora_is_lora(patch: Patches) -> None:
    def factors(self: Any, adapter: str) -> Any:
        A = self.delora_A[adapter] * self.delora_w_norm[adapter]
        return A, self.delora_B[adapter] * (self.delora_lambda[adapter] / self.r[adapter])

    patch.set(delora.DeloraLayer, "factors", factors)


@fake("DeLoRA's bound is not used.", caught_by=["delora.bound:bound"])
def delora_is_unbound(patch: Patches) -> None:
    @patch.replace(delora.DeloraLayer, "factors")
    def factors(original: Any, self: Any, adapter: str) -> Any:
        B = self.delora_B[adapter]
        return original(self, adapter)[0], B / B.norm(dim=0).clamp(min=1e-4)


@fake("DeLoRA adds nothing.", caught_by=["delora.bound:acts"])
def delora_does_nothing(patch: Patches) -> None:
    patch.set(delora.DeloraLayer, "adapt", lambda self, adapter, x, y: y)


@fake("DeLoRA's norms are ones.", caught_by=["delora.bound:norms"])
def delora_knows_no_norms(patch: Patches) -> None:
    @patch.replace(delora.DeloraLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        contents = original(self, config, name)
        return contents | {"delora_w_norm": torch.ones_like(contents["delora_w_norm"])}


@fake("GraLoRA uses one block where k does not fit.", caught_by=["gralora.divides:*"])
def gralora_takes_any_k(patch: Patches) -> None:
    patch.set(gralora.GraloraConfig, "__post_init__", PeftConfig.__post_init__)
    patch.set(gralora.GraloraLayer, "check", classmethod(lambda cls, config, base, op, name: None))
    create_with(patch, gralora.GraloraLayer, gralora_k=1)


@fake("GraLoRA is scaled by alpha / r, whatever the hybrid rank.", caught_by=["gralora.scaling:as-formula"])
def gralora_scales_by_one_rank(patch: Patches) -> None:
    @patch.replace(gralora.GraloraLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        return original(self, config, name) | {"scaling": config.alpha / config.r}


@fake("AdaMSS takes values of any kind.", caught_by=["adamss.values:*"])
def adamss_takes_any_value(patch: Patches) -> None:
    patch.set(adamss.AdamssConfig, "__post_init__", PeftConfig.__post_init__)

    @patch.replace(adamss, "subspaces")
    def subspaces(original: Any, matrix: Any, config: Any) -> Any:
        V = torch.linalg.svd(matrix, full_matrices=False)[2][: config.r]
        return V, [torch.arange(len(matrix))]


@fake("Only GraLoRA's B trains.", caught_by=["gralora.scaling:count", "gralora.scaling:hybrid-count"])
def gralora_trains_b(patch: Patches) -> None:
    patch.set(gralora.GraloraLayer, "adapter_layer_names", ("gralora_B", "gralora_B_general"))

    @patch.replace(gralora.GraloraLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        contents = original(self, config, name)
        contents["gralora_A"].requires_grad_(False)
        return contents


@fake(
    "Part n of GraLoRA's block n meets part j of block j.",
    caught_by=["law.forward:as-formula"],
    points=[{"method": "gralora"}],
)
def gralora_exchanges_nothing(patch: Patches) -> None:
    @patch.replace(gralora.GraloraLayer, "blocks")
    def blocks(original: Any, self: Any, adapter: str) -> Any:
        A, B = original(self, adapter)
        return A, B.transpose(0, 1)


@fake("DEFT takes any method for relu.", caught_by=["deft.method:*"])
def deft_takes_any_method(patch: Patches) -> None:
    patch.set(deft.DeftConfig, "__post_init__", PeftConfig.__post_init__)
    create_with(patch, deft.DeftLayer, decomposition_method="relu")


@fake("DEFT's R begins without regard to the scaling.", caught_by=["deft.formula:identity"])
def deft_begins_unscaled(patch: Patches) -> None:
    @patch.replace(deft.DeftLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> dict[str, Any]:
        contents = original(self, config, name)
        R = contents["deft_R"].data * contents["deft_scaling"]
        return contents | {"deft_R": nn.Parameter(R)}


@fake("DEFT does not scale what it injects.", caught_by=["deft.formula:as-formula"])
def deft_forgets_the_scaling(patch: Patches) -> None:
    create_with(patch, deft.DeftLayer, alpha=None)


@fake(
    "DEFT's projection has relu on both sides.",
    caught_by=["law.forward:as-formula"],
    points=[{"method": "deft"}],
)
def deft_projects_twice(patch: Patches) -> None:
    patch.item(deft.PROJECTIONS, "relu", lambda p: (p.relu(), p.relu()))


@fake("PaRa injects too.", caught_by=["deft.para:only-p", "deft.para:not-base"])
def para_injects(patch: Patches) -> None:
    create_with(patch, deft.DeftLayer, para=False)


@fake("MiSS takes shards of any width.", caught_by=["miss.divides:*"])
def miss_takes_any_shard(patch: Patches) -> None:
    patch.set(miss.MissLayer, "check", classmethod(lambda cls, config, base, op, name: None))


@fake("The variants of MiSS begin at random.", caught_by=["miss.variants:identity"])
def miss_variants_begin_at_random(patch: Patches) -> None:
    patch.set(miss, "zeros", parts.random)


@fake(
    "MiSS with bat multiplies from the left.",
    caught_by=["miss.variants:as-formula", "law.forward:as-formula"],
    points=[{}, {"method": "miss-bat"}],
)
def bat_multiplies_from_the_left(patch: Patches) -> None:
    @patch.replace(miss.MissLayer, "change")
    def change(original: Any, self: Any, adapter: str, weight: Any) -> Any:
        if not self.multiplies(adapter):
            return original(self, adapter, weight)
        D = self.miss_block[adapter]
        rows = weight.view(len(D), D.shape[-1], -1)
        return (D @ rows + D.repeat(1, 1, rows.shape[-1] // D.shape[-1])).reshape(weight.shape)


@fake(
    "A shard of MiSS is every n-th input.", caught_by=["law.forward:as-formula"], points=[{"method": "miss"}]
)
def miss_shards_are_combs(patch: Patches) -> None:
    @patch.replace(miss.MissLayer, "adapt")
    def adapt(original: Any, self: Any, adapter: str, x: Any, y: Any) -> Any:
        D = self.shared(adapter)
        return y + x.unflatten(-1, (len(D), -1)).sum(-1) @ D
