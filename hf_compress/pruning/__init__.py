"""Pruning: channels, attention heads and neurons leave the model, and it becomes smaller."""

from .criteria import CriterionOptions, MagnitudeOptions
from .depth import DepthOptions
from .fisher import FisherOptions
from .importance import magnitude_scores
from .inventory import Inventory, find_units
from .masks import masked
from .surgery import shrink
from .units import Slice, UnitGroup
from .verb import prune


__all__ = [
    "CriterionOptions",
    "DepthOptions",
    "FisherOptions",
    "Inventory",
    "MagnitudeOptions",
    "Slice",
    "UnitGroup",
    "find_units",
    "magnitude_scores",
    "masked",
    "prune",
    "shrink",
]
