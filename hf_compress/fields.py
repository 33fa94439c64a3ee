"""Strict reading of mappings into dataclasses: unknown keys, wrong types and values out of range name their key."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union

from .errors import RecipeError
from .registry import nearest


def from_mapping(cls: type, value: Any, path: str):
    """Build the dataclass `cls` from a mapping.

    Args:
        cls (`type`): a dataclass whose fields are annotated with plain types, `Literal`, unions, lists or dicts.
        value (`Any`): what was read from YAML or JSON.
        path (`str`): where it stood, such as `"steps.1.prune"`; it begins every message.

    Raises:
        `RecipeError`: names the key by its path, what is allowed and the nearest valid name.
    """
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: got {_show(value)}; give a mapping with the keys {', '.join(_names(cls))}.")
    hints = typing.get_type_hints(cls)
    for key in value:
        if key not in _names(cls):
            names = _names(cls)
            raise RecipeError(f"{path}.{key}: unknown key{nearest(key, names)}; allowed are {', '.join(names)}.")
    for field in fields(cls):
        if field.default is MISSING and field.default_factory is MISSING and field.name not in value:
            raise RecipeError(f"{path}.{field.name}: this key is required and missing.")
    arguments = {key: _convert(item, hints[key], f"{path}.{key}") for key, item in value.items()}
    try:
        return cls(**arguments)
    except ValueError as error:  # a range that the dataclass itself checks
        message = str(error)
        raise RecipeError(message if message.startswith(path) else f"{path}.{message}") from None


def _convert(value: Any, hint: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for option in arguments:
            if option is not type(None) and _fits(value, option):
                return _convert(value, option, path)
        raise RecipeError(f"{path}: got {_show(value)}; allowed is {_describe(hint)}.")
    if not _fits(value, hint):
        hint_text = nearest(value, map(str, arguments)) if origin is Literal else ""
        raise RecipeError(f"{path}: got {_show(value)}{hint_text}; allowed is {_describe(hint)}.")
    if is_dataclass(hint):
        return value if isinstance(value, hint) else from_mapping(hint, value, path)
    if hint is float:
        return float(value)
    if origin in (list, tuple):
        item = arguments[0] if arguments else Any
        return origin(_convert(entry, item, f"{path}.{index}") for index, entry in enumerate(value))
    if origin is dict:
        return {key: _convert(item, arguments[1], f"{path}.{key}") for key, item in value.items()}
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin is Literal:
        # 1 == True in Python, but not in a recipe
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint))
    if is_dataclass(hint):
        return isinstance(value, dict | hint)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    if origin is tuple or hint is tuple:
        return isinstance(value, list | tuple)
    return isinstance(value, origin or hint)


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if hint is type(None):
        return "null"
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", dict: "a mapping"}
    if origin in (list, tuple) or hint in (list, tuple):
        return "a list"
    if origin is dict or is_dataclass(hint):
        return "a mapping"
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _show(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"


def _names(cls: type) -> list[str]:
    return [field.name for field in fields(cls) if field.init]
