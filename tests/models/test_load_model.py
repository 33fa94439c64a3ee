from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_compress.errors import CompressionError, NotFoundError, UnsupportedModelError
from hf_compress.models import load_model
from hf_compress.models.known_configs import known_config
from hf_compress.models.processors import position_limit


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{index}" for index in range(95))]


@dataclass
class FakeTask:
    """What `load_model` asks of a task."""

    name: str
    modality: str
    label_names: list[str]
    problem_type: str = "single_label_classification"
    max_length: int = 32
    spec: SimpleNamespace = field(init=False)

    def __post_init__(self):
        self.spec = SimpleNamespace(max_length=self.max_length)

    @property
    def num_labels(self) -> int:
        return len(self.label_names)


CIFAR = FakeTask("cifar10", "image", "airplane automobile bird cat deer dog frog horse ship truck".split())
SST2 = FakeTask("glue/sst2", "text", ["negative", "positive"])
STSB = FakeTask("glue/stsb", "text", ["similarity"], "regression")
MNLI = FakeTask("glue/mnli", "text", ["entailment", "neutral", "contradiction"])


def bert_config(**values) -> BertConfig:
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertConfig(**{**sizes, "intermediate_size": 64, "max_position_embeddings": 64, **values})


def save(model, folder, words=WORDS, **tokenizer):
    torch.manual_seed(0)
    model.save_pretrained(folder)
    BertTokenizer(vocab=dict(zip(words, range(len(words)), strict=True)), **tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def encoder(tmp_path):
    """A pretrained encoder: a masked language model, without a pooler and without a classification head."""
    return save(BertForMaskedLM(bert_config()), tmp_path / "encoder")


@pytest.fixture
def classifier(tmp_path):
    return save(BertForSequenceClassification(bert_config(num_labels=3)), tmp_path / "classifier")


# ---- text


def test_encoder_gets_a_fresh_seeded_head(encoder, caplog):
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        model, tokenizer = load_model(encoder, task=SST2)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and model.dtype == torch.float32
    assert model.config.id2label == {0: "negative", 1: "positive"} and model.config.label2id["positive"] == 1
    assert model.config.problem_type == "single_label_classification"
    stored = load_file(f"{encoder}/model.safetensors")
    assert torch.equal(
        model.bert.encoder.layer[1].output.dense.weight, stored["bert.encoder.layer.1.output.dense.weight"]
    )
    again, _ = load_model(encoder, task=SST2)
    other, _ = load_model(encoder, task=SST2, seed=1)
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert torch.equal(model.bert.pooler.dense.weight, again.bert.pooler.dense.weight)
    assert not torch.equal(model.classifier.weight, other.classifier.weight)
    assert "the head is fresh (bert.pooler.dense.bias" in caplog.text and "LOAD REPORT" not in caplog.text
    assert tokenizer("word3 word4")["input_ids"] == [2, 8, 9, 3]


def test_own_report_of_transformers_is_back_afterwards(encoder, caplog):
    load_model(encoder)
    report = logging.getLogger("transformers.modeling_utils")
    report.addHandler(caplog.handler)  # whatever other tests made of the loggers above it
    try:
        with caplog.at_level(logging.WARNING, report.name):
            BertForSequenceClassification.from_pretrained(encoder)
    finally:
        report.removeHandler(caplog.handler)
    assert "LOAD REPORT" in caplog.text


def test_regression(encoder):
    model, _ = load_model(encoder, task=STSB)
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"
    ids = torch.tensor([[2, 7, 3], [2, 8, 3]])
    loss = model(ids, labels=torch.tensor([0.5, 4.0])).loss
    expected = (model(ids).logits.squeeze(-1) - torch.tensor([0.5, 4.0])).square().mean()
    torch.testing.assert_close(loss, expected)


def test_trained_head_is_kept(classifier, caplog):
    with caplog.at_level(logging.WARNING):
        model, _ = load_model(classifier, task=MNLI)
    assert torch.equal(model.classifier.weight, load_file(f"{classifier}/model.safetensors")["classifier.weight"])
    assert list(model.config.id2label.values()) == MNLI.label_names and not caplog.text
    reloaded = BertForSequenceClassification.from_pretrained(classifier)
    ids = torch.tensor([[2, 7, 3]])
    assert torch.equal(model(ids).logits, reloaded.eval()(ids).logits)


@pytest.mark.parametrize("task, wanted", [(SST2, "2"), (STSB, "1")])
def test_head_of_other_labels_is_refused_with_instructions_that_work(classifier, task, wanted, tmp_path, monkeypatch):
    with pytest.raises(CompressionError, match=f"trained on 3 labels .* has {wanted}") as error:
        load_model(classifier, task=task)
    code = [line.strip() for line in str(error.value).splitlines() if line.startswith("    ")]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(code), {})
    model, _ = load_model("new-head", task=task)
    assert model.config.num_labels == task.num_labels


