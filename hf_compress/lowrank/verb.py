"""`factorize`, on any model and any data, without a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..registry import Target, check_trains, get_method
from ..training import Context, StepReport, apply_method


def factorize(
    model: nn.Module,
    *,
    method: str = "svd",
    target: dict | Target | None = None,
    data: Any = None,
    collate_fn: Callable | None = None,
    seed: int = 0,
    distill: Any = None,
    training: dict[str, Any] | None = None,
    baseline: nn.Module | Callable[[], nn.Module] | None = None,
    output_dir: str | None = None,
    **options,
) -> StepReport:
    """
    Replace linear and convolutional layers of a model by pairs of thinner ones, in place.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any model; convolutional, pruned and partly factorized ones included.
        method (`str`, *optional*, defaults to `"svd"`):
            A registered method of the technique `factorize`.
        target (`dict`, *optional*):
            What is to be left, such as `{"params": 0.5}` or `{"macs": 0.5, "scope": "encoder"}`, as a fraction of
            `baseline` or, without it, of the model given.
        data (`datasets.Dataset` or another data set, *optional*):
            Training examples, for what calibrates or trains.
        collate_fn (`Callable`, *optional*):
            Makes a batch of examples.
        seed (`int`, *optional*, defaults to 0):
            Of the choice of calibration examples, and of training.
        distill (`dict`, *optional*):
            Options of a distillation that trains the model after the surgery; `training` (`dict`, *optional*) are its
            `TrainingArguments` fields.
        baseline ([`~transformers.PreTrainedModel`] or `Callable`, *optional*):
            The dense model, or what loads it: what `target` is a fraction of, and the teacher of `distill`. It is
            needed where `model` is compressed already.
        output_dir (`str`, *optional*):
            Where checkpoints of a training go.
        **options:
            Of the method; for `"svd"` see [`SvdOptions`].

    Returns:
        [`StepReport`]: with the rank of every layer in `notes["layers"]`, the cost and what was achieved.

    Raises:
        [`~errors.TargetError`]: the target is met already, or out of reach; nothing has been changed.
        [`~errors.RecipeError`]: an unknown option, not exactly one of `target`, `rank` and `energy`, or
            `training` where nothing trains.

    Example:

    ```python
    import hf_compress as hc

    hc.factorize(model, target={"params": 0.5}, weighting="activation", data=train, collate_fn=collator)
    model.save_pretrained("small")
    ```
    """
    if target is not None and not isinstance(target, Target):
        target = Target.from_dict(target)
    check_trains(get_method("factorize", method), training, distill)
    context = Context(
        data=data,
        collate_fn=collate_fn,
        baseline=baseline,
        target=target,
        training=training,
        seed=seed,
        output_dir=output_dir,
    )
    if baseline is not None:
        context.baseline_cost = context.cost(context.baseline())
    return apply_method(model, "factorize", method, options, context, distill=distill)
