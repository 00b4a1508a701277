"""The errors and the warning that are PEFT's own; everything else is a Python built-in."""


class PeftError(Exception):
    """Base class of the errors that only PEFT raises."""


class NoMatchingPeftModuleError(PeftError, ValueError):
    """A config selects no module of the model."""


class UnsupportedLayerError(PeftError, ValueError, TypeError, NotImplementedError):
    """A method cannot adapt layers of this type. PEFT raises one of the three, by method."""


class UnsupportedOptionError(PeftError, ValueError, NotImplementedError):
    """PEFT has this option, the reference does not offer it (yet). Never a silent fallback."""


class PeftWarning(UserWarning):
    """Base class of the warnings that only PEFT gives."""
