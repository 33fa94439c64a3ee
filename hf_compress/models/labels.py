"""The labels of a task on a model's config, and whether a checkpoint's trained head fits them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import CompressionError


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..tasks import Task

logger = logging.getLogger(__name__)

_HEADS = ("ForSequenceClassification", "ForImageClassification")


def has_trained_head(config: PreTrainedConfig) -> bool:
    """Whether the checkpoint that `config` was saved with has a classification head of its own.

    The 1,000-class head of a checkpoint in timm's own format counts as part of the pretraining, and not as a head to
    keep: nobody downloads it to classify anything else with it.
    """
    return any(name.endswith(_HEADS) for name in config.architectures or ())


def set_labels(config: PreTrainedConfig, task: Task, source: str) -> None:
    """Write the label count, the label names and the problem type of `task` to `config`, in place.

    Args:
        config (`PreTrainedConfig`): as it came with the checkpoint.
        task (`Task`): the task the model is for.
        source (`str`): where the checkpoint came from, for the messages.

    Raises:
        `CompressionError`: if the checkpoint has a trained head, and the task has another number of labels, another
            kind of problem, or the same labels in another order.
    """
    if has_trained_head(config):
        _check_head(config, task, source)
    config.num_labels = task.num_labels
    if len(task.label_names) == task.num_labels:
        config.id2label = dict(enumerate(task.label_names))
        config.label2id = {name: index for index, name in enumerate(task.label_names)}
    config.problem_type = task.problem_type


def _check_head(config: PreTrainedConfig, task: Task, source: str) -> None:
    if config.num_labels != task.num_labels or config.problem_type not in (None, task.problem_type):
        got = f"{config.num_labels} labels ({_names(config)}{_problem(config)})"
        raise CompressionError(
            f"The head of {source} was trained on {got}; {task.name} has {task.num_labels} "
            f"({task.problem_type}). Give a checkpoint of this task, one without a head, or replace the head:\n"
            f"{_replacement(config, task, source)}"
        )
    theirs = [str(config.id2label[index]).lower() for index in range(config.num_labels)]
    ours = [str(name).lower() for name in task.label_names]
    if theirs == ours or not ours:
        return
    if sorted(theirs) == sorted(ours):
        order = [theirs.index(name) for name in ours]
        raise CompressionError(
            f"The head of {source} has the labels of {task.name} in another order: {', '.join(theirs)}, where the "
            f"data has {', '.join(ours)}; its accuracy would come out wrong. Take the rows {order} of the weight and "
            "bias of its last layer, in this order, set config.id2label and label2id to the data's, and save the "
            "model to a new folder."
        )
    if not all(name.startswith("label_") for name in theirs):
        message = "%s: the head was trained on the labels %s, and is taken for %s."
        logger.warning(message, source, ", ".join(theirs), ", ".join(ours))


def _names(config: PreTrainedConfig) -> str:
    names = [str(name) for name in list(config.id2label.values())[:4]]
    return ", ".join(names) + (", ..." if config.num_labels > 4 else "")


def _problem(config: PreTrainedConfig) -> str:
    return f"; {config.problem_type}" if config.problem_type else ""


def _replacement(config: PreTrainedConfig, task: Task, source: str) -> str:
    if getattr(config, "quantization_config", None) is not None:  # compressed layers are matched to their weights
        return (
            f"    import hf_compress, load it with its {config.num_labels} labels, put a new last layer in place, set "
            "config.num_labels and model.num_labels, and save it to a new folder"
        )
    image = task.modality == "image"
    auto_model = f"AutoModelFor{'Image' if image else 'Sequence'}Classification"
    lines = [
        f"from transformers import {auto_model}{'' if image else ', AutoTokenizer'}",
        f"{auto_model}.from_pretrained({source!r}, num_labels={task.num_labels}, problem_type={task.problem_type!r}, "
        "ignore_mismatched_sizes=True).save_pretrained('new-head')",
    ]
    if not image:
        lines.append(f"AutoTokenizer.from_pretrained({source!r}).save_pretrained('new-head')")
    return "\n".join(f"    {line}" for line in lines)
