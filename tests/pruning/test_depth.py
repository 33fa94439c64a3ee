"""Whole blocks leave: the ones that matter least, and what is left loads like any model."""

from __future__ import annotations

import copy
import itertools
import re
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    ModernBertConfig,
    Qwen2Config,
)

from hf_compress.errors import CompressionError, TargetError, UnsupportedModelError
from hf_compress.measurement import count
from hf_compress.pruning import find_units, prune
from hf_compress.pruning.blocks import chain, removable
from hf_compress.pruning.repair import pruned_readers, repair
from hf_compress.pruning.sensitivity import Reference
from hf_compress.structure import Removed, describe
from hf_compress.training import Context

from . import cases


@pytest.mark.parametrize("case", [*cases.ENCODERS, "option_a", "option_b"])
@pytest.mark.parametrize("repair", [False, True])
def test_target_is_met_and_the_model_comes_back(case, repair, tmp_path):
    layers = {"n_layers": 4} if case == "distilbert" else {"num_hidden_layers": 4}
    model = cases.make(case, **(layers if case in cases.ENCODERS else {}))
    dense = count(model)
    report = prune(model, method="depth", target={"macs": 0.6}, repair=repair, samples=24, **cases.examples_for(model))
    assert report.achieved == pytest.approx(count(model).macs / dense.macs) and report.achieved <= 0.6
    assert {line["of"] for line in report.notes["layers"].values()} == {1}
    again = cases.reload(model, tmp_path)
    assert torch.equal(cases.output_of(again), cases.output_of(model))
    if case in cases.ENCODERS:  # said by the configuration, so that it loads anywhere
        assert model.config.num_hidden_layers == 2 and "quantization_config" not in again.config.to_dict()
    else:
        assert describe(again) == describe(model) != {}
    model.train()
    model(**cases.inputs_for(model), labels=torch.tensor([0, 1, 1])).loss.backward()


def test_an_encoder_of_fewer_layers_loads_without_this_package(tmp_path):
    model = cases.make("bert", num_hidden_layers=4)
    prune(model, method="depth", target={"macs": 0.8, "scope": "encoder"}, repair=False, **cases.examples_for(model))
    model.save_pretrained(tmp_path / "model")
    torch.save(cases.inputs_for(model), tmp_path / "inputs.pt")
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForSequenceClassification\n"
        "folder = sys.argv[1]\n"
        "model = AutoModelForSequenceClassification.from_pretrained(folder + '/model').eval()\n"
        "torch.save(model(**torch.load(folder + '/inputs.pt')).logits.detach(), folder + '/logits.pt')\n"
        "assert not any(name.startswith('hf_compress') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), cases.output_of(model))


def test_the_first_block_to_go_is_the_one_that_matters_least():
    """Against trying every block."""
    dense = cases.make("option_b")
    context = Context(**cases.examples_for(dense))
    reference = Reference(dense, context.calibration(24))
    blocks, _ = removable(dense, reference.batches[0])
    assert len(blocks) == 7  # the two with a stride change the shape
    losses, moved = {}, {}
    for name in blocks:
        model = cases.make("option_b")
        model.set_submodule(name, Removed.replacing(model.get_submodule(name)))
        moved[name] = reference.divergence(model)
        losses[name] = moved[name] / (count(dense).macs - count(model).macs)
    report = prune(dense, method="depth", target={"macs": 0.95}, repair=False, **cases.examples_for(dense))
    gone = [name for name, module in dense.named_modules() if isinstance(module, Removed)]
    assert gone == [min(losses, key=losses.get)]
    told = report.notes["sensitivity"]
    assert {name: point["loss"] for name, (point,) in told.items()} == pytest.approx(moved, abs=1e-5)


