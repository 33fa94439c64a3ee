"""A task: data, what makes model inputs of them, and the metric."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import locate
from ..errors import CompressionError, NotFoundError, RecipeError
from ..registry import nearest
from . import cifar10, glue
from .dataset import Batch, BatchDataset, ImageDataset, TextDataset
from .examples import ImageExamples, TextExamples
from .preprocessing import ImageSettings
from .selection import holdout_mask, take
from .tokens import tokenize


logger = logging.getLogger(__name__)

NAMES = ("cifar10", "glue")
SAMPLE = "sample"

Examples = TextExamples | ImageExamples


@dataclass
class TaskSpec:
    """Which data a recipe works on.

    Args:
        name (`str`): "cifar10" or "glue".
        subset (`str`, *optional*): of GLUE: "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte" or "wnli".
        max_length (`int`, *optional*, defaults to 128): tokens that a text, or a pair of them, is cut to.
        data_dir (`str`, *optional*): a local copy in any of the forms that [`load_task`] names. "sample" is the
            CIFAR-10 sample of the package. `None` looks for the Hub's name in `HF_COMPRESS_DATA`, then asks the Hub.
        max_train_samples, max_eval_samples (`int`, *optional*): take a seeded choice of so many examples for training,
            and of each evaluation split; the classes keep their shares.

    Raises:
        `RecipeError`: names the key, what it allows and the nearest valid value.
    """

    name: str
    subset: str | None = None
    max_length: int = 128
    data_dir: str | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None

    def __post_init__(self):
        if self.name not in NAMES:
            raise RecipeError(
                f"task.name: got {self.name!r}{nearest(self.name, NAMES)}; allowed are cifar10 and glue."
            )
        subsets = ", ".join(glue.SUBSETS)
        if self.name == "glue" and self.subset not in glue.SUBSETS:
            got = "nothing" if self.subset is None else f"{self.subset!r}{nearest(self.subset, glue.SUBSETS)}"
            raise RecipeError(f"task.subset: got {got}; allowed are {subsets}.")
        if self.name == "cifar10" and self.subset is not None:
            raise RecipeError(f"task.subset: got {self.subset!r}; cifar10 has no subsets, leave it out.")
        if self.name == "glue" and self.data_dir == SAMPLE:
            raise RecipeError("task.data_dir: got 'sample', which is there for cifar10 only; give a folder or a zip.")
        if self.data_dir is not None and not (isinstance(self.data_dir, str) and self.data_dir.strip()):
            raise RecipeError(
                f"task.data_dir: got {self.data_dir!r}; give the path of a folder or file, or leave it out."
            )
        for name in ("max_length", "max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is None and name != "max_length":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RecipeError(f"task.{name}: got {value!r}; give a whole number of at least 1.")

    @property
    def modality(self) -> str:
        """What its examples are: "image" or "text"."""
        return "image" if self.name == "cifar10" else "text"


@dataclass
class TaskData:
    """A task's data, ready for one model.

    Args:
        train ([`BatchDataset`]): the training split without the holdout; images are augmented.
        holdout ([`BatchDataset`]): 5 % of the training split, the same for every seed, never trained on; for choices
            that must not look at the evaluation split.
        evaluation (`dict[str, BatchDataset]`): each evaluation split by name, the main one first.
        metric (`Callable`): predictions and references to `dict[str, float]`.
    """

    train: BatchDataset
    holdout: BatchDataset
    evaluation: dict[str, BatchDataset]
    metric: Callable[[np.ndarray, np.ndarray], dict[str, float]] = field(repr=False)

    def collate(self, examples: Batch | Sequence[dict[str, torch.Tensor]]) -> Batch:
        """Pass a finished batch through, or make one of a list of examples; the `collate_fn` of a `DataLoader`."""
        return self.train.collate(examples)

    def calibration(self, n: int, seed: int = 0, batch_size: int = 32) -> Iterator[Batch]:
        """Batches of the first `n` examples of a seeded shuffle of `train`, un-augmented."""
        return (batch for _, batch in self.train.plain(n, seed).batches(batch_size))

    def compute_metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The task's metrics by their full names.

        Args:
            logits (`np.ndarray`): (examples, classes), or (examples, 1) or (examples,) for a regression.
            labels (`np.ndarray`): (examples,).
        """
        logits, labels = np.asarray(logits), np.asarray(labels)
        if len(logits) != len(labels):
            raise CompressionError(f"There are {len(logits)} predictions for {len(labels)} labels.")
        one_output = logits.size == len(labels)  # a regression
        return self.metric(logits.reshape(len(labels)) if one_output else logits.argmax(axis=-1), labels)


