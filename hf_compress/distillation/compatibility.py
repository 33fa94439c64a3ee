"""Whether a teacher can teach a student: the same labels in the same order, and inputs it can read."""

from __future__ import annotations

import logging
import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import CompressionError
from ..measurement.inputs import image_size
from ..training.data import forward_columns


logger = logging.getLogger(__name__)

VOCABULARY_PADDING = 128  # a vocabulary is at most rounded up by this much to a convenient size


def check_teacher(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Refuse a teacher whose logits or inputs do not mean what the student's mean.

    Raises:
        `CompressionError`: if the label count or the order of the labels differs, if one classifies and the other is a
            regression, if an example may have several labels, if the vocabularies or the sizes of images differ, or
            if the teacher is the student itself.
    """
    if teacher is student or any(module is student for module in teacher.modules()):
        raise CompressionError("teacher: got the student itself; give another model, such as copy.deepcopy(student).")
    ours, theirs = student.config, teacher.config
    if "multi_label_classification" in (getattr(config, "problem_type", None) for config in (ours, theirs)):
        raise CompressionError(
            "teacher: problem_type is multi_label_classification; distillation is for one label an example, or "
            "for scores."
        )
    if ours.num_labels != theirs.num_labels:
        raise CompressionError(
            f"teacher: it has {theirs.num_labels} labels and the student {ours.num_labels}; give a teacher of the "
            "same task, or load the student with num_labels="
            f"{theirs.num_labels} and ignore_mismatched_sizes=True for a fresh head."
        )
    if is_regression(student) != is_regression(teacher):
        kinds = {True: "a regression", False: "a classifier"}
        raise CompressionError(
            f"teacher: it is {kinds[is_regression(teacher)]} and the student {kinds[is_regression(student)]}; give a "
            "teacher of the same task, or set config.problem_type where it is missing."
        )
    _check_label_order(ours, theirs)
    _check_inputs(student, teacher)


def check_hidden_states(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Refuse a teacher whose hidden states are of another width, where both configs say how wide they are.

    Raises:
        `CompressionError`: if `hidden_size` differs.
    """
    ours, theirs = (getattr(model.config, "hidden_size", None) for model in (student, teacher))
    if None not in (ours, theirs) and ours != theirs:
        raise CompressionError(
            f"hidden: the student's states have {ours} numbers and the teacher's {theirs}; leave hidden out, or give "
            "a teacher of the same width."
        )


def is_regression(model: PreTrainedModel) -> bool:
    """Whether the model gives a score and no classes, by its config's `problem_type`, else by its label count."""
    problem_type = getattr(model.config, "problem_type", None)
    return problem_type == "regression" if problem_type else model.config.num_labels == 1


def accepted_inputs(model: nn.Module) -> set[str]:
    """The names of the inputs that `model` takes; a DistilBERT takes no `token_type_ids`, for example."""
    return set(forward_columns(model)) - {"labels", "return_dict"}


def token_types(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """The segments of texts and pairs laid out as `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`, for a teacher that
    knows them where the student takes none.

    Args:
        input_ids (`torch.Tensor` of shape `(examples, length)`), attention_mask (`torch.Tensor`, *optional*): a batch.

    Returns:
        `torch.Tensor`: `int64` `(examples, length)`, 1 in the second text of a pair. The separator is the token in
        which all examples end; if there is no such token, all are 0. Of a single text with a separator in its middle
        nothing tells that it is no pair.
    """
    attended = torch.ones_like(input_ids) if attention_mask is None else (attention_mask > 0).long()
    last = (attended * torch.arange(input_ids.shape[1], device=input_ids.device)).argmax(1, keepdim=True)
    ends = input_ids.gather(1, last)
    separators = ((input_ids == ends) & (attended > 0)).long()
    if not (ends == ends[0]).all():
        return torch.zeros_like(input_ids)
    second = separators.cumsum(1) - separators == 1
    return (second & (separators.sum(1, keepdim=True) == 2)).long() * attended


def renormalization(student: PreTrainedModel, teacher: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`(scale, shift)` of shape `(3, 1, 1)` from the student's normalized pixels to the teacher's.

    `None` where both use the same mean and standard deviation, or where one of the configs does not say.
    """
    ours, theirs = _pixel_statistics(student.config), _pixel_statistics(teacher.config)
    if ours is None or theirs is None or ours == theirs:
        return None
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in ours)
    teacher_mean, teacher_std = (torch.tensor(values).view(-1, 1, 1) for values in theirs)
    return std / teacher_std, (mean - teacher_mean) / teacher_std


def _check_label_order(ours: Any, theirs: Any) -> None:
    student = [str(ours.id2label[index]).lower() for index in range(ours.num_labels)]
    teacher = [str(theirs.id2label[index]).lower() for index in range(theirs.num_labels)]
    if student == teacher or any(_is_default(names) for names in (student, teacher)):
        return
    if sorted(student) == sorted(teacher):
        raise CompressionError(
            f"teacher: its labels are in another order, {', '.join(teacher)}, where the student has "
            f"{', '.join(student)}; it would teach the wrong classes. Reorder the rows of its last layer and its "
            "config.id2label, or load the student with the teacher's order."
        )
    logger.warning("The teacher's labels (%s) are taken for %s.", ", ".join(teacher[:6]), ", ".join(student[:6]))


def _is_default(names: list[str]) -> bool:
    return all(re.fullmatch(r"label_\d+", name) for name in names)


def _check_inputs(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    if student.main_input_name != teacher.main_input_name:
        raise CompressionError(
            f"teacher: it reads {teacher.main_input_name} and the student {student.main_input_name}; give a teacher "
            "of the same kind of input."
        )
    if student.main_input_name == "pixel_values":
        _check_images(student, teacher)
    ours, theirs = (getattr(model.config, "vocab_size", None) for model in (student, teacher))
    if ours is None or theirs is None or ours <= theirs < ours + VOCABULARY_PADDING:
        return
    raise CompressionError(
        f"teacher: its vocabulary has {theirs} entries and the student's {ours}, so the token numbers made for the "
        "student mean other words to it; give a teacher with the student's tokenizer."
    )


def _check_images(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    try:
        ours, theirs = image_size(student), image_size(teacher)
    except CompressionError:  # a configuration that states none
        return
    if ours != theirs:
        raise CompressionError(
            f"teacher: it was made for images of {_by(theirs)} (channels x height x width) and the student is given "
            f"{_by(ours)}, of which the teacher would say little; give a teacher for images of that size."
        )
    known = [_pixel_statistics(model.config) is not None for model in (student, teacher)]
    if known == [True, False]:
        logger.warning("The teacher's config does not say how its images are normalized; taken are the student's.")


def _by(size: tuple[int, int, int]) -> str:
    return " x ".join(map(str, size))


def _pixel_statistics(config: Any) -> tuple[list[float], list[float]] | None:
    settings = getattr(config, "pretrained_cfg", None)
    if not isinstance(settings, dict) or "mean" not in settings or "std" not in settings:
        return None
    return list(settings["mean"]), list(settings["std"])