@pytest.mark.parametrize("case", ["option_b", "bert"])
def test_what_is_behind_the_last_block_makes_up_for_it(case):
    """Against the same network with nothing fitted: the predictions come nearer to those of the dense one."""
    dense = cases.make(case, **({"num_hidden_layers": 4} if case == "bert" else {}))
    blocks = chain(dense)
    context = Context(**cases.examples_for(dense, 256))
    model, fitted = copy.deepcopy(dense), copy.deepcopy(dense)
    for each in (model, fitted):
        each.set_submodule(blocks[-1], Removed.replacing(each.get_submodule(blocks[-1])))
    readers = pruned_readers(fitted, dense, find_units(dense).groups)
    last = ["timm_model.fc"] if case == "option_b" else ["bert.pooler.dense", "classifier"]
    assert readers == last
    assert repair(fitted, dense, readers, context, samples=256).keys() == set(last)
    others = Context(**cases.examples_for(dense, 256, seed=4))
    reference = Reference(dense, others.calibration(256))
    assert reference.divergence(fitted) < 0.9 * reference.divergence(model)


def test_blocks_that_left_before_are_no_end_of_the_network():
    dense = cases.make("option_b")
    blocks = chain(dense)
    dense.set_submodule(blocks[-1], Removed.replacing(dense.get_submodule(blocks[-1])))
    groups = find_units(dense).groups
    model = copy.deepcopy(dense)
    model.set_submodule(blocks[-2], Removed.replacing(model.get_submodule(blocks[-2])))
    assert pruned_readers(model, dense, groups) == ["timm_model.fc"]
    model = copy.deepcopy(dense)
    model.set_submodule(blocks[1], Removed.replacing(model.get_submodule(blocks[1])))
    assert pruned_readers(model, dense, groups) == [f"{name}.conv2" for name in blocks[2:-1]]


def test_layers_that_share_their_weights_are_left_alone():
    """The decoder of a masked language model is its embedding."""
    shape = {"vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    dense = BertForMaskedLM(BertConfig(num_hidden_layers=3, **shape)).eval()
    model, last = copy.deepcopy(dense), chain(dense)[-1]
    model.set_submodule(last, Removed.replacing(model.get_submodule(last)))
    readers = pruned_readers(model, dense, find_units(dense).groups)
    assert readers == ["cls.predictions.transform.dense"]
    context = Context(**cases.examples_for(dense, 64))
    padded = next(iter(context.calibration(64)))["attention_mask"]
    assert not padded.all()
    before = model.get_input_embeddings().weight.detach().clone()
    assert 0 < repair(model, dense, readers, context, samples=64)[readers[0]] < 1
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_an_encoder_whose_layers_cannot_be_taken_out_is_refused():
    """They give tuples, which their readers take apart."""
    config = DebertaV2Config(vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match="DebertaV2.* single tensor"):
        prune(model, method="depth", target={"macs": 0.7}, repair=False, **cases.examples_for(model))
    assert describe(model) == {}


SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 1,
}


def test_a_network_that_asks_its_layers_something_is_refused():
    config = ModernBertConfig(**SMALL, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match="layers.3: the network does not run without it .*attention_type"):
        prune(model, method="depth", target={"macs": 0.7}, repair=False, **cases.examples_for(model))
    assert describe(model) == {}


def test_what_a_configuration_says_of_every_layer_closes_up_with_them(tmp_path):
    config = Qwen2Config(**SMALL, num_key_value_heads=2, use_sliding_window=True, max_window_layers=2)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    kinds = list(model.config.layer_types)
    examples = cases.examples_for(model)
    report = prune(model, method="depth", target={"macs": 0.8, "scope": "encoder"}, repair=False, **examples)
    stays = [bool(line["kept"]) for line in report.notes["layers"].values()]
    assert 1 < sum(stays) < 4 and len(set(kinds)) == 2
    assert model.config.layer_types == [kind for kind, stay in zip(kinds, stays, strict=True) if stay]
    assert torch.equal(cases.output_of(cases.reload(model, tmp_path)), cases.output_of(model))


