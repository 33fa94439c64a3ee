from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from training.material import (
    assert_same_weights,
    collate,
    image_rows,
    text_rows,
    tiny_image_model,
    tiny_text_model,
    weights,
)
from transformers import Trainer, TrainingArguments

from hf_compress.distillation import DistillationArguments, DistillationTrainer, distillation_loss
from hf_compress.errors import CompressionError


def arguments(folder, **fields) -> DistillationArguments:
    settings = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    return DistillationArguments(str(folder), **{**settings, **fields})


def setting(kind: str):
    if kind == "image":
        rows = image_rows(augment=False)
        return (
            tiny_image_model,
            {"train_dataset": rows, "data_collator": rows.collate},
            {"remove_unused_columns": False},
        )
    return tiny_text_model, {"train_dataset": text_rows(), "data_collator": collate}, {}


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("hidden", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_it_drops_in_for_trainer(tmp_path, kind, hidden):
    make, data, fields = setting(kind)
    student, teacher = make(0), make(1)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if "classifier" in name or ".fc." in name:
                parameter.mul_(50)  # a fresh head says next to nothing
    before = weights(teacher)
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        args=arguments(
            tmp_path, save_strategy="epoch", num_train_epochs=3, learning_rate=0.05, alpha=1.0, hidden=hidden, **fields
        ),
        **data,
    )
    assert trainer.loss_terms[0].hidden == hidden
    trainer.train()
    curve = losses(trainer)
    assert sum(curve[-3:]) < 0.95 * sum(curve[:3])  # the student comes closer to the teacher
    assert_same_weights(before, weights(teacher))
    saved = load_file(sorted(tmp_path.glob("checkpoint-*"))[-1] / "model.safetensors")
    assert sum(value.numel() for value in saved.values()) == sum(v.numel() for v in student.state_dict().values())


def test_it_takes_the_arguments_of_trainer_by_position(tmp_path):
    trainer = DistillationTrainer(
        tiny_text_model(0), arguments(tmp_path), collate, text_rows(), text_rows(8), teacher=tiny_text_model(1)
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


def test_accumulation_changes_neither_loss_nor_weights(tmp_path):
    """With equal parts of a batch, the mean of their losses is the loss of the batch."""
    runs = []
    for accumulation in (1, 4):
        student = tiny_text_model(0)
        trainer = DistillationTrainer(
            model=student,
            teacher=tiny_text_model(1),
            args=arguments(
                tmp_path,
                per_device_train_batch_size=16 // accumulation,
                gradient_accumulation_steps=accumulation,
                alpha=0.5,
            ),
            train_dataset=text_rows(),
            data_collator=collate,
        )
        trainer.train()
        runs.append((losses(trainer), weights(student)))
    (one, left), (four, right) = runs
    torch.testing.assert_close(torch.tensor(four), torch.tensor(one), rtol=1e-5, atol=1e-6)
    assert_same_weights(left, right, rtol=1e-4, atol=1e-6)


def test_without_a_share_for_the_teacher_it_trains_like_trainer_does(tmp_path):
    """Same order of examples, so the same losses as plain `Trainer` over the same batches."""
    student = tiny_text_model(0)
    trainer = DistillationTrainer(
        model=student,
        teacher=tiny_text_model(1),
        args=arguments(tmp_path, alpha=0.0),
        train_dataset=text_rows(),
        data_collator=collate,
    )
    trainer.train()
    order = [index for batch in trainer.epoch_order.sampler for index in batch]
    reference = tiny_text_model(0)
    plain = Trainer(
        model=reference,
        args=TrainingArguments(
            **{
                **{name: getattr(trainer.args, name) for name in ("num_train_epochs", "per_device_train_batch_size")},
                **{
                    "learning_rate": 1e-2,
                    "optim": "sgd",
                    "max_grad_norm": 0.0,
                    "logging_steps": 1,
                    "save_strategy": "no",
                },
                **{"train_sampling_strategy": "sequential", "output_dir": str(tmp_path), "report_to": "none"},
            }
        ),
        train_dataset=text_rows().select(order),
        data_collator=collate,
    )
    plain.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=1e-6)
    assert_same_weights(weights(reference), weights(student), rtol=1e-5, atol=1e-7)


def test_the_teacher_is_left_out_of_evaluation(tmp_path):
    student, teacher = tiny_text_model(0), tiny_text_model(1)
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    trainer = DistillationTrainer(
        model=student, teacher=teacher, args=arguments(tmp_path), eval_dataset=text_rows(16), data_collator=collate
    )
    batch = collate(list(text_rows(16)))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(student(**batch).loss.item(), rel=1e-5)
    assert calls == []


@pytest.mark.parametrize("bf16", [False, True])
def test_the_teacher_speaks_in_the_precision_of_the_student(tmp_path, bf16):
    student, teacher = tiny_text_model(0), tiny_text_model(1)
    seen = []
    teacher.bert.pooler.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        args=arguments(tmp_path, bf16=bf16, max_steps=1),
        train_dataset=text_rows(),
        data_collator=collate,
    )
    trainer.train()
    assert seen == [torch.bfloat16 if bf16 else torch.float32]


def test_data_without_labels_is_distilled_from_with_alpha_one(tmp_path):
    student, teacher = tiny_text_model(0), tiny_text_model(1)
    reference = copy.deepcopy(student)
    rows = text_rows(16, labels=False)
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        args=arguments(tmp_path, alpha=1.0, temperature=2.0),
        train_dataset=rows,
        data_collator=collate,
    )
    trainer.train()
    batch = collate(list(rows))
    expected = distillation_loss(reference(**batch).logits, teacher(**batch).logits, 2.0)
    assert losses(trainer)[0] == pytest.approx(expected.item(), rel=1e-4)


def test_arguments_are_checked():
    with pytest.raises(CompressionError, match=r"alpha: got 1\.2"):
        DistillationArguments("unused", alpha=1.2)
    assert DistillationArguments("unused").temperature == 4.0
    assert DistillationArguments("unused").alpha == 0.9


def test_a_teacher_of_another_task_is_refused(tmp_path):
    with pytest.raises(CompressionError, match="has 3 labels"):
        DistillationTrainer(model=tiny_text_model(), teacher=tiny_text_model(num_labels=3), args=arguments(tmp_path))
