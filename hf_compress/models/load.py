"""Models by name: from a folder, a data root, the timm registry or the Hub, with the labels of a task."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from timm.models import get_arch_name, get_pretrained_cfg, is_model, model_entrypoint
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)

from ..errors import CompressionError, NotFoundError, UnsupportedModelError
from ..locate import not_found, resolve
from ..registry import nearest
from . import cifar_resnet
from .checkpoint import check_weights
from .known_configs import known_config
from .labels import has_trained_head, set_labels
from .processors import fit_tokenizer, has_tokenizer, load_image_processor, load_tokenizer, timm_preprocessing


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ..tasks import Task

logger = logging.getLogger(__name__)

# fields of a configuration that follow from the task, or say what the file is
SET_BY_TASK = frozenset(
    "num_labels num_classes id2label label2id label_names problem_type architectures model_type architecture "
    "quantization_config pretrained_cfg transformers_version dtype torch_dtype".split()
)


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    task: Task | None = None,
    from_config: bool = False,
    revision: str | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel, Any]:
    """Load a classification model and its processor.

    A name is looked up as a local folder, in the data roots of `HF_COMPRESS_DATA`, in the timm registry and on the
    Hub. The CIFAR entries of this package have no pretrained weights: their bare names give random ones.

    Args:
        name_or_path (`str` or `os.PathLike`): such as `"outputs/run/model"`, `"resnet56_cifar10"`,
            `"resnet18.a1_in1k"`, `"bert-large-uncased"`.
        task (`Task`, *optional*): sets label count, label names and problem type, and is what the processor is checked
            against. Without it the checkpoint's own are kept, and there may be no processor.
        from_config (`bool`, *optional*, defaults to `False`): build the architecture with random weights. For some
            well-known encoders (`bert-large-uncased` among them) this needs no files at all.
        revision (`str`, *optional*): a revision of the Hub repository.
        config (`Mapping[str, Any]`, *optional*): fields of the configuration to set before the model is built, such as
            `{"num_hidden_layers": 3}`; weights that then have no place are left out, with a warning.
        seed (`int`, *optional*, defaults to 0): of all weights that are fresh: a new head, or the whole model.

    Returns:
        `tuple[PreTrainedModel, Any]`: the model in float32 and eval mode, and its tokenizer or image processor; `None`
        where there is none and no task asks for it.

    Raises:
        `NotFoundError`: if the model, its weights or its tokenizer are nowhere; the message says how to fetch them.
        `UnsupportedModelError`: if the architecture cannot do the task, or the folder holds an exported model.
        `CompressionError`: if files are damaged, or labels, tokenizer or lengths do not fit.
    """
    where, entry = find_model(os.fspath(name_or_path), from_config, revision)
    changes = dict(config or {})
    try:
        config = TimmWrapperConfig(architecture=entry) if entry else _read_config(where, from_config, revision)
        _change(config, changes, where)
        modality = _modality(config, task, where)
        if config.model_type == "timm_wrapper" and not getattr(config, "pretrained_cfg", None):
            config.pretrained_cfg = timm_preprocessing(config.architecture, task)
        if task is not None:
            set_labels(config, task, str(where))
        if modality == "image":
            auto_class = AutoModelForImageClassification
            processor = load_image_processor(config, where, revision)
        else:
            auto_class = AutoModelForSequenceClassification
            processor = _tokenizer(where, task, from_config, revision)
        if entry or from_config:
            model = _random(auto_class, config, where, seed)
        else:
            model = _pretrained(auto_class, config, where, revision, seed)
        if modality == "text" and task is not None:
            fit_tokenizer(processor, model, task.spec.max_length, str(where))
    except OSError as error:
        if isinstance(where, Path):
            raise CompressionError(f"{where} cannot be read: {error}") from error
        raise not_found(where, "models", cause=error) from error
    return model.eval(), processor


def load_teacher(name: str, task: Task | None = None) -> tuple[PreTrainedModel, Any]:
    """[`load_model`], of one that has learned something; see [`find_teacher`]."""
    find_teacher(name)
    return load_model(name, task=task)


def find_teacher(name: str) -> Path | str:
    """Where [`load_teacher`] would take a model from, as [`find_model`] says it.

    Raises:
        `NotFoundError`: also for the bare name of an entry that has only random weights.
    """
    where, entry = find_model(name)
    if entry is not None:
        raise NotFoundError(
            f"The teacher {name!r} is an architecture without trained weights. Give a checkpoint: a folder, a name in "
            "HF_COMPRESS_DATA, or a Hub id."
        )
    return where


def find_model(name: str, from_config: bool = False, revision: str | None = None) -> tuple[Path | str, str | None]:
    """Where [`load_model`] would take a model from, a folder or a Hub id that nobody has asked for yet, and the
    architecture if it is to be built from the timm registry alone.

    Raises:
        `CompressionError`: for a name that is neither.
    """
    where = resolve(name, "models", revision)
    if isinstance(where, Path) or not is_model(get_arch_name(where)):
        return where, None
    architecture = get_arch_name(where)
    try:
        pretrained = get_pretrained_cfg(where)
    except RuntimeError as error:
        raise CompressionError(f"{where}: {error} See timm.list_pretrained('{architecture}.*').") from error
    if from_config or model_entrypoint(architecture).__module__ == cifar_resnet.__name__:
        return where, architecture
    if pretrained is not None and pretrained.hf_hub_id:
        return resolve(pretrained.hf_hub_id, "models", revision), None
    raise CompressionError(
        f"The timm entry {where!r} has no pretrained weights on the Hub. Set `from_config: true` for random ones, or "
        "give one of timm.list_pretrained()."
    )


def _read_config(where: Path | str, from_config: bool, revision: str | None) -> PreTrainedConfig:
    if from_config and isinstance(where, str) and revision is None and (known := known_config(where)) is not None:
        logger.info("%s: the architecture comes from the table of this package, not from the Hub.", where)
        return known
    try:
        config = AutoConfig.from_pretrained(str(where), revision=revision, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise CompressionError(f"The config.json of {where} cannot be used: {error}") from error
    if from_config and getattr(config, "quantization_config", None) is not None:
        raise CompressionError(
            f"from_config makes random weights for the architecture in a config, but {where} is a compressed "
            "checkpoint. Give the dense model's folder, or leave from_config out."
        )
    return config


def _change(config: PreTrainedConfig, changes: Mapping[str, Any], where: Path | str) -> None:
    """Set fields of `config`; refuses what it does not have, what the task sets, and other types."""
    if changes and getattr(config, "quantization_config", None) is not None:
        raise CompressionError(
            f"model.config: {where} is a compressed checkpoint, whose weights fit only its own configuration; "
            "change the dense model's."
        )
    known = {name: value for name, value in config.to_dict().items() if name not in SET_BY_TASK}
    known.update({name: getattr(config, name) for name in ("model_args",) if hasattr(config, name)})
    for name, value in changes.items():
        if name not in known:
            raise CompressionError(
                f"model.config.{name}: a {config.model_type!r} configuration has no such field to set"
                f"{nearest(name, known)}; allowed are {', '.join(sorted(known))}."
            )
        kind = type(known[name])
        fits = isinstance(value, int | float) if kind is float else type(value) is kind
        if known[name] is not None and not fits:
            raise CompressionError(f"model.config.{name}: got {value!r}; allowed is a value of type {kind.__name__}.")
        setattr(config, name, value)


def _modality(config: PreTrainedConfig, task: Task | None, where: Path | str) -> str:
    """`"image"` or `"text"`: the task's; without one, that of the first mapping that knows the architecture."""
    known = {"image": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, "text": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING}
    for modality in known if task is None else (task.modality,):
        if type(config) in known[modality]:
            return modality
    wanted = "image or text classification" if task is None else f"the {task.modality} task {task.name}"
    raise UnsupportedModelError(
        f"{where} is a {config.model_type!r} model, for which transformers has no class for {wanted}; allowed are the "
        "architectures of AutoModelForImageClassification (images) and AutoModelForSequenceClassification (text)."
    )


