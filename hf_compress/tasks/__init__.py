"""Tasks: CIFAR-10 and the nine subsets of GLUE, from the Hub or from local copies in any common form."""

from .dataset import Batch, BatchDataset, ImageDataset, TextDataset
from .task import SAMPLE, Task, TaskData, TaskSpec, load_task, published_sizes


__all__ = [
    "SAMPLE",
    "Batch",
    "BatchDataset",
    "ImageDataset",
    "Task",
    "TaskData",
    "TaskSpec",
    "TextDataset",
    "load_task",
    "published_sizes",
]
