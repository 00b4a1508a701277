"""All fakes, by name: each module of this folder adds its own."""

from importlib import import_module
from pathlib import Path

from .fake import FAKES, Fake

__all__ = ["FAKES", "Fake"]

for _file in sorted(Path(__file__).parent.glob("*.py")):
    if not _file.stem.startswith(("__", "test_")):
        import_module(f"{__package__}.{_file.stem}")
