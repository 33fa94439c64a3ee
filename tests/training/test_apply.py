from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import hf_compress as hc
from hf_compress import load_methods, registry
from hf_compress.distillation import DistillationTerm, DistillOptions
from hf_compress.errors import CompressionError, RecipeError, TargetError
from hf_compress.registry import Target, register_method
from hf_compress.structure import LowRankLinear
from hf_compress.training import Context, apply_method

from .material import assert_same_weights, collate, text_data, text_rows, tiny_text_model, weights


TRAINING = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "bf16": False}


@dataclass(frozen=True)
class ThinOptions:
    rank: int = 4


def thin(model: nn.Module, options: ThinOptions, context) -> None:
    """Cut the feed-forward layers to low rank."""
    for layer in model.bert.encoder.layer:
        dense = layer.intermediate.dense
        down = torch.randn(options.rank, dense.in_features) / 6
        up = torch.randn(dense.out_features, options.rank) / 6
        layer.intermediate.dense = LowRankLinear.from_factors(down, up, dense.bias.detach())
    context.note(layers={"intermediate": options.rank}, warnings=["random factors"])


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    """A registry with three methods of the tests beside the real ones."""
    load_methods()  # what the tests load first would go with them, and an import happens once
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    register_method("prune", "thin", options=ThinOptions, targets={"params"})(thin)

    @register_method("prune", "thin_labelled", options=ThinOptions, needs={"labels", "calibration"})
    def thin_labelled(model, options, context):
        """Thin, and look at labels."""
        next(iter(context.calibration(4)))["labels"]
        thin(model, options, context)

    @register_method("prune", "thin_trained", options=ThinOptions, trains=True)
    def thin_trained(model, options, context):
        """Thin, and train meanwhile."""
        thin(model, options, context)
        context.train(model)


def labelled(**kwargs) -> Context:
    return Context(data=text_data(), training=TRAINING, **kwargs)


def test_a_step_reports_what_it_did():
    model = tiny_text_model()
    dense = sum(value.numel() for value in model.parameters())
    target = Target("params", 0.9)
    report = apply_method(model, "prune", "thin", {"rank": 4}, Context(target=target))
    left = sum(value.numel() for value in model.parameters())
    assert report.model is model and report.cost.params == left
    assert report.achieved == pytest.approx(left / dense)
    assert report.notes == {"layers": {"intermediate": 4}}
    assert report.warnings[0] == "random factors"
    assert set(report.seconds) == {"total", "surgery", "train", "calibrate"}
    assert report.seconds["surgery"] == pytest.approx(report.seconds["total"])
    plain = report.to_dict()
    assert plain["target"] == {"params": 0.9, "scope": "model"} and "model" not in plain


@pytest.mark.parametrize(("fraction", "warned"), [(0.895, False), (0.8, True), (0.95, True)])
def test_a_missed_target_is_a_warning(fraction, warned):
    report = apply_method(tiny_text_model(), "prune", "thin", {"rank": 8}, Context(target=Target("params", fraction)))
    assert report.achieved == pytest.approx(0.8915, abs=0.001)
    assert any("target was" in warning for warning in report.warnings) is warned


def test_a_target_that_is_met_already_is_refused_before_the_surgery():
    dense = tiny_text_model()
    cost = Context().cost(dense)
    apply_method(dense, "prune", "thin", None, Context())
    before = weights(dense)
    with pytest.raises(TargetError, match=r"has 0\.8\d* of the baseline's params .* give less than 0\.8"):
        apply_method(dense, "prune", "thin", None, Context(target=Target("params", 0.9), baseline_cost=cost))
    assert_same_weights(before, weights(dense))


def test_a_pruned_model_saves_and_loads_with_its_history(tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = tiny_text_model()
    apply_method(model, "prune", "thin", {"rank": 3}, Context(target=Target("params", 0.8)))
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    batch = collate(list(text_rows(4)))
    assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)
    assert again.config.quantization_config.history[-1]["method"] == "thin"


def test_a_training_free_method_with_a_distill_block_trains_after_the_surgery():
    model, dense = tiny_text_model(), tiny_text_model(1)
    report = apply_method(
        model, "prune", "thin", None, labelled(baseline=lambda: dense), distill=DistillOptions(alpha=0.5)
    )
    assert len(report.notes["epochs"]) == 1 and report.seconds["train"] > 0
    assert isinstance(model.bert.encoder.layer[0].intermediate.dense, LowRankLinear)


def test_without_a_baseline_the_teacher_is_the_model_that_enters():
    model = tiny_text_model()
    entering = weights(model)
    context = labelled()
    apply_method(model, "prune", "thin", None, context, distill={"alpha": 1.0})
    assert_same_weights(entering, weights(context.baseline()))


def test_the_training_may_be_left_to_another_call():
    model = tiny_text_model()
    report = apply_method(model, "prune", "thin", None, labelled(), distill={}, recover=False)
    assert "epochs" not in report.notes and report.seconds["train"] == 0
    with pytest.raises(CompressionError, match="3 labels and the"):
        context = labelled(baseline=three_labels)
        apply_method(tiny_text_model(), "prune", "thin", None, context, distill={}, recover=False)


