"""What a model wants to see of an image: size, mean and standard deviation, read from its processor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import CompressionError


# PIL's numbers for what torch can do
_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True)
class ImageSettings:
    """How pixels in 0 … 255 become `pixel_values`.

    Args:
        mean, std (`Sequence[float]`): of the channels, on the scale of `rescale`.
        size (`tuple[int, int]`): height and width to resize to; images that have them are left alone.
        crop (`tuple[int, int]`, *optional*): height and width to cut from the middle afterwards.
        interpolation (`str`, *optional*, defaults to `"bilinear"`): "bilinear", "bicubic" (antialiased) or "nearest".
        rescale (`float`, *optional*, defaults to 1/255): what pixels are multiplied by before mean and std.
    """

    mean: Sequence[float]
    std: Sequence[float]
    size: tuple[int, int]
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    rescale: float = 1 / 255
    _rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise CompressionError(
                f"The image processor has mean {list(self.mean)} and std {list(self.std)}; colour images need three "
                "of each, std above 0. Set them in the model's pretrained_cfg or preprocessor_config.json."
            )
        if self.interpolation not in _INTERPOLATIONS:
            raise CompressionError(
                f"The image processor resizes with {self.interpolation!r}; allowed are {', '.join(_INTERPOLATIONS)}. "
                "Change it in the model's pretrained_cfg or preprocessor_config.json."
            )

    @classmethod
    def from_processor(cls, processor: Any) -> ImageSettings:
        """Read a `TimmWrapperImageProcessor` or any image processor with `image_mean`, `image_std` and `size`.

        Raises:
            `CompressionError`: if it is not an image processor, or wants what cannot be done in batches.
        """
        config = getattr(processor, "data_config", None)
        if config is not None:
            return cls._from_timm(config)
        if getattr(processor, "image_mean", None) is None or getattr(processor, "size", None) is None:
            raise CompressionError(
                f"An image task needs an image processor with image_mean, image_std and size, got "
                f"{type(processor).__name__}. Give a model for images."
            )
        rescale = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
        normalize = getattr(processor, "do_normalize", True)
        cropped = getattr(processor, "do_center_crop", None) and getattr(processor, "crop_size", None)
        return cls(
            mean=tuple(processor.image_mean) if normalize else (0.0,) * 3,
            std=tuple(processor.image_std) if normalize else (1.0,) * 3,
            size=_height_width(processor.size),
            crop=_height_width(processor.crop_size) if cropped else None,
            interpolation=_RESAMPLING.get(int(processor.resample), str(processor.resample)),
            rescale=rescale,
        )

    @classmethod
    def _from_timm(cls, config: dict) -> ImageSettings:
        mode = config.get("crop_mode", "center")
        if mode not in ("center", "squash"):
            raise CompressionError(f"pretrained_cfg.crop_mode: got {mode!r}; allowed are 'center' and 'squash'.")
        height, width = config["input_size"][1:]
        ratio = config.get("crop_pct") or 1.0
        size = math.floor(height / ratio), math.floor(width / ratio)
        if mode == "center":  # keeps the aspect ratio, which is 1 here, and cuts off what is too much
            size = (max(size),) * 2
        return cls(
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            size=size,
            crop=(height, width) if size != (height, width) else None,
            interpolation=config.get("interpolation", "bilinear"),
        )

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        """Make `pixel_values` of a batch.

        Args:
            pixels (`torch.Tensor`): `uint8`, (batch, height, width, 3).

        Returns:
            `torch.Tensor`: `float32`, (batch, 3, H, W) in channels-last memory format.
        """
        values = pixels.to(torch.float32)
        if tuple(values.shape[1:3]) != tuple(self.size):
            values = self._resize(values)
        if self.crop is not None and tuple(values.shape[1:3]) != tuple(self.crop):
            top, left = ((have - want) // 2 for have, want in zip(values.shape[1:3], self.crop, strict=True))
            values = values[:, top : top + self.crop[0], left : left + self.crop[1]].contiguous()
        batch, height, width, _ = values.shape
        scale, shift = self._row(width)
        # a whole row of pixels at a time: the loop over three channels alone does not vectorize
        values.view(batch, height, width * 3).mul_(scale).add_(shift)
        return values.permute(0, 3, 1, 2)

    def _resize(self, values: torch.Tensor) -> torch.Tensor:
        smooth = self.interpolation != "nearest"
        resized = torch.nn.functional.interpolate(
            values.permute(0, 3, 1, 2),
            size=tuple(self.size),
            mode=self.interpolation,
            align_corners=False if smooth else None,
            antialias=smooth,
        )
        return resized.clamp_(0, 255).permute(0, 2, 3, 1).contiguous()

    def _row(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        if width not in self._rows:
            mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
            scale, shift = (self.rescale / std).float(), (-mean / std).float()
            self._rows[width] = scale.repeat(width), shift.repeat(width)
        return self._rows[width]


def _height_width(size: Any) -> tuple[int, int]:
    """Height and width of a processor's `size`, given as numbers or as the shortest edge of square images."""
    height, width = _entry(size, "height"), _entry(size, "width")
    if height and width:
        return int(height), int(width)
    edge = _entry(size, "shortest_edge")
    if edge:
        return int(edge), int(edge)
    raise CompressionError(f"The image processor's size is {size}; allowed are height and width, or shortest_edge.")


def _entry(size: Any, name: str) -> int | None:
    return size.get(name) if isinstance(size, dict) else getattr(size, name, None)
