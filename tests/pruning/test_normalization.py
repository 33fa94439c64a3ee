"""Statistics of batch normalizations: those of what they read, in a network that gives what it gave."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_compress.pruning import prune
from hf_compress.pruning.normalization import reestimate

from . import cases


NETWORKS = ("option_a", "option_b", "bottleneck")


def batches(count=5):
    generator = torch.Generator().manual_seed(4)
    return [{"pixel_values": torch.randn(n + 2, 3, 32, 32, generator=generator)} for n in range(count)]


def norms(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


@pytest.mark.parametrize("case", NETWORKS)
def test_training_mode_on_all_examples_is_eval_mode(case):
    model = cases.make(case).double()
    given = [{name: value.double() for name, value in batch.items()} for batch in batches()]
    whole = {"pixel_values": torch.cat([batch["pixel_values"] for batch in given])}
    with torch.no_grad():
        before = model(**whole).logits
        apart = copy.deepcopy(model).train()(**whole).logits
    reestimate(model, given)
    with torch.no_grad():
        after = model(**whole).logits
        assert not model.training
        together = copy.deepcopy(model).train()(**whole).logits
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(together, before)
    assert (apart - before).abs().max() > 0.1 * before.abs().max()  # these networks have made-up statistics


def test_in_half_precision_it_gives_the_same_as_well():
    model = cases.make("option_a").bfloat16()
    given = [{"pixel_values": batch["pixel_values"].bfloat16()} for batch in batches(2)]
    norm, seen = model.timm_model.layer2[0].bn1, []
    handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(**given[0])
    handle.remove()
    with torch.no_grad():
        before = norm(seen[0]).float()
        reestimate(model, given)
        torch.testing.assert_close(norm(seen[0]).float(), before, rtol=0.03, atol=0.03)


def test_what_cannot_take_it_up_is_left_alone():
    model = cases.make("option_a")
    model.timm_model.layer1[0].bn1 = nn.BatchNorm2d(16, affine=False).eval()
    model.timm_model.layer1[1].bn1 = nn.BatchNorm2d(16, track_running_stats=False).eval()
    model.timm_model.layer1[2].bn1 = nn.BatchNorm2d(16, bias=False).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate(model, batches(1))
    kept = tuple(f"timm_model.layer1.{block}.bn1." for block in range(3))
    for name, value in model.state_dict().items():
        of_norm = name.rpartition(".")[0] in norms(model) and "num_batches" not in name
        assert torch.equal(value, before[name]) == (not of_norm or name.startswith(kept)), name
    for module in model.modules():
        assert not module._forward_pre_hooks


def test_networks_without_them_are_not_run():
    reestimate(cases.make("bert"), iter(lambda: pytest.fail("the examples were asked for"), None))


@pytest.mark.parametrize("case", NETWORKS)
def test_what_is_repaired_trains_from_where_it_is(case):
    model = cases.make(case)
    examples = cases.examples_for(model, 48)
    prune(model, target={"macs": 0.7}, samples=48, min_channels=2, repair=True, **examples)
    whole = {"pixel_values": torch.stack([row["pixel_values"] for row in examples["data"]])}
    with torch.no_grad():
        expected = model.eval()(**whole).logits
        torch.testing.assert_close(model.train()(**whole).logits, expected, rtol=1e-3, atol=1e-3)
