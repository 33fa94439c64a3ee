"""Models of any source, and the timm entries for CIFAR; importing the package registers them."""

from .cifar_resnet import CifarResNet, PadShortcut
from .load import find_model, find_teacher, load_model, load_teacher


__all__ = ["CifarResNet", "PadShortcut", "find_model", "find_teacher", "load_model", "load_teacher"]
