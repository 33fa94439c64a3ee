"""ResNets for 32 x 32 images, as entries of the timm registry.

`resnet8_cifar`, `resnet20_cifar` ... `resnet110_cifar` are the thin networks of section 4.2 of
https://arxiv.org/abs/1512.03385 (three stages of 16, 32 and 64 channels); `resnet18_cifar`, `resnet34_cifar` and
`resnet50_cifar` are the ImageNet networks with a stem that keeps the resolution. Importing this module registers them:
`timm.create_model("resnet20_cifar")` and `TimmWrapperConfig(architecture="resnet20_cifar", model_args={...})` work
from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    is_model,
    model_entrypoint,
    register_model,
)
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from ..errors import CompressionError


CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

# The stem is fixed here, and strides count from full resolution.
_FIXED_ARGUMENTS = ("stem_width", "stem_type", "replace_stem_pool", "output_stride")


class PadShortcut(nn.Module):
    """Shortcut "A" of the ResNet paper: every `stride`-th pixel, with zeros for the channels that are new.

    It has no parameters and no buffers; its scalar attributes say all there is to know.

    Args:
        in_channels (`int`): channels of the input.
        out_channels (`int`): channels of the output, at least `in_channels`.
        stride (`int`, *optional*, defaults to 2): distance between the pixels that are kept.
        before (`int`, *optional*): zero channels in front of the input's; half of the new ones by default.

    Maps `(batch, in_channels, height, width)` to `(batch, out_channels, ceil(height / stride), ceil(width / stride))`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2, before: int | None = None):
        super().__init__()
        before = (out_channels - in_channels) // 2 if before is None else before
        if not 0 <= before <= out_channels - in_channels:
            raise CompressionError(
                f"A padding shortcut from {in_channels} to {out_channels} channels cannot have {before} in front; "
                f"it can only add channels, with 0 to {max(out_channels - in_channels, 0)} of them in front."
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        after = self.out_channels - self.in_channels - self.before
        # one copy, which keeps the memory format of the input
        return F.pad(x, (0, 0, 0, 0, self.before, after)) if self.before or after else x

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}, before={self.before}"


