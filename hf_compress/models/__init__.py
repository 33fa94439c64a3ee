"""Models of any source, and the timm entries for CIFAR; importing the package registers them."""

from . import cifar_resnet as cifar_resnet
from .cifar_resnet import CifarResNet, PadShortcut


__all__ = ["CifarResNet", "PadShortcut"]
