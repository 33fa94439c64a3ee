"""Texts as token numbers: made once, cached, kept flat, padded by batch."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import CompressionError
from .cache import cached_tensors
from .hashing import fingerprint


logger = logging.getLogger(__name__)

# raise it when the meaning of a cached file changes
_FORMAT = "1"
_OFFSETS = "offsets"
_CHUNK = 10_000


@dataclass(frozen=True)
class Tokens:
    """The tokens of many texts.

    Args:
        flat (`dict[str, np.ndarray]`): for each input of the model but the mask (`input_ids`, `token_type_ids`), the
            `int32` numbers of all texts one after another.
        offsets (`np.ndarray`): `int64`, (texts + 1,), where each text begins and the last one ends.
        padding (`dict[str, int]`): the number that fills up each input.
        left (`bool`): whether padding goes in front.
    """

    flat: dict[str, np.ndarray]
    offsets: np.ndarray
    padding: dict[str, int]
    left: bool = False

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """The inputs of the texts `rows`, `int64` (batch, longest), with `attention_mask`."""
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        lengths = (ends - starts)[:, None]
        longest = int(lengths.max(initial=0))
        places = np.arange(longest)[None, :] - (longest - lengths if self.left else 0)
        mask = (places >= 0) & (places < lengths)
        # padded places read some token that exists; the mask throws it away
        source = np.minimum(starts[:, None] + np.maximum(places, 0), max(len(self.flat["input_ids"]) - 1, 0))
        batch = {
            name: torch.from_numpy(np.where(mask, values[source], self.padding[name]).astype(np.int64))
            for name, values in self.flat.items()
        }
        batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        return batch

    def pad(self, examples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Make a batch of single examples, unpadded or padded."""
        longest = max(len(example["attention_mask"]) for example in examples)

        def stack(name: str, filler: int) -> torch.Tensor:
            out = torch.full((len(examples), longest), filler, dtype=torch.int64)
            for row, example in enumerate(examples):
                values = example[name]
                place = slice(longest - len(values), None) if self.left else slice(len(values))
                out[row, place] = values
            return out

        fillers = {**self.padding, "attention_mask": 0}
        return {name: stack(name, fillers[name]) for name in examples[0]}


def tokenize(tokenizer: Any, columns: Sequence[Sequence[str]], max_length: int) -> Tokens:
    """Tokenize one column of texts, or two columns of pairs; the result is cached by content.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): of the model.
        columns (`Sequence[Sequence[str]]`): one or two, of equal length.
        max_length (`int`): longer texts are cut, the longer one of a pair first.

    Raises:
        `CompressionError`: if the tokenizer cannot pad, or `max_length` does not fit it.
    """
    check_tokenizer(tokenizer, max_length, pairs=len(columns) == 2)
    name = fingerprint(_FORMAT, str(max_length), tokenizer_fingerprint(tokenizer), *map(_column_fingerprint, columns))
    count = len(columns[0])

    def valid(arrays: dict[str, torch.Tensor]) -> bool:
        if _OFFSETS not in arrays or "input_ids" not in arrays or len(arrays[_OFFSETS]) != count + 1:
            return False
        end = int(arrays[_OFFSETS][-1])
        return all(len(values) == end for key, values in arrays.items() if key != _OFFSETS)

    arrays = cached_tensors(f"tokens-{name}", lambda: _encode(tokenizer, columns, max_length), valid)
    arrays = {key: values.numpy() for key, values in arrays.items()}
    offsets = arrays.pop(_OFFSETS)
    padding = {key: tokenizer.pad_token_type_id if key == "token_type_ids" else 0 for key in sorted(arrays)}
    padding["input_ids"] = tokenizer.pad_token_id
    # input_ids first, as a tokenizer has them
    flat = {key: arrays[key] for key in sorted(arrays, key=lambda key: (key != "input_ids", key))}
    return Tokens(flat, offsets, padding, left=tokenizer.padding_side == "left")


def check_tokenizer(tokenizer: Any, max_length: int, pairs: bool) -> None:
    """Refuse what cannot tokenize this task, before any work is done."""
    if not callable(tokenizer) or not hasattr(tokenizer, "pad_token_id"):
        raise CompressionError(
            f"A text task needs a tokenizer, got {type(tokenizer).__name__}. Give a model for text classification."
        )
    if tokenizer.pad_token_id is None:
        raise CompressionError(
            "The tokenizer has no padding token, so texts of different lengths cannot stand in one batch. "
            "Set one, such as tokenizer.pad_token = tokenizer.eos_token, and save the tokenizer."
        )
    least = tokenizer.num_special_tokens_to_add(pair=pairs) + (2 if pairs else 1)
    most = tokenizer.model_max_length
    if not least <= max_length <= most:
        # a tokenizer that knows no limit says so with an astronomic number
        limit = f"at most {most} (the longest input of its model)" if most < 10**9 else "any more"
        raise CompressionError(
            f"task.max_length: got {max_length}; this tokenizer allows at least {least} (one token of each text with "
            f"the special ones) and {limit}."
        )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A name for what a tokenizer does. Its padding and truncation state, which every call changes, is left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content.pop("padding", None)
        content.pop("truncation", None)
    else:
        content = {"vocabulary": tokenizer.get_vocab(), "arguments": tokenizer.init_kwargs}
    content["inputs"] = tokenizer.model_input_names
    content["class"] = type(tokenizer).__name__
    content["special"] = tokenizer.special_tokens_map
    content["sides"] = [tokenizer.truncation_side, tokenizer.padding_side]
    return fingerprint(json.dumps(content, sort_keys=True, default=str))


def _column_fingerprint(texts: Sequence[str]) -> str:
    return fingerprint(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)), "".join(texts))


def _encode(tokenizer: Any, columns: Sequence[Sequence[str]], max_length: int) -> dict[str, torch.Tensor]:
    count = len(columns[0])
    if count >= _CHUNK:
        logger.info("Tokenizing %d texts; this is done once.", count)
    parts: dict[str, list[np.ndarray]] = {}
    lengths = [np.zeros(1, dtype=np.int64)]
    for start in range(0, count, _CHUNK):
        chunk = [list(column[start : start + _CHUNK]) for column in columns]
        encoded = tokenizer(*chunk, truncation=True, max_length=max_length, return_attention_mask=False)
        lengths.append(np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64))
        for key, rows in encoded.items():
            parts.setdefault(key, []).append(np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]))
    arrays = {key: torch.from_numpy(np.concatenate(rows)) for key, rows in parts.items()}
    arrays[_OFFSETS] = torch.from_numpy(np.cumsum(np.concatenate(lengths)))
    return arrays
