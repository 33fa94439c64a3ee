from __future__ import annotations

import copy
import os

import pytest

from hf_compress.lowrank import factorize
from hf_compress.measurement import predict
from hf_compress.models import load_model
from hf_compress.tasks import TaskSpec, load_task


@pytest.mark.real
@pytest.mark.skipif("HF_COMPRESS_DATA" not in os.environ, reason="needs HF_COMPRESS_DATA")
def test_weighting_by_activations_keeps_a_trained_resnet_much_better():
    task = load_task(TaskSpec("cifar10", max_eval_samples=1000, max_train_samples=2000))
    model, processor = load_model("resnet20_cifar10", task=task)
    data = task.prepare(processor)

    def accuracy(network):
        logits, labels = predict(network, data.evaluation["test"], batch_size=250)[:2]
        return float((logits.argmax(-1) == labels).mean())

    found = {"dense": accuracy(model)}
    for weighting in ("none", "activation"):
        small = copy.deepcopy(model)
        report = factorize(small, target={"macs": 0.5}, weighting=weighting, data=data)
        assert 0.49 < report.achieved <= 0.5 and not report.warnings
        found[weighting] = accuracy(small)
    # no training anywhere: about 0.92, 0.68 and 0.84
    assert found["dense"] > 0.9
    assert found["activation"] > found["none"] + 0.08
    assert found["activation"] > 0.78
