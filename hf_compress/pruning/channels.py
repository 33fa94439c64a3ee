"""Channels of convolutional networks: which of them hang together, found by torch-pruning's dependency graph.

The graph is traced on a copy of the network and read as plain indices; masks, counts and surgery are our own, so that
nothing of the library's state, and none of its side effects on training mode or gradients, reaches the model. Whatever
the graph says is checked on another copy: a network with channels masked must compute what it computes with the same
channels cut out.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence

import torch
from timm.layers import ClassifierHead
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UnsupportedModelError
from ..measurement.inputs import image_size
from ..measurement.states import evaluating
from ..models.cifar_resnet import PadShortcut
from .encoders import LAYOUTS
from .masks import masked
from .surgery import shrink
from .units import Slice, UnitGroup, is_depthwise, side_size


logger = logging.getLogger(__name__)

# Greatest difference, relative to the largest output, between masked and shrunken network in double precision.
TOLERANCE = 1e-8


def channel_groups(model: nn.Module) -> tuple[list[UnitGroup], dict[str, str]]:
    """Groups of channels of a timm network.

    Args:
        model ([`~transformers.TimmWrapperForImageClassification`] or [`~transformers.TimmWrapperModel`]):
            A convolutional network. It is not changed.

    Returns:
        `tuple[list[UnitGroup], dict[str, str]]`: the groups that can be pruned, in the order of the modules, and for
        each convolution or linear layer whose width has to stay, the reason.

    Raises:
        [`UnsupportedModelError`]: for a network that works by attention, that cannot be traced, or that has no channel
        to spare.
    """
    network = model.config.architecture
    attention = next((name for name, m in model.named_modules() if "Attention" in type(m).__name__), None)
    if attention is not None:
        raise UnsupportedModelError(
            f"{network} works by attention ({attention}): its channels cannot be pruned. Supported are convolutional "
            f"timm networks, such as resnet50, and the encoders {', '.join(LAYOUTS)}."
        )
    groups, kept = _traced_groups(model)
    groups = _disjoint(groups, kept)
    groups = _verified(model, groups, kept)
    if not groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in kept.items()) or "it has no convolution"
        raise UnsupportedModelError(f"{network} has no channels that can be pruned. {reasons}.")
    return groups, kept


def _traced_groups(model: nn.Module) -> tuple[list[UnitGroup], dict[str, str]]:
    import torch_pruning

    trace = copy.deepcopy(model.timm_model).cpu().float().requires_grad_(True)
    shortcuts = _replace_shortcuts(trace)
    _skip_channel_convolutions(trace)
    image = torch.randn(1, *image_size(model), generator=torch.Generator().manual_seed(0))
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.build_dependency(trace, example_inputs=image, verbose=False)
            found = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    except Exception as error:  # the library raises whatever its assumptions lead to
        raise UnsupportedModelError(
            f"{model.config.architecture}: torch-pruning cannot trace this network ({type(error).__name__}: {error}). "
            "Prune a convolutional network such as resnet50, or leave the step out."
        ) from error
    names = {module: name for name, module in trace.named_modules()}
    order = {name: position for position, name in enumerate(names.values())}
    classifier = set(_classifier_modules(trace))
    groups, kept = [], {}
    for group in found:
        parts, reason = _slices(graph, group, names, shortcuts, classifier)
        roots = [name for name, side in parts if side == "out" and _makes_channels(trace.get_submodule(name))]
        root = min(roots or [names[group[0].dep.target.module]], key=order.__getitem__)
        if reason is None and not any(side == "in" for _, side in parts):
            reason = "nothing reads its output but the caller"
        if reason is None:
            slices = tuple(Slice(f"timm_model.{name}", side, index) for (name, side), index in parts.items())
            groups.append(UnitGroup(f"timm_model.{root}", "channels", slices))
        else:
            kept[f"timm_model.{root}"] = reason
    groups.sort(key=lambda group: order[group.name.removeprefix("timm_model.")])
    return groups, kept


def _replace_shortcuts(trace: nn.Module) -> set[nn.Module]:
    """Put a convolution in the place of each padding shortcut, which the graph would take for element-wise."""
    stand_ins = set()
    for name, module in list(trace.named_modules()):
        if isinstance(module, PadShortcut):
            with torch.random.fork_rng(devices=[]):  # its weights mean nothing
                stand_in = nn.Conv2d(module.in_channels, module.out_channels, 1, stride=module.stride, bias=False)
            trace.set_submodule(name, stand_in)
            stand_ins.add(stand_in)
    return stand_ins


def _skip_channel_convolutions(trace: nn.Module) -> None:
    """Take out attention that convolves along the channels (ECA), over which the tracing would never come to an end.

    Whether channels that pass it can go is for the check of masked against shrunken networks to say.
    """
    for name, module in list(trace.named_modules()):
        if any(isinstance(child, nn.Conv1d) for child in module.children()):
            trace.set_submodule(name, nn.Identity())


def _classifier_modules(network: nn.Module) -> list[nn.Module]:
    classifier = network.get_classifier()
    parts = classifier if isinstance(classifier, tuple | list) else [classifier]
    return [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]


def _makes_channels(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear) and not is_depthwise(module)


def _slices(
    graph, group, names: dict, shortcuts: set, classifier: set
) -> tuple[dict[tuple[str, str], Tensor], str | None]:
    """`(module, side)` -> positions by unit, for all members of a group of torch-pruning, or why it has to stay."""
    from torch_pruning.ops import _OutputOp

    size = len(group[0].idxs)
    parts: dict[tuple[str, str], Tensor] = {}
    reason = None
    for item in group:
        module, produces = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        if isinstance(module, nn.Parameter):
            reason = "a bare parameter depends on it"
        elif isinstance(module, _OutputOp):
            reason = "it is an output of the network"
        elif module in shortcuts:
            reason = "a padding shortcut ties its channels to those of another width"
        elif module not in names:
            continue  # an operation without weights
        elif module in classifier and produces:
            reason = "it makes the predictions"
        elif not _sliceable(module):
            reason = f"{names[module]} ({type(module).__name__}) mixes its channels"
        else:
            side = "in" if _makes_channels(module) and not produces else "out"
            index = _by_unit(item, size)
            if index is None or parts.setdefault((names[module], side), index).shape != index.shape:
                reason = f"{names[module]} reads it in a way that does not split into channels"
        if module in names and produces and _makes_channels(module):
            parts.setdefault((names[module], "out"), torch.arange(size)[:, None])
    return parts, reason


def _sliceable(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 or (is_depthwise(module) and module.out_channels == module.in_channels)
    return isinstance(module, nn.Linear | _BatchNorm)


def _by_unit(item, size: int) -> Tensor | None:
    """The positions of an item as `(units, positions)`; `None` unless every unit has equally many of its own."""
    roots = torch.tensor([-1 if root is None else int(root) for root in item.root_idxs])
    positions = torch.tensor([int(index) for index in item.idxs])
    counts = torch.bincount(roots.clamp(min=0), minlength=size)
    if (roots < 0).any() or len(counts) != size or (counts != counts[0]).any():
        return None
    if len(positions.unique()) != len(positions):
        return None
    return positions[torch.argsort(roots, stable=True)].view(size, -1)


def _disjoint(groups: Sequence[UnitGroup], kept: dict[str, str]) -> list[UnitGroup]:
    """Leave out groups that claim a position that an earlier one has."""
    taken: dict[tuple[str, str], set[int]] = {}
    left = []
    for group in groups:
        claims = {(part.module, part.side): set(part.index.flatten().tolist()) for part in group.slices}
        if any(taken.get(key, set()) & positions for key, positions in claims.items()):
            kept[group.name] = "its channels overlap with those of another layer"
            continue
        for key, positions in claims.items():
            taken.setdefault(key, set()).update(positions)
        left.append(group)
    return left


def _verified(model: nn.Module, groups: list[UnitGroup], kept: dict[str, str]) -> list[UnitGroup]:
    """The groups for which masking half of the channels and cutting them out is the same to the network."""
    groups = [group for group in groups if group.size > 1]
    image = torch.randn(2, *image_size(model), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    double = _at_random(copy.deepcopy(model).cpu().double())
    if not groups or _consistent(double, groups, image):
        return groups
    left = []
    for group in groups:
        if _consistent(double, [group], image):
            left.append(group)
        else:
            kept[group.name] = "cutting its channels out is not the same as silencing them"
    return left


def _at_random(model: nn.Module) -> nn.Module:
    """Fill `model` with numbers that hide nothing, as weights and scales of zero do."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(std=0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def _consistent(double: nn.Module, groups: Sequence[UnitGroup], image: Tensor) -> bool:
    generator = torch.Generator().manual_seed(2)
    selection = {}
    for group in groups:
        keep = torch.ones(group.size, dtype=torch.bool)
        keep[torch.randperm(group.size, generator=generator)[: group.size // 2]] = False
        selection[group.name] = keep
    small = copy.deepcopy(double)
    shrink(small, groups, selection)
    with evaluating(double), masked(double, groups, selection):
        expected = _outputs(double, image)
    try:
        with evaluating(small):
            actual = _outputs(small, image)
    except RuntimeError as error:  # shapes that no longer fit
        logger.debug("Pruning %s does not fit: %s", [group.name for group in groups], error)
        return False
    return all(
        a.shape == b.shape and (a - b).abs().max() <= TOLERANCE * b.abs().max().clamp(min=1e-12)
        for a, b in zip(actual, expected, strict=True)
    )


def _outputs(model: nn.Module, image: Tensor) -> list[Tensor]:
    return [value for value in model(pixel_values=image).to_tuple() if isinstance(value, Tensor)]


def refresh_timm(model: nn.Module) -> None:
    """Bring what a timm network says of its widths (`num_features`, `feature_info`) up to its weights."""
    network = model.timm_model
    classifier = network.get_classifier()
    if isinstance(classifier, nn.Linear | nn.Conv2d):
        width = side_size(classifier, "in")
        _set_width(network, "head_hidden_size", width)
        head = next((module for module in network.children() if getattr(module, "fc", None) is classifier), None)
        if isinstance(head, ClassifierHead):
            head.num_features, head.in_features = width, width // head.global_pool.feat_mult()
    infos = [info for info in getattr(network, "feature_info", None) or [] if isinstance(info, dict)]
    modules = dict(network.named_modules())
    handles = []
    for info in infos:
        if info.get("module") in modules:
            handles.append(modules[info["module"]].register_forward_hook(_width_reader(info)))
    image = torch.zeros(1, *image_size(model), device=model.device, dtype=model.dtype)
    try:
        with evaluating(model):
            features = network.forward_features(image)
    finally:
        for handle in handles:
            handle.remove()
    _set_width(network, "num_features", features.shape[1])


def _set_width(module: nn.Module | None, name: str, width: int) -> None:
    if getattr(module, name, None) is not None:
        setattr(module, name, width)


def _width_reader(info: dict):
    def read(module: nn.Module, args: tuple, output) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            info["num_chs"] = output.shape[1]

    return read
