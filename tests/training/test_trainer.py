from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_compress.distillation import DistillationTrainer
from hf_compress.training import CompressionTrainer, build_arguments, fit

from .material import (
    assert_same_weights,
    collate,
    image_data,
    image_rows,
    text_data,
    text_rows,
    tiny_compressed_model,
    tiny_image_model,
    tiny_text_model,
    weights,
)


def arguments(folder, **fields) -> TrainingArguments:
    fields = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 1e-2, **fields}
    fields = {"optim": "sgd", "save_strategy": "no", "logging_strategy": "steps", "logging_steps": 1, **fields}
    return build_arguments({"eval_strategy": "no", "max_grad_norm": 0.0, "bf16": False, **fields}, folder, seed=0)


def trained(folder, model, trainer_class=CompressionTrainer, **fields):
    trainer = trainer_class(
        model=model, args=arguments(folder, **fields), train_dataset=text_rows(), data_collator=collate
    )
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("trainer_class", [CompressionTrainer, DistillationTrainer])
def test_only_public_methods_of_trainer_are_overridden(trainer_class):
    for cls in trainer_class.__mro__[: trainer_class.__mro__.index(Trainer)]:
        for name in vars(cls):
            if hasattr(Trainer, name) and not (name.startswith("__") and name.endswith("__")):
                assert not name.startswith("_"), f"{cls.__name__}.{name}"


