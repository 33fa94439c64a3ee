"""How units leave: rows and columns are cut out of the modules, and layers that have lost all units are replaced."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..structure import Constant, Removed
from .encoders import encoder_layout
from .units import Selection, UnitGroup, is_depthwise, remaining_groups, removed_positions, side_size


# A tensor under this name in a module, where somebody put one, is cut like its rows: it tells which of them are left.
ROWS = "kept_rows"


def shrink(model: nn.Module, groups: Sequence[UnitGroup], selection: Selection) -> list[UnitGroup]:
    """Cut out of `model`, in place, every unit that `selection` does not keep.

    Parameters are replaced by smaller ones, so optimizers have to be made anew. Training mode is untouched.

    Args:
        model ([`~transformers.PreTrainedModel`]): the model the groups were found in.
        groups (`Sequence[UnitGroup]`): all its groups.
        selection (`Mapping[str, Tensor]`): for each group, which units stay; bool of shape `(size,)`.

    Returns:
        `list[UnitGroup]`: the groups of the smaller model; those that lost all units are gone.
    """
    partly = [group for group in groups if selection[group.name].any()]
    empty = [group for group in groups if not selection[group.name].any()]
    for (name, side), gone in removed_positions(partly, selection).items():
        _cut(model.get_submodule(name), side, gone)
    for group in partly:
        if group.kind == "heads":
            _count_heads(model, group, int(selection[group.name].sum()))
    for group in empty:
        _take_out(model, group)
    return remaining_groups(groups, selection)


def _cut(module: nn.Module, side: str, gone: Tensor) -> None:
    keep = torch.ones(side_size(module, side), dtype=torch.bool)
    keep[gone] = False
    rows = keep.nonzero().flatten()
    if side == "in":
        module.weight = _part(module.weight, 1, rows)
        setattr(module, "in_features" if isinstance(module, nn.Linear) else "in_channels", len(rows))
        return
    depthwise = is_depthwise(module)
    for name in ("weight", "bias", "running_mean", "running_var", ROWS):
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            setattr(module, name, _part(tensor, 0, rows))
    if isinstance(module, nn.Conv2d):
        module.out_channels = len(rows)
        if depthwise:
            module.in_channels = module.groups = len(rows)
    else:
        setattr(module, "out_features" if isinstance(module, nn.Linear) else "num_features", len(rows))


def _part(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    part = tensor.detach().index_select(dim, index.to(tensor.device))
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        part = part.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(part, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part


def _count_heads(model: nn.Module, group: UnitGroup, heads: int) -> None:
    layout = encoder_layout(model)
    attention = model.get_submodule(group.name)
    setattr(attention, layout.heads, heads)
    for name in layout.widths:
        setattr(attention, name, heads * attention.attention_head_size)


def _take_out(model: nn.Module, group: UnitGroup) -> None:
    """Replace a layer that has no unit left by what it still does: adding a bias; and a residual block by nothing."""
    if group.removable:
        model.set_submodule(group.block, Removed.replacing(model.get_submodule(group.block)))
        return
    layout = encoder_layout(model)
    reader = layout.attention_output if group.kind == "heads" else layout.contraction
    gone = layout.attention if group.kind == "heads" else layout.removable_expansion
    reader, gone = f"{group.block}.{reader}", f"{group.block}.{gone}"
    constant = model.get_submodule(reader)
    if reader.startswith(f"{gone}."):  # DistilBERT's attention holds its own output layer
        bias = Constant.replacing(constant).bias.detach()
        model.set_submodule(gone, Constant.replacing(model.get_submodule(gone), bias=bias))
        return
    model.set_submodule(reader, Constant.replacing(constant))
    model.set_submodule(gone, Removed.replacing(model.get_submodule(gone)))
