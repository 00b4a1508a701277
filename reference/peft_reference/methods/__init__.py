"""One file per method. Importing this package fills the registry."""

from . import lora, refused

__all__ = ["lora", "refused"]
