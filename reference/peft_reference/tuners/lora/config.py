"""PEFT's module path for the configs of LoRA, its initialisers and its variants."""

from ...methods.lora_arrow import ArrowConfig
from ...methods.lora_bdlora import BdLoraConfig
from ...methods.lora_config import LoraConfig, LoraRuntimeConfig
from ...methods.lora_kasa import KasaConfig
from ...methods.lora_monteclora import MontecloraConfig
from ...methods.lora_options import CordaConfig, EvaConfig, LoftQConfig, LoraGAConfig
from ...methods.lora_velora import VeloraConfig

__all__ = [
    "ArrowConfig",
    "BdLoraConfig",
    "CordaConfig",
    "EvaConfig",
    "KasaConfig",
    "LoftQConfig",
    "LoraConfig",
    "LoraGAConfig",
    "LoraRuntimeConfig",
    "MontecloraConfig",
    "VeloraConfig",
]
