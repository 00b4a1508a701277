"""The readable reference implementation of PEFT's adapters: same names, same files, same numbers, one place
each.
"""

from . import methods
from .auto import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
)
from .config import PeftConfig, PromptLearningConfig, get_peft_config
from .errors import NoMatchingPeftModuleError, PeftError, PeftWarning, UnsupportedOptionError
from .injection import inject_adapter_in_model
from .kbit import prepare_model_for_kbit_training
from .methods.adalora import AdaLoraConfig, AdaLoraModel
from .methods.ia3 import IA3Config, IA3Model
from .methods.loha import LoHaConfig, LoHaModel
from .methods.lokr import LoKrConfig, LoKrModel
from .methods.lora import LoraConfig, LoraModel, LoraRuntimeConfig
from .methods.lora_eva import get_eva_state_dict, initialize_lora_eva_weights
from .methods.lora_ga import preprocess_loraga
from .methods.lora_init import EvaConfig, LoftQConfig, LoraGAConfig
from .methods.oft import OFTConfig, OFTModel
from .methods.refused import AdaptionPromptConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from .methods.shira import ShiraConfig, ShiraModel
from .mixed import PeftMixedModel
from .model import PeftModel, cast_mixed_precision_params, get_peft_model
from .registry import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftType, TaskType
from .saving import load_peft_weights
from .state_dict import (
    get_base_model_state_dict,
    get_peft_model_state_dict,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)
from .status import get_layer_status, get_model_status
from .tasks import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
)

__version__ = "0.1.0"
__api_level__ = "0.21"  # the PEFT release whose behaviour this implementation claims

__all__ = [
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "PEFT_TYPE_TO_TUNER_MAPPING",
    "AdaLoraConfig",
    "AdaLoraModel",
    "AdaptionPromptConfig",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "EvaConfig",
    "IA3Config",
    "IA3Model",
    "LoHaConfig",
    "LoHaModel",
    "LoKrConfig",
    "LoKrModel",
    "LoftQConfig",
    "LoraConfig",
    "LoraGAConfig",
    "LoraModel",
    "LoraRuntimeConfig",
    "NoMatchingPeftModuleError",
    "OFTConfig",
    "OFTModel",
    "PeftConfig",
    "PeftError",
    "PeftMixedModel",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "PeftWarning",
    "PrefixTuningConfig",
    "PromptEncoderConfig",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "ShiraConfig",
    "ShiraModel",
    "TaskType",
    "UnsupportedOptionError",
    "cast_mixed_precision_params",
    "get_base_model_state_dict",
    "get_eva_state_dict",
    "get_layer_status",
    "get_model_status",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "initialize_lora_eva_weights",
    "inject_adapter_in_model",
    "load_peft_weights",
    "methods",
    "prepare_model_for_kbit_training",
    "preprocess_loraga",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
]
