"""A folder whose description lies, is newer, or does not belong to its weights is refused; nothing of it is run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from hf_compress.errors import StructureError
from hf_compress.structure import HfCompressConfig, rebuild

from . import cases


QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a saved model with low rank, a lost layer and lost heads, to be tampered with."""
    return shutil.copytree(saved.folder("bert-everything"), tmp_path / "copy")


def tamper(folder, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def newer_format(description):
    description["format_version"] = 2
    description["hf_compress_version"] = "9.1"


def odd_format(description):
    description["format_version"] = "1; import os"


def unknown_kind(description):
    description["modules"][QUERY] = {"kind": "ButterflyLinear"}
    description["hf_compress_version"] = "9.1"


def no_kind(description):
    description["modules"][QUERY] = ["kind"]


def no_mapping(description):
    description["modules"] = [QUERY]


def unknown_field(description):
    description["modules"][QUERY]["ranks"] = 3


def wrong_rank(description):
    description["modules"][QUERY]["rank"] = 3


def huge_rank(description):
    description["modules"][QUERY]["rank"] = 10**14


def negative_rank(description):
    description["modules"][QUERY]["rank"] = -3


def text_rank(description):
    description["modules"][QUERY]["rank"] = "__import__('os')"


def no_rank(description):
    del description["modules"][QUERY]["rank"]


def lost_bias(description):
    description["modules"][QUERY]["bias"] = False


def forgotten_module(description):
    del description["modules"][QUERY]


def forgotten_removal(description):
    del description["modules"]["bert.encoder.layer.2"]


def no_such_module(description):
    description["modules"]["bert.encoder.layer.7.output.dense"] = {"kind": "LowRankLinear", "rank": 3}


def the_whole_model(description):
    description["modules"][""] = {"kind": "Removed", "seal": "classifier.weight", "returns": "tensor"}


def no_such_seal(description):
    description["modules"]["bert.encoder.layer.2"]["seal"] = "attention.self.forward"


def wrong_returns(description):
    description["modules"]["bert.encoder.layer.2"]["returns"] = "list"


def removed_classifier(description):
    description["modules"]["classifier"] = {"kind": "Removed", "seal": "weight", "returns": "tensor"}


def widened(description):
    description["modules"]["classifier"] = {
        "kind": "Resized",
        "class": "Linear",
        "shapes": {"weight": [None, 40]},
        "attributes": {"in_features": 40},
    }


def dropped_bias(description):
    description["modules"]["classifier"] = {
        "kind": "Resized",
        "class": "Linear",
        "shapes": {"bias": None},
        "attributes": {},
    }


def other_class(description):
    description["modules"]["classifier"] = {"kind": "Resized", "class": "Conv2d", "shapes": {}, "attributes": {}}


def an_attribute(name, value):
    def change(description):
        attributes = {name: value}
        spec = {"kind": "Resized", "class": "Linear", "shapes": {}, "attributes": attributes}
        description["modules"]["classifier"] = spec

    change.__name__ = f"attribute_{name}"
    return change


def a_tensor(name, shape):
    def change(description):
        spec = {"kind": "Resized", "class": "Linear", "shapes": {name: shape}, "attributes": {}}
        description["modules"]["classifier"] = spec

    change.__name__ = f"tensor_{name}"
    return change


LIES = {
    newer_format: "up to 1.*hf_compress 9.1.*pip install --upgrade",
    odd_format: "format_version",
    unknown_kind: "unknown kind 'ButterflyLinear'.*hf_compress 9.1.*pip install --upgrade",
    no_kind: "unknown kind None",
    no_mapping: "mapping",
    unknown_field: r"unknown field 'ranks' \(did you mean 'rank'",
    wrong_rank: r"query.down.weight is \[4, 32\] in the weights, but \[3, 32\]",
    huge_rank: "query.down.weight is",
    negative_rank: "rank: got -3",
    text_rank: "rank: got",
    no_rank: "must say its rank",
    lost_bias: "hold .*query.up.bias",
    forgotten_module: "query.(weight|bias|down.weight|up.weight|up.bias)",
    forgotten_removal: r"bert.encoder.layer.2.attention.self.query.weight is \[0\]",
    no_such_module: "no such module",
    the_whole_model: "whole model",
    no_such_seal: "'attention.self.forward' is no parameter",
    wrong_returns: "returns: got 'list'",
    removed_classifier: "hold classifier.bias",
    widened: "classifier.weight is",
    dropped_bias: "hold classifier.bias",
    other_class: "meant for a Conv2d, but there is a Linear",
    an_attribute("forward", "x"): "no structural attribute 'forward'",
    an_attribute("__class__", "x"): "no structural attribute '__class__'",
    an_attribute("training", False): "no structural attribute 'training'",
    an_attribute("in_features", "x"): "in_features: got 'x'",
    an_attribute("out_features", {"a": 1}): "out_features: got",
    a_tensor("weight", [-1, 32]): "got the shape",
    a_tensor("weight", [32]): r"classifier.weight is \[3, 32\]",
    a_tensor("bias", "x"): "got the shape 'x'",
    a_tensor("scale", [3]): "no tensor 'scale'",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_lies_are_refused(lie, folder):
    tamper(folder, lie)
    with pytest.raises(StructureError, match=LIES[lie]):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_every_missing_tensor_is_noticed(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in list(tensors)[::5]:
        save_file({key: value for key, value in tensors.items() if key != name}, path, metadata={"format": "pt"})
        with pytest.raises(StructureError, match=f"lack {name}"):
            AutoModelForSequenceClassification.from_pretrained(folder)


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StructureError, match="truncated or damaged"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_dense_weights_below_a_description(folder):
    dense = cases.encoder("bert")
    save_file(dict(dense.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StructureError, match="do not belong together"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_description_of_another_architecture(folder, saved):
    specs = json.loads((folder / "config.json").read_text())["quantization_config"]["modules"]
    with pytest.raises(StructureError, match="no such module"):
        rebuild(cases.encoder("distilbert"), specs)


def test_compressing_while_loading_is_refused(tmp_path):
    cases.encoder("bert").save_pretrained(tmp_path)
    description = HfCompressConfig({QUERY: {"kind": "LowRankLinear", "rank": 2}})
    with pytest.raises(StructureError, match="does not compress while loading"):
        BertForSequenceClassification.from_pretrained(tmp_path, quantization_config=description)


def test_dense_model_from_a_compressed_config_cannot_pass_for_it(saved, tmp_path):
    """Built from the config without the weights, the model is dense; its folder must not load as a compressed one."""
    model = BertForSequenceClassification(saved.model("bert-everything").config)
    model.save_pretrained(tmp_path)
    with pytest.raises(StructureError):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_integer_weights_keep_their_protection(saved):
    from hf_compress.structure.plugin import attach

    model = cases.encoder("bert")
    model.register_buffer("codes", torch.zeros(3, dtype=torch.int8))
    attach(model, saved.model("bert-heads").hf_quantizer)
    with pytest.raises(ValueError, match="float"):
        model.float()
