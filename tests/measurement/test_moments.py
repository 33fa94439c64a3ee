from __future__ import annotations

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from hf_compress.errors import CompressionError
from hf_compress.lowrank.layers import find_layers
from hf_compress.measurement.moments import input_moments


class Wrapped(nn.Module):
    """A model whose forward takes keyword arguments, as `PreTrainedModel`s do."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, values, attention_mask=None):
        return self.module(values)


def batches(*shape, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"values": torch.randn(shape, generator=generator) + 0.5, "labels": torch.zeros(1)} for _ in range(count)]


def modules(model) -> dict[str, nn.Module]:
    return {layer.name: layer.module for layer in find_layers(model)[0]}


def test_linear_layers_count_every_position_once():
    module = nn.Linear(6, 4)
    data = batches(3, 5, 6)
    moments = input_moments(Wrapped(module), {"x": module}, data)["x"]
    rows = torch.cat([batch["values"].flatten(0, 1) for batch in data]).double()
    assert moments.count == 45
    assert torch.allclose(moments.mean, rows.mean(0), atol=1e-6)
    assert torch.allclose(moments.matrix(centred=False), rows.T @ rows / 45, atol=1e-5)
    assert torch.allclose(moments.matrix(centred=True), torch.cov(rows.T, correction=0), atol=1e-5)


def test_tokens_may_count_unlike_one_another():
    module = nn.Linear(6, 4)
    data = batches(3, 5, 6)
    weights = [
        torch.rand(3, 5, generator=torch.Generator().manual_seed(n)) * torch.tensor([1, 1, 0, 1, 1]) for n in (0, 1, 2)
    ]
    waiting = iter(weights)
    moments = input_moments(Wrapped(module), {"x": module}, data, lambda batch: {"x": next(waiting)})["x"]
    rows = torch.cat([batch["values"].flatten(0, 1) for batch in data]).double()
    flat = torch.cat([w.flatten() for w in weights]).double()
    assert moments.count == pytest.approx(float(flat.sum()))
    assert torch.allclose(moments.matrix(centred=True), torch.cov(rows.T, correction=0, aweights=flat), atol=1e-5)


def test_padding_is_not_counted(tiny_bert, tiny_bert_batch):
    layers = modules(tiny_bert)
    short = {name: value[1:2] for name, value in tiny_bert_batch.items()}
    cut = {name: value[:, :7] if value.ndim == 2 else value for name, value in short.items()}
    padded, bare = (input_moments(tiny_bert, layers, [batch]) for batch in (short, cut))
    assert set(padded) == set(layers)
    for name, moments in padded.items():
        assert moments.count == bare[name].count == 7
        assert torch.allclose(moments.matrix(True), bare[name].matrix(True), atol=1e-5)


def test_query_key_and_value_share_their_input(tiny_bert, tiny_bert_batch):
    layers = modules(tiny_bert)
    tiny_bert.train()
    found = input_moments(tiny_bert, layers, [tiny_bert_batch] * 2)
    attention = "bert.encoder.layer.1.attention"
    query, key, value = (found[f"{attention}.self.{part}"] for part in ("query", "key", "value"))
    assert query is key is value
    assert query is not found[f"{attention}.output.dense"]
    assert query.count == 2 * int(tiny_bert_batch["attention_mask"].sum())
    assert tiny_bert.training and not any(module._forward_pre_hooks for module in tiny_bert.modules())


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "padding": (2, 0), "stride": (2, 1), "dilation": (1, 2)},
        {"kernel_size": (2, 3), "padding": "same"},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": (3, 2), "stride": 2, "kind": Conv2dSame},
    ],
)
def test_patches_explain_the_second_moment_of_a_convolutions_output(geometry, monkeypatch):
    monkeypatch.setattr("hf_compress.measurement.moments.CHUNK", 500)  # an image at a time
    torch.manual_seed(0)
    geometry = dict(geometry)
    module = geometry.pop("kind", nn.Conv2d)(3, 4, bias=False, **geometry)
    data = batches(5, 3, 9, 8)
    moments = input_moments(Wrapped(module), {"x": module}, data)["x"]
    with torch.no_grad():
        outputs = torch.cat([module(batch["values"]) for batch in data]).transpose(0, 1).flatten(1).double()
        weight = module.weight.flatten(1).double()
    assert moments.count == outputs.shape[1]
    expected = outputs @ outputs.T / outputs.shape[1]
    assert torch.allclose(weight @ moments.matrix(False) @ weight.T, expected, atol=1e-5)
    assert torch.allclose(weight @ moments.mean, outputs.mean(1), atol=1e-5)


def test_layers_that_never_run_are_missing_and_odd_sharing_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.idle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.calls = 0

        def forward(self, values):
            self.calls += 1
            return self.a(values) + self.b(values if self.calls == 1 else values * 2)

    model = Odd()
    layers = modules(model)
    assert set(input_moments(model, layers, batches(2, 4, count=1))) == {"a", "b"}
    model = Odd()
    with pytest.raises(CompressionError, match="b shares its input"):
        input_moments(model, modules(model), batches(2, 4))