def test_same_labels_in_another_order_are_refused(tmp_path):
    names = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    config = bert_config(id2label=names, label2id={name: index for index, name in names.items()})
    folder = save(BertForSequenceClassification(config), tmp_path / "mnli")
    with pytest.raises(CompressionError, match=r"another order: contradiction.*rows \[2, 1, 0\]"):
        load_model(folder, task=MNLI)


def test_other_names_are_taken_with_a_warning(tmp_path, caplog):
    names = {0: "ham", 1: "spam"}
    config = bert_config(id2label=names, label2id={name: index for index, name in names.items()})
    folder = save(BertForSequenceClassification(config), tmp_path / "spam")
    model, _ = load_model(folder, task=SST2)
    assert model.config.id2label[1] == "positive" and "trained on the labels ham, spam" in caplog.text


def test_tokenizer_with_more_tokens_than_the_model(tmp_path):
    folder = save(BertForMaskedLM(bert_config(vocab_size=90)), tmp_path / "m")
    with pytest.raises(CompressionError, match="token 'word94' has the id 99.*90 tokens"):
        load_model(folder, task=SST2)
    assert load_model(folder)[0].config.vocab_size == 90


@pytest.mark.parametrize("max_length, fits", [(64, True), (65, False)])
def test_positions(encoder, max_length, fits):
    task = FakeTask("glue/sst2", "text", SST2.label_names, max_length=max_length)
    if fits:
        assert load_model(encoder, task=task)
    else:
        with pytest.raises(
            CompressionError, match=r"task.max_length: got 65.*at most 64 tokens \(the model's positions"
        ):
            load_model(encoder, task=task)


def test_limit_of_the_tokenizer(tmp_path):
    folder = save(BertForMaskedLM(bert_config()), tmp_path / "m", model_max_length=16)
    with pytest.raises(CompressionError, match=r"at most 16 tokens \(the tokenizer's limit"):
        load_model(folder, task=SST2)


def test_roberta_counts_positions_from_its_padding():
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = RobertaForSequenceClassification(
        RobertaConfig(**sizes, intermediate_size=64, max_position_embeddings=66, pad_token_id=1)
    ).eval()
    limit = position_limit(model)
    assert limit == 64
    assert model(torch.full((1, limit), 7)).logits.shape == (1, 2)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, limit + 1), 7))


def test_tokenizer_is_needed_for_a_task_only(encoder, tmp_path):
    for path in (tmp_path / "encoder").glob("*token*"):
        path.unlink()
    model, tokenizer = load_model(encoder)
    assert tokenizer is None and isinstance(model, BertForSequenceClassification)
    with pytest.raises(NotFoundError, match="has no tokenizer"):
        load_model(encoder, task=SST2)


def test_damaged_tokenizer(encoder, tmp_path):
    path = tmp_path / "encoder" / "tokenizer.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(CompressionError, match="tokenizer .*cannot be read"):
        load_model(encoder, task=SST2)


# ---- damaged or unfit folders


def test_truncated_weights(encoder, tmp_path):
    path = tmp_path / "encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CompressionError, match="encoder/model.safetensors is truncated"):
        load_model(encoder, task=SST2)


def test_missing_weights_and_random_ones(encoder, tmp_path, caplog):
    (tmp_path / "encoder" / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="no weights"):
        load_model(encoder, task=SST2)
    model, _ = load_model(encoder, task=SST2, from_config=True)
    again, _ = load_model(encoder, task=SST2, from_config=True)
    assert "all weights are random" in caplog.text
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("dropped", ["bert.encoder.layer.1.attention.self.query.weight", "classifier.bias"])
def test_incomplete_weights_are_refused(classifier, tmp_path, dropped):
    path = tmp_path / "classifier" / "model.safetensors"
    weights = load_file(path)
    del weights[dropped]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CompressionError, match=f"do not fit its config.json .*{dropped} is missing"):
        load_model(classifier, task=MNLI)


def test_weights_of_another_size_are_refused(encoder, tmp_path):
    path = tmp_path / "encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 48}))
    with pytest.raises(CompressionError, match=r"of shape \(64,\) instead of \(48,\)"):
        load_model(encoder, task=SST2)


