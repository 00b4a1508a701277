"""One file per method. Importing this package fills the registry."""

from . import (
    adalora,
    ia3,
    loha,
    lokr,
    lora,
    lora_corda,
    lora_dora,
    lora_ga,
    lora_mha,
    lora_parameter,
    oft,
    refused,
    shira,
)

__all__ = [
    "adalora",
    "ia3",
    "loha",
    "lokr",
    "lora",
    "lora_corda",
    "lora_dora",
    "lora_ga",
    "lora_mha",
    "lora_parameter",
    "oft",
    "refused",
    "shira",
]
