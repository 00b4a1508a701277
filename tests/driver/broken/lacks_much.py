"""An implementation with configs and nothing else."""

from peft_reference import LoraConfig  # noqa: F401
