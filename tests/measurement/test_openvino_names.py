from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

import hf_compress  # noqa: F401  (registers the CIFAR entries)
from hf_compress.measurement import name_convolutions, to_openvino


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [
        ("resnet20_cifar", {"shortcut": "B"}),
        ("mobilenetv3_small_050", {}),  # depthwise convolutions, and some that no batch norm follows
    ],
)
def test_every_convolution_is_found_under_its_module(architecture, model_args):
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture=architecture, model_args=model_args, num_labels=4)
    config.pretrained_cfg = {"input_size": [3, 32, 32]}
    model = TimmWrapperForImageClassification(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # negative and zero scales are folded into the filters too
            module.weight.data.normal_()
            module.weight.data[0] = 0
            module.running_var.uniform_(0.5, 2)
    converted = to_openvino(model)
    name_convolutions(converted, model)
    kinds = ("Convolution", "GroupConvolution")
    convolutions = [node for node in converted.get_ordered_ops() if node.get_type_name() in kinds]
    named = [node.get_friendly_name().removeprefix("__module.").partition("/")[0] for node in convolutions]
    expected = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert sorted(named) == sorted(expected)
    for name, node in zip(named, convolutions, strict=True):
        assert model.get_submodule(name).out_channels == node.output(0).get_partial_shape()[1].get_length()
