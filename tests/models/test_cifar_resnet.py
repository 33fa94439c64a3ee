from __future__ import annotations

import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import is_model

import hf_compress  # noqa: F401
from hf_compress.errors import CompressionError
from hf_compress.measurement import without_statistics
from hf_compress.models import PadShortcut, cifar_resnet


# parameters of the paper's networks (table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M, 1.7 M), and of timm's with a 3 x 3 stem
THIN = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
WIDE = {18: 11_173_962, 34: 21_282_122, 50: 23_520_842}


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def with_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Batch normalization as after training, so that no branch is the identity or zero."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def paper_forward(state: dict[str, torch.Tensor], x: torch.Tensor, depth: int) -> torch.Tensor:
    """ResNet for CIFAR with option A, written out from section 4.2 of the paper over bare tensors."""

    def convolve(x, conv, norm, stride=1):
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        statistics = [state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *statistics)

    x = F.relu(convolve(x, "conv1", "bn1"))
    for stage in (1, 2, 3):
        for block in range((depth - 2) // 6):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.relu(convolve(x, f"{name}.conv1", f"{name}.bn1", stride))
            y = convolve(y, f"{name}.conv2", f"{name}.bn2")
            if stride == 2:
                wide = torch.zeros_like(y)
                quarter = y.shape[1] // 4
                wide[:, quarter : 3 * quarter] = x[:, :, 0::2, 0::2]
                x = wide
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("depth, count", THIN.items())
def test_thin_networks_have_the_parameters_of_the_paper(depth, count):
    with torch.device("meta"):
        model = timm.create_model(f"resnet{depth}_cifar", num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    names = {name.split(".")[0] for name in model.state_dict()}
    assert names == {"conv1", "bn1", "layer1", "layer2", "layer3", "fc"}
    assert not any("downsample" in name for name in model.state_dict())


@pytest.mark.parametrize("depth, count", WIDE.items())
def test_wide_networks_differ_from_timm_in_the_stem_only(depth, count):
    with torch.device("meta"):
        ours = timm.create_model(f"resnet{depth}_cifar").state_dict()
        stock = timm.create_model(f"resnet{depth}", num_classes=10).state_dict()
    assert {name for name in stock if stock[name].shape != ours[name].shape} == {"conv1.weight"}
    assert ours.keys() == stock.keys()
    trainable = [tensor for name, tensor in ours.items() if "running" not in name and "batches" not in name]
    assert sum(tensor.numel() for tensor in trainable) == count


@pytest.mark.parametrize("depth", [20, 32])
def test_forward_is_that_of_the_paper(depth):
    model = with_statistics(timm.create_model(f"resnet{depth}_cifar", shortcut="A"))
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), paper_forward(model.state_dict(), x, depth), rtol=1e-4, atol=1e-4)


