"""MonteCLoRA: W' = W + s·B·(A + ε·Σᵢ wᵢ·Zᵢ) in training, with N random Zᵢ; in evaluation plain LoRA.

Sengupta et al., "Robust and Efficient Fine-tuning of LLMs with Bayesian Reparameterization of Low-Rank
Adaptation", https://arxiv.org/abs/2411.04358. Each column of Zᵢ is drawn from N(0, Σ), Σ from a Wishart
distribution with r degrees of freedom around diag(exp 2p), w from a Dirichlet distribution with the
concentrations exp(q); p (r,) and q (N,) are trained, and held near a prior by a term of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Dirichlet, kl_divergence

from .lora_variant import VARIANTS, LoraVariant

if TYPE_CHECKING:
    from .lora_config import LoraConfig
    from .lora_layer import LoraLayer

__all__ = ["MontecloraConfig"]


@dataclass
class MontecloraConfig:
    """How the noise is drawn and held in bounds; ValueError for values out of range."""

    num_samples: int = 8  # N
    use_entropy: bool = False  # whether the loss keeps the weights from collapsing to one sample
    dirichlet_prior: float = 0.1  # concentration of the prior of w
    sample_scaler: float = 1e-4  # ε
    kl_loss_weight: float = 1e-5  # of the divergence from the prior
    buffer_size: int = 150  # how many draws PEFT keeps in stock; here each is made when it is needed

    def __post_init__(self) -> None:
        for name in ("num_samples", "dirichlet_prior", "buffer_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` should be positive, got {getattr(self, name)}.")


class MontecloraSampler(nn.Module):
    """p and q of one adapter on one layer, and the last Σ and w. What is drawn, is drawn in float32."""

    gaussian_var_prior: Tensor  # Σ: (r, r)
    expert_weights: Tensor  # w: (N,)

    def __init__(self, r: int, in_features: int, options: MontecloraConfig) -> None:
        super().__init__()
        self.in_features, self.options = in_features, options
        self.std_prior = nn.Parameter(torch.rand(r))
        self.expert_weights_prior = nn.Parameter(torch.rand(options.num_samples))
        self.register_buffer("gaussian_var_prior", torch.eye(r))
        weights = torch.full((options.num_samples,), 1 / options.num_samples)
        self.register_buffer("expert_weights", weights)

    def noise(self) -> Tensor:
        """ε·Σᵢ wᵢ·Zᵢ: (r, in), differentiable by p and q."""
        root = self.std_prior.float().exp()[:, None] * torch.randn_like(
            self.gaussian_var_prior, dtype=torch.float32
        )
        weights = Dirichlet(self.expert_weights_prior.float().exp()).rsample()
        with torch.no_grad():
            self.gaussian_var_prior.copy_(root @ root.t())  # Σ = root·rootᵀ is the draw from the Wishart
            self.expert_weights.copy_(weights)
        z = torch.randn(len(weights), len(root), self.in_features, device=root.device)
        return self.options.sample_scaler * torch.einsum("n,ij,njk->ik", weights, root, z)

    def loss(self) -> Tensor:
        """The divergences of Σ, of the Zᵢ and of w from their priors, and the weights' concentration."""
        p, q = self.std_prior.float(), self.expert_weights_prior.float()
        r, count = len(p), len(q)
        prior = Dirichlet(torch.full_like(q, self.options.dirichlet_prior))
        variances = self.gaussian_var_prior.float().diagonal().clamp_min(1e-6)
        divergence = (
            r / 2 * ((2 * p).exp().sum() - r - 2 * p.sum())  # of Wishart(diag(exp 2p), r) from Wishart(I, r)
            + count / 2 * (variances.sum() - r - variances.log().sum())
            + kl_divergence(Dirichlet(q.exp()), prior)
        )
        loss = self.options.kl_loss_weight * divergence
        return loss + self.expert_weights.float().square().sum() if self.options.use_entropy else loss


class MontecloraVariant(LoraVariant):
    """LoRA with noise on A while it trains."""

    slots: ClassVar = {"lora_monteclora_sampler": nn.ModuleDict}
    trained_slots = ("lora_monteclora_sampler",)

    @staticmethod
    def create(layer: LoraLayer, config: LoraConfig, name: str, contents: dict[str, Any]) -> dict[str, Any]:
        """Add the sampler."""
        options: Any = config.monteclora_config
        sampler = MontecloraSampler(contents["r"], layer.in_features, options)
        return contents | {"lora_monteclora_sampler": sampler}

    @staticmethod
    def adapt(layer: LoraLayer, adapter: str, x: Tensor, y: Tensor) -> Tensor:
        """As plain LoRA; in training mode with noise on A, drawn for each call."""
        if not layer.training:
            return LoraVariant.adapt(layer, adapter, x, y)
        a, b = layer.lora_A[adapter], layer.lora_B[adapter]
        A = a.weight + layer.lora_monteclora_sampler[adapter].noise().to(a.weight.dtype)
        h = F.linear(layer.drop_out(adapter, x).to(A.dtype), A)
        return y.add(b(h), alpha=layer.scaling[adapter])


VARIANTS["monteclora_config"] = MontecloraVariant
