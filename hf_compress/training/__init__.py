"""Training: one trainer, one path to it, and the context that methods work in."""

from .apply import StepReport, apply_method
from .arguments import build_arguments, check_training, choose_bf16, default_training
from .context import Context, is_main_process
from .data import TrainingData
from .finetune import FinetuneOptions
from .fit import TrainReport, fit, prefer_channels_last
from .order import GlobalBatchSampler, epoch_order
from .served import serving
from .trainer import CompressionTrainer


__all__ = [
    "CompressionTrainer",
    "Context",
    "FinetuneOptions",
    "GlobalBatchSampler",
    "StepReport",
    "TrainReport",
    "TrainingData",
    "apply_method",
    "build_arguments",
    "check_training",
    "choose_bf16",
    "default_training",
    "epoch_order",
    "fit",
    "is_main_process",
    "prefer_channels_last",
    "serving",
]
