"""Optional engines: imported only when needed, and kept from talking to the terminal and to the network."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType

import rich

from ..errors import BackendUnavailableError
from ..measurement import without_statistics


_TALKATIVE = ("nncf", "optimum", "torch.utils.cpp_extension", "transformers.configuration_utils")


def require(*modules: str, extra: str) -> tuple[ModuleType, ...]:
    """Import the modules of an optional engine.

    Args:
        modules (`str`): names such as `"optimum.intel"`.
        extra (`str`): the extra of this package that installs them.

    Returns:
        `tuple[ModuleType, ...]`: in the order of the names.

    Raises:
        [`BackendUnavailableError`]: if one is missing or does not work with what else is installed.
    """
    found = []
    with quiet_engine():
        for name in modules:
            try:
                found.append(importlib.import_module(name))
            except ImportError as error:
                raise BackendUnavailableError(
                    f"The engine {name} cannot be imported ({error}); install it with "
                    f'`pip install "hf_compress[{extra}]"`.'
                ) from error
    return tuple(found)


@contextmanager
def quiet_engine() -> Iterator[None]:
    """Run an engine without its own progress bars, tables and usage statistics; errors are still logged."""
    with ExitStack() as stack:
        stack.enter_context(without_statistics())
        for name in _TALKATIVE:
            stack.enter_context(_level(logging.getLogger(name), logging.ERROR))
        stack.enter_context(_silent_console())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def reason_of(error: Exception) -> str:
    """The line of an engine's message that says something; those around it point into its sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [type(error).__name__])[0]


@contextmanager
def _level(logger: logging.Logger, level: int) -> Iterator[None]:
    # a filter and not setLevel: the engines set the levels of their loggers while they are imported
    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= level

    logger.addFilter(passes)
    before = logger.level
    logger.setLevel(max(before, level))
    try:
        yield
    finally:
        logger.removeFilter(passes)
        logger.setLevel(before)


@contextmanager
def _silent_console() -> Iterator[None]:
    """NNCF draws its bars on the global console of rich; ours are drawn by the step's context."""
    console = rich.get_console()
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before
