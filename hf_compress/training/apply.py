"""One step: check it, run its method, train if it asks for it, and say what came of it."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .. import load_methods
from ..errors import CompressionError, RecipeError, TargetError
from ..fields import from_mapping
from ..measurement.openvino_export import require_openvino
from ..registry import Cost, Method, Target, get_method
from ..structure import check_trackable, track
from .arguments import check_training
from .context import BASELINE, Context


logger = logging.getLogger(__name__)

SURGICAL = ("prune", "factorize")  # techniques that change modules
TOLERANCE = 0.01  # a target missed by more than this share of itself is a warning


@dataclass
class StepReport:
    """What a step did.

    Attributes:
        technique (`str`), method (`str`): which step.
        model: the model afterwards: the one given, or what an export made of it. Not part of `to_dict`.
        target (`dict`, *optional*): as in a recipe, and `achieved` (`float`, *optional*): the same figure as a
            fraction of the baseline.
        cost ([`~registry.Cost`], *optional*): afterwards; `None` for an export.
        seconds (`dict`): by operation: `total`, and its parts `surgery`, `train`, `calibrate`.
        notes (`dict`): facts from the method, such as `layers` and `epochs`.
        warnings (`list[str]`): what the reader of a result has to know.
    """

    technique: str
    method: str
    model: Any = field(default=None, repr=False)
    target: dict | None = None
    achieved: float | None = None
    cost: Cost | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self, earlier: dict | None = None) -> dict:
        """JSON-plain. `earlier` is the report of the step's first phase, which this one goes on from: names and target
        stay the first one's, seconds are added, notes and warnings continued."""
        plain = {
            "technique": self.technique,
            "method": self.method,
            "target": self.target,
            "achieved": self.achieved,
            "cost": None if self.cost is None else asdict(self.cost),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "notes": self.notes,
            "warnings": self.warnings,
        }
        if earlier is None:
            return plain
        seconds = dict(earlier["seconds"])
        for name, value in plain["seconds"].items():
            seconds[name] = round(seconds.get(name, 0.0) + value, 3)
        return {
            **earlier,
            "cost": plain["cost"] or earlier["cost"],
            "seconds": seconds,
            "notes": {**earlier["notes"], **self.notes},
            "warnings": [*earlier["warnings"], *self.warnings],
        }


def apply_method(
    model: nn.Module,
    technique: str,
    method: str,
    options: Any,
    context: Context,
    *,
    distill: Any = None,
    recover: bool = True,
) -> StepReport:
    """Apply a registered method to `model`, in place.

    Whatever can be checked before the surgery is checked before it. Nothing is written, except checkpoints into the
    context's folder while the model trains.

    Args:
        model ([`~transformers.PreTrainedModel`]): changed in place; after an error possibly half-way.
        technique (`str`), method (`str`): names from the registry.
        options (dataclass or `dict`, *optional*): the method's options; a mapping is read strictly.
        context ([`Context`]): data, target, training and the dense model.
        distill (dataclass or `dict`, *optional*): options of distillation. A method that trains uses it while it does;
            a training-free one trains with it after the surgery.
        recover (`bool`, *optional*, defaults to `True`): whether that training after the surgery is part of this call.
            Whether it can be is looked at in any case.

    Returns:
        [`StepReport`]: with the model in `model`.

    Raises:
        `CompressionError`: if data, labels or a teacher are missing; `StructureError`: if the model could not be saved
        after the surgery; `RecipeError`: if an option or the kind of target is unknown; `TargetError`: if the target
        is met already or cannot be reached.
    """
    started = time.perf_counter()
    chosen = get_method(technique, method)
    options = _read(chosen, options, technique)
    if distill is not None:
        load_methods()  # a verb has imported its own technique only
        distill = _read(get_method("distill", "logits"), distill, f"{technique}.distill")
    if hasattr(options, "check_target"):
        options.check_target(context.target)
    check_training(context.training)
    context.expect(model)
    _check_needs(chosen, options, context, distill)
    if technique in SURGICAL and isinstance(model, PreTrainedModel):  # others are refused by what the surgery is for
        check_trackable(model)
    is_timed = context.target is not None and context.target.kind == "latency"
    if not context.has_baseline and (is_timed or _teacher(options, distill) == BASELINE):
        context.keep_baseline(copy.deepcopy(model).eval())  # a verb's dense model is the one that enters
    _check_target(model, chosen, context)
    if distill is not None:
        term = distill.term(model, context)  # here, so that a teacher that does not fit shows before the surgery
        if chosen.trains:
            context.loss_terms.append(term)
        del term  # surgery needs the memory of the teacher; a training after it loads it again
    made = chosen.function(model, options, context)
    result = model if made is None else made
    if technique in SURGICAL:
        target = None if context.target is None else context.target.to_dict()
        track(model, technique=technique, method=method, target=target)
    context.loss_terms.clear()
    if distill is not None and not chosen.trains:
        distill.check(model, context)  # of the model as it is now, before it is saved and waited for
        if recover:
            context.train(model, loss_terms=[distill.term(model, context)])
    report = StepReport(technique, method, model=result, notes=context.notes)
    report.warnings = list(context.notes.pop("warnings", []))
    if made is None:
        report.cost = context.cost(model)
        _judge(report, context)
    report.seconds = _seconds(time.perf_counter() - started, context)
    return report


