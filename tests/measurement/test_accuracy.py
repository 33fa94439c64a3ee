from __future__ import annotations

import hashlib
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from transformers import DataCollatorWithPadding

from hf_compress.errors import CompressionError
from hf_compress.measurement import Evaluation, agreement, evaluate, openvino_config, plain_metrics, predict

from .architectures import batch_for, bert, build


LENGTHS = [5, 12, 3, 9, 12, 7, 4]


class ByLength:
    """A data set that hands out its own batches, the longest first, with positions."""

    def __init__(self, lengths=LENGTHS, labels=True):
        generator = torch.Generator().manual_seed(3)
        self.examples = [torch.randint(5, 100, (length,), generator=generator) for length in lengths]
        self.labels = torch.arange(len(lengths)) % 2 if labels else None

    def __len__(self):
        return len(self.examples)

    def batches(self, batch_size):
        order = np.argsort([-len(example) for example in self.examples], kind="stable")
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            chosen = [self.examples[position] for position in positions]
            batch = {
                "input_ids": torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True),
                "attention_mask": torch.nn.utils.rnn.pad_sequence(
                    [torch.ones_like(example) for example in chosen], batch_first=True
                ),
            }
            if self.labels is not None:
                batch["labels"] = self.labels[torch.from_numpy(positions)]
            yield positions, batch


def one_by_one(model, examples):
    with torch.no_grad():
        return np.concatenate([model(input_ids=example[None]).logits.numpy() for example in examples])


@pytest.fixture
def model():
    return build("bert")


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_logits_come_in_the_order_of_the_data_whatever_the_batches(model, batch_size):
    data = ByLength()
    logits, labels = predict(model, data, batch_size)
    np.testing.assert_allclose(logits, one_by_one(model, data.examples), atol=1e-5)
    assert logits.dtype == np.float32
    assert labels.tolist() == data.labels.tolist()
    assert predict(model, ByLength(labels=False))[1] is None


def test_datasets_with_other_columns_and_a_collator(model):
    data = ByLength()
    dataset = datasets.Dataset.from_dict(
        {
            "sentence": [f"text {number}" for number in range(len(data))],
            "input_ids": [example.tolist() for example in data.examples],
            "label": data.labels.tolist(),
            "idx": list(range(len(data))),
        }
    )

    class Padding:
        padding_side, model_input_names = "right", ["input_ids", "attention_mask"]
        deprecation_warnings = {}

        def pad(self, features, **_):
            longest = max(len(feature["input_ids"]) for feature in features)
            rows = [feature["input_ids"] + [0] * (longest - len(feature["input_ids"])) for feature in features]
            masks = [
                [1] * len(feature["input_ids"]) + [0] * (longest - len(feature["input_ids"])) for feature in features
            ]
            assert set(features[0]) == {"input_ids", "label"}
            return {
                "input_ids": torch.tensor(rows),
                "attention_mask": torch.tensor(masks),
                "label": torch.tensor([feature["label"] for feature in features]),
            }

    logits, labels = predict(model, dataset, 3, collate_fn=DataCollatorWithPadding(Padding()))
    np.testing.assert_allclose(logits, one_by_one(model, data.examples), atol=1e-5)
    assert labels.tolist() == data.labels.tolist()
    with pytest.raises(CompressionError, match="sentence, idx, none of which BertForSequenceClassification"):
        predict(model, dataset.select_columns(["sentence", "idx"]))

    equal = dataset.map(lambda row: {"input_ids": row["input_ids"][:3]})
    logits, labels = predict(model, equal)  # the collator of Transformers is enough for one length
    np.testing.assert_allclose(logits, one_by_one(model, [example[:3] for example in data.examples]), atol=1e-5)


