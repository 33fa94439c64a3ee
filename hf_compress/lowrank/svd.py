"""Factorization by singular value decomposition: the method `factorize/svd`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import RecipeError, TargetError, UnsupportedModelError
from ..measurement import encoder_modules
from ..measurement.moments import Moments, input_moments
from ..registry import Cost, StepContext, Target, register_method
from .factors import Basis, Metric, decompose
from .layers import Layer, find_layers, observe, replace
from .ranks import Option, candidate_ranks, least_cost, ranks_for_budget, ranks_for_energy, ranks_for_rank


logger = logging.getLogger(__name__)


@dataclass
class SvdOptions:
    """Options of `factorize/svd`. How far to go is said by the step's target, or by `rank`, or by `energy`.

    Args:
        weighting (`str`, *optional*, defaults to `"none"`): what the truncation keeps best: the weight ("none"), or
            the layer's output on calibration examples ("activation": the second moment of the layer's input; where
            the layer has a bias, the covariance, and the bias takes up the mean of what was cut).
        scheme (`str`, *optional*, defaults to `"auto"`): of convolutions. "channel": a full kernel to `rank` channels,
            then 1 x 1; "spatial": a vertical kernel to `rank` channels, then a horizontal one; "auto": for every layer
            the one that loses less.
        rank (`int`, *optional*): the same rank for every layer.
        energy (`float`, *optional*): for every layer the least rank that keeps this part of the squared norm.
        allocation (`str`, *optional*, defaults to `"relative"`): how a target is spread over the layers: so that the
            sum of their squared errors is least, each as a part of its layer's squared norm ("relative") or as it is
            ("absolute"); or "uniform", the same fraction of every layer.
        round_to (`int`, *optional*, defaults to 8): ranks are multiples of it, which suits vector units.
        exclude (`list[str]`, *optional*): patterns (`*`, `?`) for names of modules that stay dense, with all in them.
        head (`bool`, *optional*, defaults to `False`): whether the task head, the pooler and the embeddings'
            projections may be factorized too.
        calibration_samples (`int`, *optional*, defaults to 256): training examples for the weighting.
    """

    weighting: Literal["none", "activation"] = "none"
    scheme: Literal["auto", "spatial", "channel"] = "auto"
    rank: int | None = None
    energy: float | None = None
    allocation: Literal["relative", "absolute", "uniform"] = "relative"
    round_to: int = 8
    exclude: list[str] = field(default_factory=list)
    head: bool = False
    calibration_samples: int = 256

    def __post_init__(self):
        allowed = {
            "weighting": ("none", "activation"),
            "scheme": ("auto", "spatial", "channel"),
            "allocation": ("relative", "absolute", "uniform"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise RecipeError(f"{name}: got {getattr(self, name)!r}; allowed are {', '.join(values)}.")
        for name in ("rank", "round_to", "calibration_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name}: got {value!r}; give a whole number of at least 1.")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise RecipeError(f"energy: got {self.energy!r}; give a part of the squared norm, above 0 and at most 1.")
        if self.rank is not None and self.energy is not None:
            raise RecipeError("rank: it stands beside energy; give one of them.")
        if isinstance(self.exclude, str):
            raise RecipeError(f"exclude: got {self.exclude!r}; give a list of patterns.")

    def check_target(self, target: Target | None) -> None:
        """A recipe is checked with this before anything is loaded."""
        given = [name for name in ("rank", "energy") if getattr(self, name) is not None]
        if (target is None) == (not given):
            raise RecipeError(
                f"target: got {'none' if target is None else 'one'} and {' and '.join(given) or 'no rank or energy'}; "
                "give exactly one of target, rank and energy."
            )


@register_method(
    "factorize",
    "svd",
    options=SvdOptions,
    targets={"macs", "params"},
    paper="Denton et al. 2014 (arXiv:1404.0736), Jaderberg et al. 2014 (arXiv:1405.3866), Chen et al. 2021 (DRONE)",
    supports=("conv", "linear", "bert", "timm"),
)
def factorize_svd(model: nn.Module, options: SvdOptions, context: StepContext) -> None:
    """Replace linear and convolutional layers by two thinner ones, the truncated SVD of their weights.

    A layer stays dense where its factors would not be smaller, and where the allocation finds that it pays. The task
    head, the pooler and the embeddings stay dense unless `options.head` is set.

    Raises:
        [`~errors.RecipeError`]: not exactly one of target, `rank` and `energy` is given.
        [`~errors.TargetError`]: the target is met already or out of reach; nothing has been changed.
        [`~errors.UnsupportedModelError`]: the model has no layer that can be factorized.
    """
    options.check_target(context.target)
    within = encoder_modules(model) if context.target and context.target.scope == "encoder" else None
    layers, dense = find_layers(
        model, scheme=options.scheme, exclude=options.exclude, head=options.head, within=within
    )
    cost = observe(model, layers, context)
    ranks = {layer.name: candidate_ranks(layer, options.round_to, options.rank) for layer in layers}
    if context.target is not None:
        _check_reach(layers, ranks, cost, context, options)
    if not any(ranks.values()):
        raise UnsupportedModelError(_nothing_to_do(model, dense, options))
    moments = _moments(model, layers, options, context)
    bases = _decompose_all(layers, ranks, moments, context)
    chosen = _choose(layers, ranks, bases, cost, options, context)
    facts = {}
    pending = {layer.name: layer for layer in layers}
    layers.clear()
    for name in context.progress(list(pending), "Replacing", total=len(pending)):
        # layer and bases are let go one by one, so that dense weights and factors are never all there together
        layer = pending.pop(name)
        found = {scheme: bases.pop((name, scheme)) for scheme in ranks[name]}
        facts[name] = _apply(model, layer, chosen[name], found, moments.pop(name, None))
    context.note(layers=facts, kept_dense=dense)
    logger.info("Factorized %d of %d layers", sum(option is not None for option in chosen.values()), len(facts))


def _nothing_to_do(model: nn.Module, dense: dict[str, str], options: SvdOptions) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:5])
    return (
        f"{type(model).__name__} has no linear or convolutional layer that factors would make smaller"
        f"{f' at rank {options.rank}' if options.rank else f' in ranks that are multiples of {options.round_to}'}. "
        f"{f'Kept dense ({len(dense)}): {reasons}. ' if reasons else ''}Lower rank or round_to, or exclude less."
    )


def _check_reach(layers, ranks, cost: Cost, context: StepContext, options: SvdOptions) -> None:
    """Refuse a target that is met, or below what the least ranks give, before anything is computed."""
    target, current, baseline = context.target, cost.of(context.target), context.baseline_cost.of(context.target)
    floor = current - sum(layer.cost(target.kind) for layer in layers) + least_cost(layers, ranks, target.kind)
    if floor <= context.budget < current:
        return
    problem = "is met already" if context.budget >= current else "is out of reach"
    hint = " (round_to: 1 reaches a little lower)" if options.round_to > 1 and context.budget < current else ""
    raise TargetError(
        f"target.{target.kind}: {target.fraction:g} of the baseline (scope {target.scope}) {problem}; the model is at "
        f"{current / baseline:.4f} now, and factorize/svd can bring it down to {floor / baseline:.4f}{hint}."
    )


def _moments(model, layers: Sequence[Layer], options: SvdOptions, context: StepContext) -> dict[str, Moments]:
    if options.weighting == "none":
        return {}
    batches = context.progress(context.calibration(options.calibration_samples), "Watching activations")
    moments = input_moments(model, {layer.name: layer.module for layer in layers}, batches)
    unseen = [layer.name for layer in layers if layer.name not in moments]
    if unseen:
        raise UnsupportedModelError(
            f"{len(unseen)} layers saw no calibration input ({', '.join(unseen[:3])}); exclude them, or take "
            "weighting 'none'."
        )
    return moments


def _decompose_all(layers, ranks, moments: dict[str, Moments], context: StepContext) -> dict[tuple[str, str], Basis]:
    """A basis for every layer and scheme that has a candidate, kept no wider than its greatest candidate.

    Eigenvalue problems of this size gain little from threads, and lose much where other programs share the cores; so
    every core works on a matrix of its own. That makes results independent of the number of threads, too.
    """
    tasks = [(layer, scheme) for layer in layers for scheme in ranks[layer.name]]

    def work(task: tuple[Layer, str]) -> Basis:
        layer, scheme = task
        return _basis(layer, scheme, max(ranks[layer.name][scheme]), moments)

    threads = torch.get_num_threads()
    workers = threads if tasks[0][0].module.weight.device.type == "cpu" else 1
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            found = list(context.progress(pool.map(work, tasks), "Decomposing", total=len(tasks)))
    finally:
        torch.set_num_threads(threads)
    return {(layer.name, scheme): basis for (layer, scheme), basis in zip(tasks, found, strict=True)}


def _basis(layer: Layer, scheme: str, max_rank: int, moments: dict[str, Moments]) -> Basis:
    matrix = layer.matrix(scheme)
    if layer.name not in moments:
        return decompose(matrix, max_rank=max_rank)
    covariance = moments[layer.name].matrix(centred=layer.module.bias is not None)
    if scheme != "spatial":
        return decompose(matrix, right=Metric(covariance), max_rank=max_rank)
    return _spatial_basis(layer, matrix, covariance, max_rank)


def _spatial_basis(layer: Layer, matrix: Tensor, covariance: Tensor, max_rank: int) -> Basis:
    """The vertical kernel sees the patch column by column, so its metric is the mean of the columns' own.

    That leaves out how neighbouring columns go together, and the factors are not the very best for the output; the
    errors that are reported, and that the allocation goes by, are those of the output, exactly.
    """
    channels, (height, width) = layer.module.in_channels, layer.module.kernel_size
    blocks = covariance.reshape(channels, height, width, channels, height, width)
    blocks = blocks.permute(2, 5, 0, 1, 3, 4).reshape(width, width, channels * height, channels * height)
    own = blocks[range(width), range(width)].sum(0)
    basis = decompose(matrix, right=Metric(own), max_rank=max_rank)
    down, up = (factor.double() for factor in basis.factors(matrix, max_rank))
    up = up.reshape(-1, width, max_rank)  # (out, kw, rank)
    kernel = matrix.double().reshape(-1, width, channels * height)
    total = cross = gram = 0.0
    for x in range(width):
        for y in range(width):
            metric = blocks[x, y]
            total = total + (kernel[:, x] @ metric * kernel[:, y]).sum()
            cross = cross + (up[:, x] * (kernel[:, y] @ (metric.T @ down.T))).sum(0)
            gram = gram + (up[:, x].T @ up[:, y]) * (down @ metric @ down.T)
    # |K - K_r|^2 = |K|^2 - 2 <K, K_r> + |K_r|^2, for every r at once
    errors = total - 2 * cross.cumsum(0) + gram.cumsum(0).cumsum(1).diagonal()
    errors = torch.cat([total.reshape(1), errors]).clamp_min(0)
    return dataclasses.replace(basis, errors=errors)


def _choose(layers, ranks, bases, cost: Cost, options: SvdOptions, context: StepContext) -> dict[str, Option]:
    if options.rank is not None:
        return ranks_for_rank(layers, ranks, bases, options.rank)
    if options.energy is not None:
        return ranks_for_energy(layers, ranks, bases, options.energy)
    kind = context.target.kind
    fixed = cost.of(context.target) - sum(layer.cost(kind) for layer in layers)
    return ranks_for_budget(layers, ranks, bases, kind, context.budget - fixed, options.allocation)


@torch.no_grad()
def _apply(model: nn.Module, layer: Layer, option: Option, bases: dict[str, Basis], moment: Moments | None) -> dict:
    """Put the factors in place, and say what was done."""
    if option is None:
        full = layer.full_rank()
        return {"rank": full, "of": full, "error": 0.0, "scheme": "dense"}
    scheme, rank = option
    basis = bases[scheme]
    down, up = basis.factors(layer.matrix(scheme), rank)
    bias = layer.module.bias
    if moment is not None and bias is not None:
        cut = layer.module.weight.flatten(1).to(up.dtype) - layer.rebuilt(scheme, down, up)
        bias = (bias + cut @ moment.mean.to(up.dtype)).to(bias.dtype)
    replace(model, layer, layer.replacement(scheme, down, up, bias))
    error = round(basis.relative_error(rank), 6)
    return {"rank": rank, "of": layer.full_rank(scheme), "error": error, "scheme": scheme}
