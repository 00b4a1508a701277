"""PEFT's module path for LoRA."""

from ...methods.lora import LoraModel
from ...methods.lora_arrow import ArrowConfig, create_arrow_model
from ...methods.lora_bdlora import BdLoraConfig
from ...methods.lora_config import LoraConfig, LoraRuntimeConfig
from ...methods.lora_eva import get_eva_state_dict, initialize_lora_eva_weights
from ...methods.lora_ga import preprocess_loraga
from ...methods.lora_kasa import KasaConfig
from ...methods.lora_layer import LoraLayer
from ...methods.lora_monteclora import MontecloraConfig
from ...methods.lora_options import EvaConfig, LoftQConfig, LoraGAConfig
from ...methods.lora_velora import VeloraConfig

__all__ = [
    "ArrowConfig",
    "BdLoraConfig",
    "EvaConfig",
    "KasaConfig",
    "LoftQConfig",
    "LoraConfig",
    "LoraGAConfig",
    "LoraLayer",
    "LoraModel",
    "LoraRuntimeConfig",
    "MontecloraConfig",
    "VeloraConfig",
    "create_arrow_model",
    "get_eva_state_dict",
    "initialize_lora_eva_weights",
    "preprocess_loraga",
]
