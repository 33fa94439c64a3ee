"""The tokenizer or image processor of a model, checked against it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import CompressionError, NotFoundError
from ..locate import not_found
from .cifar_resnet import CIFAR10_MEAN, CIFAR10_STD


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ..tasks import Task

logger = logging.getLogger(__name__)

# a folder without any of these has no tokenizer, of which transformers would silently make an empty one
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_TIMM_FIELDS = (
    "input_size",
    "fixed_input_size",
    "interpolation",
    "crop_pct",
    "mean",
    "std",
    "pool_size",
    "first_conv",
    "classifier",
)


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds the files of a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def load_tokenizer(where: Path | str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer at `where`, a local folder or a Hub id.

    Raises:
        `NotFoundError`: if there is none.
        `CompressionError`: if its files cannot be read.
    """
    from transformers import AutoTokenizer

    if isinstance(where, Path) and not has_tokenizer(where):
        raise NotFoundError(
            f"{where} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}), which a text task needs. Put the "
            "files of the tokenizer that the model was trained with beside its config.json."
        )
    try:
        return AutoTokenizer.from_pretrained(str(where), revision=revision, trust_remote_code=False)
    except OSError as error:
        if isinstance(where, str):
            raise not_found(where, "models", cause=error, part="tokenizer") from error
        raise CompressionError(f"The tokenizer in {where} cannot be read: {error}") from error
    except Exception as error:  # the tokenizers library raises plain `Exception` for a damaged file
        raise CompressionError(f"The tokenizer of {where} cannot be read ({error}); fetch it again.") from error


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_length: int, source: str) -> None:
    """Refuse a tokenizer that does not fit `model`, and give one without padding a padding token.

    Args:
        max_length (`int`): tokens of the longest text that the task will give.
        source (`str`): where both came from, for the messages.

    Raises:
        `CompressionError`: if a token has no embedding, or `max_length` is more than the model has positions for.
    """
    vocabulary = tokenizer.get_vocab()
    last = max(vocabulary, key=vocabulary.get, default=None)
    size = getattr(model.config, "vocab_size", None)
    if last is None:
        raise CompressionError(f"The tokenizer of {source} has an empty vocabulary; save it again beside the model.")
    if size is not None and vocabulary[last] >= size:
        raise CompressionError(
            f"The tokenizer of {source} does not fit the model: its token {last!r} has the id {vocabulary[last]}, but "
            f"the model has embeddings for {size} tokens only. Use the tokenizer the model was trained with."
        )
    limits = {"the model's positions": position_limit(model), "the tokenizer's limit": tokenizer.model_max_length}
    what, limit = min(((what, limit) for what, limit in limits.items() if limit), key=lambda item: item[1])
    if max_length > limit:
        raise CompressionError(
            f"task.max_length: got {max_length}, but {source} takes at most {limit} tokens ({what}); set it to "
            f"{limit} or less."
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CompressionError(f"The tokenizer of {source} has neither a padding nor an end token; add one.")
        tokenizer.pad_token = tokenizer.eos_token
        logger.warning("%s has no padding token; %r pads from now on.", source, tokenizer.eos_token)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def position_limit(model: PreTrainedModel) -> int | None:
    """Tokens the longest input of `model` may have; `None` where positions are relative."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from behind its padding index
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None)


def load_image_processor(config: PreTrainedConfig, where: Path | str, revision: str | None) -> Any:
    """The image processor of a vision model; for timm models it is made from `config.pretrained_cfg`."""
    from transformers import AutoImageProcessor
    from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

    if config.model_type == "timm_wrapper":
        return TimmWrapperImageProcessor(pretrained_cfg=dict(config.pretrained_cfg), architecture=config.architecture)
    try:
        return AutoImageProcessor.from_pretrained(str(where), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if isinstance(where, str) and isinstance(error, OSError):
            raise  # the Hub did not answer
        raise CompressionError(
            f"{where} has no image processor that can be read (preprocessor_config.json): {error}"
        ) from error


def timm_preprocessing(architecture: str, task: Task | None) -> dict[str, Any]:
    """The `pretrained_cfg` of a timm model whose checkpoint has none, which its image processor is made from.

    For CIFAR an architecture that takes any size gets 32 x 32 images and the statistics of the data set.
    """
    from timm.models import get_arch_name, get_pretrained_cfg

    default = get_pretrained_cfg(get_arch_name(architecture))
    fields = default.to_dict() if default is not None else {}
    values = {name: fields[name] for name in _TIMM_FIELDS if fields.get(name) is not None}
    if task is not None and task.name.startswith("cifar") and not values.get("fixed_input_size"):
        values |= {"input_size": (3, 32, 32), "mean": CIFAR10_MEAN, "std": CIFAR10_STD, "crop_pct": 1.0}
        values |= {"interpolation": "bilinear"}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
