"""Where integrations look."""

from . import set_adapter  # noqa: F401