def _random(auto_class: type, config: PreTrainedConfig, where: Path | str, seed: int) -> PreTrainedModel:
    logger.warning("%s: all weights are random (seed %d).", where, seed)
    with _seeded(seed):
        try:
            return auto_class.from_config(config, dtype=torch.float32)
        except (
            ImportError,
            TypeError,
            ValueError,
        ) as error:  # unknown entries and arguments, sizes that do not go together
            raise CompressionError(f"{where} cannot be built from its config: {error}") from error


def _pretrained(
    auto_class: type, config: PreTrainedConfig, where: Path | str, revision: str | None, seed: int
) -> PreTrainedModel:
    if isinstance(where, Path):
        check_weights(where)
    trained_head = has_trained_head(config)
    with _seeded(seed), _without_report():
        try:
            model, info = auto_class.from_pretrained(
                str(where),
                config=config,
                revision=revision,
                dtype=torch.float32,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # judged just below, with a message that says which weights
                output_loading_info=True,
            )
        except CompressionError:
            raise
        except (RuntimeError, ValueError, ImportError, TypeError, SafetensorError) as error:
            raise CompressionError(f"{where} cannot be loaded: {error}") from error
    _check_loaded(model, info, trained_head, where)
    return model


def _check_loaded(model: PreTrainedModel, info: dict, trained_head: bool, where: Path | str) -> None:
    """Only a head may be fresh, and only where the checkpoint has none."""
    fresh = dict.fromkeys(info["missing_keys"], "missing")
    for name, stored, wanted in info["mismatched_keys"]:
        fresh[name] = f"of shape {tuple(stored)} instead of {tuple(wanted)}"
    wrong = {name: what for name, what in fresh.items() if trained_head or not _in_head(model, name)}
    if wrong:
        listed = _listed(f"{name} is {what}" for name, what in wrong.items())
        raise CompressionError(
            f"The weights of {where} do not fit its config.json ({type(model).__name__}): {listed}. Both must come "
            "from the same model; fetch or save the folder again."
        )
    if fresh:
        logger.warning("%s: the head is fresh (%s); train before you measure.", where, _listed(fresh))
    lost = [name for name in info["unexpected_keys"] if not _in_head(model, name)]
    if lost:
        message = "%s: the model has no place for %d weights of the checkpoint (%s)."
        logger.warning(message, where, len(lost), _listed(lost))


def _in_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a parameter belongs to what tasks put on top of the encoder: a head, or a pooler."""
    if model.config.model_type == "timm_wrapper":
        classifiers = model.timm_model.get_classifier()  # a tuple for networks with a second, distilled head
        classifiers = classifiers if isinstance(classifiers, tuple) else (classifiers,)
        heads = [prefix for prefix, module in model.named_modules() if any(module is head for head in classifiers)]
        return name.startswith(tuple(f"{head}." for head in heads))
    return not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name


def _listed(texts: Iterable[str]) -> str:
    texts = sorted(texts)
    return "; ".join(texts[:4]) + (f"; and {len(texts) - 4} more" if len(texts) > 4 else "")


def _tokenizer(where: Path | str, task: Task | None, from_config: bool, revision: str | None) -> Any:
    if task is None and (from_config if isinstance(where, str) else not has_tokenizer(where)):
        return None
    return load_tokenizer(where, revision)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a generator of its own, so that loading leaves the caller's random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep back the table of missing and unexpected keys that transformers logs: `_check_loaded` judges them."""

    def passes(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    report = logging.getLogger("transformers.modeling_utils")
    report.addFilter(passes)
    try:
        yield
    finally:
        report.removeFilter(passes)
