"""Models of any source, and the timm entries for CIFAR; importing the package registers them."""

from .cifar_resnet import CifarResNet, PadShortcut
from .load import load_model


__all__ = ["CifarResNet", "PadShortcut", "load_model"]