@dataclass(frozen=True)
class Task:
    """What a model has to do. Made by [`load_task`]; the data are read by `prepare`.

    Attributes:
        spec ([`TaskSpec`]): what it was made from.
        name (`str`): "cifar10", or "glue/sst2".
        modality (`str`): "image" or "text".
        problem_type (`str`): "single_label_classification" or "regression", as in a model's config.
        label_names (`list[str]`): in the Hub's order; one name for a regression.
        main_metric (`str`): the full name of the metric that tables show, such as "matthews_correlation".
        hub_dataset, hub_config (`str`): of the data on the Hub.
        eval_splits (`tuple[str, ...]`): the main one first.
        source (`str`): where the data come from: a path, or the Hub id.
        seed (`int`): of the augmentation and of smaller choices of examples.
    """

    spec: TaskSpec
    name: str
    modality: str
    problem_type: str
    label_names: list[str]
    main_metric: str
    hub_dataset: str
    hub_config: str
    eval_splits: tuple[str, ...]
    source: str
    seed: int
    read: Callable[[], dict[str, Examples]] = field(repr=False, compare=False)

    @property
    def num_labels(self) -> int:
        return len(self.label_names)

    def prepare(self, processor: Any) -> TaskData:
        """Read the data and make them ready for a model.

        Args:
            processor (`Any`): the model's tokenizer, or its image processor (mean, std, size).

        Raises:
            `NotFoundError`: if the Hub has to be asked and does not answer; the message says how to fetch the data.
            `CompressionError`: if a file is missing, truncated or damaged (it is named), or the processor does not
                fit.
        """
        if self.modality == "image":
            settings = ImageSettings.from_processor(processor)
            splits = self.read()
            views = {split: self._images(examples, settings) for split, examples in splits.items()}
        else:
            splits = self.read()
            views = {split: self._texts(examples, processor) for split, examples in splits.items()}
        held = holdout_mask(len(splits["train"].labels))
        classes = splits["train"].labels if self.problem_type != "regression" else None
        free, limit = np.flatnonzero(~held), self.spec.max_train_samples
        # a smaller training set has a holdout that is smaller by as much
        held_limit = None if limit is None else max(1, round(held.sum() * min(1, limit / len(free))))
        train = views["train"].subset(take(free, limit, self.seed, classes))
        if isinstance(train, ImageDataset):
            train.augment = True
        return TaskData(
            train=train,
            holdout=views["train"].subset(take(np.flatnonzero(held), held_limit, self.seed, classes)),
            evaluation={split: self._evaluation(views[split], splits[split]) for split in self.eval_splits},
            metric=self._metric,
        )

    def _images(self, examples: ImageExamples, settings: ImageSettings) -> BatchDataset:
        return ImageDataset(examples.pixels, torch.tensor(examples.labels), settings, seed=self.seed)

    def _texts(self, examples: TextExamples, tokenizer: Any) -> BatchDataset:
        tokens = tokenize(tokenizer, examples.columns, self.spec.max_length)
        return TextDataset(tokens, torch.tensor(examples.labels))

    def _evaluation(self, view: BatchDataset, examples: Examples) -> BatchDataset:
        classes = examples.labels if self.problem_type != "regression" else None
        return view.subset(take(np.arange(len(view)), self.spec.max_eval_samples, self.seed, classes))

    def _metric(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        from ..metrics import load_metric  # imports `evaluate`, which takes seconds

        metric = load_metric("accuracy") if self.modality == "image" else load_metric("glue", self.hub_config)
        return metric.compute(predictions=predictions, references=references)


def load_task(spec: TaskSpec, seed: int = 0) -> Task:
    """Find a task's data, without reading them.

    CIFAR-10 may be in the Hub's parquet layout, the official `cifar-10-python.tar.gz` or its unpacked folder, or in
    folders of images (`train/airplane/*.png`). GLUE may be in the Hub's parquet layout, in the original folders of TSV
    files, or in a zip of those. Labels are numbered as on the Hub, whatever the source.

    Args:
        spec ([`TaskSpec`]): which data.
        seed (`int`, *optional*, defaults to 0): of the augmentation and of smaller choices of examples.

    Raises:
        `NotFoundError`: if `spec.data_dir` does not exist or holds none of these forms.
    """
    if spec.name == "cifar10":
        source, read = _locate(spec, cifar10.HUB_ID, cifar10.find, cifar10.read_hub, cifar10.FORMS)
        return Task(
            spec=spec,
            name="cifar10",
            modality=spec.modality,
            problem_type="single_label_classification",
            label_names=list(cifar10.LABELS),
            main_metric="accuracy",
            hub_dataset=cifar10.HUB_ID,
            hub_config=cifar10.HUB_CONFIG,
            eval_splits=cifar10.SPLITS[1:],
            source=source,
            seed=seed,
            read=read,
        )
    subset = glue.SUBSETS[spec.subset]
    source, read = _locate(
        spec, glue.HUB_ID, lambda place: glue.find(place, subset), lambda: glue.read_hub(subset), glue.FORMS
    )
    return Task(
        spec=spec,
        name=f"glue/{subset.name}",
        modality=spec.modality,
        problem_type="single_label_classification" if subset.labels else "regression",
        label_names=list(subset.labels) or ["score"],
        main_metric=subset.main_metric,
        hub_dataset=glue.HUB_ID,
        hub_config=subset.name,
        eval_splits=subset.eval_splits,
        source=source,
        seed=seed,
        read=read,
    )


def published_sizes(spec: TaskSpec) -> dict[str, int]:
    """Examples of each split that is used, of the data set as it was published; known without the data."""
    return dict(cifar10.SIZES if spec.subset is None else glue.SUBSETS[spec.subset].sizes)


def _locate(
    spec: TaskSpec,
    hub_id: str,
    find: Callable[[Path], Callable | None],
    read_hub: Callable[[], dict[str, Examples]],
    forms: tuple[str, ...],
) -> tuple[str, Callable[[], dict[str, Examples]]]:
    """Where the data are, and how to read them."""
    wanted = hub_id if spec.subset is None else f"{hub_id} ({spec.subset})"
    if spec.data_dir is not None:
        place = cifar10.SAMPLE if spec.data_dir == SAMPLE else Path(spec.data_dir).expanduser()
        read = find(place)
        if read is not None:
            return str(place), read
        state = "holds no data of this task" if place.exists() else "does not exist"
        raise NotFoundError(
            f"task.data_dir: {place.absolute()} {state}. {_forms(wanted, forms)}\n"
            "To fetch it, leave data_dir out and:\n"
            + "\n".join(f"    {command}" for command in locate.fetch_commands(hub_id, "datasets"))
        )
    incomplete = []
    for place in locate.places(hub_id, "datasets"):
        read = find(place)
        if read is not None:
            return str(place), read
        if place.exists():
            incomplete.append(str(place))
            logger.info("%s does not hold %s; looking further.", place, wanted)

    def ask_hub() -> dict[str, Examples]:
        try:
            return read_hub()
        except CompressionError:
            raise
        # the Hub client lets through whatever its HTTP library, the disk or a cache raises; the cause is kept
        except Exception as error:
            told = str(locate.not_found(hub_id, "datasets", cause=f"{type(error).__name__}: {error}"))
            extra = "".join(f"\n{place} is there, but does not hold {wanted}." for place in incomplete)
            raise NotFoundError(f"{told}{extra}\n{_forms(wanted, forms)}") from error

    return hub_id, ask_hub


def _forms(wanted: str, forms: tuple[str, ...]) -> str:
    return f"{wanted} may lie there as {'; or '.join(forms)}."
