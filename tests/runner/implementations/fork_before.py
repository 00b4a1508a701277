"""A fork that is the reference under another name."""

import importlib

from peft_reference import *  # noqa: F403
from peft_reference import __all__, functional  # noqa: F401

__version__ = "1.0"


def __getattr__(name):
    try:
        return importlib.import_module(f"peft_reference.{name}")
    except ModuleNotFoundError:
        raise AttributeError(name) from None
