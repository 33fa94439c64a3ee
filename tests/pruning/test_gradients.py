from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

from hf_compress.errors import CompressionError
from hf_compress.pruning import find_units, gradients, masked, speed
from hf_compress.pruning.blocks import chain
from hf_compress.pruning.gradients import MicroBatches, sensitivity
from hf_compress.pruning.token_weights import token_weights
from hf_compress.training import Context

from .cases import ALL, NETWORKS, SHAPE, inputs_for, make


def labelled(model):
    batch = inputs_for(model)
    return {**batch, "labels": torch.arange(3) % 2}


def exact(case):
    """A model and a batch in double precision: in single, a convolution rounds otherwise in a batch of another size,
    and an activation near zero may then pass on its gradient or not."""
    model = make(case).double()
    batch = labelled(model)
    return model, {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def assert_near(found, expected):
    """What is summed up in double precision of gradients that are kept in single."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("case", ALL)
def test_derivatives_are_those_of_single_examples(case):
    """Against autograd through masks and at the outputs of the layers that read units, an example at a time."""
    model, batch = exact(case)
    groups = find_units(make(case)).groups
    found = sensitivity(model, groups, [batch], Context())
    readers = {part.module: model.get_submodule(part.module) for group in groups for part in group.consumers}
    between = {group.name: torch.zeros(group.size, group.size, dtype=torch.float64) for group in groups}
    slopes = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
    outputs = {name: torch.zeros(len(module.weight), dtype=torch.float64) for name, module in readers.items()}
    given = {}

    def keep(name):
        def look(module, args, output):
            output.retain_grad()
            given[name] = output

        return look

    handles = [module.register_forward_hook(keep(name)) for name, module in readers.items()]
    examples = len(batch["labels"])
    for example in range(examples):
        masks = {group.name: torch.ones(group.size, requires_grad=True, dtype=torch.float64) for group in groups}
        with masked(model, groups, masks):
            model(**{name: value[example : example + 1] for name, value in batch.items()}).loss.backward()
        for name, mask in masks.items():
            between[name] += torch.outer(mask.grad, mask.grad) / examples
            slopes[name] += mask.grad.abs() / examples
        for name, output in given.items():
            channels = 1 if case in NETWORKS else -1
            outputs[name] += output.grad.square().movedim(channels, 0).flatten(1).sum(1) / examples
    for handle in handles:
        handle.remove()
    assert found.outputs.keys() == outputs.keys()
    for kind, expected in (("between", between), ("slopes", slopes), ("outputs", outputs)):
        for name, values in expected.items():
            assert_near(getattr(found, kind)[name], values)
    for name, values in found.units.items():
        assert torch.allclose(values, found.between[name].diagonal(), rtol=1e-6)


def test_of_a_classifier_of_tokens_an_example_counts_as_its_tokens_do(monkeypatch):
    """However its examples are put together, some of them with few labelled tokens."""
    model = BertForTokenClassification(BertConfig(**SHAPE, num_labels=3)).eval().double()
    batch = inputs_for(model)
    labels = torch.arange(36).view(3, 12) % 3
    labels[0, 2:], labels[1, 7:] = -100, -100
    groups = find_units(model).groups
    whole = sensitivity(model, groups, [{**batch, "labels": labels}], Context())
    monkeypatch.setattr(gradients, "MicroBatches", partial(MicroBatches, room=1))
    single = sensitivity(model, groups, [{**batch, "labels": labels}], Context())
    for kind in ("units", "slopes", "outputs"):
        for name, values in getattr(whole, kind).items():
            assert_near(getattr(single, kind)[name], values)


def test_between_the_units_of_wide_layers_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(gradients, "NARROW", 4)
    model = make("bert")
    groups = find_units(model).groups
    found = sensitivity(model, groups, [labelled(model)], Context())
    assert found.between.keys() == {group.name for group in groups if group.kind == "heads"} != found.units.keys()


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


@pytest.mark.parametrize("case", ALL)
def test_an_example_at_a_time_gives_the_same(case, monkeypatch):
    model, batch = exact(case)
    groups = find_units(make(case)).groups
    whole = sensitivity(model, groups, [batch], Context())
    monkeypatch.setattr(gradients, "MicroBatches", partial(MicroBatches, room=1))
    single = sensitivity(model, groups, [batch], Context())
    for kind in ("units", "slopes", "outputs"):
        for name, values in getattr(whole, kind).items():
            assert_near(getattr(single, kind)[name], values)
    if case == "bert":
        monkeypatch.setattr(speed, "has_fast_bf16", lambda: False)  # whose rounding differs with the size of a batch
        model, blocks = model.float(), chain(model)
        for name, weights in token_weights(model, blocks, batch, MicroBatches(model, room=1)).items():
            torch.testing.assert_close(weights, token_weights(model, blocks, batch)[name], rtol=1e-3, atol=1e-5)


def test_parts_of_a_batch_leave_no_more_to_autograd_than_there_is_room_for():
    layer = torch.nn.Linear(8, 1000)
    parts, sizes = MicroBatches(layer, room=12_000), []
    for batch in ({"x": torch.randn(7, 8)}, {"x": torch.randn(4, 8)}):
        seen = []
        for part in parts.of(batch):
            with parts.watched(part):
                loss = layer(part["x"]).exp().sum()  # its outputs, 4 bytes each
            loss.backward()
            sizes.append(len(part["x"]))
            seen.append(part["x"])
        assert torch.equal(torch.cat(seen), batch["x"])
    assert sizes == [1, 2, 2, 2, 2, 2]