def test_accumulation_changes_neither_loss_nor_weights(tmp_path):
    whole, accumulated = tiny_text_model(), tiny_text_model()
    _, one = trained(tmp_path, whole)
    _, four = trained(tmp_path, accumulated, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    assert len(one) == len(four) == 4
    torch.testing.assert_close(torch.tensor(four), torch.tensor(one), rtol=1e-5, atol=1e-6)
    assert_same_weights(weights(whole), weights(accumulated), rtol=1e-4, atol=1e-6)
    assert one[0] == pytest.approx(0.69, abs=0.05)  # ln 2, and not four times as much


def test_norms_and_biases_have_no_weight_decay(tmp_path):
    for model, norms in ((tiny_image_model(), nn.BatchNorm2d), (tiny_text_model(), nn.LayerNorm)):
        trainer = CompressionTrainer(model=model, args=arguments(tmp_path, weight_decay=0.1))
        decayed = {
            id(parameter)
            for group in trainer.create_optimizer().param_groups
            if group["weight_decay"] > 0
            for parameter in group["params"]
        }
        for name, module in model.named_modules():
            for kind, parameter in module.named_parameters(recurse=False):
                assert (id(parameter) in decayed) == (kind == "weight" and not isinstance(module, norms)), name


@pytest.mark.parametrize("bf16", [False, True])
def test_a_trained_model_carries_no_trace_of_its_trainer(tmp_path, bf16):
    model = tiny_text_model(problem_type="single_label_classification")
    before, config = set(vars(model)), copy.deepcopy(model.config.to_dict())
    trained(tmp_path, model, bf16=bf16)
    assert set(vars(model)) == before
    assert model.config.to_dict() == config
    batch = collate(list(text_rows(4)))
    assert model.eval()(**batch).logits.dtype == torch.float32
    reference = tiny_text_model()
    reference.load_state_dict(model.state_dict())
    assert torch.equal(model(**batch).logits, reference(**batch).logits)  # in fp32, not in the trainer's autocast


def test_a_second_trainer_trains_in_its_own_precision(tmp_path):
    model = tiny_text_model()
    trained(tmp_path, model)
    seen = []
    model.bert.pooler.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trained(tmp_path, model, bf16=True)
    assert set(seen) == {torch.bfloat16}


def test_loss_terms_see_labels_and_are_left_out_of_evaluation(tmp_path):
    calls = []

    def double(loss, outputs, inputs, model):
        calls.append((model.training, "labels" in inputs, tuple(outputs["logits"].shape)))
        return 2 * loss

    plain, _ = trained(tmp_path, tiny_text_model(), max_steps=1)
    trainer = CompressionTrainer(
        model=tiny_text_model(),
        args=arguments(tmp_path, max_steps=1, label_smoothing_factor=0.0),
        train_dataset=text_rows(),
        eval_dataset=text_rows(20, seed=1),
        data_collator=collate,
        loss_terms=[double],
    )
    first = trainer.evaluate()["eval_loss"]
    assert calls == []
    trainer.train()
    assert calls == [(True, True, (16, 2))]
    assert trainer.state.log_history[0]["loss"] == pytest.approx(2 * plain.state.log_history[0]["loss"], rel=1e-5)
    assert 0.5 < first < 1.0


def test_label_smoothing_leaves_the_labels_to_the_terms(tmp_path):
    seen = []
    trainer = CompressionTrainer(
        model=tiny_text_model(),
        args=arguments(tmp_path, max_steps=1, label_smoothing_factor=0.1),
        train_dataset=text_rows(),
        data_collator=collate,
        loss_terms=[lambda loss, outputs, inputs, model: (seen.append("labels" in inputs), loss)[1]],
    )
    trainer.train()
    assert seen == [True]


class Stop(Exception):
    pass


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Stop


@pytest.mark.parametrize("kind", ["text", "compressed", "image"])
@pytest.mark.parametrize("stop", [7, 11])
def test_a_training_stopped_in_the_middle_of_an_epoch_goes_on_exactly(tmp_path, kind, stop):
    """Order, augmentation, dropout, momentum and batch-norm statistics: all as if nothing had happened."""
    data = image_data() if kind == "image" else text_data()
    make = {
        "text": lambda: tiny_text_model(dropout=0.2),
        "compressed": lambda: tiny_compressed_model(dropout=0.2),
        "image": tiny_image_model,
    }[kind]
    fields = {
        "num_train_epochs": 4,
        "per_device_train_batch_size": 12 if kind == "image" else 16,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_strategy": "epoch",
        "optim_args": "momentum=0.9,nesterov=True",
    }
    uninterrupted, stopped, resumed = make(), make(), make()
    whole = fit(uninterrupted, data=data, arguments=arguments(tmp_path / "a", **fields))
    with pytest.raises(Stop):
        fit(stopped, data=data, arguments=arguments(tmp_path / "b", **fields), callbacks=[StopAt(stop)])
    rest = fit(resumed, data=data, arguments=arguments(tmp_path / "b", **fields))
    assert rest.resumed_from == stop - stop % 3
    assert whole.steps == rest.steps == 16
    assert_same_weights(weights(uninterrupted), weights(resumed))
    assert rest.epochs == whole.epochs


class Recorder:
    """A data set that knows its epoch, as augmented ones do."""

    def __init__(self):
        self.rows, self.epoch, self.seen = image_rows(), 0, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        raise NotImplementedError

    def __getitems__(self, indices):
        self.seen.append(self.epoch)
        return self.rows.__getitems__(indices)

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_the_data_set_hears_of_every_epoch(tmp_path):
    data = Recorder()
    trainer = CompressionTrainer(
        model=tiny_image_model(),
        args=arguments(tmp_path, num_train_epochs=3, per_device_train_batch_size=24, dataloader_num_workers=0),
        train_dataset=data,
        data_collator=lambda batch: batch,
    )
    trainer.args.remove_unused_columns = False
    trainer.train()
    assert data.seen == [0, 0, 1, 1, 2, 2]


def test_an_order_that_was_asked_for_is_kept(tmp_path):
    trainer = CompressionTrainer(
        model=tiny_text_model(),
        args=arguments(tmp_path, train_sampling_strategy="sequential"),
        train_dataset=text_rows(),
        data_collator=collate,
    )
    first = next(iter(trainer.get_train_dataloader()))
    expected = collate(list(text_rows().select(range(16))))
    assert torch.equal(first["input_ids"], expected["input_ids"])