def test_weights_without_a_place_are_reported(encoder, tmp_path, caplog):
    path = tmp_path / "encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 1}))
    load_model(encoder, task=SST2)
    assert "no place for 16 weights" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        '{"model_type": "bert", "hidden',
        '{"model_type": "nothing-known"}',
        '{"model_type": "bert", "hidden_size": "x"}',
    ],
)
def test_damaged_config(encoder, tmp_path, text):
    (tmp_path / "encoder" / "config.json").write_text(text)
    with pytest.raises(CompressionError, match="config"):
        load_model(encoder, task=SST2)


def test_architecture_that_cannot_do_the_task(encoder, tmp_path):
    with pytest.raises(UnsupportedModelError, match="'bert' model.*image task cifar10"):
        load_model(encoder, task=CIFAR)
    with pytest.raises(UnsupportedModelError, match="'timm_wrapper' model.*text task glue/sst2"):
        load_model("resnet20_cifar", task=SST2)


def test_exported_model_is_refused(encoder, tmp_path):
    (tmp_path / "encoder" / "model.safetensors").rename(tmp_path / "encoder" / "openvino_model.xml")
    with pytest.raises(UnsupportedModelError, match="OVModelFor"):
        load_model(encoder, task=SST2)


def test_from_config_of_a_compressed_checkpoint_is_refused(encoder, tmp_path):
    path = tmp_path / "encoder" / "config.json"
    stored = {"quant_method": "hf_compress", "format_version": 1, "modules": {}, "history": []}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": stored}))
    with pytest.raises(CompressionError, match="compressed checkpoint"):
        load_model(encoder, from_config=True)