def test_list_of_examples_and_images():
    model = build("timm_resnet")
    pixels = batch_for(model, 5)["pixel_values"]
    examples = [{"pixel_values": image, "labels": number} for number, image in enumerate(pixels)]
    logits, labels = predict(model, examples, 2)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(pixels).logits.numpy(), atol=1e-5)
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_model_is_left_as_it_was(model):
    model.train()
    model.bert.embeddings.eval()
    flags = [module.training for module in model.modules()]
    first, _ = predict(model, ByLength())
    assert [module.training for module in model.modules()] == flags
    assert np.array_equal(first, predict(model, ByLength())[0])  # no dropout
    with pytest.raises(ValueError, match="batch_size"):
        predict(model, ByLength(), 0)
    with pytest.raises(CompressionError, match="empty"):
        predict(model, ByLength([]))
    with pytest.raises(CompressionError, match="logits"):
        predict(model.bert, ByLength())
    assert [module.training for module in model.modules()] == flags


def test_autocast_only_on_request(model):
    types = []
    model.classifier.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    logits, _ = predict(model, ByLength([4, 4]), autocast=torch.bfloat16)
    assert logits.dtype == np.float32
    predict(model, ByLength([4, 4]))
    assert types == [torch.bfloat16, torch.float32]


def test_exported_model(exports):
    pytest.importorskip("optimum.intel")
    from optimum.intel import OVModelForSequenceClassification

    model, converted = exports("bert")
    exported = OVModelForSequenceClassification(
        converted.clone(), config=model.config, ov_config=openvino_config("f32")
    )
    data = ByLength()
    logits, labels = predict(exported, data, 3)
    np.testing.assert_allclose(logits, one_by_one(model, data.examples), atol=1e-4)
    assert labels.tolist() == data.labels.tolist()


def test_evaluate_uses_the_metrics_of_the_task(model):
    def compute_metrics(logits, labels):
        return {"accuracy": (logits.argmax(axis=1) == labels).mean(), "examples": len(labels)}

    splits = {"validation_matched": ByLength(), "validation_mismatched": ByLength([3, 4])}
    data = SimpleNamespace(evaluation=splits, compute_metrics=compute_metrics)
    found = evaluate(model, data, 3)
    expected = one_by_one(model, splits["validation_matched"].examples).argmax(axis=1)
    assert (
        found["validation_matched"].metrics["accuracy"]
        == (expected == splits["validation_matched"].labels.numpy()).mean()
    )
    assert found["validation_mismatched"].metrics["examples"] == 2
    assert all(type(value) is float for split in found.values() for value in split.metrics.values())
    logits, _ = predict(model, splits["validation_matched"], 3)
    fingerprint = found["validation_matched"].fingerprint()
    assert fingerprint["sha256"] == hashlib.sha256(logits.tobytes()).hexdigest()
    assert fingerprint["first"] == logits[:2].tolist() and fingerprint["examples"] == len(logits)
    assert Evaluation({}, np.array([[np.nan, 1.0]])).fingerprint()["first"] == [[None, 1.0]]
    data.evaluation = {"test": ByLength(labels=False)}
    with pytest.raises(CompressionError, match="'test' has no labels"):
        evaluate(model, data)


def test_plain_metrics_and_agreement():
    logits = np.array([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    assert plain_metrics(logits, np.array([0, 1, 0, 0])) == {"accuracy": 0.75}
    values = np.array([[1.0], [2], [3]])
    metrics = plain_metrics(values, np.array([2.0, 4, 6]))
    assert metrics == pytest.approx({"pearson": 1.0, "mean_squared_error": 14 / 3})
    assert list(plain_metrics(np.ones((3, 1)), np.arange(3.0))) == ["mean_squared_error"]
    assert agreement(logits, logits[[1, 0, 2, 3]]) == 0.5
    assert agreement(logits, 3 * logits - 1) == 1
    with pytest.raises(CompressionError, match="agreement"):
        agreement(values, values)
    with pytest.raises(CompressionError, match="agreement"):
        agreement(logits, logits[:2])


def test_regression_has_float_labels():
    model = bert(num_labels=1)
    data = ByLength()
    data.labels = torch.linspace(0, 5, len(data))
    logits, labels = predict(model.eval(), data, 2)
    assert logits.shape == (len(data), 1)
    np.testing.assert_allclose(labels, data.labels.numpy())
