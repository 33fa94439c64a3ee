from __future__ import annotations

import ast
import types
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from hf_compress import locate
from hf_compress.errors import CompressionError, NotFoundError, RecipeError
from hf_compress.tasks import TaskSpec, cifar10, glue, load_task

from . import sources
from .conftest import image_processor


every_subset = pytest.mark.parametrize("subset", glue.SUBSETS.values(), ids=list(glue.SUBSETS))


@pytest.fixture
def cifar(tmp_path):
    """A folder with a small CIFAR-10."""
    sources.write_cifar_parquet(tmp_path / "cifar" / "plain_text", sources.cifar_arrays())
    return str(tmp_path / "cifar")


def write_glue(folder, name):
    subset = glue.SUBSETS[name]
    splits = sources.glue_examples(subset)
    sources.write_glue_parquet(folder / name, subset, splits)
    return splits


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cifar"}, r"task.name: got 'cifar' \(did you mean 'cifar10'\?\)"),
        ({"name": "glue"}, "task.subset: got nothing; allowed are cola, sst2"),
        ({"name": "glue", "subset": "sst-2"}, r"task.subset: got 'sst-2' \(did you mean 'sst2'\?\)"),
        ({"name": "cifar10", "subset": "sst2"}, "cifar10 has no subsets"),
        ({"name": "glue", "subset": "sst2", "data_dir": "sample"}, "task.data_dir.*cifar10 only"),
        ({"name": "cifar10", "data_dir": " "}, "task.data_dir: got ' '"),
        ({"name": "cifar10", "max_length": 0}, "task.max_length: got 0"),
        ({"name": "cifar10", "max_length": None}, "task.max_length: got None"),
        ({"name": "cifar10", "max_length": True}, "task.max_length: got True"),
        ({"name": "cifar10", "max_train_samples": -1}, "task.max_train_samples: got -1"),
        ({"name": "cifar10", "max_eval_samples": 1.5}, "task.max_eval_samples: got 1.5"),
    ],
)
def test_wrong_specifications_are_refused(fields, message):
    with pytest.raises(RecipeError, match=message):
        TaskSpec(**fields)


@every_subset
def test_glue_from_files_to_a_model(tmp_path, tokenizer, subset):
    splits = write_glue(tmp_path, subset.name)
    task = load_task(TaskSpec("glue", subset.name, max_length=48, data_dir=str(tmp_path)))
    assert task.name == f"glue/{subset.name}" and task.modality == "text"
    assert (task.hub_dataset, task.hub_config) == ("nyu-mll/glue", subset.name)
    assert task.num_labels == len(task.label_names) == {"stsb": 1, "mnli": 3}.get(subset.name, 2)
    regression = subset.name == "stsb"
    assert task.problem_type == ("regression" if regression else "single_label_classification")
    data = task.prepare(tokenizer)
    assert list(data.evaluation) == list(task.eval_splits)
    assert len(data.evaluation) == (2 if subset.name == "mnli" else 1)
    assert len(data.train) == 23 and len(data.holdout) == 1
    for split, view in data.evaluation.items():
        *texts, labels = splits[split].values()
        assert view.labels.tolist() == labels
        expected = tokenizer(*(column[:3] for column in texts), truncation=True, max_length=48, padding=True)
        assert view.__getitems__([0, 1, 2])["input_ids"].tolist() == expected["input_ids"]

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=task.num_labels,
        problem_type=task.problem_type,
    )
    model = BertForSequenceClassification(config).eval()
    batch = next(iter(DataLoader(data.train, batch_size=8, collate_fn=data.collate)))
    outputs = model(**batch)
    assert torch.isfinite(outputs.loss) and outputs.logits.shape == (8, task.num_labels)

    view = data.evaluation[task.eval_splits[0]]
    labels = view.labels.numpy()
    perfect = labels[:, None] if regression else np.eye(task.num_labels)[labels]
    scores = data.compute_metrics(perfect, labels)
    assert task.main_metric in scores
    assert all(score == pytest.approx(1) for score in scores.values())
    with pytest.raises(CompressionError, match="predictions for"):
        data.compute_metrics(perfect[:-1], labels)


