"""What tokens count, against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_compress.pruning.blocks import chain
from hf_compress.pruning.fisher import _weigher
from hf_compress.pruning.token_weights import FLOOR, token_weights

from . import cases


def moved_by(model, batch, block, token, step):
    """Logits of the first example when a feature of a block at one token is moved: `(features, classes)`."""
    features = model.config.hidden_size
    repeated = {name: value[:1].expand(features, *value.shape[1:]) for name, value in batch.items()}

    def move(module, args, output):
        changed = (output[0] if isinstance(output, tuple) else output).clone()
        changed[:, token] += step * torch.eye(features, dtype=changed.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.get_submodule(block).register_forward_hook(move)
    with torch.no_grad():
        logits = model(**repeated).logits
    handle.remove()
    return logits


@pytest.mark.parametrize("case", ["bert", "distilbert"])
def test_weights_are_squared_derivatives(case):
    model = cases.make(case, num_labels=2).double()
    batch = {name: value for name, value in cases.inputs_for(model).items() if name != "labels"}
    blocks = chain(model)
    found = token_weights(model, blocks, batch)
    assert list(found) == blocks
    counts = batch["attention_mask"][0].bool()
    for block in blocks:
        energies = []
        for token in range(int(counts.sum())):
            up, down = (moved_by(model, batch, block, token, step) for step in (1e-4, -1e-4))
            derivative = (up - down) / 2e-4
            energies.append(float((derivative[:, 0] - derivative[:, 1]).square().sum() / 2))
        energies = torch.tensor(energies)
        shares = (found[block][0][counts] - FLOOR) / (1 - FLOOR)
        torch.testing.assert_close(shares / shares.sum(), energies / energies.sum(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["bert", "distilbert", "roberta"])
def test_they_are_one_in_the_mean_and_nothing_at_padding(case):
    model = cases.make(case)
    batch = {name: value for name, value in cases.inputs_for(model).items() if name != "labels"}
    batch["attention_mask"][0, -2:] = 0
    before = cases.output_of(model)
    for weights in token_weights(model, chain(model), batch).values():
        counts = batch["attention_mask"].bool()
        assert weights[counts].mean() == pytest.approx(1, rel=1e-4) and weights[counts].min() >= FLOOR * 0.999
        assert not weights[~counts].any()
    assert torch.equal(cases.output_of(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_classifier_reads_one_token_of_its_last_block():
    model = cases.make("bert")
    batch = {name: value for name, value in cases.inputs_for(model).items() if name != "labels"}
    last = token_weights(model, chain(model), batch)[chain(model)[-1]]
    assert (last[:, 0] > 1).all() and torch.allclose(last[:, 1:], FLOOR * batch["attention_mask"][:, 1:].float())


def test_images_have_none():
    model = cases.make("option_a")
    assert token_weights(model, chain(model), cases.inputs_for(model)) == {}
    assert _weigher(nn.Sequential(nn.Linear(3, 3)), ["0"])({}) == {}  # nor has a network without blocks
