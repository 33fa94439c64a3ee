"""Structure: describe a compressed model, rebuild it, and let plain Transformers save and load it."""

from .attributes import register_attributes
from .describe import build_skeleton, describe
from .modules import Constant, LowRankConv2d, LowRankLinear, Removed
from .plugin import HfCompressConfig, HfCompressQuantizer, check_trackable, history_of, track
from .rebuild import rebuild
from .specs import ModuleSpec
from .summary import structural_summary


__all__ = [
    "Constant",
    "HfCompressConfig",
    "HfCompressQuantizer",
    "LowRankConv2d",
    "LowRankLinear",
    "ModuleSpec",
    "Removed",
    "build_skeleton",
    "check_trackable",
    "describe",
    "history_of",
    "rebuild",
    "register_attributes",
    "structural_summary",
    "track",
]
