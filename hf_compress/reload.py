"""Whether the models of a finished run come back: loaded as anyone would, compared with what the run measured."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from huggingface_hub import HfApi

from .errors import NotFoundError
from .measurement import configure_threads, openvino_config
from .quantization import is_exported, served_precision
from .recipe import load_recipe
from .results import load_results
from .stages import EVALUATION_BATCH, RECORDS, evaluate_stage
from .tasks import Task, TaskData, load_task


HEADS = {"image": "ModelForImageClassification", "text": "ModelForSequenceClassification"}
PROCESSORS = {"image": "AutoImageProcessor", "text": "AutoTokenizer"}
CLOSE = 1e-3  # of the largest logit


class Finding(NamedTuple):
    passed: bool
    detail: str


@dataclass
class ModelFolder:
    """A model folder of a run, and what was found of it.

    Attributes:
        run, path (`Path`): the run's folder, and the one in it that holds the model.
        record (`dict`): of its stage in `results.json`.
        task ([`~tasks.Task`]): of the run.
        threads (`int`): it was measured with.
        batch (`dict[str, torch.Tensor]`), logits (`np.ndarray`): the first evaluation batch and what the model makes
            of it; there once it was loaded.
        findings (`dict[str, Finding]`): by check.
    """

    run: Path
    path: Path
    record: dict
    task: Task
    threads: int
    batch: dict[str, torch.Tensor] | None = None
    logits: np.ndarray | None = None
    findings: dict[str, Finding] = field(default_factory=dict)

    def __post_init__(self):
        self.exported = is_exported(self.path)
        self.class_name = ("OV" if self.exported else "Auto") + HEADS[self.task.modality]
        self.options = {}
        if self.exported:  # as it was measured
            self.options["ov_config"] = openvino_config(served_precision(self.path), self.threads)

    def load(self, where: str, **options: Any) -> Any:
        """The model at `where`, this folder, a copy or a Hub id, through plain `from_pretrained`."""
        if self.exported:
            import optimum.intel as library
        else:
            library = transformers
        return getattr(library, self.class_name).from_pretrained(where, **self.options, **options)

    def judge(self, logits: Any) -> Finding:
        """Whether another copy of the model gives the same for the first batch."""
        return compare(logits, self.logits, exact=not self.exported)


def model_folders(run: str | Path) -> list[ModelFolder]:
    """The stages of a finished run, and its `model` folder, which is a copy of the last one.

    Raises:
        `CompressionError`: if the run is not finished, or its data are not there.
    """
    run = Path(run)
    results, recipe = load_results(run), load_recipe(run / "recipe.yaml")
    task = load_task(recipe.task, seed=recipe.seed)
    places = [(run / "stages" / record["name"], record) for record in results["stages"]]
    places.append((run / "model", results["stages"][-1]))
    return [ModelFolder(run, path, record, task, _threads(record, results)) for path, record in places]


def check_reload(folder: ModelFolder, prepared: dict[Any, TaskData], user: str | None = None) -> None:
    """Load `folder` and note the findings "predictions", "saved again" and, with a `user` of the Hub, "hub".

    Args:
        prepared (`dict`): empty at first; keeps the data of a folder for the next one with the same processor.
        user (`str`, *optional*): owner of the private repository that the model is pushed to, and that is removed.
    """
    try:
        model, data = _load(folder, prepared)
    except Exception as error:  # here and below: whatever a damaged folder makes the libraries raise is what was found
        folder.findings["predictions"] = Finding(False, f"not loaded: {type(error).__name__}: {error}")
        return
    checks: dict[str, Callable[[], Finding]] = {
        "predictions": lambda: _predictions(folder, model, data),
        "saved again": lambda: _saved_again(folder, model),
        "hub": lambda: _through_the_hub(folder, model, user),
    }
    for name, check in checks.items():
        if name == "hub" and user is None:
            continue
        try:
            folder.findings[name] = check()
        except Exception as error:
            folder.findings[name] = Finding(False, f"{type(error).__name__}: {error}")


def compare(logits: Any, expected: Any, *, exact: bool) -> Finding:
    """Whether logits are equal or, where that is not asked for, within a thousandth of the largest."""
    found, expected = np.array(logits, np.float32), np.array(expected, np.float32)
    if np.array_equal(found, expected, equal_nan=True):
        return Finding(True, "equal")
    difference = np.abs(found - expected).max() if found.shape == expected.shape else np.inf
    close = not exact and bool(difference <= CLOSE * np.abs(expected).max())
    return Finding(close, f"{'close' if close else 'different'}: logits differ by up to {difference:.2g}")


def compare_predictions(found: dict, record: dict, *, exact: bool) -> Finding:
    """What [`evaluate_stage`] gives, against a stage's record.

    Without `exact`, equal metrics and close logits of the first examples do; the detail says so.
    """
    kept = record.get("predictions")
    same = found["metrics"] == record["metrics"]
    metrics = "metrics equal" if same else f"metrics {found['metrics']} instead of {record['metrics']}"
    if not kept:
        return Finding(False, f"results.json has no predictions: the run was made by an older version; {metrics}")
    if found["predictions"] == kept:
        return Finding(True, "equal")
    first = [[row for split in kept for row in source[split]["first"]] for source in (found["predictions"], kept)]
    close, words = compare(*first, exact=False)
    return Finding(not exact and close and same, f"other last bits; {metrics}; of the first two, {words}")


def _threads(record: dict, results: dict) -> int:
    """Those of the stage's measurement: the recipe has the last ones of a run that was begun with others."""
    return next((row["threads"] for row in record.get("latency", ())), results["recipe"]["threads"])


