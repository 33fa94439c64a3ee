from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

import hf_compress.metrics
from hf_compress.metrics import load_metric
from hf_compress.tasks import glue


FOLDER = Path(hf_compress.metrics.__file__).parent


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def answers(name: str, seed: int):
    generator = np.random.default_rng(seed)
    if name == "stsb":
        references = np.round(generator.uniform(0, 5, 50), 1)  # with ties
        return (references + generator.normal(0, 1, 50)).astype(np.float32), references.astype(np.float32)
    references = generator.integers(0, 3 if name == "mnli" else 2, 50)
    return np.where(generator.random(50) < 0.7, references, 1 - references % 2), references


def expected(name: str, predictions, references) -> dict[str, float]:
    if name == "cola":
        return {"matthews_correlation": sklearn.metrics.matthews_corrcoef(references, predictions)}
    if name == "stsb":
        return {
            "pearson": scipy.stats.pearsonr(predictions, references)[0],
            "spearmanr": scipy.stats.spearmanr(predictions, references)[0],
        }
    scores = {"accuracy": sklearn.metrics.accuracy_score(references, predictions)}
    if name in ("mrpc", "qqp"):
        scores["f1"] = sklearn.metrics.f1_score(references, predictions)
    return scores


@pytest.mark.parametrize("name", glue.SUBSETS)
def test_glue_equals_the_libraries(name, no_sockets):
    for seed in range(3):
        predictions, references = answers(name, seed)
        scores = load_metric("glue", name).compute(predictions=predictions, references=references)
        assert scores == pytest.approx(expected(name, predictions, references), abs=1e-6)
        assert glue.SUBSETS[name].main_metric in scores
        assert json.loads(json.dumps(scores)) == scores


def test_accuracy(no_sockets):
    metric = load_metric("accuracy")
    assert metric.compute(predictions=[1, 2, 3, 9], references=[1, 2, 4, 9]) == {"accuracy": 0.75}
    assert metric.compute(predictions=[0], references=[1]) == {"accuracy": 0.0}  # a metric can be used again


@pytest.mark.parametrize("name", ["cola", "stsb", "mrpc"])
def test_a_model_that_always_says_the_same_has_no_correlation(name):
    scores = load_metric("glue", name).compute(predictions=[0] * 6, references=[0, 1, 1, 0, 1, 1])
    assert all(np.isfinite(score) for score in scores.values())
    assert scores[glue.SUBSETS[name].main_metric] == 0.0


def test_evaluate_loads_them_by_path_without_a_network(no_sockets, tmp_path, monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    metric = evaluate.load(str(FOLDER / "glue" / "glue.py"), "mrpc", cache_dir=str(tmp_path))
    assert metric.compute(predictions=[1, 0, 1], references=[1, 1, 1]) == pytest.approx({"accuracy": 2 / 3, "f1": 0.8})
    metric = evaluate.load(str(FOLDER / "accuracy"), cache_dir=str(tmp_path))
    assert metric.compute(predictions=[1, 0], references=[1, 1]) == {"accuracy": 0.5}


def test_computing_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    load_metric("accuracy").compute(predictions=[1], references=[1])
    assert list(tmp_path.iterdir()) == []


def test_unknown_metric():
    with pytest.raises(ValueError, match="accuracy, glue"):
        load_metric("bleu")
    with pytest.raises(KeyError, match="sst2"):
        load_metric("glue", "nope")
