"""LoRA: W' = W + s·B·A with A (r, in, *kernel) and B (out, r), s = alpha / r.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685; with s =
alpha / √r, Kalajdzievski, "A Rank Stabilization Scaling Factor", https://arxiv.org/abs/2312.03732.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..combining import Combination
from ..config import PeftConfig
from ..errors import PeftWarning, UnsupportedOptionError
from ..injection import BaseTuner
from ..layer import BaseTunerLayer
from ..matching import pattern_value
from ..operators import OPERATORS, Embedding, MultiheadAttention, Operator
from ..registry import PeftType, register_peft_method
from ..tying import TiedFactor
from . import defaults, lora_init
from .lora_convert import as_plain_lora
from .lora_replication import replicate_layers
from .lora_weighted import add_combined
from .parts import dropout, rank_of

__all__ = ["LoraConfig", "LoraModel", "LoraRuntimeConfig"]


@dataclass
class LoraRuntimeConfig:
    """Choices for one run, never saved."""

    ephemeral_gpu_offload: bool = False


@dataclass
class LoraConfig(PeftConfig):
    """LoRA's options, all of PEFT's and in PEFT's order. Those in `_not_offered` are refused unless unset."""

    r: int = 8  # the rank
    target_modules: list[str] | set[str] | str | None = (
        None  # names, dotted suffixes, a regex or 'all-linear'
    )
    exclude_modules: list[str] | set[str] | str | None = None  # names, dotted suffixes or a regex
    lora_alpha: int | float = 8
    lora_dropout: float = 0.0  # on the adapter's input, while training
    fan_in_fan_out: bool = (
        False  # whether the base weight is stored (in, out): corrected by what the layer is
    )
    bias: str = "none"  # which base biases to train and save: none, all, lora_only (of the adapted layers)
    use_rslora: bool = False  # s = alpha / √r
    modules_to_save: list[str] | None = None  # modules to train and save whole
    # True: B = 0; 'gaussian': A ~ N(0, 1/r²), B = 0; False: both random; for the others see lora_init.py
    init_lora_weights: bool | str = True
    layers_to_transform: list[int] | int | None = None  # indices of the layers to adapt
    layers_pattern: list[str] | str | None = None  # what the list of layers is called
    rank_pattern: dict | None = field(default_factory=dict)  # regex for names -> rank
    alpha_pattern: dict | None = field(default_factory=dict)  # regex for names -> alpha
    megatron_config: dict | None = None
    megatron_core: str | None = "megatron.core"  # only with megatron_config
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    loftq_config: dict | lora_init.LoftQConfig = field(default_factory=dict)  # kept as a dict
    eva_config: lora_init.EvaConfig | None = None
    corda_config: lora_init.CordaConfig | None = None
    lora_ga_config: lora_init.LoraGAConfig | None = None
    use_dora: bool = False
    velora_config: Any = None
    alora_invocation_tokens: list[int] | None = None
    use_qalora: bool = False
    qalora_group_size: int = 16  # only with use_qalora
    monteclora_config: Any = None
    layer_replication: list[tuple[int, int]] | None = None
    runtime_config: LoraRuntimeConfig = field(default_factory=LoraRuntimeConfig)  # never saved
    lora_bias: bool = False  # B has a bias
    target_parameters: list[str] | None = None
    use_bdlora: Any = None
    arrow_config: Any = None
    kasa_config: Any = None
    ensure_weight_tying: bool = False

    _not_saved: ClassVar[frozenset[str]] = frozenset({"runtime_config"})
    _not_offered: ClassVar[tuple[str, ...]] = (
        *("megatron_config", "velora_config", "alora_invocation_tokens", "use_qalora", "monteclora_config"),
        *("use_bdlora", "arrow_config", "kasa_config"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_parameters, str):
            raise TypeError("`target_parameters` should be a list of names, not a string.")
        if self.lora_bias and (self.use_dora or self.init_lora_weights not in (True, False)):
            raise ValueError(
                "lora_bias=True needs use_dora=False and "
                f"init_lora_weights=True or False, got use_dora={self.use_dora} and "
                f"init_lora_weights={self.init_lora_weights}."
            )
        if self.use_dora and self.megatron_config:
            raise ValueError(
                "DoRA is not made for Megatron's layers: use_dora=True excludes megatron_config."
            )
        lora_init.settle_options(self)

    @property
    def variant(self) -> type[LoraVariant] | None:
        """What the options make of LoRA: None for LoRA itself. ValueError for two variants at once."""
        wanted = [option for option in VARIANTS if getattr(self, option)]
        if len(wanted) > 1:
            raise ValueError(f"LoRA variants exclude each other: choose one of {', '.join(wanted)}.")
        return VARIANTS[wanted[0]] if wanted else None

    @property
    def changes_base(self) -> bool:
        """Whether `init_lora_weights` leaves a residual as the base weight."""
        return lora_init.changes_base(self)

    def validate(self) -> None:
        """Refuse what is not implemented, or not an option at all."""
        for option in self._not_offered:
            if getattr(self, option):
                raise UnsupportedOptionError(
                    f"LoRA's option {option}={getattr(self, option)!r} is not implemented in the reference."
                )
        if self.runtime_config.ephemeral_gpu_offload:
            raise UnsupportedOptionError("LoRA's ephemeral_gpu_offload is not implemented in the reference.")
        if self.bias not in ("none", "all", "lora_only"):
            raise NotImplementedError(f"bias={self.bias!r} is not implemented: use none, all or lora_only.")
        lora_init.init_name(self)


class LoraVariant:
    """Another use of A and B: what one option of `LoraConfig` changes. A class without instances.

    `LoraLayer` asks an adapter's variant before it does what plain LoRA does. Defaults are plain LoRA's.
    """

    per_sample: ClassVar[bool] = True  # whether an adapter can be named for some samples of a batch

    @staticmethod
    def check(config: LoraConfig, base: Any, op: type[Operator], name: str) -> None:
        """Raise if `config` cannot adapt this layer. Runs for every target before anything is created."""

    @staticmethod
    def create(layer: LoraLayer, config: LoraConfig, contents: dict[str, Any]) -> dict[str, Any]:
        """The slots' contents for one adapter, given those of plain LoRA."""
        return contents

    @staticmethod
    def adapt(layer: LoraLayer, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """The output `y` for the input `x`, changed by one adapter."""
        return y.add(layer.low_rank(adapter, layer.drop_out(adapter, x)), alpha=layer.scaling[adapter])

    @staticmethod
    def fold(
        layer: LoraLayer, adapter: str, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The (canonical) weight and bias with one adapter merged in."""
        return layer.fold_low_rank(adapter, weight, bias)


VARIANTS: dict[str, type[LoraVariant]] = {}  # by the option that asks for it


class LoraLayer(BaseTunerLayer):
    """A layer with LoRA adapters: A and B are the weights of two layers, bare parameters on an embedding."""

    prefix = "lora_"
    operators = (*OPERATORS, MultiheadAttention)
    slots: ClassVar[dict[str, type]] = {
        "r": dict,
        "lora_alpha": dict,
        "scaling": dict,
        "lora_variant": dict,
        "frozen_slots": dict,
        "lora_dropout": nn.ModuleDict,
        "lora_A": nn.ModuleDict,
        "lora_B": nn.ModuleDict,
        "lora_embedding_A": nn.ParameterDict,
        "lora_embedding_B": nn.ParameterDict,
        "lora_magnitude_vector": nn.ModuleDict,  # DoRA's; always there, as in PEFT
    }
    r: dict[str, int]
    scaling: dict[str, float]
    lora_variant: dict[str, type[LoraVariant]]  # only of adapters that are not plain LoRA
    frozen_slots: dict[str, tuple[str, ...]]  # of adapters some of whose tensors never train
    lora_dropout: nn.ModuleDict
    lora_A: Any
    lora_B: Any
    lora_embedding_A: nn.ParameterDict
    lora_embedding_B: nn.ParameterDict
    lora_magnitude_vector: Any
    adapter_layer_names = (
        *("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    )
    matrix_slots = ("lora_A", "lora_B")
    dropout_slot = "lora_dropout"

    @classmethod
    def class_for(cls, op: type[Operator]) -> type[LoraLayer]:
        """`LoraLayer` but for the layers that are more than a weight and a bias."""
        return COMPOUND.get(op, cls)

    @classmethod
    def check(cls, config: LoraConfig, base: Any, op: type[Operator], name: str) -> None:
        """The rank must be positive, and a multiple of a convolution's groups."""
        r = rank_of(config, name)
        if not 0 <= config.lora_dropout <= 1:
            raise ValueError(f"`lora_dropout` should be a probability, got {config.lora_dropout}.")
        groups = getattr(base, "groups", 1)
        if r % groups:
            raise ValueError(f"'{name}' has groups={groups}: the rank has to be divisible by that, got {r}.")
        if groups > 1:
            warnings.warn(
                f"LoRA on '{name}', a convolution with groups={groups}, cannot be merged.", stacklevel=6
            )
        if config.lora_bias and op.bias(base) is None:
            warnings.warn(
                f"`lora_bias=True` but '{name}' has no bias: it cannot be merged.", PeftWarning, stacklevel=6
            )
        lora_init.check_init(config, base, op, name, r)
        if config.variant:
            config.variant.check(config, base, op, name)

    def create(self, config: LoraConfig, name: str) -> dict[str, Any]:
        """A, B, the numbers that belong to them, and what the variant adds."""
        contents = self._create_low_rank(config, name)
        if config.variant is None:
            return contents
        return config.variant.create(self, config, contents | {"lora_variant": config.variant})

    def _create_low_rank(self, config: LoraConfig, name: str) -> dict[str, Any]:
        r = rank_of(config, name)
        alpha = pattern_value(config.alpha_pattern, name, config.lora_alpha)
        scaling = alpha / (r**0.5 if config.use_rslora else r)
        contents: dict[str, Any] = {"r": r, "lora_alpha": alpha, "scaling": scaling}
        contents["lora_dropout"] = dropout(config.lora_dropout)
        if self.op is Embedding:
            shape_A, shape_B = (r, self.in_features), (self.out_features, r)
            A = nn.Parameter(torch.zeros(shape_A) if config.init_lora_weights else torch.randn(shape_A))
            B = nn.Parameter(torch.randn(shape_B))
            contents |= {"lora_embedding_A": A, "lora_embedding_B": B}
        else:
            a: Any
            b: Any
            a, b = self.new_factors(r, config.lora_bias)
            if config.init_lora_weights:  # A keeps torch's own initialisation, Kaiming-uniform with a = √5
                nn.init.zeros_(b.weight)
                if config.lora_bias:
                    nn.init.zeros_(b.bias)
            if str(config.init_lora_weights).lower() == "gaussian":
                nn.init.normal_(a.weight, std=1 / r)
            A, B = a.weight, b.weight
            contents |= {"lora_A": a, "lora_B": b}
        return contents | self._start(config, name, contents, A, B)

    @torch.no_grad()
    def _start(
        self, config: LoraConfig, name: str, contents: dict[str, Any], A: Tensor, B: Tensor
    ) -> dict[str, Any]:
        """Give A and B their initial values; the base weight and the frozen slots that go with them."""
        initialiser = lora_init.initialiser(config, self.op, A.is_meta)
        if initialiser is None:
            return {}
        weight = self.op.canonical(self.weight)
        W = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
        r, scaling = contents["r"], contents["scaling"]
        start = initialiser(lora_init.Site(W, r, scaling, self.get_base_layer(), config, name))
        A.copy_(start.A)
        B.copy_(start.B)
        wanted: dict[str, Any] = {}
        if not start.trains_B:
            wanted["frozen_slots"] = ("lora_B", "lora_embedding_B")
        if start.W is not None:
            if self.merged:
                raise ValueError(
                    f"init_lora_weights={config.init_lora_weights!r} changes the base weight of '{name}', "
                    "into which adapters are merged. Unmerge them first."
                )
            wanted["weight"] = self.op.canonical(start.W)
        return wanted

    def new_factors(self, r: int, bias: bool) -> tuple[nn.Module, nn.Module]:
        """Two new layers whose product has rank r."""
        return self.op.factors(self.get_base_layer(), self.in_features, r, self.out_features, bias)

    def share(self, leader: BaseTunerLayer, adapter: str, contents: dict[str, Any]) -> dict[str, Any]:
        """The leader's factors; an embedding's A and B, transposed, are a linear layer's B and A."""
        if self.op is leader.op or not isinstance(leader, LoraLayer):
            return dict(contents)
        if "lora_variant" in contents:
            raise UnsupportedOptionError("Only plain LoRA can be tied to that of another layer.")
        numbers = {slot: contents[slot] for slot in ("r", "lora_alpha", "scaling", "lora_dropout")}
        return numbers | {
            "lora_A": TiedFactor(leader.lora_embedding_B, adapter),
            "lora_B": TiedFactor(leader.lora_embedding_A, adapter),
        }

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A (r, in, *kernel) and B (out, r, *ones) of an adapter."""
        if self.op is Embedding:
            return self.lora_embedding_A[adapter], self.lora_embedding_B[adapter]
        return self.lora_A[adapter].weight, self.lora_B[adapter].weight

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """As for every method, except that MiCA's B never trains."""
        super().set_requires_grad(adapter_names, requires_grad)
        for adapter in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            for slot in self.frozen_slots.get(adapter, ()):
                if adapter in getattr(self, slot):
                    getattr(self, slot)[adapter].requires_grad_(False)

    def fill(self, contents: dict[str, Any], A: Tensor, B: Tensor, bias: Tensor | None) -> None:
        """Put these factors into the contents of the slots, in the place of what `create` has made."""
        if self.op is Embedding:
            contents |= {"lora_embedding_A": nn.Parameter(A), "lora_embedding_B": nn.Parameter(B)}
            return
        contents["lora_A"].weight, contents["lora_B"].weight = nn.Parameter(A), nn.Parameter(B)
        if bias is not None:
            contents["lora_B"].bias = nn.Parameter(bias)

    def state_entries(self, adapter: str) -> Iterator[tuple[str, str, Tensor]]:
        """As for every method, except that a checkpoint calls the magnitude by its slot alone."""
        for live, saved, tensor in super().state_entries(adapter):
            yield live, saved.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"), tensor

    def delta(self, adapter: str) -> Tensor:
        """s·B·A as (out, in, *kernel)."""
        self.check_groups()
        A, B = self.factors(adapter)
        product = B.flatten(1) @ A.flatten(1)  # (out, r) @ (r, in·kernel)
        return self.scaling[adapter] * product.view(-1, *A.shape[1:])

    def adapt(self, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """y + s·B(A(dropout(x))), unless a variant says otherwise."""
        if adapter in self.lora_variant:
            return self.lora_variant[adapter].adapt(self, adapter, x, y)
        if self.training:
            x = self.drop_out(adapter, x)
        return y.add(self.low_rank(adapter, x), alpha=self.scaling[adapter])

    def low_rank(self, adapter: str, x: Tensor) -> Tensor:
        """B(A(x)), which never builds the product B·A."""
        if self.op is Embedding:
            A, B = self.factors(adapter)
            return self.op.call(self.get_base_layer(), x, A) @ B.t()  # (..., r) @ (r, out)
        # `_modules` and `_parameters`: attribute lookup in nn.Module would cost as much as a small product
        slots: Any = self._modules
        a: Any = slots["lora_A"]._modules[adapter]
        b: Any = slots["lora_B"]._modules[adapter]
        tied = adapter in self.tied_to
        A = a.weight if tied else a._parameters["weight"]
        x = x if x.dtype is A.dtype else x.to(A.dtype)
        if tied or A.dim() > 2:  # convolutions
            return b(a(x))
        return F.linear(F.linear(x, A), b._parameters["weight"], b._parameters["bias"])

    def fold(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W' and b' with one adapter, as its variant says."""
        if adapter in self.lora_variant:
            return self.lora_variant[adapter].fold(self, adapter, weight, bias)
        return self.fold_low_rank(adapter, weight, bias)

    def fold_low_rank(
        self, adapter: str, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """W + s·B·A, and where `lora_bias` asks for it, b + s·b_B."""
        lora_bias = self.lora_B[adapter].bias if adapter in self.lora_B else None
        if lora_bias is not None and bias is not None:
            bias = bias + self.scaling[adapter] * lora_bias
        return weight + self.delta(adapter), bias

    def check_per_sample(self, adapter: str) -> None:
        """ValueError for a variant that PEFT does not mix with others in a batch."""
        variant = self.lora_variant.get(adapter)
        if variant and not variant.per_sample:
            raise ValueError(f"`adapter_names` cannot be used with '{adapter}', a {variant.__name__}.")

    def check_mergeable(self, adapter: str) -> None:
        """Neither with groups, nor a LoRA bias into a layer without one."""
        self.check_groups()
        if self.bias is None and adapter in self.lora_B and self.lora_B[adapter].bias is not None:
            raise RuntimeError("`lora_bias=True` cannot be merged into a layer without bias.")

    def check_groups(self) -> None:
        """With groups, A reads all channels: the product is dense and has no place in a grouped weight."""
        if getattr(self.get_base_layer(), "groups", 1) > 1:
            raise NotImplementedError(
                "LoRA's delta is dense and cannot be merged into a convolution with groups > 1."
            )


COMPOUND: dict[type[Operator], type[LoraLayer]] = {}  # layers that are adapted in more than one place


class LoraModel(BaseTuner):
    """A model with LoRA adapters."""

    tuner_layer_cls = LoraLayer
    as_plain = staticmethod(as_plain_lora)
    target_module_mapping = defaults.ATTENTION

    @classmethod
    def prepare_model(cls, model: nn.Module, config: Any, adapter_name: str) -> Callable[[], Any] | None:
        """`layer_replication`, which comes once: with the first adapter."""
        others = {**(getattr(model, "peft_config", None) or {})}
        others.pop(adapter_name, None)
        if not others:
            return replicate_layers(model, config.layer_replication) if config.layer_replication else None
        for name, other in others.items():
            if config.layer_replication and config.layer_replication != other.layer_replication:
                raise ValueError(
                    f"layer_replication={config.layer_replication} comes too late: adapter '{name}' was "
                    f"added with layer_replication={other.layer_replication}."
                )
        return None

    @classmethod
    def check_targets(cls, model: nn.Module, names: Collection[str]) -> None:
        """ValueError for the two modules of Mamba that compute in kernels of their own, past any adapter."""
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        bypassed = [name for name in names if name.rpartition(".")[2] in ("out_proj", "conv1d")]
        if bypassed and model_type in ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"):
            raise ValueError(
                f"{', '.join(bypassed)} cannot be adapted in a model of type {model_type!r}: Mamba's kernels "
                "read the base weights."
            )

    def check_merge_allowed(self) -> None:
        """ValueError with replicated layers: several adapters would be written into one weight."""
        if any(getattr(config, "layer_replication", None) for config in self.peft_config.values()):
            raise ValueError(
                "Adapters on replicated layers share base weights, so that they cannot be merged."
            )

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: str = "total",
    ) -> None:
        """Add one adapter, inactive and frozen, that is several others with weights, positive or negative.

        `cat` is exactly the weighted sum of their deltas, of the sum of their ranks; `svd` the best
        approximation of it of rank `svd_rank` (default: the largest of theirs). `linear` adds the factors
        instead, each with the root of its weight and scaling. `magnitude_prune`, `ties`, `dare_linear` and
        `dare_ties` do so with the share `density` of the entries, or with `_svd` treat the deltas like that.
        One adapter alone is always `linear`, and a name that exists is left as it is.

        ValueError, before anything changes, for an unknown type or adapter, another number of weights than of
        adapters, ranks that differ (unless `cat` or svd), `modules_to_save` of the same module, names mixed
        with a regular expression in `target_modules`, target parameters, and variants of LoRA.
        """
        if adapter_name in self.peft_config:
            return
        self.check_names(adapters)
        if not adapters or len(adapters) != len(weights):
            raise ValueError(f"One weight for each adapter is needed, got {len(weights)} for {adapters}.")
        combination = Combination(
            "linear" if len(adapters) == 1 else combination_type,
            density,
            majority_sign_method,
            svd_clamp,
            svd_full_matrices,
            svd_driver,
        )
        add_combined(self, list(zip(adapters, weights, strict=True)), adapter_name, combination, svd_rank)


register_peft_method(PeftType.LORA, LoraConfig, LoraModel)