def _read(method: Method, options: Any, path: str) -> Any:
    if isinstance(options, method.options):
        return options
    if options is None or isinstance(options, Mapping):
        return from_mapping(method.options, dict(options or {}), path)
    raise RecipeError(
        f"{path}: got {type(options).__name__}; the method {method.name} takes {method.options.__name__} or a mapping."
    )


def _teacher(options: Any, distill: Any) -> str | None:
    """The teacher's name in a distill block, or in the method's own options."""
    return getattr(options if distill is None else distill, "teacher", None)


def _check_needs(method: Method, options: Any, context: Context, distill: Any) -> None:
    name = f"{method.technique}/{method.name}"
    # finetuning with a teacher can do without; the teacher's term says so if its weight leaves a share to the labels
    needs_labels = "labels" in method.needs and not (method.technique == "finetune" and distill is not None)
    reasons = {
        "it trains": method.trains,
        "it trains after the surgery": distill is not None and not method.trains,
        "it calibrates on examples": "calibration" in method.needs,
        "it needs labels": needs_labels,
    }
    if "openvino" in (getattr(options, "teacher_runtime", None), getattr(distill, "teacher_runtime", None)):
        require_openvino()
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None and context.data is None:
        raise CompressionError(f"{name}: {reason}, and got no data; pass data= and, if needed, collate_fn=.")
    if needs_labels and not context.data.has_labels:
        raise CompressionError(
            f"{name}: it needs labels, and the data has none; give data with a column 'label' or 'labels', or take a "
            "method that needs none."
        )
    is_student = method.technique == "distill" or (distill is not None and method.technique == "finetune")
    if is_student and _teacher(options, distill) == BASELINE and not context.has_baseline:
        raise CompressionError(
            f"{name}: the teacher is the baseline, and no dense model is known here; pass baseline=, or name another "
            "teacher."
        )


def _check_target(model: nn.Module, method: Method, context: Context) -> None:
    target = context.target
    if target is None:
        if context.baseline_cost is None and method.targets:
            context.set_baseline_cost(context.cost(model))
        return
    name = f"{method.technique}/{method.name}"
    if target.kind not in method.targets:
        allowed = " or ".join(sorted(method.targets))
        raise RecipeError(
            f"target.{target.kind}: {name} takes {f'a target of {allowed}' if allowed else 'no target'}."
        )
    current = context.cost(model)
    if context.baseline_cost is None:
        context.set_baseline_cost(current)
        current = context.baseline_cost
    fraction = _fraction(current, context.baseline_cost, target)
    margin = 1 + (TOLERANCE if target.kind == "latency" else 0)  # times are never the same twice
    if fraction <= target.fraction * margin:
        raise TargetError(
            f"target.{target.kind}: got {target.fraction:g}, and the model that enters this step has {fraction:.4g} "
            f"of the baseline's {target.kind} (scope {target.scope}), so it is met already; give less than "
            f"{fraction / margin:.4g}, or leave the step out."
        )


def _fraction(cost: Cost, baseline: Cost, target: Target) -> float:
    whole = baseline.of(target)
    if not whole > 0:
        raise TargetError(
            f"target.{target.kind}: the baseline has none in the scope {target.scope}; use the scope 'model'."
        )
    return cost.of(target) / whole


def _judge(report: StepReport, context: Context) -> None:
    target = context.target
    if target is None:
        return
    report.target = target.to_dict()
    report.achieved = _fraction(report.cost, context.baseline_cost, target)
    missed = report.achieved / target.fraction - 1
    # a time may well come out shorter: kernels have steps, and other times noise
    if missed > TOLERANCE or (-missed > TOLERANCE and target.kind != "latency"):
        report.warnings.append(
            f"The target was {target.fraction:g} of the baseline's {target.kind} (scope {target.scope}), and "
            f"{report.achieved:.4g} is left: {'missed' if missed > 0 else 'overshot'} by {abs(missed):.1%}."
        )
        logger.warning(report.warnings[-1])


def _seconds(total: float, context: Context) -> dict[str, float]:
    train, calibrate = context.seconds.get("train", 0.0), context.seconds.get("calibrate", 0.0)
    return {"total": total, "surgery": max(0.0, total - train - calibrate), "train": train, "calibrate": calibrate}