def test_shortcut_b_projects():
    model = timm.create_model("resnet20_cifar", shortcut="B")
    assert {"layer2.0.downsample.0.weight", "layer3.0.downsample.1.weight"} <= model.state_dict().keys()
    assert model.layer2[0].downsample[0].kernel_size == (1, 1)
    assert model.layer1[0].downsample is None


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_pad_shortcut(data):
    channels, extra = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 6))
    before, stride = data.draw(st.integers(0, extra)), data.draw(st.integers(1, 3))
    height, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    x = images(2, channels, height, width)
    y = PadShortcut(channels, channels + extra, stride, before)(x)
    assert y.shape == (2, channels + extra, -(-height // stride), -(-width // stride))
    for channel in range(channels + extra):
        inside = 0 <= channel - before < channels
        expected = x[:, channel - before, ::stride, ::stride] if inside else torch.zeros_like(y[:, channel])
        assert torch.equal(y[:, channel], expected)


def test_pad_shortcut_keeps_channels_last():
    x = images(2, 16, 8, 8).to(memory_format=torch.channels_last)
    y = PadShortcut(16, 32)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, PadShortcut(16, 32)(x.contiguous()))


def test_pad_shortcut_cannot_remove_channels():
    with pytest.raises(CompressionError, match="only add channels"):
        PadShortcut(32, 16)
    with pytest.raises(CompressionError, match="0 to 4"):
        PadShortcut(4, 8, before=5)


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(
    "name, widths", [("resnet20_cifar", [16, 16, 32, 64]), ("resnet18_cifar", [8, 8, 12, 16, 20])]
)
def test_interface_of_timm(name, widths, shortcut):
    arguments = {"in_chans": 1, "shortcut": shortcut, "channels": widths[1:]}
    model = timm.create_model(name, num_classes=7, **arguments).eval()
    x = images(2, 1, 32, 32)
    with torch.no_grad():
        features = model.forward_features(x)
        assert model.num_features == features.shape[1] == widths[-1]
        assert torch.equal(model.forward_head(features), model(x))
        assert model.forward_head(features, pre_logits=True).shape == (2, widths[-1])
        _, intermediates = model.forward_intermediates(x)
        listed = timm.create_model(name, features_only=True, **arguments).eval()(x)
    assert model.get_classifier() is model.fc and model.fc.out_features == 7
    for info, width, one, other in zip(model.feature_info, widths, intermediates, listed, strict=True):
        assert info["num_chs"] == width == one.shape[1] == other.shape[1]
        assert 32 // info["reduction"] == one.shape[-1] == other.shape[-1]
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, widths[-1])
    assert model.default_cfg["input_size"] == (3, 32, 32)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = timm.create_model("resnet20_cifar").eval()
    x = images(2, 3, 32, 32)
    model(x).sum().backward()
    expected = model.conv1.weight.grad.clone()
    model.zero_grad()
    model.set_grad_checkpointing()
    model.train(False)(x).sum().backward()
    torch.testing.assert_close(model.conv1.weight.grad, expected)


def test_traceable():
    model = with_statistics(timm.create_model("resnet20_cifar", shortcut="A"))
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(torch.jit.trace(model, x, check_trace=False)(x), expected)
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}}).module()
        torch.testing.assert_close(exported(x), expected)
        more = images(5, 3, 32, 32)
        torch.testing.assert_close(exported(more), model(more))


def test_openvino_converts():
    openvino = pytest.importorskip("openvino")
    model = with_statistics(timm.create_model("resnet20_cifar", shortcut="A"))
    x = images(2, 3, 32, 32)
    with without_statistics():
        converted = openvino.convert_model(model, example_input=x)
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(compiled(x.numpy())[0]), model(x), rtol=1e-3, atol=1e-3)


def test_torch_pruning_traces():
    pruning = pytest.importorskip("torch_pruning")
    model = with_statistics(timm.create_model("resnet20_cifar", shortcut="B"))
    graph = pruning.DependencyGraph().build_dependency(model, images(1, 3, 32, 32))
    graph.get_pruning_group(model.layer1[0].conv1, pruning.prune_conv_out_channels, [0, 5]).prune()
    assert model.layer1[0].conv2.in_channels == 14
    assert model(images(2, 3, 32, 32)).shape == (2, 10)


def test_registering_again_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cifar_resnet._register(cifar_resnet.resnet20_cifar)
    assert is_model("resnet110_cifar") and timm.create_model("resnet20_cifar").fc.out_features == 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"shortcut": "C"}, '"A" .* and "B"'),
        ({"stem_type": "deep"}, "fixed stem"),
        ({"output_stride": 8}, "fixed stem"),
        ({"stem_channels": 15}, "even"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(CompressionError, match=message):
        timm.create_model("resnet20_cifar", **arguments)


def test_narrow_network_for_tests():
    model = timm.create_model("resnet20_cifar", channels=(4, 8, 12))
    assert model(images(2, 3, 16, 16)).shape == (2, 10)
    assert model.layer3[0].downsample.before == 2