def test_unknown_name_lists_places_and_commands(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_COMPRESS_DATA", str(tmp_path))
    with pytest.raises(NotFoundError) as error:
        load_model("owner/nothing-there", task=SST2)
    message = str(error.value)
    assert str(tmp_path / "models/owner/nothing-there") in message and "HF_HUB_OFFLINE is set" in message
    assert f"hf download owner/nothing-there --local-dir {tmp_path}/models/owner/nothing-there" in message


# ---- random weights of well-known encoders


@pytest.mark.parametrize(
    "name, millions",
    [
        ("bert-base-uncased", 109.5),
        ("google-bert/bert-large-uncased", 335.1),
        ("roberta-base", 124.6),
        ("distilbert/distilbert-base-uncased", 67.0),
        ("google/electra-small-discriminator", 13.5),
    ],
)
def test_known_sizes(name, millions):
    """Parameter counts of the published checkpoints with a two-label head."""
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(known_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_known_encoder_needs_no_files_but_a_task_needs_its_tokenizer(monkeypatch):
    monkeypatch.setattr("hf_compress.models.load.known_config", lambda name: bert_config())
    model, tokenizer = load_model("bert-large-uncased", from_config=True)
    assert tokenizer is None and model.config.hidden_size == 32
    with pytest.raises(NotFoundError, match="The tokenizer of the model 'bert-large-uncased' was not found"):
        load_model("bert-large-uncased", from_config=True, task=SST2)


def test_owner_is_part_of_the_name():
    assert known_config("someone/bert-base-uncased") is None


# ---- images


def test_cifar_entry_saves_and_reloads_with_plain_transformers(tmp_path, caplog):
    model, processor = load_model("resnet20_cifar", task=CIFAR)
    assert "all weights are random" in caplog.text
    assert processor.data_config["input_size"] == (3, 32, 32) and processor.data_config["crop_pct"] == 1.0
    assert processor.data_config["mean"] == pytest.approx((0.4914, 0.4822, 0.4465))
    model.save_pretrained(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(reloaded.eval()(x).logits, model(x).logits)
    assert AutoImageProcessor.from_pretrained(tmp_path).data_config == processor.data_config
    ours, _ = load_model(tmp_path, task=CIFAR)
    assert torch.equal(ours(x).logits, model(x).logits) and ours.config.id2label[9] == "truck"


def test_random_weights_are_seeded():
    one, two, other = (load_model("resnet20_cifar", task=CIFAR, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one.timm_model.conv1.weight, two.timm_model.conv1.weight)
    assert not torch.equal(one.timm_model.conv1.weight, other.timm_model.conv1.weight)


def test_stock_timm_entry_with_random_weights():
    model, processor = load_model("resnet10t", task=CIFAR, from_config=True)
    assert isinstance(model, TimmWrapperForImageClassification) and processor.data_config["input_size"] == (3, 32, 32)
    assert model(torch.randn(2, 3, 32, 32)).logits.shape == (2, 10)
    _, processor = load_model("resnet10t", from_config=True)
    assert processor.data_config["input_size"] == (3, 176, 176)


def test_pretrained_timm_entry_is_looked_for_under_its_hub_name(monkeypatch, tmp_path):
    """A repository of timm has its own config and a head of 1,000 labels, which a task replaces."""
    import timm

    torch.manual_seed(0)
    stock = timm.create_model("resnet10t", num_classes=1000)
    folder = tmp_path / "models" / "timm" / "resnet10t.c3_in1k"
    folder.mkdir(parents=True)
    save_file(stock.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architecture": "resnet10t",
        "num_classes": 1000,
        "num_features": 512,
        "pretrained_cfg": stock.default_cfg,
    }
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HF_COMPRESS_DATA", str(tmp_path))
    model, _ = load_model("resnet10t", task=CIFAR)
    assert model.config.num_labels == 10 and model.timm_model.fc.out_features == 10
    assert torch.equal(model.timm_model.layer1[0].conv1.weight, stock.layer1[0].conv1.weight)
    whole, _ = load_model("resnet10t")
    assert torch.equal(whole.timm_model.fc.weight, stock.fc.weight)


def test_pretrained_timm_entry_that_is_nowhere():
    with pytest.raises(NotFoundError, match=r"hf download timm/resnet18.a1_in1k"):
        load_model("resnet18", task=CIFAR)
    with pytest.raises(CompressionError, match="from_config: true"):
        load_model("resnet200", task=CIFAR)
    with pytest.raises(CompressionError, match="Invalid pretrained tag"):
        load_model("resnet18.nothing", task=CIFAR)


def test_vision_model_of_transformers(tmp_path):
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=32)
    config.num_labels = 10
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    model, processor = load_model(str(tmp_path), task=CIFAR)
    assert model.config.id2label[0] == "airplane" and processor.size["height"] == 32
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(CompressionError, match="image processor"):
        load_model(str(tmp_path), task=CIFAR)


# ---- real weights


@pytest.mark.real
@pytest.mark.parametrize("name, accuracy", [("resnet20_cifar10", 91.73), ("resnet56_cifar10", 93.39)])
def test_published_accuracy(real_data, name, accuracy):
    from hf_compress.tasks import TaskSpec, load_task

    task = load_task(TaskSpec("cifar10"))
    model, processor = load_model(name, task=task)
    data = task.prepare(processor)
    test = data.evaluation["test"]
    assert len(test) == 10_000
    right = 0
    with torch.no_grad():
        model = model.to(memory_format=torch.channels_last)
        for _, batch in test.batches(250):
            right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    assert right / 100 == pytest.approx(accuracy, abs=0.005)


@pytest.fixture
def real_data():
    import os

    if not os.environ.get("HF_COMPRESS_DATA"):
        pytest.skip("HF_COMPRESS_DATA is not set")


def test_fields_of_the_configuration_can_be_set(classifier, encoder, tmp_path):
    whole, _ = load_model(classifier)
    student, _ = load_model(classifier, config={"num_hidden_layers": 1, "hidden_dropout_prob": 0})
    assert len(student.bert.encoder.layer) == student.config.num_hidden_layers == 1
    kept = student.state_dict()
    assert kept.keys() < whole.state_dict().keys()
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in kept.items())
    random, _ = load_model(encoder, task=SST2, from_config=True, config={"intermediate_size": 48})
    assert random.bert.encoder.layer[0].intermediate.dense.out_features == 48
    projected, _ = load_model("resnet20_cifar", task=CIFAR, config={"model_args": {"shortcut": "B"}})
    assert any("downsample" in name for name in projected.state_dict())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layer": 3}, "model.config.num_hidden_layer.*did you mean 'num_hidden_layers'"),
        ({"num_hidden_layers": "3"}, "model.config.num_hidden_layers: got '3'; allowed is a value of type int"),
        ({"num_labels": 7}, "model.config.num_labels"),
        ({"hidden_size": 30}, "multiple|cannot be"),
    ],
)
def test_fields_that_cannot_be_set_are_refused(encoder, config, message):
    with pytest.raises(CompressionError, match=message):
        load_model(encoder, task=SST2, from_config=True, config=config)


def test_a_compressed_checkpoint_keeps_its_configuration(encoder):
    path = Path(encoder) / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "hf_compress"}})
    )
    with pytest.raises(CompressionError, match="compressed checkpoint"):
        load_model(encoder, config={"num_hidden_layers": 1})
