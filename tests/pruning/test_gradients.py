from __future__ import annotations

import pytest
import torch

from hf_compress.errors import CompressionError
from hf_compress.pruning import find_units, masked
from hf_compress.pruning.gradients import sensitivity
from hf_compress.training import Context

from .cases import ALL, inputs_for, make


def labelled(model):
    batch = inputs_for(model)
    return {**batch, "labels": torch.arange(3) % 2}


@pytest.mark.parametrize("case", ALL)
def test_the_information_of_masks_is_that_of_single_examples(case):
    """Against autograd through masks, an example at a time."""
    model = make(case)
    batch = labelled(model)
    groups = find_units(model).groups
    found = sensitivity(model, groups, [batch], Context())
    expected = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
    for example in range(len(batch["labels"])):
        masks = {group.name: torch.ones(group.size, requires_grad=True) for group in groups}
        with masked(model, groups, masks):
            model(**{name: value[example : example + 1] for name, value in batch.items()}).loss.backward()
        for name, mask in masks.items():
            expected[name] += mask.grad.double().square() / len(batch["labels"])
    for name, values in expected.items():
        assert torch.allclose(found.units[name], values, rtol=1e-3, atol=1e-3 * float(values.max())), name


def test_the_model_is_left_as_it_was():
    model = make("bert").train()
    model.classifier.weight.requires_grad_(False)
    sensitivity(model, find_units(model).groups, [labelled(model)], Context())
    assert model.training and not model.classifier.weight.requires_grad and model.classifier.bias.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_that_are_not_numbers_and_missing_labels_are_refused():
    model = make("bert")
    groups = find_units(model).groups
    with pytest.raises(CompressionError, match="no labels"):
        sensitivity(model, groups, [inputs_for(model)], Context())
    with pytest.raises(CompressionError, match="no example"):
        sensitivity(model, groups, [], Context())
    model.classifier.weight.data[0, 0] = float("nan")
    with pytest.raises(CompressionError, match="not finite"):
        sensitivity(model, groups, [labelled(model)], Context())
