"""A layer's weights as a ridge regression of what it is to give on what it reads, a batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import CompressionError, UnsupportedModelError
from ..measurement.moments import input_rows
from ..structure import Constant
from .fits import scale_of


class Regression:
    """Sums for the regression, with an intercept if the layer has a bias or the normalization behind it has one.

    Args:
        name (`str`): of the layer, for messages.
        layer (`nn.Module`): a `Linear`, `Conv2d`, or the [`Constant`] that stands for one; `n` inputs, `m` outputs.
        norm (`nn.Module`, *optional*): the batch normalization that reads the layer and nothing else.
    """

    def __init__(self, name: str, layer: nn.Module, norm: nn.Module | None = None):
        self.name, self.layer, self.norm = name, layer, norm
        self.start = _coefficients(layer).cpu()
        self.gram = self.start.new_zeros(len(self.start), len(self.start))
        self.cross, self.energy = torch.zeros_like(self.start), 0.0

    def add(self, reads: Tensor, target: Tensor, weights: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            reads (`torch.Tensor`): what the layer reads.
            target (`torch.Tensor` of shape `(examples, ..., m)`): what it is to give, the channels last.
            weights (`torch.Tensor` of shape `(examples, length)`, *optional*): what tokens count, 0 for padding.
        """
        mask = None if weights is None else (weights > 0).to(target.device)
        target = target.flatten(0, -2) if mask is None else target[mask]
        weights = None if mask is None else weights.to(target)[mask]
        parts = [target[:, :0]] if isinstance(self.layer, Constant) else input_rows(self.layer, reads, mask)
        start = 0
        for rows in parts:  # tokens come all at once, patches of images some at a time
            part = target[start : start + len(rows)]
            start += len(rows)
            if len(part) == len(rows):
                self._add(rows, part, weights)
        if start != len(target):
            raise UnsupportedModelError(
                f"{self.name} ({type(self.layer).__name__}) gives {len(target)} positions, and its kernel, stride and "
                f"padding tell of {start}, so it cannot be fitted; leave the repair out."
            )

    def _add(self, x: Tensor, y: Tensor, weights: Tensor | None) -> None:
        x, y = torch.cat([x, x.new_ones(len(x), 1)], dim=1).float(), y.float()
        if weights is not None:
            x, y = (rows * weights.sqrt()[:, None] for rows in (x, y))
        self.gram += x.T @ x
        self.cross += x.T @ y
        self.energy += float(y.double().square().sum())

    def fit(self, ridge: float, usable: Tensor | None = None, unseen: Regression | None = None) -> float:
        """Give the layer the coefficients found, drawn towards those at hand.

        Args:
            ridge (`float`): the penalty, as a share of the mean energy of what the layer reads.
            usable (`torch.BoolTensor` of shape `(m,)`, *optional*): the outputs to fit; all by default.
            unseen ([`Regression`], *optional*): of the same layer on other examples, by whose error the penalty is
                chosen, from `ridge` to a thousand times that; where none helps there the layer stays as it is.

        Returns:
            `float`: the squared error that is left (on the unseen examples, if there are any), as a share of that
            before.
        """
        judge = self if unseen is None else unseen
        if not (self.gram.isfinite().all() and self.cross.isfinite().all()):
            raise CompressionError(f"{self.name} reads, or is to give, values that are not finite; check the weights.")
        penalties = [ridge] if unseen is None else [ridge * 10**power for power in range(4)]
        found = min((self._solve(penalty) for penalty in penalties), key=judge._error)
        if usable is not None:
            found = torch.where(usable.to(found.device), found, self.start)
        before, after = judge._error(self.start), judge._error(found)
        if unseen is not None and after > before:
            return 1.0
        self._set(found)
        return after / before if before > 0 else 1.0

    def _solve(self, ridge: float) -> Tensor:
        has_intercept = self.layer.bias is not None or (self.norm is not None and self.norm.bias is not None)
        free = len(self.start) if has_intercept else len(self.start) - 1
        penalty = torch.zeros_like(self.gram.diagonal())
        if len(penalty) > 1:  # a layer that reads nothing but zeros keeps its weights
            penalty[:-1] = (ridge * self.gram.diagonal()[:-1].mean()).clamp(min=1e-12)
        system, residual = self.gram + torch.diag(penalty), self.cross - self.gram @ self.start
        found = self.start.clone()
        found[:free] += torch.linalg.solve(system[:free, :free], residual[:free])
        return found

    def _error(self, coefficients: Tensor) -> float:
        fitted = float((coefficients * (self.gram @ coefficients - 2 * self.cross)).sum())
        return max(0.0, self.energy + fitted)

    @torch.no_grad()
    def _set(self, found: Tensor) -> None:
        layer, norm = self.layer, self.norm
        if not isinstance(layer, Constant):
            layer.weight.copy_(found[:-1].T.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(found[-1])
        elif norm is not None and norm.bias is not None:
            norm.bias += found[-1].to(norm.bias) * scale_of(norm)


def _coefficients(layer: nn.Module) -> Tensor:
    """`(n + 1, m)`, the intercept last, in double precision."""
    if isinstance(layer, Constant):
        return layer.bias.detach().double()[None]
    weight = layer.weight.detach().flatten(1).T.double()
    bias = weight.new_zeros(1, weight.shape[1]) if layer.bias is None else layer.bias.detach().double()[None]
    return torch.cat([weight, bias])