def test_cifar10_from_files(cifar):
    task = load_task(TaskSpec("cifar10", data_dir=cifar), seed=5)
    assert (task.name, task.modality, task.main_metric) == ("cifar10", "image", "accuracy")
    assert task.label_names == list(cifar10.LABELS) and task.num_labels == 10
    assert task.eval_splits == ("test",) and (task.hub_dataset, task.hub_config) == ("uoft-cs/cifar10", "plain_text")
    data = task.prepare(image_processor())
    assert data.train.augment and not data.holdout.augment and not data.evaluation["test"].augment
    assert data.train.seed == 5
    assert sorted([*data.train.rows, *data.holdout.rows]) == list(range(40)) and len(data.holdout) == 2
    assert data.compute_metrics(np.eye(10)[data.evaluation["test"].labels], data.evaluation["test"].labels) == {
        "accuracy": 1.0
    }


def test_another_seed_keeps_the_holdout_and_changes_the_augmentation(cifar):
    first, second = (
        load_task(TaskSpec("cifar10", data_dir=cifar), seed=seed).prepare(image_processor()) for seed in (0, 1)
    )
    assert first.holdout.rows.tolist() == second.holdout.rows.tolist()
    assert not torch.equal(first.train[0]["pixel_values"], second.train[0]["pixel_values"])


@pytest.mark.parametrize("name", ["cifar10", "sst2", "stsb"])
def test_fewer_samples(tmp_path, cifar, tokenizer, name):
    if name == "cifar10":
        fields, processor = {"name": "cifar10", "data_dir": cifar}, image_processor()
    else:
        write_glue(tmp_path, name)
        fields, processor = {"name": "glue", "subset": name, "data_dir": str(tmp_path)}, tokenizer
        fields["max_length"] = 64
    split = "test" if name == "cifar10" else "validation"
    spec = TaskSpec(**fields, max_train_samples=20, max_eval_samples=4)
    data, again, other = (load_task(spec, seed=seed).prepare(processor) for seed in (0, 0, 1))
    assert len(data.train) == 20 and len(data.evaluation[split]) == 4 and len(data.holdout) == 1
    assert data.train.rows.tolist() == again.train.rows.tolist() != other.train.rows.tolist()
    whole = load_task(TaskSpec(**fields)).prepare(processor)
    assert set(data.train.rows) <= set(whole.train.rows) and set(data.holdout.rows) <= set(whole.holdout.rows)
    if name == "cifar10":
        assert np.bincount(data.train.labels).tolist() == [2] * 10
    if name == "sst2":
        assert np.bincount(data.train.labels).tolist() == [10, 10]
        assert np.bincount(data.evaluation[split].labels).tolist() == [2, 2]
    many = load_task(TaskSpec(**fields, max_train_samples=10**6, max_eval_samples=10**6)).prepare(processor)
    assert len(many.train) == len(whole.train) and len(many.holdout) == len(whole.holdout)


def test_calibration_is_a_prefix_of_a_shuffle_and_not_augmented(cifar):
    data = load_task(TaskSpec("cifar10", data_dir=cifar)).prepare(image_processor())
    small, large = (
        torch.cat([batch["pixel_values"] for batch in data.calibration(n, seed=2, batch_size=4)]) for n in (10, 30)
    )
    assert small.shape[0] == 10 and torch.equal(small, large[:10])
    data.train.set_epoch(7)
    assert torch.equal(small, torch.cat([batch["pixel_values"] for batch in data.calibration(10, seed=2)]))
    every = data.train.plain().__getitems__(range(len(data.train)))["pixel_values"]
    assert all((every == image).flatten(1).all(1).any() for image in small)