def test_a_method_that_trains_has_the_teacher_meanwhile(monkeypatch):
    calls = []
    original = DistillationTerm.__call__
    monkeypatch.setattr(DistillationTerm, "__call__", lambda self, *args: (calls.append(1), original(self, *args))[1])
    context = labelled(baseline=lambda: tiny_text_model(1))
    report = apply_method(tiny_text_model(), "prune", "thin_trained", None, context, distill={})
    assert len(calls) == 4  # the steps of its own training, and no second one after it
    assert len(report.notes["epochs"]) == 1
    assert context.loss_terms == []


def three_labels():
    return tiny_text_model(1, num_labels=3)


def narrow():
    return tiny_text_model(1, hidden_size=16)


@pytest.mark.parametrize(
    ("technique", "method", "options", "context", "distill", "error", "message"),
    [
        ("prune", "thn", None, {}, None, RecipeError, r"did you mean 'thin'"),
        ("prune", "thin", {"rnk": 4}, {}, None, RecipeError, r"prune\.rnk: unknown key \(did you mean 'rank'\?\)"),
        ("prune", "thin", DistillOptions(), {}, None, RecipeError, "takes ThinOptions"),
        ("prune", "thin", None, {"target": Target("macs", 0.5)}, None, RecipeError, "takes a target of params"),
        (
            "finetune",
            "full",
            None,
            {"target": Target("macs", 0.5), "labels": True},
            None,
            RecipeError,
            "takes no target",
        ),
        ("finetune", "full", None, {}, None, CompressionError, "finetune/full: it trains, and got no data"),
        ("prune", "thin", None, {}, {}, CompressionError, "trains after the surgery, and got no data"),
        ("prune", "thin_labelled", None, {}, None, CompressionError, "got no data; pass data="),
        ("prune", "thin_labelled", None, {"labels": False}, None, CompressionError, "thin_labelled: it needs labels"),
        ("finetune", "full", None, {"labels": False}, None, CompressionError, "finetune/full: it needs labels"),
        ("distill", "logits", None, {"labels": True}, None, CompressionError, "pass baseline=, or name another"),
        ("finetune", "full", None, {"labels": True}, {}, CompressionError, "pass baseline=, or name another"),
        ("distill", "logits", {"alpha": 2.0}, {"labels": True}, None, RecipeError, "alpha: got 2.0"),
        ("prune", "thin", None, {"labels": True, "baseline": three_labels}, {}, CompressionError, "3 labels and the"),
        ("prune", "thin", None, {"labels": False}, {}, CompressionError, r"alpha: got 0\.9, which leaves 0\.1 to the"),
        (
            "prune",
            "thin",
            None,
            {"labels": True, "training": {"learning_rat": 1e-4}},
            {},
            RecipeError,
            "did you mean 'learning_rate'",
        ),
        (
            "prune",
            "thin",
            None,
            {"labels": True, "baseline": narrow},
            {"hidden": 1.0},
            CompressionError,
            "hidden: the student's states have 32 numbers and the teacher's 16",
        ),
    ],
)
def test_impossible_steps_are_refused_before_the_model_changes(
    technique, method, options, context, distill, error, message
):
    model = tiny_text_model()
    before = weights(model)
    context = dict(context)
    if "labels" in context:
        context = {"training": TRAINING, **context}
        context.update(data=text_rows(labels=context.pop("labels")), collate_fn=collate)
    with pytest.raises(error, match=message):
        apply_method(model, technique, method, options, Context(**context), distill=distill)
    assert_same_weights(before, weights(model))


def test_the_second_phase_of_a_step_goes_on_from_the_first_report():
    context = Context(target=Target("params", 0.9))
    model = tiny_text_model()
    first = apply_method(model, "prune", "thin", None, context).to_dict()
    second = apply_method(model, "distill", "logits", None, labelled(baseline=lambda: tiny_text_model()))
    merged = second.to_dict(first)
    assert (merged["technique"], merged["method"]) == ("prune", "thin")
    assert merged["target"] == first["target"] and merged["achieved"] == first["achieved"]
    assert set(merged["notes"]) == {"layers", "epochs"}
    assert merged["seconds"]["total"] == pytest.approx(first["seconds"]["total"] + second.seconds["total"], abs=0.002)
    assert merged["warnings"] == first["warnings"]


@pytest.mark.parametrize("verb", [hc.prune, hc.factorize])
def test_a_verb_refuses_fields_of_a_training_that_will_not_be(verb):
    model = tiny_text_model()
    before = weights(model)
    with pytest.raises(RecipeError, match="training: got num_train_epochs, and .* does not train; add distill"):
        verb(model, target={"params": 0.9}, data=text_data(), training={"num_train_epochs": 1})
    assert_same_weights(before, weights(model))
