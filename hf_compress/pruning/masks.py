"""Masked networks: units silenced by hooks, with the outputs that the network without them would have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .units import UnitGroup, side_size


@contextmanager
def masked(model: nn.Module, groups: Sequence[UnitGroup], masks: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Multiply the outputs of units by masks, wherever these outputs are read.

    A unit whose mask is 0 then acts as if it had been cut out: nothing that it adds on its way (a bias, a batch
    normalization's shift) reaches a reader. Gradients with respect to the masks are those of the units.

    Args:
        model (`nn.Module`): the network; left as it was on leaving.
        groups (`Sequence[UnitGroup]`): its groups, as found by `find_units`.
        masks (`Mapping[str, Tensor]`): name of a group -> mask of shape `(size,)`, bool or floating; groups without a
            mask are untouched. Masks may be changed in place, and may require gradients.

    Example:

    ```python
    masks = {group.name: torch.ones(group.size, requires_grad=True) for group in groups}
    with masked(model, groups, masks):
        model(**batch).loss.backward()
    ```
    """
    readers: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for group in groups:
        if group.name in masks:
            for part in group.consumers:
                unit_of = torch.full((side_size(model.get_submodule(part.module), "in"),), group.size)
                unit_of[part.index] = torch.arange(group.size)[:, None]
                readers.setdefault(part.module, []).append((masks[group.name], unit_of))
    handles = []
    try:
        for name, parts in readers.items():
            handles.append(model.get_submodule(name).register_forward_pre_hook(_multiplier(parts)))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _multiplier(parts: list[tuple[Tensor, Tensor]]):
    def multiply(module: nn.Module, args: tuple) -> tuple:
        x = args[0]
        dim = 1 if isinstance(module, nn.Conv2d) else x.dim() - 1
        shape = [-1 if axis == dim else 1 for axis in range(x.dim())]
        for mask, unit_of in parts:
            # positions that belong to no unit of the group read the one at the end
            whole = torch.cat([mask.to(x), torch.ones(1, dtype=x.dtype, device=x.device)])
            x = x * whole[unit_of.to(x.device)].view(shape)
        return (x, *args[1:])

    return multiply
