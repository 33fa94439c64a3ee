"""Faster passes give what others give, and leave a model as it was."""

from __future__ import annotations

import pytest
import torch

from hf_compress.pruning import find_units, speed
from hf_compress.pruning.blocks import chain
from hf_compress.pruning.elimination import Order
from hf_compress.pruning.gradients import sensitivity
from hf_compress.pruning.repair import repair
from hf_compress.pruning.sensitivity import Reference, divergences
from hf_compress.pruning.speed import SHORT, plain_attention, quick_texts
from hf_compress.pruning.token_weights import token_weights
from hf_compress.training import Context

from . import cases
from .test_repair import cut


@pytest.mark.parametrize("case", cases.ENCODERS)
def test_attention_is_plain_within_and_what_it_was_afterwards(case):
    model = cases.make(case)
    expected = cases.output_of(model)
    with pytest.raises(KeyboardInterrupt), plain_attention(model, cases.inputs_for(model)):
        assert model.config._attn_implementation == "eager"
        with plain_attention(model, cases.inputs_for(model)):  # once more changes nothing
            torch.testing.assert_close(cases.output_of(model), expected, rtol=1e-4, atol=1e-5)
        assert model.config._attn_implementation == "eager"
        raise KeyboardInterrupt
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(cases.output_of(model), expected)


def test_long_texts_images_and_models_of_others_are_left_alone():
    model = cases.make("bert")
    with plain_attention(model, {"input_ids": torch.ones(2, SHORT + 1, dtype=torch.long)}):
        assert model.config._attn_implementation == "sdpa"
    with plain_attention(model, {"inputs_embeds": torch.ones(2, 3, 32)}):
        assert model.config._attn_implementation == "sdpa"
    with plain_attention(torch.nn.Linear(2, 2), cases.inputs_for(model)):
        pass


@pytest.mark.parametrize("case", cases.ENCODERS)
def test_a_repair_is_the_same_with_either_attention(case, monkeypatch):
    model = cases.make(case)
    found = []
    for short in (SHORT, 1):
        monkeypatch.setattr(speed, "SHORT", short)
        monkeypatch.setattr(speed, "has_fast_bf16", lambda: False)
        small, layers, rows = cut(model, lambda name: True)
        context = Context(**cases.examples_for(model))
        left = repair(small, model, layers, context, samples=24, rows=rows, refine=2)
        found.append((left, cases.output_of(small)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-2, abs=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("case", cases.ENCODERS)
def test_gradients_are_the_same_with_either_attention(case, monkeypatch):
    model = cases.make(case)
    context = Context(**cases.examples_for(model))
    groups, found = find_units(model).groups, []
    for short in (SHORT, 1):
        monkeypatch.setattr(speed, "SHORT", short)
        found.append(sensitivity(model, groups, context.calibration(24), context))
    for name, units in found[0].units.items():
        torch.testing.assert_close(units, found[1].units[name], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("case", cases.ENCODERS)
def test_bfloat16_moves_what_tokens_count_and_what_layers_mean_by_little(case, monkeypatch):
    model = cases.make(case)
    context = Context(**cases.examples_for(model))
    groups = find_units(model).groups
    batch = next(iter(context.calibration(24)))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    orders = {group.name: Order(torch.arange(group.size), torch.arange(group.size + 1.0)) for group in groups}
    counts, losses = [], []
    for fast in (True, False):
        monkeypatch.setattr(speed, "has_fast_bf16", lambda fast=fast: fast)
        counts.append(token_weights(model, chain(model), inputs))
        reference = Reference(model, context.calibration(24))
        losses.append(divergences(model, groups, orders, [0.5], reference, context))
    for name, weights in counts[0].items():
        torch.testing.assert_close(weights, counts[1][name], rtol=0.1, atol=0.05)
    for name, points in losses[0].items():
        assert points == pytest.approx(losses[1][name], rel=0.1, abs=1e-4)


def test_images_go_in_float32(monkeypatch):
    monkeypatch.setattr(speed, "has_fast_bf16", lambda: True)
    model = cases.make("option_a")
    with quick_texts(model, cases.inputs_for(model)):
        assert not torch.is_autocast_enabled("cpu")