def _load(folder: ModelFolder, prepared: dict[Any, TaskData]) -> tuple[Any, TaskData]:
    if not folder.path.is_dir():  # which `from_pretrained` would take for the name of a repository
        raise NotFoundError(f"{folder.path} is not there.")
    configure_threads(folder.threads)
    modality = folder.task.modality
    processor = getattr(transformers, PROCESSORS[modality]).from_pretrained(folder.path)
    key = repr(folder.task), repr(processor)
    if key not in prepared:
        prepared.clear()
        prepared[key] = folder.task.prepare(processor)
    main_split = next(iter(prepared[key].evaluation.values()))
    _, batch = next(iter(main_split.batches(EVALUATION_BATCH[modality])))
    folder.batch = {name: tensor.contiguous() for name, tensor in batch.items() if name != "labels"}
    model = folder.load(str(folder.path))
    folder.logits = _logits(model, folder.batch)
    return model, prepared[key]


def _logits(model: Any, batch: dict[str, torch.Tensor]) -> np.ndarray:
    with torch.inference_mode():
        return model(**batch).logits.float().numpy(force=True)


def _predictions(folder: ModelFolder, model: Any, data: TaskData) -> Finding:
    found = evaluate_stage(model, data, folder.task.modality)
    return compare_predictions(found, folder.record, exact=not folder.exported)


def _saved_again(folder: ModelFolder, model: Any) -> Finding:
    with TemporaryDirectory() as place:
        model.save_pretrained(place)
        return folder.judge(_logits(folder.load(place), folder.batch))


def _through_the_hub(folder: ModelFolder, model: Any, user: str) -> Finding:
    with _temporary_repository(user) as name, TemporaryDirectory() as cache:
        if folder.exported:  # Optimum's own push makes a commit for every file
            HfApi().upload_folder(repo_id=name, folder_path=folder.path, ignore_patterns=list(RECORDS))
        else:
            model.push_to_hub(name)
        return folder.judge(_logits(folder.load(name, cache_dir=cache), folder.batch))


@contextmanager
def _temporary_repository(user: str) -> Iterator[str]:
    name = HfApi().create_repo(f"{user}/check-reload-{secrets.token_hex(6)}", private=True).repo_id
    try:
        yield name
    finally:
        HfApi().delete_repo(name)
