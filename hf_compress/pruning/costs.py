"""What units cost: parameters and multiply-accumulates as a function of how many of them stay.

At how many places each layer works is observed while `context.cost` counts the model; from then on the cost of any
selection is a sum over layers of rows times columns, so that thousands of them can be compared in no time. The model
that is cut out in the end is counted again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ..errors import CompressionError
from ..measurement.blocks import encoder_modules
from ..registry import Cost, Target
from .units import Slice, UnitGroup, is_depthwise, side_size


@dataclass
class _Layer:
    """A layer that units live in: its cost is linear in its rows and in rows times columns."""

    row_cost: float  # of a row: bias, channels of a normalization
    weight_cost: float  # of a row and a column
    rows: int
    columns: int
    row_groups: list[tuple[str, int, int]] = field(default_factory=list)  # group, positions a unit, units
    column_groups: list[tuple[str, int, int]] = field(default_factory=list)

    def cost(self, kept: Mapping[str, int]) -> float:
        rows = self.rows - sum(each * (size - kept[name]) for name, each, size in self.row_groups)
        columns = self.columns - sum(each * (size - kept[name]) for name, each, size in self.column_groups)
        return rows * self.row_cost + rows * columns * self.weight_cost


class CostModel:
    """The figure a target speaks of (parameters or MACs, of the model or of its encoder), for any widths.

    Args:
        model ([`~transformers.PreTrainedModel`]): the model the groups were found in.
        groups (`Sequence[UnitGroup]`): its groups.
        target ([`Target`]): which figure; `"macs"` or `"params"`.
        positions (`Mapping[str, float]`): at how many positions of an example each layer works.
        now (`float`): the figure of `model` as it stands.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[UnitGroup],
        target: Target,
        positions: Mapping[str, float],
        now: float,
    ):
        self._target, self._positions, self.now = target, positions, now
        self._inside = _encoder_names(model) if target.scope == "encoder" else None
        self._layers: dict[str, _Layer] = {}
        self._extra: dict[str, float] = {}
        for group in groups:
            for part in group.slices:
                if self._counts(part.module):
                    self._enter(model, group, part)
            if group.kind == "heads" and target.kind == "macs" and self._counts(group.name):
                # queries times keys, and weights times values
                head_size, tokens = group.slices[0].positions, positions[group.slices[0].module]
                self._extra[group.name] = 2.0 * head_size * tokens * tokens
        self._touched = {group.name: [] for group in groups}
        for layer in self._layers.values():
            for name in {name for name, *_ in (*layer.row_groups, *layer.column_groups)}:
                self._touched[name].append(layer)
        self._constant = now - self._units({group.name: group.size for group in groups})

    @classmethod
    def measured(
        cls, model: nn.Module, groups: Sequence[UnitGroup], target: Target, count: Callable[[nn.Module], Cost]
    ) -> CostModel:
        """Observe the model while `count`, a context's `cost`, runs it."""
        if target.kind not in ("macs", "params"):
            raise CompressionError(
                f"target.{target.kind}: got it for pruning, which counts macs or params; use these."
            )
        names = sorted({part.module for group in groups for part in group.slices})
        with _Uses(model, names) as uses:
            now = count(model).of(target)
        return cls(model, groups, target, uses.positions, now)

    def after(self, model: nn.Module, groups: Sequence[UnitGroup], kept: Mapping[str, int]) -> CostModel:
        """The costs of `model`, of which the `groups` are left once it has come down to the widths `kept`."""
        return CostModel(model, groups, self._target, self._positions, self.total(kept))

    def total(self, kept: Mapping[str, int]) -> float:
        """The figure when `kept` units of each group stay."""
        return self._constant + self._units(kept)

    def change(self, kept: Mapping[str, int], name: str, width: int) -> float:
        """What the figure gains when the group `name` has another width than in `kept`."""
        other = {**kept, name: width}
        layers = sum(layer.cost(other) - layer.cost(kept) for layer in self._touched[name])
        return layers + self._extra.get(name, 0.0) * (width - kept[name])

    def widths(self, group: UnitGroup) -> range:
        """Every width has a cost of its own."""
        return range(group.size + 1)

    def _units(self, kept: Mapping[str, int]) -> float:
        return sum(layer.cost(kept) for layer in self._layers.values()) + sum(
            each * kept[name] for name, each in self._extra.items()
        )

    def _counts(self, name: str) -> bool:
        return self._inside is None or name in self._inside

    def _enter(self, model: nn.Module, group: UnitGroup, part: Slice) -> None:
        if part.module not in self._layers:
            module = model.get_submodule(part.module)
            self._layers[part.module] = _layer(module, self._target, self._positions[part.module])
        layer = self._layers[part.module]
        (layer.row_groups if part.side == "out" else layer.column_groups).append(
            (group.name, part.positions, group.size)
        )


def _layer(module: nn.Module, target: Target, positions: float) -> _Layer:
    if isinstance(module, nn.Linear | nn.Conv2d):
        kernel = module.weight[0, 0].numel()
        columns = 1 if is_depthwise(module) else side_size(module, "in")
        bias = 0 if module.bias is None or target.kind == "macs" else 1
        weight_cost = kernel * (positions if target.kind == "macs" else 1)
        return _Layer(bias, weight_cost, side_size(module, "out"), columns)
    parameters = sum(parameter is not None for parameter in (module.weight, module.bias))
    return _Layer(parameters if target.kind == "params" else 0, 0, module.num_features, 0)


def _encoder_names(model: nn.Module) -> set[str]:
    inside = {id(module) for block in encoder_modules(model) for module in block.modules()}
    return {name for name, module in model.named_modules() if id(module) in inside}


class _Uses:
    """Observes at how many positions (pixels, tokens) of an example each layer works, in a forward of the model."""

    def __init__(self, model: nn.Module, names: Sequence[str]):
        self.model, self.names = model, names
        self.positions: dict[str, float] = dict.fromkeys(names, 0.0)
        self._batch = 1

    def __enter__(self):
        self._handles = [self.model.register_forward_pre_hook(self._start, with_kwargs=True)]
        for name in self.names:
            module = self.model.get_submodule(name)
            self._handles.append(module.register_forward_hook(self._counter(name)))
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()

    def _start(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._batch = next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        self.positions.update(dict.fromkeys(self.names, 0.0))

    def _counter(self, name: str):
        def count(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            self.positions[name] += output.numel() / side_size(module, "out") / self._batch

        return count
