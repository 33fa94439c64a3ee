from __future__ import annotations

import datasets
import pytest
import torch

from hf_compress.errors import CompressionError, NotFoundError
from hf_compress.journal import Journal
from hf_compress.registry import Cost, Target
from hf_compress.training import Context, TrainingData

from .material import collate, image_data, image_rows, text_data, text_rows, tiny_text_model


def rows_of(batches):
    return [tuple(row[row > 0].tolist()) for batch in batches for row in batch["input_ids"]]


def test_calibration_takes_the_first_of_a_seeded_shuffle(tiny_bert):
    def examples(n, seed=0):
        context = Context(data=text_rows(), collate_fn=collate, seed=seed)
        context.expect(tiny_bert)
        return set(rows_of(context.calibration(n)))

    assert len(examples(10)) == 10
    assert examples(10) < examples(20)
    assert examples(10) == examples(10)
    assert examples(10) != examples(10, seed=1)
    assert len(examples(1000)) == 64  # all there are


def test_calibration_batches_fit_the_model(tiny_bert):
    context = Context(data=text_rows(), collate_fn=collate, training={"per_device_eval_batch_size": 8})
    context.expect(tiny_bert)  # or the column of raw text would reach the collator
    batches = list(context.calibration(40))
    assert [len(batch["labels"]) for batch in batches] == [32, 8]  # whatever the evaluation's
    loss = context.loss(tiny_bert, batches[0])
    assert loss.requires_grad and loss.shape == ()
    assert torch.equal(loss, tiny_bert(**batches[0]).loss)


def test_calibration_images_are_not_augmented():
    plain = image_rows(augment=False)
    context = Context(data=image_data())
    (batch,) = list(context.calibration(16))
    assert batch["pixel_values"].shape == (16, 3, 16, 16)
    known = {plain[index]["pixel_values"].sum().item() for index in range(len(plain))}
    assert all(image.sum().item() in known for image in batch["pixel_values"])


def test_time_is_kept_by_operation(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    context = Context(data=text_data(), training={"num_train_epochs": 1}, journal=journal, stage="01_prune")
    for _ in context.calibration(40):
        break  # a method may have seen enough
    context.train(tiny_text_model())
    assert set(context.seconds) == {"calibrate", "train"}
    assert set(journal.seconds("01_prune")) == {"calibrate", "train"}
    assert {event["status"] for event in journal.events()} == {"started", "done"}


def test_without_data_only_what_needs_data_is_refused(tiny_bert):
    context = Context()
    assert context.cost(tiny_bert).params == sum(value.numel() for value in tiny_bert.parameters())
    with pytest.raises(CompressionError, match=r"got no data; pass data="):
        context.train(tiny_bert)
    with pytest.raises(CompressionError, match=r"got no data; pass data="):
        context.calibration(10)


def test_a_loss_without_labels_is_refused(tiny_bert):
    context = Context(data=text_rows(labels=False), collate_fn=collate)
    context.expect(tiny_bert)
    with pytest.raises(CompressionError, match="no labels"):
        context.loss(tiny_bert, next(context.calibration(4)))


@pytest.mark.parametrize(
    ("data", "labelled"),
    [
        (lambda: text_rows(), True),
        (lambda: text_rows(labels=False), False),
        (lambda: text_rows(regression=True), True),
        (lambda: text_rows().map(lambda row: {"label": -1}), False),
        (lambda: image_rows(), True),
        (lambda: list(text_rows()), True),
    ],
)
def test_labels_are_found_or_missed(data, labelled):
    assert TrainingData.of(data(), None if hasattr(data(), "collate") else collate).has_labels is labelled


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (datasets.DatasetDict(train=datasets.Dataset.from_dict({"x": [1]})), "got the splits train"),
        (datasets.Dataset.from_dict({"x": []}), "empty"),
        ((row for row in ()), "a length and an index"),
        ("glue", "a length and an index"),
    ],
)
def test_unusable_data_is_refused(data, message):
    with pytest.raises(CompressionError, match=message):
        Context(data=data)


def test_the_baseline_is_loaded_when_asked_for_and_let_go():
    loads = []

    def load():
        loads.append(1)
        return tiny_text_model().train()

    context = Context(baseline=load)
    assert loads == []
    held = context.baseline()
    assert context.baseline() is held and context.teacher("baseline") is held and not held.training
    assert len(loads) == 1
    del held
    context.baseline()
    assert len(loads) == 2
    with pytest.raises(CompressionError, match="pass baseline="):
        Context().baseline()


def test_teachers_are_loaded_by_name(tmp_path):
    tiny_text_model(7).save_pretrained(tmp_path / "teacher")
    teacher = Context().teacher(str(tmp_path / "teacher"))
    assert torch.equal(teacher.classifier.weight, tiny_text_model(7).classifier.weight)
    with pytest.raises((NotFoundError, CompressionError), match="no-such-model"):
        Context().teacher("no-such-model")


def test_notes_are_continued():
    context = Context()
    context.note(warnings=["a"], layers={"x": 1}, note=1)
    context.note(warnings=["b"], layers={"y": 2}, note=2)
    assert context.notes == {"warnings": ["a", "b"], "layers": {"x": 1, "y": 2}, "note": 2}


def test_the_budget_is_a_share_of_the_baseline():
    cost = Cost(params=100, macs=1000, encoder_params=50, encoder_macs=400)
    assert Context(target=Target("macs", 0.5), baseline_cost=cost).budget == 500
    assert Context(target=Target("params", 0.5, "encoder"), baseline_cost=cost).budget == 25
    assert Context().budget is None


RAW = {
    "words": (lambda: text_rows().select_columns(["sentence", "label"]), {}),
    "numbered": (lambda: text_rows().add_column("idx", list(range(64))), {"idx": torch.zeros(4)}),
    "transformed": (
        lambda: (
            text_rows()
            .select_columns(["sentence", "label"])
            .with_transform(lambda rows: {"text": rows["sentence"], "label": rows["label"]})
        ),
        {},
    ),
}


@pytest.mark.parametrize("kind", RAW)
def test_collators_may_make_the_inputs_of_raw_columns(tiny_bert, kind):
    """The columns a model takes reach the collator alone; where it takes none of them, all do."""
    make, extra = RAW[kind]

    def read(examples):
        expected = {"words": "sentence", "transformed": "text", "numbered": "input_ids"}[kind]
        assert all(expected in example and "idx" not in example for example in examples)
        ids = torch.ones(len(examples), 5, dtype=torch.long)
        return {"input_ids": ids, "labels": torch.tensor([example["label"] for example in examples]), **extra}

    context = Context(data=make(), collate_fn=read, training={"num_train_epochs": 1})
    context.expect(tiny_bert)
    assert context.data.has_labels
    assert context.loss(tiny_bert, next(context.calibration(4))) > 0
    assert context.train(tiny_bert).steps == 2


def test_a_tasks_data_is_read_with_its_own_collator():
    data = image_data()
    task_data = type("TaskData", (), {})()
    task_data.train, task_data.holdout, task_data.collate = data.train, data.train.subset(range(5)), data.collate
    task_data.compute_metrics = lambda logits, labels: {"accuracy": 1.0}
    read = TrainingData.of(task_data)
    assert read.train is data.train and len(read.watched()) == 5
    assert isinstance(read, TrainingData) and TrainingData.of(read) is read
