"""Compress Transformers and timm models, and report honestly what each step did.

Importing the package registers the CIFAR ResNets with timm and the compressed layers with Transformers, so that plain
`from_pretrained` gives compressed models back. Everything else is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any


def _only_reads_records() -> bool:
    """Whether this process is `hf-compress report` or `hf-compress journal`, which never see a model.

    They start at once and in a tenth of the memory without PyTorch, Transformers and timm.
    """
    program, *arguments = sys.argv or [""]
    verb = next((argument for argument in arguments if not argument.startswith("-")), None)
    return (program == "-m" or Path(program).stem == "hf-compress") and verb in ("report", "journal")


if not _only_reads_records():
    from . import structure  # noqa: F401  (registers with Transformers)
    from .models import cifar_resnet  # noqa: F401  (registers with timm)

if TYPE_CHECKING:
    from .distillation import DistillationArguments, DistillationTrainer
    from .lowrank import factorize
    from .measurement import measure
    from .models import load_model
    from .pruning import prune
    from .quantization import quantize
    from .runner import run
    from .structure import track
    from .tasks import TaskSpec, load_task

__version__ = "0.1.0"

_HOMES = {
    "DistillationArguments": "distillation",
    "DistillationTrainer": "distillation",
    "TaskSpec": "tasks",
    "factorize": "lowrank",
    "load_model": "models",
    "load_task": "tasks",
    "measure": "measurement",
    "prune": "pruning",
    "quantize": "quantization",
    "run": "runner",
    "track": "structure",
}
_TECHNIQUES = ("training", "pruning", "lowrank", "distillation", "quantization")

__all__ = [
    "DistillationArguments",
    "DistillationTrainer",
    "TaskSpec",
    "factorize",
    "load_methods",
    "load_model",
    "load_task",
    "measure",
    "prune",
    "quantize",
    "run",
    "track",
]


def load_methods() -> None:
    """Import the techniques, which fill the registry of methods."""
    for technique in _TECHNIQUES:
        importlib.import_module(f".{technique}", __name__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