def test_local_data_come_before_data_roots_and_they_before_the_hub(tmp_path, no_data_roots, monkeypatch):
    arrays = sources.cifar_arrays()
    monkeypatch.setenv("HF_COMPRESS_DATA", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert load_task(TaskSpec("cifar10")).source == "uoft-cs/cifar10"
    for root in ("b", "a"):
        place = tmp_path / root / "datasets" / "uoft-cs" / "cifar10"
        sources.write_cifar_parquet(place / "plain_text", arrays)
        assert load_task(TaskSpec("cifar10")).source == str(place)
    sources.write_cifar_parquet(tmp_path / "empty" / "uoft-cs" / "cifar10" / "plain_text", arrays)
    assert load_task(TaskSpec("cifar10")).source == "uoft-cs/cifar10"
    assert not isinstance(load_task(TaskSpec("cifar10")).read(), str)  # the folder of that name, read
    other = tmp_path / "given"
    sources.write_image_folders(other, arrays)
    assert load_task(TaskSpec("cifar10", data_dir=str(other))).source == str(other)


@pytest.fixture
def hub(monkeypatch):
    """A Hub that serves what a test puts there, and notes what was asked for."""
    served, asked = {}, []

    def load_dataset(path, name, split):
        asked.append((path, name, tuple(split)))
        if (path, name) not in served:
            raise ConnectionError(f"Couldn't reach '{path}' on the Hub")
        return [served[path, name][part] for part in split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return types.SimpleNamespace(served=served, asked=asked)


@pytest.mark.parametrize("name", ["sst2", "mnli", "stsb"])
def test_glue_from_the_hub(no_data_roots, hub, name):
    subset = glue.SUBSETS[name]
    splits = sources.glue_examples(subset)
    kind = datasets.ClassLabel(names=list(subset.labels)) if subset.labels else datasets.Value("float32")
    features = datasets.Features({**{c: datasets.Value("string") for c in subset.columns}, "label": kind})
    hub.served["nyu-mll/glue", name] = {
        split: datasets.Dataset.from_dict(columns, features=features) for split, columns in splits.items()
    }
    examples = load_task(TaskSpec("glue", name)).read()
    assert hub.asked == [("nyu-mll/glue", name, tuple(subset.sizes))]  # no unlabelled test split
    for split, found in examples.items():
        *texts, labels = splits[split].values()
        assert list(found.columns) == texts and found.labels.tolist() == labels


def test_cifar10_from_the_hub(no_data_roots, hub):
    arrays = sources.cifar_arrays()
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(cifar10.LABELS))})
    hub.served["uoft-cs/cifar10", "plain_text"] = {
        split: datasets.Dataset.from_dict(
            {"img": [{"bytes": sources.encode(image)} for image in pixels], "label": labels.tolist()},
            features=features,
        )
        for split, (pixels, labels) in arrays.items()
    }
    examples = load_task(TaskSpec("cifar10")).read()
    for split, (pixels, labels) in arrays.items():
        assert np.array_equal(examples[split].pixels, pixels) and examples[split].labels.tolist() == labels.tolist()


def test_a_subset_that_a_data_root_lacks_is_asked_of_the_hub(tmp_path, no_data_roots, hub, monkeypatch):
    root = tmp_path / "root"
    write_glue(root / "datasets" / "nyu-mll" / "glue", "sst2")
    monkeypatch.setenv("HF_COMPRESS_DATA", str(root))
    assert load_task(TaskSpec("glue", "sst2")).source == str(root / "datasets" / "nyu-mll" / "glue")
    task = load_task(TaskSpec("glue", "rte"))
    assert task.source == "nyu-mll/glue"
    with pytest.raises(NotFoundError) as caught:
        task.read()
    assert f"{root / 'datasets' / 'nyu-mll' / 'glue'} is there, but does not hold nyu-mll/glue (rte)" in str(
        caught.value
    )
    assert hub.asked == [("nyu-mll/glue", "rte", ("train", "validation"))]


