"""Modules that stand in for what compression replaces or removes.

Each of them carries a *seal*: a zero-size persistent buffer under the first parameter name of what it stands for. Its
own weights have other names, so a loader that does not know these classes would find the original names missing, and
start from random numbers; with the seal it finds a tensor of the wrong shape, and stops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


SCHEMES = ("channel", "spatial")
RETURNS = ("tensor", "tuple")


def add_seal(module: nn.Module, path: str, device=None, dtype=None) -> None:
    """Register a zero-size persistent buffer under the dotted `path`, below plain modules where it has dots."""
    *parents, leaf = path.split(".")
    for parent in parents:
        if parent not in module._modules:
            module.add_module(parent, nn.Module())
        module = module._modules[parent]
    module.register_buffer(leaf, torch.empty(0, device=device, dtype=dtype))


def first_weight(module: nn.Module) -> str:
    """The name a seal for `module` must have: that of its first parameter, or of the seal that stands for it."""
    for name, child in module.named_modules():
        names = (
            [child.seal] if isinstance(child, SEALED) else [key for key, _ in child.named_parameters(recurse=False)]
        )
        if names:
            return f"{name}.{names[0]}" if name else names[0]
    raise ValueError(f"{type(module).__name__} has no parameter, so there is nothing to seal.")


class LowRankLinear(nn.Module):
    """A linear layer as the product of two thinner ones: `up(down(x))`.

    Args:
        in_features (`int`), out_features (`int`): the widths of the layer it stands for.
        rank (`int`): the width between the factors. It saves work below `in * out / (in + out)`.
        bias (`bool`, *optional*, defaults to `True`): whether `up` has a bias.

    Shapes: `down.weight` is `(rank, in_features)`, `up.weight` is `(out_features, rank)`; the input `(*, in_features)`
    becomes `(*, out_features)`. Both factors are ordinary `nn.Linear`, so LoRA and pruning find them.
    """

    seal = "weight"

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True, device=None, dtype=None):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)
        add_seal(self, self.seal, device, dtype)

    @classmethod
    def from_factors(
        cls, down_weight: torch.Tensor, up_weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> LowRankLinear:
        """Take the factors `(rank, in_features)` and `(out_features, rank)`, whose product stands for the weight."""
        (rank, in_features), out_features = down_weight.shape, up_weight.shape[0]
        with torch.device("meta"):
            module = cls(in_features, out_features, rank, bias is not None, dtype=down_weight.dtype)
        return _fill(module, down_weight, up_weight, bias)

    # Read from the factors, so that pruning a factor cannot leave them stale.
    @property
    def in_features(self) -> int:
        return self.down.in_features

    @property
    def out_features(self) -> int:
        return self.up.out_features

    @property
    def rank(self) -> int:
        return self.down.out_features

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(input))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class LowRankConv2d(nn.Module):
    """A two-dimensional convolution as two cheaper ones in a row (zero padding only).

    Args:
        in_channels (`int`), out_channels (`int`), kernel_size, stride, padding, dilation, groups, bias: as in
            `nn.Conv2d`, of the convolution it stands for.
        rank (`int`): channels between the factors, a multiple of `groups`.
        scheme (`str`, *optional*, defaults to `"channel"`): `"channel"` is a full kernel to `rank` channels, then a
            1 x 1 convolution; `"spatial"` is a vertical kernel `(k, 1)` to `rank` channels, then a horizontal one.

    Shapes: channel `(rank, in/groups, kh, kw)` and `(out, rank/groups, 1, 1)`; spatial `(rank, in/groups, kh, 1)` and
    `(out, rank/groups, 1, kw)`.
    """

    seal = "weight"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rank: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        scheme: str = "channel",
        device=None,
        dtype=None,
    ):
        super().__init__()
        if scheme not in SCHEMES:
            raise ValueError(f"scheme: got {scheme!r}; allowed are {', '.join(SCHEMES)}.")
        (kh, kw), (sh, sw), (dh, dw) = _pair(kernel_size), _pair(stride), _pair(dilation)
        ph, pw = (padding, padding) if isinstance(padding, str) else _pair(padding)
        self.scheme = scheme
        if scheme == "channel":
            first = {"kernel_size": (kh, kw), "stride": (sh, sw), "dilation": (dh, dw)}
            first["padding"] = padding if isinstance(padding, str) else (ph, pw)
            second = {"kernel_size": 1}
        else:
            first = {"kernel_size": (kh, 1), "stride": (sh, 1), "dilation": (dh, 1)}
            first["padding"] = ph if isinstance(ph, str) else (ph, 0)
            second = {"kernel_size": (1, kw), "stride": (1, sw), "dilation": (1, dw)}
            second["padding"] = pw if isinstance(pw, str) else (0, pw)
        common = {"groups": groups, "device": device, "dtype": dtype}
        self.down = nn.Conv2d(in_channels, rank, bias=False, **first, **common)
        self.up = nn.Conv2d(rank, out_channels, bias=bias, **second, **common)
        add_seal(self, self.seal, device, dtype)

    @classmethod
    def from_factors(
        cls,
        down_weight: torch.Tensor,
        up_weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        scheme: str = "channel",
    ) -> LowRankConv2d:
        """Take the weights of the two factors, shaped as the class describes; the rest is the original's."""
        rank, in_channels, kh, kw = down_weight.shape
        kernel_size = (kh, kw) if scheme == "channel" else (kh, up_weight.shape[3])
        with torch.device("meta"):
            module = cls(
                in_channels * groups,
                up_weight.shape[0],
                rank,
                kernel_size,
                stride,
                padding,
                dilation,
                groups,
                bias is not None,
                scheme,
                dtype=down_weight.dtype,
            )
        return _fill(module, down_weight, up_weight, bias)

    @property
    def in_channels(self) -> int:
        return self.down.in_channels

    @property
    def out_channels(self) -> int:
        return self.up.out_channels

    @property
    def rank(self) -> int:
        return self.down.out_channels

    @property
    def groups(self) -> int:
        return self.down.groups

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self._joined("kernel_size")

    @property
    def stride(self) -> tuple[int, int]:
        return self._joined("stride")

    @property
    def dilation(self) -> tuple[int, int]:
        return self._joined("dilation")

    @property
    def padding(self) -> tuple[int, int] | str:
        return self.down.padding if isinstance(self.down.padding, str) else self._joined("padding")

    def _joined(self, name: str) -> tuple[int, int]:
        down, up = getattr(self.down, name), getattr(self.up, name)
        return tuple(down) if self.scheme == "channel" else (down[0], up[1])

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(input))

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, rank={self.rank}, scheme={self.scheme}"


