"""Pruning in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..registry import Target, check_trains, get_method
from ..training import Context, StepReport, apply_method, serving


def prune(
    model: nn.Module,
    *,
    method: str = "magnitude",
    target: dict | Target | None = None,
    data: Any = None,
    collate_fn: Callable | None = None,
    seed: int = 0,
    distill: dict | None = None,
    training: dict | None = None,
    baseline: nn.Module | Callable[[], nn.Module] | None = None,
    output_dir: str | None = None,
    measure: dict | None = None,
    **options,
) -> StepReport:
    """Prune a model in place until it meets a target.

    The result is an ordinary, smaller model: save it with `save_pretrained`, and after `import hf_compress` load it
    with `from_pretrained`. Optimizers made before have to be made anew.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT or ELECTRA encoder, or a convolutional timm network in
            `TimmWrapperForImageClassification`. With `depth` and `repair=False` any model with a chain of blocks.
        method (`str`, *optional*, defaults to `"magnitude"`):
            A method of the technique `prune`; `hf-compress methods` lists them.
        target (`dict`):
            What is to be left, as a fraction of `baseline`: `{"macs": 0.5}` or `{"params": 0.5}`, with
            `"scope": "encoder"` for the repeated blocks only; or, with methods that take it, `{"latency": 0.5}`.
        data (`datasets.Dataset`, *optional*):
            Training examples, for methods that look at data and for `distill`.
        collate_fn (`Callable`, *optional*):
            Makes a batch of examples.
        seed (`int`, *optional*, defaults to 0):
            Of everything random.
        distill (`dict`, *optional*):
            Options of distillation; the model is then trained after the surgery, by default from the model as it came.
        training (`dict`, *optional*):
            Fields of `TrainingArguments` for that training.
        baseline ([`~transformers.PreTrainedModel`] or `Callable`, *optional*):
            The dense model, or what loads it: what `target` is a fraction of, and the teacher of `distill`. It is
            needed where `model` is compressed already.
        output_dir (`str`, *optional*):
            Where checkpoints of a training go.
        measure (`dict`, *optional*):
            What a target of latency speaks of: `runtime`, `precision`, `batch` (by default 1, where a recipe takes 128
            images), `length`, `threads` and `seconds` of a [`~measurement.Serving`]. At `length` MACs are counted too.
        **options:
            Options of the method, such as those of [`MagnitudeOptions`].

    Returns:
        [`StepReport`]: what was reached, the cost, the seconds, the widths, and the warnings.

    Raises:
        [`TargetError`]: the target is met already or out of reach; nothing was changed.
        [`UnsupportedModelError`]: another architecture.
        [`RecipeError`]: an unknown or invalid option, or `training` where nothing trains.

    Example:

    ```python
    import hf_compress as hc

    report = hc.prune(model, target={"macs": 0.5, "scope": "encoder"})
    model.save_pretrained("small")
    ```
    """
    check_trains(get_method("prune", method), training, distill)
    if baseline is model:
        baseline = None  # a copy of what enters is made where it is needed
    context = Context(
        data=data,
        collate_fn=collate_fn,
        baseline=baseline,
        target=target if target is None or isinstance(target, Target) else Target.from_dict(target),
        training=training,
        seed=seed,
        output_dir=output_dir,
        length=(measure or {}).get("length"),
    )
    context.serving = serving(context, **(measure or {}))
    if baseline is not None:
        context.set_baseline_cost(context.cost(context.baseline()))
    return apply_method(model, "prune", method, options, context, distill=distill)
