from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_compress.errors import RecipeError
from hf_compress.training import CompressionTrainer, arguments, build_arguments, default_training

from .material import tiny_image_model, tiny_text_model


def test_defaults_follow_the_kind_of_model(tmp_path):
    image = build_arguments(default_training(tiny_image_model()), tmp_path, seed=3)
    text = build_arguments(default_training(tiny_text_model()), tmp_path, seed=3)
    assert (image.optim, image.weight_decay, image.per_device_train_batch_size) == ("sgd", 5e-4, 128)
    assert (text.optim, text.learning_rate, text.lr_scheduler_type) == ("adamw_torch_fused", 5e-5, "linear")
    assert image.seed == image.data_seed == text.seed == 3


def test_the_image_defaults_reach_the_optimizer(tmp_path):
    model = tiny_image_model()
    args = build_arguments({**default_training(model), "learning_rate": 0.2, "eval_strategy": "no"}, tmp_path, seed=0)
    optimizer = CompressionTrainer(model=model, args=args).create_optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    assert [(group["momentum"], group["nesterov"], group["lr"]) for group in optimizer.param_groups] == [
        (0.9, True, 0.2)
    ] * 2


@pytest.mark.parametrize("fast", [False, True])
def test_bf16_is_the_default_only_where_the_cpu_computes_in_it(tmp_path, monkeypatch, fast):
    monkeypatch.setattr(arguments, "has_fast_bf16", lambda: fast)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    args = build_arguments({}, tmp_path, seed=0)
    assert args.use_cpu and args.bf16 is fast
    assert build_arguments({"bf16": True}, tmp_path, seed=0).bf16  # asked for is given, and trains slowly


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rte": 0.1}, r"training\.learning_rte: unknown field \(did you mean 'learning_rate'\?\)"),
        ({"seed": 1}, r"training\.seed: this is not set here; use the recipe's seed"),
        ({"push_to_hub": True}, r"use hub\.push"),
        ({"learning_rate": "fast"}, r"training\.learning_rate: got 'fast' \(str\); allowed is a number above 0"),
        ({"learning_rate": -1.0}, r"got -1\.0 \(float\); allowed is a number above 0"),
        ({"num_train_epochs": 0}, "allowed is a number above 0"),
        ({"per_device_train_batch_size": 1.5}, "allowed is a whole number above 0"),
        ({"per_device_train_batch_size": True}, "allowed is a whole number above 0"),
        ({"bf16": "yes"}, "allowed is true or false"),
        ({"lr_scheduler_type": "zigzag"}, "training: .*zigzag"),
        ({"optim": "sgdd"}, "training: .*sgdd"),
    ],
)
def test_wrong_fields_are_refused_by_name(tmp_path, values, message):
    with pytest.raises(RecipeError, match=message):
        build_arguments(values, tmp_path, seed=0)


@given(st.sampled_from(sorted(arguments.RESERVED)))
def test_what_the_run_decides_is_refused(name):
    with pytest.raises(RecipeError, match=f"training.{name}"):
        build_arguments({name: "x"}, "unused", seed=0)


def test_the_chosen_threads_stay(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    build_arguments({}, tmp_path, seed=0)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
