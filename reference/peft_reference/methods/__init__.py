"""One file per method. Importing this package fills the registry."""

from . import lora, lora_dora, lora_mha, lora_parameter, refused

__all__ = ["lora", "lora_dora", "lora_mha", "lora_parameter", "refused"]
