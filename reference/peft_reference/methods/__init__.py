"""One file per method. Importing this package imports each file here, which fills the registry; what a file
lists in its `__all__` is public, here and in `peft_reference`.
"""

from importlib import import_module
from pkgutil import iter_modules

__all__: list[str] = []

for _name in sorted(module.name for module in iter_modules(__path__)):
    _module = import_module(f"{__name__}.{_name}")
    for _public in getattr(_module, "__all__", ()):
        globals()[_public] = getattr(_module, _public)
        __all__.append(_public)