@pytest.mark.parametrize("fields", [{"name": "cifar10"}, {"name": "glue", "subset": "cola"}])
def test_when_nothing_is_found_the_places_and_commands_are_listed(tmp_path, no_data_roots, hub, monkeypatch, fields):
    roots = [tmp_path / "first", tmp_path / "second"]
    monkeypatch.setenv("HF_COMPRESS_DATA", ":".join(map(str, roots)))
    task = load_task(TaskSpec(**fields))
    with pytest.raises(NotFoundError) as caught:
        task.prepare(image_processor() if fields["name"] == "cifar10" else None)
    message = str(caught.value)
    for place in locate.places(task.hub_dataset, "datasets"):
        assert str(place.absolute()) in message
    assert all(str(root) in message for root in roots)
    for command in locate.fetch_commands(task.hub_dataset, "datasets"):
        assert command in message
    assert f"hf download {task.hub_dataset} --repo-type dataset" in message
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert ("cifar-10-python.tar.gz" if task.name == "cifar10" else "SST-2/train.tsv") in message


def test_offline_is_honoured(no_data_roots):
    # the tests run with HF_HUB_OFFLINE=1
    with pytest.raises(NotFoundError, match="HF_HUB_OFFLINE"):
        load_task(TaskSpec("cifar10")).prepare(image_processor())


def test_damage_on_the_hub_is_not_taken_for_absence(no_data_roots, hub):
    hub.served["nyu-mll/glue", "cola"] = {
        split: datasets.Dataset.from_dict({"text": ["a"], "label": [0]}) for split in ("train", "validation")
    }
    with pytest.raises(CompressionError, match="without sentence") as caught:
        load_task(TaskSpec("glue", "cola")).read()
    assert not isinstance(caught.value, NotFoundError)


@pytest.mark.parametrize("fields", [{"name": "cifar10"}, {"name": "glue", "subset": "cola"}])
def test_a_data_dir_without_the_data_is_refused_at_once(tmp_path, fields):
    with pytest.raises(NotFoundError, match="absent does not exist.*may lie there as") as caught:
        load_task(TaskSpec(**fields, data_dir=str(tmp_path / "absent")))
    assert "hf download" in str(caught.value)
    (tmp_path / "notes").mkdir()
    with pytest.raises(NotFoundError, match="notes holds no data of this task"):
        load_task(TaskSpec(**fields, data_dir=str(tmp_path / "notes")))


def test_the_home_folder_is_expanded(cifar, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_task(TaskSpec("cifar10", data_dir="~/cifar")).source == cifar


def test_the_sample_of_the_package():
    task = load_task(TaskSpec("cifar10", data_dir="sample"))
    splits = task.read()
    for examples in splits.values():
        assert examples.pixels.shape == (1000, 3, 32, 32)
        assert np.bincount(examples.labels).tolist() == [100] * 10
        assert len(torch.unique(examples.pixels.flatten(1), dim=0)) == 1000
        # the known mean of CIFAR-10, within the error of a sample
        mean = examples.pixels.float().mean((0, 2, 3)) / 255
        torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), rtol=0, atol=0.02)
    assert sum(path.stat().st_size for path in cifar10.SAMPLE.rglob("*.parquet")) < 5e6
    data = task.prepare(image_processor())
    assert (len(data.train), len(data.holdout), len(data.evaluation["test"])) == (950, 50, 1000)


def test_a_damaged_page_of_the_sample_is_noticed(tmp_path):
    for path in cifar10.SAMPLE.glob("plain_text/*.parquet"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / path.name).write_bytes(content)
    with pytest.raises(CompressionError, match="train-00000-of-00001.parquet cannot be read"):
        load_task(TaskSpec("cifar10", data_dir=str(tmp_path))).read()


def test_what_takes_seconds_to_import_is_imported_when_it_is_needed():
    folder = Path(cifar10.__file__).parent
    for path in [*folder.glob("*.py"), folder.parent / "metrics" / "__init__.py"]:
        imported = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {getattr(node, "module", None) or node.names[0].name for node in imported}
        assert not names & {"datasets", "evaluate", "pyarrow", "scipy", "transformers", "PIL"}, path
