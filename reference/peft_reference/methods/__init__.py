"""One file per method. Importing this package fills the registry."""

from . import lora, lora_dora, refused

__all__ = ["lora", "lora_dora", "refused"]
