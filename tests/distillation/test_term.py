from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from training.material import (
    assert_same_weights,
    collate,
    image_rows,
    text_rows,
    tiny_image_model,
    tiny_text_model,
    weights,
)
from transformers import (
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hf_compress import load_methods
from hf_compress.distillation import DistillationTerm, DistillOptions
from hf_compress.distillation.compatibility import token_types
from hf_compress.distillation.losses import hidden_loss
from hf_compress.errors import BackendUnavailableError, CompressionError
from hf_compress.registry import Target
from hf_compress.training import Context, apply_method


def batch_for(model, n: int = 6) -> dict[str, torch.Tensor]:
    if model.main_input_name == "pixel_values":
        return image_rows(n, augment=False).__getitems__(range(n))
    return collate(list(text_rows(n, regression=model.config.num_labels == 1)))


def loss_of(term: DistillationTerm, student, batch):
    outputs = student(**batch)
    return term(outputs.loss, outputs, batch, student)


@pytest.mark.parametrize("make", [tiny_text_model, tiny_image_model])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_the_loss_is_the_stated_mix(make, alpha):
    student, teacher = make(0), make(1)
    batch = batch_for(student)
    plain, labels = {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    p = torch.softmax(teacher(**plain).logits / 3.0, -1)
    log_q = torch.log_softmax(student(**plain).logits / 3.0, -1)
    cross_entropy = -torch.log_softmax(student(**plain).logits, -1)[range(len(labels)), labels].mean()
    expected = (1 - alpha) * cross_entropy + alpha * 9.0 * (p * (p.log() - log_q)).sum(-1).mean()
    loss = loss_of(DistillationTerm(student, teacher, temperature=3.0, alpha=alpha), student, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_a_regression_mixes_squared_errors():
    student, teacher = tiny_text_model(0, num_labels=1), tiny_text_model(1, num_labels=1)
    batch = batch_for(student)
    scores, taught = student(**batch).logits.squeeze(1), teacher(**batch).logits.squeeze(1)
    expected = 0.25 * (scores - batch["labels"]).square().mean() + 0.75 * (scores - taught).square().mean()
    losses = [
        loss_of(DistillationTerm(student, teacher, temperature, alpha=0.75), student, batch) for temperature in (1, 9)
    ]
    torch.testing.assert_close(losses[0], expected)
    assert torch.equal(*losses)  # no temperature in a regression


@pytest.mark.parametrize("make", [tiny_text_model, tiny_image_model])
def test_hidden_states_add_their_weighted_distance(make):
    student, teacher = make(0), make(1)
    batch = batch_for(student)
    asked = {**batch, "output_hidden_states": True}
    ours, theirs = (model(**asked).hidden_states for model in (student.eval(), teacher.eval()))
    expected = 3 * hidden_loss(ours, theirs, batch.get("attention_mask"))
    outputs = student(**asked)
    terms = [DistillationTerm(student, teacher, hidden=weight) for weight in (0.0, 3.0)]
    assert repr(terms[0]) != repr(terms[1])  # or a checkpoint of the one would be taken for one of the other
    plain, more = (term(outputs.loss, outputs, batch, student) for term in terms)
    torch.testing.assert_close(more - plain, expected)
    only = DistillationTerm(student, teacher, alpha=0.0, hidden=3.0)
    torch.testing.assert_close(only(outputs.loss, outputs, batch, student), outputs.loss + expected)
    with pytest.raises(CompressionError, match="gives no hidden states"):
        loss_of(only, student, batch)


@pytest.mark.parametrize("make", [tiny_text_model, tiny_image_model])
def test_a_student_like_its_teacher_learns_nothing_from_it(make):
    student = make()
    loss_of(DistillationTerm(student, copy.deepcopy(student), alpha=1.0), student, batch_for(student)).backward()
    assert all(parameter.grad is None or parameter.grad.abs().max() < 1e-6 for parameter in student.parameters())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("images", [False, True])
def test_a_teacher_in_openvino_says_the_same(images, bf16, tiny_resnet):
    student, teacher = (tiny_resnet, copy.deepcopy(tiny_resnet)) if images else map(tiny_text_model, (0, 1))
    batches = [{"pixel_values": torch.rand(n, 3, 32, 32)} if images else batch_for(student, n) for n in (6, 3)]
    terms = [DistillationTerm(student, teacher, alpha=1.0, runtime=runtime) for runtime in ("torch", "openvino")]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        said = [[term.outputs(batch, torch.device("cpu"))["logits"] for batch in batches] for term in terms]
    for ours, theirs in zip(*said, strict=True):
        tolerance = 0.1 * float(ours.abs().max()) if bf16 else 1e-4
        torch.testing.assert_close(theirs.float(), ours.float(), rtol=0, atol=tolerance)


def test_a_teacher_that_openvino_gets_wrong_is_refused():
    student, teacher = tiny_image_model(0), tiny_image_model(1)  # whose images are so small that it pools nothing
    with pytest.raises(CompressionError, match="0 predictions of TimmWrapperForImageClassification for 6 examples"):
        loss_of(DistillationTerm(student, teacher, runtime="openvino"), student, batch_for(student))


@pytest.mark.parametrize("step", [{"distill": {"teacher_runtime": "openvino"}}, {"teacher_runtime": "openvino"}])
def test_a_runtime_that_is_missing_is_known_before_the_surgery(step, monkeypatch):
    def missing():
        raise BackendUnavailableError("OpenVINO is not installed")

    load_methods()
    monkeypatch.setattr("hf_compress.training.apply.require_openvino", missing)
    student = tiny_image_model(0)
    before = weights(student)
    options, distill = ({}, step["distill"]) if "distill" in step else (step, None)
    technique, method = ("prune", "magnitude") if distill else ("distill", "logits")
    context = Context(
        data=image_rows(8), target=Target("macs", 0.5) if distill else None, baseline=tiny_image_model(1)
    )
    with pytest.raises(BackendUnavailableError):
        apply_method(student, technique, method, options, context, distill=distill)
    assert_same_weights(before, weights(student))


def test_a_runtime_nobody_knows_is_refused():
    with pytest.raises(CompressionError, match="teacher_runtime: got 'openvin' .did you mean 'openvino'"):
        DistillOptions(teacher_runtime="openvin")


def test_the_teacher_is_left_as_it_was():
    student, teacher = tiny_image_model(0).train(), tiny_image_model(1).train()
    before = weights(teacher)
    term = DistillationTerm(student, teacher)
    teacher.train()  # somebody meddles
    loss_of(term, student, batch_for(student)).backward()
    assert_same_weights(before, weights(teacher))  # batch-norm statistics among them
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_is_no_part_of_the_student():
    student = tiny_text_model(0)
    names = set(student.state_dict())
    DistillationTerm(student, tiny_text_model(1))
    assert set(student.state_dict()) == names


def test_a_teacher_of_another_architecture_gets_the_inputs_it_takes():
    torch.manual_seed(0)
    teacher = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=104, dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=16)
    ).eval()
    student = tiny_text_model()
    batch = batch_for(student)
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])  # which a DistilBERT does not take
    assert torch.isfinite(loss_of(DistillationTerm(student, teacher), student, batch))
    long = {"input_ids": torch.ones(1, 20, dtype=torch.long), "labels": torch.tensor([0])}
    with pytest.raises(CompressionError, match="got 20 tokens, and it reads at most 16"):
        loss_of(DistillationTerm(student, teacher), student, long)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    offset = RobertaForSequenceClassification(RobertaConfig(vocab_size=104, max_position_embeddings=20, **shape))
    with pytest.raises(CompressionError, match="got 20 tokens, and it reads at most 18"):  # it counts them from 2
        loss_of(DistillationTerm(student, offset), student, long)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pairs", [True, False])