class Removed(nn.Module):
    """What is left of a module that has been removed: it hands its first argument on, and ignores the others.

    Args:
        seal (`str`): the first parameter name of what it stands for, such as `"query.weight"`.
        returns (`str`, *optional*, defaults to `"tensor"`): `"tensor"`, or `"tuple"` for `(input, None)`, which is
            what attention modules of Transformers return.

    A removed block is an identity, so its input and output must have the same shape. Where outputs of every layer are
    asked for (`output_hidden_states`, `output_attentions`), removed ones are not among them.
    """

    def __init__(self, seal: str, returns: str = "tensor", device=None, dtype=None):
        super().__init__()
        self.seal, self.returns = seal, _one_of("returns", returns, RETURNS)
        add_seal(self, seal, device, dtype)

    @classmethod
    def replacing(cls, module: nn.Module, returns: str | None = None) -> Removed:
        """Make the stand-in for `module`; `returns` is found by its class (attention of Transformers: a tuple)."""
        return cls(first_weight(module), returns or _returns_of(module), **_place_of(module)).train(module.training)

    def forward(self, input: torch.Tensor, *args, **kwargs) -> torch.Tensor | tuple[torch.Tensor, None]:
        return (input, None) if self.returns == "tuple" else input

    def extra_repr(self) -> str:
        return f"seal={self.seal}, returns={self.returns}"


class Constant(nn.Module):
    """A module with no input left: its output is its bias, whatever it is given.

    Args:
        features (`int`): the width of the output.
        seal (`str`, *optional*, defaults to `"weight"`): the first parameter name of what it stands for.
        returns (`str`, *optional*, defaults to `"tensor"`): `"tensor"`, or `"tuple"` for `(output, None)`.

    The input `(*, any)` becomes `(*, features)`.
    """

    def __init__(self, features: int, seal: str = "weight", returns: str = "tensor", device=None, dtype=None):
        super().__init__()
        self.seal, self.returns = seal, _one_of("returns", returns, RETURNS)
        self.bias = nn.Parameter(torch.zeros(features, device=device, dtype=dtype))
        add_seal(self, seal, device, dtype)

    @classmethod
    def replacing(cls, module: nn.Module, bias: torch.Tensor | None = None, returns: str | None = None) -> Constant:
        """Make the stand-in for `module`, with `bias` or, for a linear layer, the one it has (zeros if it has none).

        Raises:
            ValueError: if no bias is given and `module` is not a linear layer.
        """
        if bias is None:
            if not isinstance(module, nn.Linear | LowRankLinear):
                raise ValueError(f"{type(module).__name__} is no linear layer: give the bias its constant shall have.")
            last = module.up if isinstance(module, LowRankLinear) else module
            bias = last.weight.new_zeros(last.out_features) if last.bias is None else last.bias
        place = {"device": bias.device, "dtype": bias.dtype}
        constant = cls(bias.numel(), first_weight(module), returns or _returns_of(module), **place)
        with torch.no_grad():
            constant.bias.copy_(bias)
        return constant.train(module.training)

    @property
    def features(self) -> int:
        return self.bias.numel()

    def forward(self, input: torch.Tensor, *args, **kwargs) -> torch.Tensor | tuple[torch.Tensor, None]:
        output = self.bias.expand(*input.shape[:-1], -1)
        return (output, None) if self.returns == "tuple" else output

    def extra_repr(self) -> str:
        return f"features={self.features}, seal={self.seal}, returns={self.returns}"


SEALED = (LowRankLinear, LowRankConv2d, Removed, Constant)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}; allowed are {', '.join(allowed)}.")
    return value


def _returns_of(module: nn.Module) -> str:
    kind = type(module)
    return "tuple" if kind.__module__.startswith("transformers.") and kind.__name__.endswith("Attention") else "tensor"


def _place_of(module: nn.Module) -> dict[str, Any]:
    weight = next(module.parameters())
    return {"device": weight.device, "dtype": weight.dtype}


def _fill(module: nn.Module, down: torch.Tensor, up: torch.Tensor, bias: torch.Tensor | None) -> Any:
    module = module.to_empty(device=down.device)
    for factor, weight in ((module.down, down), (module.up, up)):
        if factor.weight.shape != weight.shape:
            raise ValueError(f"The factors {tuple(down.shape)} and {tuple(up.shape)} do not fit together.")
        factor.weight = _parameter(weight, down.dtype)
    if bias is not None:
        module.up.bias = _parameter(bias, down.dtype)
    return module


def _parameter(value: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
    # An own contiguous copy: factors are often views of larger matrices, which would be saved and kept whole.
    return nn.Parameter(value.detach().to(dtype).clone(memory_format=torch.contiguous_format))