def test_what_cannot_be_repaired_is_told_before_the_search(monkeypatch):
    model = cases.timm_network("vit_tiny_patch16_224", img_size=32, depth=3)
    options = {"samples": 8, "probe_samples": 8, **cases.examples_for(model)}
    monkeypatch.setattr("hf_compress.pruning.depth._choose", lambda *arguments: pytest.fail("it was searched"))
    with pytest.raises(UnsupportedModelError, match="Give repair: false"):
        prune(model, method="depth", target={"macs": 0.8}, **options)
    monkeypatch.undo()
    report = prune(model, method="depth", target={"macs": 0.8}, repair=False, **options)
    assert report.achieved <= 0.8


def test_no_block_goes_that_the_target_does_not_ask_for():
    model = cases.make("option_a")
    dense = count(model).macs
    report = prune(model, method="depth", target={"macs": 0.5}, repair=False, **cases.examples_for(model))
    gone = [name for name, line in report.notes["layers"].items() if not line["kept"]]
    for name in gone:
        rest = cases.make("option_a")
        for other in gone:
            if other != name:
                rest.set_submodule(other, Removed.replacing(rest.get_submodule(other)))
        assert count(rest).macs > 0.5 * dense >= count(model).macs


def test_after_other_pruning_and_twice(tmp_path):
    model, dense = cases.make("bert", num_hidden_layers=4), cases.make("bert", num_hidden_layers=4)
    prune(model, target={"params": 0.9, "scope": "encoder"})
    examples = cases.examples_for(model)
    for macs, layers in ((0.7, 3), (0.4, 2)):
        prune(model, method="depth", target={"macs": macs}, baseline=dense, samples=24, **examples)
        assert model.config.num_hidden_layers <= layers
    assert torch.equal(cases.output_of(cases.reload(model, tmp_path)), cases.output_of(model))


def test_what_cannot_be():
    model = cases.make("option_a")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TargetError, match="out of reach"):
        prune(model, method="depth", target={"macs": 0.01}, **cases.examples_for(model))
    with pytest.raises(CompressionError, match="got no data"):
        prune(model, method="depth", target={"macs": 0.5})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(itertools.chain.from_iterable(module._forward_hooks for module in model.modules()))


@pytest.mark.parametrize("method", ["depth", "fisher"])
@pytest.mark.parametrize("architecture", ["legacy_seresnet18", "densenet121"])
def test_networks_with_single_layers_among_their_blocks(method, architecture):
    """A pooling or a ReLU holds nothing that could be sealed, and is no block to take out."""
    extra = {"growth_rate": 4, "block_config": (2, 2)} if architecture == "densenet121" else {}
    model = cases.timm_network(architecture, **extra)
    examples = cases.examples_for(model, 8)
    if (method, architecture) == ("depth", "densenet121"):
        with pytest.raises(UnsupportedModelError, match="can leave .*denseblock2: it changes the shape"):
            prune(model, method=method, target={"macs": 0.9}, repair=False, probe_samples=8, **examples)
        return
    options = {"repair": False, "probe_samples": 8} | (
        {"score": "masks", "score_samples": 8} if method == "fisher" else {}
    )
    report = prune(model, method=method, target={"macs": 0.9}, **options, **examples)
    assert report.achieved <= 0.9
    if method == "depth":
        assert all(re.search(r"layer\d\.\d$", name) for name in report.notes["layers"])


def test_blocks_that_cannot_leave_are_named():
    model = cases.make("option_b")
    report = prune(model, method="depth", target={"macs": 0.9}, repair=False, **cases.examples_for(model))
    assert set(report.notes["kept"]) == {"timm_model.layer2.0", "timm_model.layer3.0"}
    assert not report.notes["kept"].keys() & report.notes["layers"].keys()
    model = cases.make("bert", num_hidden_layers=4)
    report = prune(model, method="depth", target={"macs": 0.7}, repair=False, **cases.examples_for(model))
    assert "kept" not in report.notes