class CifarResNet(ResNet):
    """timm's `ResNet` with a 3 x 3 stem of stride 1, no max-pool, three or four stages, and a choice of shortcut.

    Args:
        block (`type`): `BasicBlock` or `Bottleneck` of timm.
        layers (`Sequence[int]`): blocks of each stage.
        channels (`Sequence[int]`): channels of each stage, three or four of them.
        stem_channels (`int`): channels of the stem.
        shortcut (`str`, *optional*, defaults to `"B"`): `"A"` pads with zeros and has no parameters, `"B"` is a 1 x 1
            convolution with batch normalization. Both only where the shape changes.
        zero_init_last (`bool`, *optional*, defaults to `False`): start every block as the identity, which the paper
            does not.
        kwargs: the other arguments of timm's `ResNet`.
    """

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        channels: Sequence[int],
        stem_channels: int,
        shortcut: Literal["A", "B"] = "B",
        zero_init_last: bool = False,
        **kwargs,
    ):
        if shortcut not in ("A", "B"):
            raise CompressionError(
                f'shortcut: got {shortcut!r}; allowed are "A" (zero padding) and "B" (1 x 1 convolution).'
            )
        for name in _FIXED_ARGUMENTS:
            if name in kwargs:
                raise CompressionError(f"{name}: the CIFAR ResNets have a fixed stem and strides; leave it out.")
        if stem_channels % 2:
            raise CompressionError(f"stem_channels: got {stem_channels}; an even number is needed.")
        # timm sizes the stem by `stem_width` only for its deep stem, which is replaced just below
        stem = {"stem_type": "deep", "stem_width": stem_channels // 2}
        super().__init__(block, layers, channels=channels, zero_init_last=zero_init_last, **stem, **kwargs)
        like = {"device": self.bn1.weight.device, "dtype": self.bn1.weight.dtype}
        self.conv1 = nn.Conv2d(self.in_chans, stem_channels, kernel_size=3, padding=1, bias=False, **like)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        if len(channels) == 3:
            self.layer4 = nn.Sequential()  # timm's forward goes through four stages
        for info, reduction in zip(self.feature_info, (1, 1, 2, 4, 8), strict=False):
            info["reduction"] = reduction
        if shortcut == "A":
            self._pad_shortcuts()

    def _pad_shortcuts(self) -> None:
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            if len(stage) and stage[0].downsample is not None:
                convolution = stage[0].downsample[0]
                stage[0].downsample = PadShortcut(
                    convolution.in_channels, convolution.out_channels, convolution.stride[0]
                )

    def forward_intermediates(self, x: Tensor, indices: int | list[int] | None = None, **kwargs):
        return super().forward_intermediates(x, self._feature_indices(indices), **kwargs)

    def prune_intermediate_layers(self, indices: int | list[int] = 1, **kwargs):
        return super().prune_intermediate_layers(self._feature_indices(indices), **kwargs)

    def _feature_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """`indices` counted over the features that exist; timm counts five."""
        return feature_take_indices(len(self.feature_info), indices)[0]


def _create(variant: str, pretrained: bool, channels: Sequence[int], **kwargs) -> nn.Module:
    arguments = {"channels": channels, "stem_channels": channels[0], **kwargs}
    features = {"out_indices": tuple(range(len(arguments["channels"]) + 1))}
    return build_model_with_cfg(CifarResNet, variant, pretrained, feature_cfg=features, **arguments)


def _thin(variant: str, pretrained: bool, depth: int, channels: Sequence[int] = (16, 32, 64), **kwargs) -> nn.Module:
    layers = ((depth - 2) // 6,) * 3
    kwargs.setdefault("shortcut", "A")  # what the paper uses on CIFAR-10
    return _create(variant, pretrained, channels, block=BasicBlock, layers=layers, **kwargs)


def _wide(
    variant: str,
    pretrained: bool,
    block: type[nn.Module],
    layers: Sequence[int],
    channels: Sequence[int] = (64, 128, 256, 512),
    **kwargs,
) -> nn.Module:
    return _create(variant, pretrained, channels, block=block, layers=layers, **kwargs)


def _cfg(pool: int) -> dict:
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (pool, pool),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": CIFAR10_MEAN,
        "std": CIFAR10_STD,
        "first_conv": "conv1",
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs(
    {f"resnet{depth}_cifar": _cfg(8) for depth in (8, 20, 32, 44, 56, 110)}
    | {f"resnet{depth}_cifar": _cfg(4) for depth in (18, 34, 50)}
)


def _register(entry: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """timm's `register_model`, which warns about names it knows, silent when this module is imported once more."""
    name = entry.__name__
    if is_model(name) and model_entrypoint(name).__module__ == entry.__module__:
        return entry
    return register_model(entry)


@_register
def resnet8_cifar(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-8, 0.08 M parameters: a student."""
    return _thin("resnet8_cifar", pretrained, 8, **kwargs)


@_register
def resnet20_cifar(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-20, 0.27 M parameters."""
    return _thin("resnet20_cifar", pretrained, 20, **kwargs)


@_register
def resnet32_cifar(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-32, 0.46 M parameters."""
    return _thin("resnet32_cifar", pretrained, 32, **kwargs)


@_register
def resnet44_cifar(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-44, 0.66 M parameters."""
    return _thin("resnet44_cifar", pretrained, 44, **kwargs)


@_register
def resnet56_cifar(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-56, 0.85 M parameters."""
    return _thin("resnet56_cifar", pretrained, 56, **kwargs)


@_register
def resnet110_cifar(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-110, 1.7 M parameters."""
    return _thin("resnet110_cifar", pretrained, 110, **kwargs)


@_register
def resnet18_cifar(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-18 without the stem's downsampling, 11.2 M parameters."""
    return _wide("resnet18_cifar", pretrained, BasicBlock, (2, 2, 2, 2), **kwargs)


@_register
def resnet34_cifar(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-34 without the stem's downsampling, 21.3 M parameters."""
    return _wide("resnet34_cifar", pretrained, BasicBlock, (3, 4, 6, 3), **kwargs)


@_register
def resnet50_cifar(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-50 without the stem's downsampling, 23.5 M parameters."""
    return _wide("resnet50_cifar", pretrained, Bottleneck, (3, 4, 6, 3), **kwargs)
