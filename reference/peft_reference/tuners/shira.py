"""PEFT's module path for SHiRA."""

from ..methods.shira import ShiraConfig, ShiraLayer, ShiraModel

__all__ = ["ShiraConfig", "ShiraLayer", "ShiraModel"]
