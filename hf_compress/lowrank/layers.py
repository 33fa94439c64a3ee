"""Which layers can become low-rank, what they cost, and how a pair of factors takes a layer's place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ..errors import RecipeError
from ..registry import Cost, StepContext, nearest
from ..structure import LowRankConv2d, LowRankLinear


@dataclass
class Layer:
    """A dense `nn.Linear` or `nn.Conv2d` that may be replaced.

    Args:
        name (`str`): its path in the model.
        module (`nn.Module`): itself.
        schemes (`tuple[str, ...]`): "linear", or of "channel" and "spatial".
        outputs (`float`, *optional*): output positions of one example (tokens, or pixels), 0 where it never ran.
        middles (`float`, *optional*): positions between the factors of the spatial scheme: output rows, input columns.
    """

    name: str
    module: nn.Module
    schemes: tuple[str, ...]
    outputs: float = 0.0
    middles: float = 0.0

    @property
    def params(self) -> int:
        """Of the weight; a bias stays as it is and is not counted."""
        return self.module.weight.numel()

    @property
    def macs(self) -> float:
        return self.outputs * self.params

    def shape(self, scheme: str) -> tuple[int, int]:
        """Of the matrix that `scheme` factorizes."""
        weight = self.module.weight
        if scheme == "spatial":
            out_channels, in_channels, height, width = weight.shape
            return out_channels * width, in_channels * height
        return weight.shape[0], weight[0].numel()

    def full_rank(self, scheme: str | None = None) -> int:
        return min(self.shape(scheme or self.schemes[0]))

    def cost(self, kind: str, scheme: str | None = None, rank: int | None = None) -> float:
        """ "params" or "macs" of the weight, as it is or in factors."""
        if scheme is None:
            return float(self.params) if kind == "params" else self.macs
        rows, columns = self.shape(scheme)
        if kind == "params":
            return float(rank * (rows + columns))
        return rank * (rows * self.outputs + columns * (self.middles if scheme == "spatial" else self.outputs))

    def max_rank(self, scheme: str) -> int:
        """The greatest rank at which the factors have fewer parameters, and fewer MACs, than the layer."""
        limits = [math.ceil(self.params / self.cost("params", scheme, 1)) - 1]
        if self.outputs:
            limits.append(math.ceil(self.macs / self.cost("macs", scheme, 1)) - 1)
        return min(*limits, self.full_rank(scheme))

    def matrix(self, scheme: str) -> Tensor:
        """The weight as the matrix that `scheme` factorizes: (out, in), (out, in kh kw) or (out kw, in kh)."""
        weight = self.module.weight.detach()
        if scheme == "spatial":
            return weight.permute(0, 3, 1, 2).reshape(self.shape(scheme))
        return weight.flatten(1)

    def replacement(self, scheme: str, down: Tensor, up: Tensor, bias: Tensor | None) -> nn.Module:
        """The low-rank module made of the factors `(rank, columns)` and `(rows, rank)` of `matrix(scheme)`."""
        module = self.module
        down, up = (factor.to(module.weight.dtype) for factor in (down, up))
        if scheme == "linear":
            new = LowRankLinear.from_factors(down, up, bias)
        else:
            in_channels, (height, width), rank = module.in_channels, module.kernel_size, down.shape[0]
            if scheme == "channel":
                down, up = down.reshape(rank, in_channels, height, width), up[:, :, None, None]
            else:
                down = down.reshape(rank, in_channels, height, 1)
                up = up.reshape(module.out_channels, width, rank).transpose(1, 2)[:, :, None]
            geometry = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
            new = LowRankConv2d.from_factors(down, up, bias, scheme=scheme, **geometry)
        return new.train(module.training).requires_grad_(module.weight.requires_grad)

    def rebuilt(self, scheme: str, down: Tensor, up: Tensor) -> Tensor:
        """The dense weight that the factors stand for, as `(out, in, ...)` flattened from the second dimension on."""
        product = up @ down
        if scheme != "spatial":
            return product
        out_channels, in_channels, height, width = self.module.weight.shape
        return product.reshape(out_channels, width, in_channels, height).permute(0, 2, 3, 1).flatten(1)


def find_layers(
    model: nn.Module,
    *,
    scheme: str = "auto",
    exclude: Sequence[str] = (),
    head: bool = False,
    within: Sequence[nn.Module] | None = None,
) -> tuple[list[Layer], dict[str, str]]:
    """The layers of a model that can be factorized.

    Args:
        model ([`~transformers.PreTrainedModel`]): in any state; pruned and partly factorized ones included.
        scheme (`str`, *optional*, defaults to `"auto"`): of convolutions, "spatial", "channel" or "auto" for both.
            A 1 x 1 convolution has the channel scheme only.
        exclude (`Sequence[str]`, *optional*): patterns (`*` and `?`) for names of modules that stay as they are, with
            all that is in them.
        head (`bool`, *optional*, defaults to `False`): whether the task head, the pooler and the embeddings count too.
        within (`Sequence[nn.Module]`, *optional*): take only what lies in these modules.

    Returns:
        `tuple[list[Layer], dict[str, str]]`: the layers in the model's order, and for every other linear or
        convolutional one the reason why it stays dense.

    Raises:
        [`~errors.RecipeError`]: a pattern that fits no module.
    """
    names = [name for name, _ in model.named_modules() if name]
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(f"exclude: {pattern!r} fits no module of this model{nearest(pattern, names)}.")
    inside = None if within is None else {module for block in within for module in block.modules()}
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), set()).add(id(module))
    heads = {} if head else _head_modules(model)
    layers, dense = [], {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or _is_factor(model, name):
            continue
        reason = heads.get(module) or _obstacle(module, len(owners.get(id(module.weight), ())) > 1)
        if reason is None and inside is not None and module not in inside:
            reason = "outside the encoder"
        if reason is None and any(fnmatchcase(part, pattern) for part in _ancestry(name) for pattern in exclude):
            reason = "excluded"
        if reason is None:
            layers.append(Layer(name, module, _schemes(module, scheme)))
        else:
            dense[name] = reason
    return layers, dense


def observe(model: nn.Module, layers: Iterable[Layer], context: StepContext) -> Cost:
    """Measure the model, and see at how many positions every layer works while that is done.

    So a layer's MACs are counted on the very inputs that `context.cost` uses, whatever their length or size.
    """
    batch = 1

    def begin(_module, args, kwargs):
        nonlocal batch
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        batch = max(1, tensors[0].shape[0]) if tensors else 1
        for layer in layers:
            layer.outputs = layer.middles = 0.0

    def watch(layer):
        def hook(module, args, output):
            if isinstance(module, nn.Linear):
                layer.outputs += output.numel() / module.out_features / batch
            else:
                examples = output.shape[0] / batch if output.ndim == 4 else 1 / batch
                layer.outputs += examples * output.shape[-2] * output.shape[-1]
                layer.middles += examples * output.shape[-2] * args[0].shape[-1]

        return hook

    layers = list(layers)
    handles = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    handles += [layer.module.register_forward_hook(watch(layer)) for layer in layers]
    try:
        return context.cost(model)
    finally:
        for handle in handles:
            handle.remove()


def replace(model: nn.Module, layer: Layer, new: nn.Module) -> None:
    """Put `new` in the place of the layer, under every name the model knows it by."""
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is layer.module]
    for name in names:
        model.set_submodule(name, new)


def _schemes(module: nn.Module, scheme: str) -> tuple[str, ...]:
    if isinstance(module, nn.Linear):
        return ("linear",)
    if module.kernel_size == (1, 1):
        return ("channel",)
    return ("spatial", "channel") if scheme == "auto" else (scheme,)


def _obstacle(module: nn.Module, tied: bool) -> str | None:
    # subclasses compute something else, or are read by their parents without being called
    if type(module) not in (nn.Linear, nn.Conv2d):
        return f"a {type(module).__name__}, which may compute something else"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks"
    if tied:
        return "its weight is shared with another module"
    if not module.weight.is_floating_point():
        return "its weight is not floating-point"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return "a grouped convolution"
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return f"padding mode {module.padding_mode!r}"
    if module.weight.numel() == 0:
        return "it is empty"
    return None


def _head_modules(model: nn.Module) -> dict[nn.Module, str]:
    """What makes the predictions or the embeddings, with the reason to leave it alone."""
    reasons: dict[nn.Module, str] = {}
    base = getattr(model, "base_model", model)
    if base is not model:
        body = set(base.modules())
        reasons.update({module: "task head" for module in model.modules() if module not in body})
    for name, module in model.named_modules():
        parts = name.split(".")
        if "pooler" in parts:
            reasons.setdefault(module, "pooler")
        elif any("embed" in part for part in parts):
            reasons.setdefault(module, "embedding")
    network = getattr(model, "timm_model", None)
    if network is not None and hasattr(network, "get_classifier"):
        classifier = network.get_classifier()
        for part in classifier if isinstance(classifier, tuple | list) else [classifier]:
            if isinstance(part, nn.Module):
                reasons.update({module: "task head" for module in part.modules()})
    return reasons


def _is_factor(model: nn.Module, name: str) -> bool:
    parents = _ancestry(name)[:-1]
    return any(isinstance(model.get_submodule(parent), LowRankLinear | LowRankConv2d) for parent in parents)


def _ancestry(name: str) -> list[str]:
    """ "a.b.c" -> ["a", "a.b", "a.b.c"]."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
