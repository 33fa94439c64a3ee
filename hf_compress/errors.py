"""Errors that callers branch on; every message says what was got, what is allowed and what to do."""


class CompressionError(ValueError):
    """The user's input cannot be worked with. The command line prints the message without a traceback."""


class RecipeError(CompressionError):
    """A recipe is not valid; the message names the key by its path."""


class NotFoundError(CompressionError):
    """A model, a data set or a file is nowhere to be found; the message lists the places looked at."""


class TargetError(CompressionError):
    """A target is met already, or lies below what the method can reach."""


class UnsupportedModelError(CompressionError):
    """A method cannot work on this architecture, or a module of it."""


class StructureError(CompressionError):
    """A model's structure cannot be described, or a stored structure does not fit."""


class DiskFullError(CompressionError):
    """The disk that a run writes to has no room left; the message names the folder."""


class BackendUnavailableError(CompressionError):
    """An optional engine is not installed; the message names the extra."""
