"""Faults of the values that adapters start with, and of their conversion when they are saved."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import peft_reference
import torch
from peft_reference import model, saving
from peft_reference.methods import lora, lora_corda, lora_eva, lora_init, lora_options
from peft_reference.methods.lora_init import INITIALISERS, Initialiser, Site, Start
from peft_reference.tuners.lora import config as configs

from .fake import Patches, fake


def _start(patch: Patches, name: str, change: Any) -> None:
    """Let an initialiser return `change(site, start)`."""
    row = INITIALISERS[name]
    patch.item(INITIALISERS, name, row._replace(start=lambda site: change(site, row.start(site))))


# Values --------------------------------------------------------------------------------------------


@fake(
    "PiSSA and OLoRA leave the base weight as it was.",
    caught_by=["lora_init.residual:output", "lora_init.residual:residual", "lora_init.residual:base-changed"],
)
def keeps_the_whole_base_weight(patch: Patches) -> None:
    for name in ("pissa", "olora"):
        _start(patch, name, lambda site, start: start._replace(W=None))


@fake("PiSSA takes the minor singular values.", caught_by=["lora_init.pissa:principal"])
def pissa_takes_the_minor_part(patch: Patches) -> None:
    def minor(site: Site, start: Start) -> Start:
        U, S, V = torch.linalg.svd(site.W, full_matrices=False)
        root = (S[-site.r :] / site.s).sqrt()
        return lora_init.without(site, root[:, None] * V[-site.r :], U[:, -site.r :] * root)

    _start(patch, "pissa", minor)


@fake(
    "PiSSA forgets the scaling of the product.",
    caught_by=["lora_init.pissa:principal", "lora_init.pissa:residual"],
)
def pissa_forgets_the_scaling(patch: Patches) -> None:
    root = 1.5**0.5
    _start(patch, "pissa", lambda site, start: lora_init.without(site, start.A * root, start.B * root))


@fake("PiSSA gives B all of the singular values.", caught_by=["lora_init.pissa:even"])
def pissa_is_uneven(patch: Patches) -> None:
    _start(patch, "pissa", lambda site, start: start._replace(A=start.A / 4, B=start.B * 4))


@fake(
    "OLoRA's B is not of unit length.",
    caught_by=["lora_init.olora:orthonormal", "lora_init.olora:along"],
)
def olora_scales_its_factors(patch: Patches) -> None:
    _start(patch, "olora", lambda site, start: start._replace(A=start.A / 2, B=start.B * 2))


@fake("OLoRA begins with the last columns.", caught_by=["lora_init.olora:first-columns"])
def olora_begins_at_the_end(patch: Patches) -> None:
    def last(site: Site, start: Start) -> Start:
        B = torch.linalg.qr(site.W.flip(1))[0][:, : site.r]
        return lora_init.without(site, B.t() @ site.W, B)

    _start(patch, "olora", last)


@fake(
    "The orthogonal option draws A and B without regard to each other.",
    caught_by=["lora_init.orthogonal:product", "lora_init.orthogonal:output"],
)
def orthogonal_is_merely_random(patch: Patches) -> None:
    _start(patch, "orthogonal", lambda site, start: start._replace(B=torch.randn_like(start.B)))


@fake("The orthogonal option gives zeros.", caught_by=["lora_init.orthogonal:not-zero"])
def orthogonal_is_zero(patch: Patches) -> None:
    _start(patch, "orthogonal", lambda site, start: start._replace(B=start.B * 0))


@fake(
    "MiCA takes the principal vectors, and twice as long.",
    caught_by=["lora_init.mica:minor", "lora_init.mica:orthonormal"],
)
def mica_takes_the_principal_vectors(patch: Patches) -> None:
    _start(patch, "mica", lambda site, start: start._replace(B=2 * torch.linalg.svd(site.W)[0][:, : site.r]))


@fake(
    "MiCA trains B.",
    caught_by=["lora_init.mica:b-frozen", "lora_init.mica:still-frozen"],
    like="peft 0.21.2 on bfloat16 embeddings",
)
def mica_trains_both(patch: Patches) -> None:
    _start(patch, "mica", lambda site, start: start._replace(trains_B=True))


@fake(
    "MiCA freezes A as well, which is not zero.",
    caught_by=["lora_init.mica:a-zero", "lora_init.mica:still-trains", "lora_init.mica:output"],
)
def mica_freezes_everything(patch: Patches) -> None:
    _start(patch, "mica", lambda site, start: start._replace(A=start.A + 1))

    @patch.replace(lora.LoraLayer, "set_requires_grad")
    def set_requires_grad(original: Any, self: Any, adapter_names: Any, requires_grad: bool = True) -> None:
        original(self, adapter_names, False if self.frozen_slots else requires_grad)


@fake("B never trains.", caught_by=["lora_init.residual:trains", "lora_init.orthogonal:trains"])
def never_trains_b(patch: Patches) -> None:
    for name in ("pissa", "olora", "orthogonal"):
        _start(patch, name, lambda site, start: start._replace(trains_B=False))


@fake("The gaussian option does not scale by the rank.", caught_by=["lora_init.gaussian-spread:spread"])
def gaussian_has_the_spread_of_a_layer(patch: Patches) -> None:
    @patch.replace(lora.LoraLayer, "create")
    def create(original: Any, self: Any, config: Any, name: str) -> Any:
        contents = original(self, config, name)
        if config.init_lora_weights == "gaussian" and "lora_A" in contents:
            contents["lora_A"].weight.data *= config.r**0.5
        return contents


@fake("Random starts come from a generator of their own.", caught_by=["lora_init.repeatable:same-draw"])
def draws_without_the_seed(patch: Patches) -> None:
    generator = torch.Generator().manual_seed(7)

    def draw(site: Site, start: Start) -> Start:
        return start._replace(A=torch.randn(start.A.shape, generator=generator))

    _start(patch, "orthogonal", draw)
    _start(patch, "pissa", draw)


# What is refused and what is said ------------------------------------------------------------------


@fake(
    "No initialiser looks at the rank.",
    caught_by=["lora_init.rank-fits:raises", "lora_init.rank-fits:frame"],
)
def takes_any_rank(patch: Patches) -> None:
    for name, row in list(INITIALISERS.items()):
        patch.item(INITIALISERS, name, row._replace(check=lambda *_: None))
    _start(patch, "orthogonal", lambda site, start: start)
    patch.item(INITIALISERS, "mica", Initialiser(_default, lambda *_: None, False))
    patch.item(INITIALISERS, "orthogonal", Initialiser(_default, lambda *_: None, False))


def _default(site: Site) -> Start:
    out_features, in_features = site.W.shape
    return Start(torch.randn(site.r, in_features), torch.zeros(out_features, site.r))


@fake(
    "A name that is not known means the usual start.",
    caught_by=["lora_init.names:raises", "lora_init.names:frame"],
)
def knows_every_name(patch: Patches) -> None:
    @patch.replace(lora_init, "init_name")
    def init_name(original: Any, config: Any) -> str:
        try:
            return original(config)
        except ValueError:
            return "true"


@fake(
    "Options are neither looked at nor filled in.",
    caught_by=[
        "lora_init.options:*-ignored",
        "lora_init.options:*-default",
        "lora_init.rslora-warns:warns",
        "lora_init.loftq-needs-config:raises",
        "lora_init.loftq-needs-config:frame",
    ],
)
def looks_at_no_options(patch: Patches) -> None:
    @patch.replace(lora_options, "settle_options")
    def settle_options(original: Any, config: Any) -> None:
        for field, kind in (
            ("eva_config", lora_options.EvaConfig),
            ("corda_config", lora_options.CordaConfig),
        ):
            setattr(config, field, getattr(config, field) or kind())


@fake(
    "Every config warns of its initialisation, and options have other values.",
    caught_by=[
        "lora_init.options:usual-silent",
        "lora_init.options:rho",
        "lora_init.options:method",
        "lora_init.rslora-warns:only-then",
    ],
)
def warns_of_everything(patch: Patches) -> None:
    @patch.replace(lora_options, "settle_options")
    def settle_options(original: Any, config: Any) -> None:
        lora_options.warnings.warn(
            "mind your config and path_initial_model_for_weight_conversion", stacklevel=2
        )
        original(config)
        if config.eva_config is not None:
            config.eva_config.rho = 1.0
        if config.corda_config is not None:
            config.corda_config.corda_method = "kpm"


@fake(
    "EVA's range is not checked.",
    caught_by=["lora_init_data.eva-range:raises", "lora_init_data.eva-range:not-adapted"],
)
def takes_any_rho(patch: Patches) -> None:
    patch.replace(lora_options.EvaConfig, "__post_init__")(lambda original, self: None)


@fake("The options have other defaults.", caught_by=["lora_init_data.option-defaults:*"])
def has_other_defaults(patch: Patches) -> None:
    for owner, name in (
        (peft_reference, "EvaConfig"),
        (peft_reference, "LoftQConfig"),
        (configs, "CordaConfig"),
    ):
        fields = [
            (f.name, f.type, dataclasses.field(default=8)) for f in dataclasses.fields(getattr(owner, name))
        ]
        patch.set(owner, name, dataclasses.make_dataclass(name, fields))


@fake(
    "CorDA and LoRA-GA begin as plain LoRA when they have not been prepared.",
    caught_by=[
        "lora_init_data.needs-preprocessing:raises",
        "lora_init_data.needs-preprocessing:not-adapted",
    ],
    like="peft 0.21.2, for LoRA-GA",
)
def needs_no_preprocessing(patch: Patches) -> None:
    for name in ("corda", "lora_ga"):
        patch.item(INITIALISERS, name, Initialiser(_default, lambda *_: None, False))


@fake("EVA is never advised to use less memory.", caught_by=["lora_init.eva-low-cpu:warns"])
def keeps_quiet_about_memory(patch: Patches) -> None:
    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "low_cpu_mem_usage": True})


@fake("EVA is advised to use less memory where it does.", caught_by=["lora_init.eva-low-cpu:silent"])
def always_advises_on_memory(patch: Patches) -> None:
    @patch.replace(model, "get_peft_model")
    def get_peft_model(original: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "low_cpu_mem_usage": False})


# Files ---------------------------------------------------------------------------------------------


@fake("Files say that the adapter began as usual.", caught_by=["lora_init.round-trip:output"])
def saves_the_usual_initialisation(patch: Patches) -> None:
    @patch.replace(lora.LoraConfig, "to_dict")
    def to_dict(original: Any, self: Any) -> Any:
        return {**original(self), "init_lora_weights": True}


@fake("The conversion does not subtract the start.", caught_by=["lora_init.converted:output"])
def converts_without_the_start(patch: Patches) -> None:
    def as_plain(config: Any, state: Any, initial: Any) -> Any:
        return lora_init_plain(config, state, {key: tensor * 0 for key, tensor in initial.items()})

    lora_init_plain = lora.LoraModel.as_plain
    patch.set(lora.LoraModel, "as_plain", staticmethod(as_plain))


@fake(
    "The converted adapter has three times the rank, and says that it began as another.",
    caught_by=["lora_init.converted:rank", "lora_init.converted:init", "lora_init.converted:factors"],
)
def converts_to_a_larger_rank(patch: Patches) -> None:
    original = lora.LoraModel.as_plain

    def as_plain(config: Any, state: Any, initial: Any) -> Any:
        plain, tensors = original(config, state, initial)
        for key, tensor in tensors.items():
            dim = 0 if "lora_A" in key else 1
            tensors[key] = torch.cat([tensor, state[key] * 0], dim=dim)
        alpha = plain.lora_alpha * ((1.5**0.5) if config.use_rslora else 1.5)
        return dataclasses.replace(
            plain, r=3 * config.r, lora_alpha=alpha, init_lora_weights="gaussian"
        ), tensors

    patch.set(lora.LoraModel, "as_plain", staticmethod(as_plain))


@fake(
    "Reading an adapter leaves a mark in its folder.",
    caught_by=["lora_init.converted:frame"],
    like="peft 0.21.2, which rewrites the initial adapter's config",
)
def marks_the_initial_adapter(patch: Patches) -> None:
    @patch.replace(saving, "load_peft_weights")
    def load_peft_weights(original: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        (Path(model_id) / "was-read").write_text("")
        return original(model_id, *args, **kwargs)


@fake(
    "Whatever is asked for is converted, or saved as it is.",
    caught_by=[
        "lora_init.not-converted:raises",
        "lora_init.not-converted:nothing-written",
        "lora_init.conversion-is-loras:raises",
        "lora_init.conversion-is-loras:nothing-written",
    ],
)
def converts_anything(patch: Patches) -> None:
    def as_plain(config: Any, state: Any, initial: Any) -> Any:
        return config, state

    patch.set(lora.LoraModel, "as_plain", staticmethod(as_plain))
    patch.set(peft_reference.injection.BaseTuner, "as_plain", staticmethod(as_plain))


# Data ----------------------------------------------------------------------------------------------


@fake(
    "EVA's A is scaled, B random, the model not returned.",
    caught_by=[
        "lora_init_data.eva:returns-model",
        "lora_init_data.eva:orthonormal",
        "lora_init_data.eva:b-zero",
        "lora_init_data.eva:output",
    ],
)
def eva_sets_other_factors(patch: Patches) -> None:
    @patch.replace(lora_eva, "_set_factors")
    def set_factors(original: Any, layer: Any, adapter: str, *args: Any) -> None:
        original(layer, adapter, *args)
        layer.lora_A[adapter].weight.data *= 2
        layer.lora_B[adapter].weight.data.normal_()

    @patch.replace(lora_eva, "initialize_lora_eva_weights")
    def initialize_lora_eva_weights(original: Any, *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)


@fake(
    "EVA does not look at the data, nor at the state dict, and leaves the model in training mode.",
    caught_by=["lora_init_data.eva:data-matter", "lora_init_data.eva:frame", "lora_init_data.eva-ranks:same"],
)
def eva_knows_without_looking(patch: Patches) -> None:
    @patch.replace(lora_eva, "_set_factors")
    def set_factors(original: Any, layer: Any, adapter: str, A: Any, *args: Any) -> None:
        original(layer, adapter, torch.eye(len(A), A.shape[1]) * A.sum().sign(), *args)
        layer.train()

    @patch.replace(lora_eva, "initialize_lora_eva_weights")
    def initialize_lora_eva_weights(original: Any, *args: Any, **kwargs: Any) -> Any:
        known = kwargs.get("eva_state_dict")
        sign = -1 if known else 1
        kwargs["eva_state_dict"] = {
            f"base_model.model.{name}": sign * torch.ones(layer.r["default"], layer.in_features)
            for name, layer in kwargs["model"].get_base_model().named_modules()
            if isinstance(layer, lora.LoraLayer)
        }
        return original(*args, **kwargs)


@fake("EVA's new ranks change the scaling.", caught_by=["lora_init_data.eva-ranks:scaling"])
def eva_changes_the_scaling(patch: Patches) -> None:
    @patch.replace(lora_eva, "_set_factors")
    def set_factors(original: Any, layer: Any, adapter: str, *args: Any) -> None:
        original(layer, adapter, *args)
        layer.scaling[adapter] *= 1.5


@fake(
    "EVA and CorDA refuse nothing.",
    caught_by=["lora_init_data.eva-refuses:raises*", "lora_init_data.corda-refuses:raises*"],
)
def data_driven_starts_refuse_nothing(patch: Patches) -> None:
    for owner, name in (
        (lora_eva, "initialize_lora_eva_weights"),
        (lora_eva, "get_eva_state_dict"),
        (lora_corda, "preprocess_corda"),
    ):
        patch.replace(owner, name)(_without_error)
    patch.item(INITIALISERS, "corda", Initialiser(_default, lambda *_: None, False))


def _without_error(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return original(model, *args, **kwargs)
    except ValueError:
        model.register_buffer("note", torch.zeros(1))  # something of the attempt is left behind
        return model


@fake(
    "CorDA leaves the whole base weight, and components of no size.",
    caught_by=[
        "lora_init_data.corda:output",
        "lora_init_data.corda:residual",
        "lora_init_data.corda:components",
    ],
)
def corda_keeps_the_base_weight(patch: Patches) -> None:
    _start(patch, "corda", lambda site, start: start._replace(W=None))

    @patch.replace(lora_corda, "preprocess_corda")
    def preprocess_corda(original: Any, model: Any, **kwargs: Any) -> None:
        original(model, **kwargs)
        for module in model.modules():
            if hasattr(module, "eigens"):
                module.eigens.S_WC = module.eigens.S_WC[None]

    row = INITIALISERS["corda"]

    def start(site: Site) -> Start:
        site.base.eigens.S_WC = site.base.eigens.S_WC[0]
        return row.start(site)

    patch.item(INITIALISERS, "corda", Initialiser(start, lambda *_: None, True))


@fake("CorDA's adapter is zero.", caught_by=["lora_init_data.corda:not-zero"])
def corda_gives_nothing(patch: Patches) -> None:
    _start(patch, "corda", lambda site, start: Start(start.A, start.B * 0))


@fake(
    "A refused CorDA adapter stays on the layers that it could have.",
    caught_by=["lora_init_data.corda-refuses:not-adapted", "lora_init_data.corda-refuses:frame"],
    like="peft 0.21.2",
)
def corda_adapts_what_it_can(patch: Patches) -> None:
    row = INITIALISERS["corda"]

    def start(site: Site) -> Start:
        return row.start(site) if hasattr(site.base, "eigens") else _default(site)

    patch.item(INITIALISERS, "corda", Initialiser(start, lambda *_: None, True))


@fake(
    "EVA puts an adapter into a model that it only looks at.",
    caught_by=["lora_init_data.eva-refuses:not-adapted", "lora_init_data.eva-refuses:frame"],
)
def eva_adapts_what_it_sees(patch: Patches) -> None:
    @patch.replace(lora_eva, "get_eva_state_dict")
    def get_eva_state_dict(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(model, peft_reference.PeftModel):
            config = peft_reference.LoraConfig(target_modules=["lin0"])
            peft_reference.inject_adapter_in_model(config, model)
        return original(model, *args, **kwargs)
