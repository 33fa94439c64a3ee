"""A compressed model comes back, equal to the last bit, through nothing but plain Transformers."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers

from hf_compress.errors import StructureError
from hf_compress.structure import describe, history_of, track

from . import cases
from .conftest import FRESH, task_of


CASES = list(cases.CASES)
SOME = ["bert-everything", "distilbert-everything", "resnet18-low_rank_channels_on_pruned", "resnet20_cifar-channels"]
MORE = [
    *SOME,
    "roberta-no_heads",
    "electra-low_rank_on_pruned",
    "bert-no_layer",
    "resnet18-channels",
    "resnext-groups",
]


def load(model, folder, **kwargs):
    return getattr(transformers, task_of(model)).from_pretrained(folder, **kwargs)


@pytest.mark.parametrize("case", CASES)
def test_loads_with_equal_logits(case, saved):
    model = saved.model(case)
    loaded = load(model, saved.folder(case))
    assert torch.equal(cases.logits_of(loaded), cases.logits_of(model))
    assert type(loaded) is type(model)
    assert loaded.is_quantized is False
    assert describe(loaded) == describe(model) != {}
    assert history_of(loaded) == [{"case": case}]


@pytest.mark.parametrize("case", FRESH)
def test_loads_in_a_fresh_process(case, fresh):
    assert fresh["aware"][case] == "equal"


@pytest.mark.parametrize("case", FRESH)
def test_a_process_without_the_package_refuses(case, fresh):
    outcome = fresh["unaware"][case]
    if case.startswith("resnet20_cifar"):  # the package brings this architecture, so nothing else can be expected
        assert "resnet20_cifar" in outcome
    else:
        assert outcome.startswith("refused: RuntimeError") and "ignore_mismatched_sizes" in outcome


@pytest.mark.parametrize("case", SOME)
def test_copies_are_saved_again(case, saved, tmp_path):
    model = saved.model(case)
    copied = copy.deepcopy(load(model, saved.folder(case))).float()
    copied.save_pretrained(tmp_path)
    again = load(model, tmp_path)
    assert torch.equal(cases.logits_of(again), cases.logits_of(model))
    config = json.loads((tmp_path / "config.json").read_text())
    assert (
        config["quantization_config"]
        == json.loads((saved.folder(case) / "config.json").read_text())["quantization_config"]
    )


@pytest.mark.parametrize("case", SOME)
def test_floating_tensors_follow_the_dtype(case, saved, tmp_path):
    model = saved.model(case)
    loaded = load(model, saved.folder(case), dtype=torch.bfloat16)
    assert {t.dtype for t in loaded.state_dict().values() if t.is_floating_point()} == {torch.bfloat16}
    reference = cases.logits_of(copy.deepcopy(model).to(torch.bfloat16))
    assert torch.equal(cases.logits_of(loaded), reference)
    loaded.save_pretrained(tmp_path)
    assert load(model, tmp_path).dtype == torch.bfloat16
    assert load(model, tmp_path, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("case", MORE)
def test_without_head(case, saved):
    model = saved.model(case)
    loaded = transformers.AutoModel.from_pretrained(saved.folder(case))
    inputs = cases.inputs_for(model)
    with torch.no_grad():
        if "pixel_values" in inputs:
            expected = model.timm_model.forward_features(inputs["pixel_values"])
        else:
            expected = model.base_model(**inputs).last_hidden_state
        assert torch.equal(loaded(**inputs).last_hidden_state, expected)


@pytest.mark.parametrize("case", ["bert-everything", "roberta-heads", "distilbert-no_heads", "electra-low_rank"])
def test_base_model_alone(case, saved, tmp_path):
    """The model inside is saved under names without prefix, and loads below a new head."""
    model = copy.deepcopy(saved.model(case))
    model.base_model.save_pretrained(tmp_path)
    names = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["modules"]
    assert not any(name.startswith(model.base_model_prefix + ".") for name in names)
    inputs = cases.inputs_for(model)
    with torch.no_grad():
        expected = model.base_model(**inputs).last_hidden_state
        assert torch.equal(transformers.AutoModel.from_pretrained(tmp_path)(**inputs).last_hidden_state, expected)
        headed = load(model, tmp_path, num_labels=5)
        assert torch.equal(headed.base_model(**inputs).last_hidden_state, expected)
    assert headed(**inputs).logits.shape[-1] == 5


@pytest.mark.parametrize("case", MORE)
def test_other_label_count_is_refused_with_the_way_out(case, saved):
    model = saved.model(case)
    labels = model.config.num_labels
    with pytest.raises(StructureError, match=rf"num_labels={labels} and replace the head") as error:
        load(model, saved.folder(case), num_labels=labels + 4)
    # what the message says works
    loaded = load(model, saved.folder(case))
    exec(str(error.value).split("`")[1], {"model": loaded, "torch": torch})
    track(loaded)
    assert cases.logits_of(loaded).shape[-1] == labels + 4


def test_replaced_head_survives(saved, tmp_path):
    for case in ("bert-heads", "resnet18-channels"):
        model = load(saved.model(case), saved.folder(case))
        name = "classifier" if case.startswith("bert") else "timm_model.fc"
        head = model.get_submodule(name)
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], torch.nn.Linear(head.in_features, 6))
        model.config.num_labels = model.num_labels = 6
        model.save_pretrained(tmp_path / case)
        loaded = load(model, tmp_path / case)
        assert torch.equal(cases.logits_of(loaded), cases.logits_of(model))
        assert loaded.config.num_labels == 6


@pytest.mark.parametrize("family", [*cases.ENCODERS, *cases.RESNETS])
def test_unchanged_model_carries_nothing(family, tmp_path):
    model = track(cases.build(family), method="none")
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    torch.testing.assert_close(cases.logits_of(load(model, tmp_path)), cases.logits_of(model))


def test_config_fields_and_masks_carry_nothing(tmp_path):
    model = cases.encoder("bert")
    layers = cases.layers_of(model)
    del layers[1]
    for layer in layers:
        cases.keep_neurons(layer, list(range(17)))
    model.config.num_hidden_layers, model.config.intermediate_size = 2, 17
    with torch.no_grad():
        layers[0].intermediate.dense.weight[:5] = 0
    track(model)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    torch.testing.assert_close(cases.logits_of(load(model, tmp_path)), cases.logits_of(model))


def test_going_back_to_the_config_clears_it(saved, tmp_path):
    model = load(saved.model("bert-low_rank"), saved.folder("bert-low_rank"))
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LowRankLinear":
            dense = torch.nn.Linear(module.in_features, module.out_features)
            dense.weight.data = module.up.weight.data @ module.down.weight.data
            dense.bias.data = module.up.bias.data
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], dense)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    torch.testing.assert_close(cases.logits_of(load(model, tmp_path)), cases.logits_of(model))


def test_state_dict_instead_of_a_folder(saved):
    model = saved.model("bert-everything")
    loaded = type(model).from_pretrained(None, config=model.config, state_dict=dict(model.state_dict()))
    assert torch.equal(cases.logits_of(loaded), cases.logits_of(model))
    state = dict(model.state_dict())
    del state["bert.encoder.layer.0.attention.self.query.up.weight"]
    with pytest.raises(StructureError, match="lack bert.encoder.layer.0.attention.self.query.up.weight"):
        type(model).from_pretrained(None, config=model.config, state_dict=state)


def test_surgery_after_loading_is_saved_without_track(saved, tmp_path):
    model = load(saved.model("bert-heads"), saved.folder("bert-heads"))
    cases.remove_neurons(cases.layers_of(model)[2])
    model.save_pretrained(tmp_path)
    assert torch.equal(cases.logits_of(load(model, tmp_path)), cases.logits_of(model))


def test_shards(saved, tmp_path):
    model = saved.model("bert-everything")
    copy.deepcopy(model).save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(cases.logits_of(load(model, tmp_path)), cases.logits_of(model))


def test_track_is_idempotent_and_keeps_history(saved):
    model = copy.deepcopy(saved.model("bert-heads"))
    before = model.config.quantization_config.to_dict()
    track(model)
    track(model, case="bert-heads")
    assert model.config.quantization_config.to_dict() == before
    track(model, method="svd", widths=(1, 2))
    assert history_of(model) == [{"case": "bert-heads"}, {"method": "svd", "widths": [1, 2]}]
    with pytest.raises(StructureError, match="JSON"):
        track(model, value=torch.ones(1))


def test_dequantize_is_refused(saved):
    with pytest.raises(StructureError, match="cannot be brought back"):
        copy.deepcopy(saved.model("bert-heads")).dequantize()