def test_a_teacher_that_knows_segments_is_told_them(tmp_path, side, pairs):
    """A DistilBERT's tokenizer makes none; they are those that a BERT's makes."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"), padding_side=side)
    first, second = ["a b c", "d", "e f"], ["g", "h a b c", "d d"]
    whole = tokenizer(first, second if pairs else None, padding=True, return_tensors="pt")
    assert bool(whole["token_type_ids"].any()) == pairs
    assert torch.equal(token_types(whole["input_ids"], whole["attention_mask"]), whole["token_type_ids"])
    teacher = tiny_text_model()
    student = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=100, dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=32)
    )
    bare = {name: value for name, value in whole.items() if name != "token_type_ids"}
    with torch.no_grad():
        expected = teacher.eval()(**whole).logits
    said = DistillationTerm(student, teacher).outputs(bare, torch.device("cpu"))["logits"]
    torch.testing.assert_close(said, expected)


def test_tokens_that_end_in_nothing_in_common_have_no_segments():
    assert not token_types(torch.tensor([[2, 7, 3, 8, 3], [2, 7, 3, 8, 4]])).any()
    assert not token_types(torch.tensor([[2, 7, 3, 8, 3, 8, 3]])).any()  # three texts are no pair


def test_pixels_are_normalized_anew_for_the_teacher():
    student = tiny_image_model(0)
    twin = tiny_image_model(1)
    other = tiny_image_model(1, mean=[0.2, 0.4, 0.6], std=[0.1, 0.2, 0.3])
    batch = batch_for(student)
    raw = batch["pixel_values"] * 0.25 + 0.5
    expected = other(
        pixel_values=(raw - torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1)) / torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    ).logits
    given = DistillationTerm(student, other).outputs(batch, torch.device("cpu"))["logits"]
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
    untouched = DistillationTerm(student, twin).outputs(batch, torch.device("cpu"))["logits"]
    torch.testing.assert_close(untouched, twin(pixel_values=batch["pixel_values"]).logits, rtol=1e-5, atol=1e-5)


def test_a_teacher_for_images_of_another_size_is_refused(caplog):
    """A convolutional one would take them, and say little."""
    student, teacher = tiny_image_model(0), tiny_image_model(1)
    teacher.config.pretrained_cfg["input_size"] = [3, 224, 224]
    with pytest.raises(CompressionError, match="made for images of 3 x 224 x 224 .* is given 3 x 16 x 16"):
        DistillationTerm(student, teacher)
    teacher.config.pretrained_cfg = {"input_size": [3, 16, 16]}
    DistillationTerm(student, teacher)
    assert "how its images are normalized" in caplog.text


def named(model, *names):
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    return model


def fitting():
    return named(tiny_text_model(), "negative", "positive")


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda: tiny_text_model(num_labels=3), "has 3 labels and the student 2"),
        (lambda: named(tiny_text_model(), "positive", "negative"), "labels are in another order, positive, negative"),
        (lambda: tiny_text_model(vocab_size=50), "vocabulary has 50 entries and the student's 100"),
        (lambda: tiny_text_model(vocab_size=5000), "vocabulary has 5000 entries"),
        (lambda: tiny_image_model(num_labels=2), "reads pixel_values and the student input_ids"),
        (lambda: tiny_text_model(problem_type="regression"), "a regression and the student a classifier"),
        (
            lambda: tiny_text_model(problem_type="multi_label_classification"),
            "multi_label_classification; .* one label",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher, message):
    with pytest.raises(CompressionError, match=message):
        DistillationTerm(fitting(), teacher())


@pytest.mark.parametrize(
    "teacher",
    [
        lambda: tiny_text_model(),  # LABEL_0, LABEL_1: nobody has named them
        lambda: named(tiny_text_model(), "NEGATIVE", "POSITIVE"),
        lambda: tiny_text_model(vocab_size=104),  # rounded up
    ],
)
def test_a_teacher_that_fits_is_taken(teacher):
    DistillationTerm(fitting(), teacher())


def test_predictions_of_single_tokens_are_refused():
    config = tiny_text_model().config
    student, teacher = (BertForTokenClassification(config).eval() for _ in range(2))
    ids = torch.ones(2, 5, dtype=torch.long)
    with pytest.raises(CompressionError, match=r"logits: got the shape \(2, 5, 2\); .* one prediction an example"):
        loss_of(DistillationTerm(student, teacher), student, {"input_ids": ids, "labels": ids})
    student, teacher = (BertForQuestionAnswering(config).eval() for _ in range(2))
    places = {"start_positions": torch.ones(2, dtype=torch.long), "end_positions": torch.ones(2, dtype=torch.long)}
    with pytest.raises(CompressionError, match="logits: got none"):
        loss_of(DistillationTerm(student, teacher), student, {"input_ids": ids, **places})


def test_the_student_is_no_teacher_of_itself():
    student = tiny_text_model()
    for teacher in (student, nn.Sequential(student)):
        with pytest.raises(CompressionError, match=r"the student itself; .* copy\.deepcopy"):
            DistillationTerm(student, teacher)


@pytest.mark.parametrize(
    "values", [{"temperature": 0.0}, {"temperature": -1.0}, {"alpha": 1.5}, {"alpha": -0.1}, {"hidden": -1.0}]
)
def test_values_out_of_range_are_refused(values):
    ((name, value),) = values.items()
    with pytest.raises(CompressionError, match=f"{name}: got {value}"):
        DistillOptions(**values)
    with pytest.raises(CompressionError, match=f"{name}: got {value}"):
        DistillationTerm(tiny_text_model(0), tiny_text_model(1), **values)


def test_the_option_reaches_the_loss():
    term = DistillOptions(hidden=3.0).term(tiny_text_model(0), Context(baseline=lambda: tiny_text_model(1)))
    assert term.hidden == 3.0 and term.needs_hidden_states


def test_hidden_states_and_a_teacher_in_openvino_exclude_each_other():
    with pytest.raises(CompressionError, match="teacher_runtime: got openvino with hidden"):
        DistillOptions(hidden=1.0, teacher_runtime="openvino")


def test_without_labels_alpha_has_to_be_one():
    context = Context(
        data=text_rows(32, labels=False),
        collate_fn=collate,
        baseline=lambda: tiny_text_model(1),
        training={"num_train_epochs": 1, "per_device_train_batch_size": 8},
    )
    student = tiny_text_model()
    with pytest.raises(CompressionError, match=r"alpha: got 0\.9, which leaves 0\.1 to the labels"):
        context.train(student, loss_terms=[DistillOptions().term(student, context)])
    before = weights(student)
    report = context.train(student, loss_terms=[DistillOptions(alpha=1.0).term(student, context)])
    assert report.epochs[0]["loss"] > 0
    assert not torch.equal(before["classifier.weight"], student.classifier.weight)
