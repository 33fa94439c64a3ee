from __future__ import annotations

import torch
from torch import nn

from hf_compress.measurement import twin, unshare


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    )
    model[3].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    return model.to(memory_format=torch.channels_last)


def test_a_twin_gets_its_own_of_what_it_still_shares():
    model = network()
    other, x = twin(model), torch.randn(2, 3, 4, 4)
    assert all(tensor is tensors_of(model)[name] for name, tensor in tensors_of(other).items())
    expected, before = other(x), other[1].weight
    model[1] = nn.BatchNorm2d(4)
    unshare(other, model)
    shared = {tensor.data_ptr() for tensor in tensors_of(model).values()}
    assert not any(tensor.data_ptr() in shared for tensor in tensors_of(other).values())
    assert other[1].weight is before  # nothing else has it now
    assert other[3].weight is other[0].weight and not other[2].weight.requires_grad
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)
    for tensor in tensors_of(model).values():
        tensor.data.zero_()
    assert torch.equal(other(x), expected)
