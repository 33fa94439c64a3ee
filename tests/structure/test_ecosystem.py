"""Trainer, PEFT, pipelines and exporters work on compressed models as on any other."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments, pipeline

from hf_compress.measurement import to_openvino
from hf_compress.structure import LowRankLinear, describe, track

from . import cases
from .conftest import task_of


TRAINED = ["bert-everything", "distilbert-no_heads", "resnet20_cifar-low_rank_channels_on_pruned"]


def load(model, folder, **kwargs):
    return getattr(transformers, task_of(model)).from_pretrained(folder, **kwargs)


def examples(model, n=8) -> list[dict[str, torch.Tensor]]:
    inputs = cases.inputs_for(model)
    size = len(next(iter(inputs.values())))
    return [{**{k: v[i % size] for k, v in inputs.items()}, "labels": torch.tensor(i % 3)} for i in range(n)]


def trainer_for(model, folder, **kwargs) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=4,
        report_to=[],
        disable_tqdm=True,
        save_steps=1,
        learning_rate=1e-2,
        **kwargs,
    )
    return Trainer(model=model, args=arguments, train_dataset=examples(model))


def freeze_randomness(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("case", TRAINED)
def test_trainer_checkpoints_load(case, saved, tmp_path):
    model = load(saved.model(case), saved.folder(case))
    before = cases.logits_of(model)
    trainer_for(model, tmp_path, max_steps=1).train()
    loaded = load(model, tmp_path / "checkpoint-1")
    assert torch.equal(cases.logits_of(loaded), cases.logits_of(model.eval()))
    assert not torch.equal(cases.logits_of(loaded), before)
    assert describe(loaded) == describe(saved.model(case))


@pytest.mark.parametrize("case", ["bert-everything", "resnet20_cifar-low_rank_channels_on_pruned", "dense"])
def test_resuming_is_exact(case, saved, tmp_path):
    """A checkpoint resumed for a second step is two steps at once, so every tensor is in it under its name."""
    model = cases.encoder("bert") if case == "dense" else saved.model(case)
    if case == "dense":  # Transformers alone leaves the LayerNorms of a loaded BERT out
        model.save_pretrained(tmp_path / "dense")

    def start():
        folder = tmp_path / "dense" if case == "dense" else saved.folder(case)
        return track(freeze_randomness(load(model, folder)))

    trainer_for(start(), tmp_path / "a", max_steps=1, lr_scheduler_type="constant").train()
    resumed, straight = start(), start()
    trainer_for(resumed, tmp_path / "a", max_steps=2, lr_scheduler_type="constant").train(
        resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1")
    )
    trainer_for(straight, tmp_path / "b", max_steps=2, lr_scheduler_type="constant").train()
    state = straight.state_dict()
    for name, tensor in resumed.state_dict().items():
        torch.testing.assert_close(tensor, state[name], msg=name)


def test_saving_under_autocast_wrappers(saved, tmp_path):
    model = load(saved.model("bert-low_rank"), saved.folder("bert-low_rank"))
    trainer = trainer_for(model, tmp_path, max_steps=1, bf16=True)
    trainer.train()
    assert "forward" in vars(model)  # left there by Accelerate; not this package's business
    trainer.save_model(str(tmp_path / "end"))
    assert describe(load(model, tmp_path / "end")) == describe(saved.model("bert-low_rank"))


@pytest.mark.parametrize("targets", ["all-linear", ["down", "up"]])
def test_lora(targets, saved, tmp_path):
    peft = pytest.importorskip("peft")
    case = "bert-everything"
    model = load(saved.model(case), saved.folder(case))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, task_type="SEQ_CLS"))
    tuned = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    assert any(name.endswith("query.down") for name in tuned) and any(name.endswith("query.up") for name in tuned)
    trainer_for(adapted, tmp_path / "run", max_steps=1).train()
    adapted.eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    expected = cases.logits_of_any(adapted, model)
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(model, saved.folder(case)), tmp_path / "adapter").eval()
    torch.testing.assert_close(cases.logits_of_any(again, model), expected)

    merged = adapted.merge_and_unload()
    torch.testing.assert_close(cases.logits_of(merged), expected, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(cases.logits_of(load(merged, tmp_path / "merged")), cases.logits_of(merged))


def test_adapter_of_transformers(saved, tmp_path):
    peft = pytest.importorskip("peft")
    model = load(saved.model("bert-low_rank"), saved.folder("bert-low_rank"))
    try:
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["down", "up"]))
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(str(error))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_pipelines(saved, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 5, "bad": 6}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")
    classify = pipeline("text-classification", model=str(saved.folder("bert-everything")), tokenizer=tokenizer)
    model = saved.model("bert-everything")
    with torch.no_grad():
        expected = model(**tokenizer("good bad", return_tensors="pt")).logits.softmax(-1)[0]
    scores = {entry["label"]: entry["score"] for entry in classify("good bad", top_k=None)}
    for index, label in model.config.id2label.items():
        assert scores[label] == pytest.approx(expected[index].item(), abs=1e-6)

    image_model = cases.make("resnet20_cifar-channels")
    image_model.config.pretrained_cfg = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    track(image_model).save_pretrained(tmp_path)
    from PIL import Image

    image = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    classify = pipeline("image-classification", model=str(tmp_path))
    assert len(classify(image, top_k=3)) == 3


@pytest.mark.parametrize("case", ["bert-everything", "distilbert-everything", "electra-no_heads"])
def test_attention_implementations_agree(case, saved):
    outputs = [
        cases.logits_of(load(saved.model(case), saved.folder(case), attn_implementation=name))
        for name in ("sdpa", "eager")
    ]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


def test_outputs_of_the_layers_that_are_left(saved):
    model = copy.deepcopy(saved.model("bert-everything"))  # one layer of three is removed, one has no heads
    model.set_attn_implementation("eager")
    outputs = model(**cases.inputs_for(model), output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 3 and len(outputs.attentions) == 1


@pytest.mark.parametrize("case", ["bert-everything", "distilbert-everything", "resnet20_cifar-no_block"])
def test_exports_to_openvino(case, saved):
    openvino = pytest.importorskip("openvino")
    model = copy.deepcopy(saved.model(case))
    converted = to_openvino(model)  # with other sizes than those below
    inputs = cases.inputs_for(model)
    compiled = openvino.compile_model(
        converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    wanted = {port.get_any_name() for port in converted.inputs}
    inputs = {name: value for name, value in inputs.items() if name in wanted}
    if "token_type_ids" in wanted:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    result = compiled({name: value.numpy() for name, value in inputs.items()})["logits"]
    torch.testing.assert_close(torch.from_numpy(result), cases.logits_of(model), atol=1e-4, rtol=1e-3)


def test_gradient_checkpointing(saved):
    model = copy.deepcopy(saved.model("bert-everything")).train()
    freeze_randomness(model)
    batch = {**cases.inputs_for(model), "labels": torch.tensor([0, 1, 2])}
    model(**batch).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**batch).loss.backward()
    assert set(plain) == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if name in plain:
            torch.testing.assert_close(parameter.grad, plain[name], atol=1e-6, rtol=1e-4)


def test_every_parameter_left_is_used(saved):
    """Else distributed training would wait for gradients that never come."""
    for case in ("bert-everything", "distilbert-everything", "resnet20_cifar-low_rank_channels_on_pruned"):
        model = copy.deepcopy(saved.model(case)).train()
        labels = torch.zeros(len(next(iter(cases.inputs_for(model).values()))), dtype=torch.long)
        model(**cases.inputs_for(model), labels=labels).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_low_rank_head_of_a_fresh_task(saved, tmp_path):
    """A base model below a head made new, then factorized itself."""
    model = load(saved.model("bert-low_rank"), saved.folder("bert-low_rank"))
    model.classifier = LowRankLinear(32, 3, 2)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(cases.logits_of(loaded), cases.logits_of(model))
    without_head = transformers.AutoModel.from_pretrained(tmp_path)
    assert "bert.encoder.layer.0.attention.self.query" in describe(model)
    assert "encoder.layer.0.attention.self.query" in describe(without_head)
