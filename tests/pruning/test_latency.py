"""Targets of latency: the table of measured seconds, and what is chosen by it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hf_compress.errors import CompressionError, DiskFullError, RecipeError, TargetError
from hf_compress.measurement import Serving, count, example_inputs, module_seconds, name_convolutions, to_openvino
from hf_compress.pruning import find_units, prune
from hf_compress.pruning.blocks import chain
from hf_compress.pruning.latency_costs import LatencyCosts, _cache_path, inner_groups, measure_latency_costs
from hf_compress.pruning.selection import _widths
from hf_compress.quantization import OpenVinoOptions
from hf_compress.structure import Removed, describe
from hf_compress.training import Context, serving

from . import cases


class Staircase:
    """A serving in which a layer takes a millisecond for every 4 units it has, or part of them."""

    runtime, precision, quantization, batch, length, threads = "made up", "f32", None, 1, None, 1

    def __init__(self, groups):
        self.groups, self.calls = groups, 0

    def module_seconds(self, model):
        self.calls += 1
        seconds = {"elsewhere": 0.01}
        for group in self.groups:
            name = group.producers[0].module
            try:
                module = model.get_submodule(name)
                width = getattr(module, "out_channels", getattr(module, "out_features", 0))
            except AttributeError:
                width = 0
            seconds[name] = 0.001 * -(-width // (4 * group.producers[0].positions))
        shortcuts = [name for name, module in model.named_modules() if name.endswith("downsample")]
        return seconds | dict.fromkeys(shortcuts, 0.005)

    def latencies(self, model, against):
        return sum(self.module_seconds(model).values()), sum(self.module_seconds(against).values())


class Products(Staircase):
    """A serving in which a layer takes a microsecond for every weight."""

    def module_seconds(self, model):
        self.calls += 1
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        return {"elsewhere": 0.01, **{name: 1e-6 * module.weight.numel() for name, module in layers}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_compress.pruning.latency_costs.cache_directory", lambda: tmp_path / "cache")


@pytest.mark.parametrize("case", ["option_a", "bert", "distilbert"])
def test_the_table_is_what_the_runtime_says_and_is_kept(case):
    model = cases.make(case)
    groups, kept = inner_groups(find_units(model, min_channels=2).groups, chain(model))
    assert groups and all("several blocks" in reason for reason in kept.values())
    serving = Staircase(groups)
    costs = measure_latency_costs(model, groups, serving, Context())
    assert serving.calls < 2 + 8  # look-alikes share the work
    full = {group.name: group.size for group in groups}
    assert costs.total(full) == pytest.approx(costs.now)
    for group in groups:
        for width in costs.widths(group):
            stairs = 0.001 * (-(-group.size // 4) - -(-width // 4))
            assert costs.now - costs.total({**full, group.name: width}) == pytest.approx(stairs)
    calls = serving.calls
    again = measure_latency_costs(model, groups, serving, Context())
    assert serving.calls == calls and again == costs


@pytest.mark.parametrize("damage", [None, "[1, 2", "{}"])
def test_a_measurement_that_was_interrupted_goes_on(damage, tmp_path):
    model = cases.make("option_a")
    groups, _ = inner_groups(find_units(model).groups, chain(model))
    whole = Staircase(groups)
    costs = measure_latency_costs(model, groups, whole, Context())
    (path,) = (tmp_path / "cache" / "latencies").glob("*.json")
    path.unlink()

    class Interrupted(Staircase):
        def module_seconds(self, model):
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().module_seconds(model)

    with pytest.raises(KeyboardInterrupt):
        measure_latency_costs(model, groups, Interrupted(groups), Context())
    if damage is not None:
        path.write_text(damage)
    serving = Staircase(groups)
    assert measure_latency_costs(model, groups, serving, Context()) == costs
    assert serving.calls == whole.calls - (3 if damage is None else 0)


def test_where_nothing_can_be_written_it_is_measured_and_said(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder would be")
    model = cases.make("option_a")
    groups, _ = inner_groups(find_units(model).groups, chain(model))
    assert measure_latency_costs(model, groups, Staircase(groups), Context()).now > 0
    assert caplog.text.count("measured again next time") == 1


def test_whether_the_repair_can_be_is_looked_at_before_latencies_are(monkeypatch):
    model = cases.make("option_a")
    serving = Staircase(inner_groups(find_units(model).groups, chain(model))[0])
    monkeypatch.setattr("hf_compress.pruning.verb.serving", lambda context, **settings: serving)
    monkeypatch.setattr(
        "hf_compress.pruning.fisher.measure_latency_costs", lambda *arguments: pytest.fail("too early")
    )
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(DiskFullError, match="activations"):
        prune(model, method="fisher", target={"latency": 0.6}, samples=16, **cases.examples_for(model))


def test_between_two_measured_widths_the_wider_counts():
    costs = LatencyCosts(1.0, {"a": {2: 0.1, 4: 0.3, 8: 0.2}})
    assert costs.total({"a": 8}) == 1.0 and costs.total({"a": 5}) == 1.0  # 4 took longer than 8, which cannot be
    assert costs.total({"a": 3}) == 1.0 and costs.total({"a": 2}) == pytest.approx(0.8)
    assert costs.total({"a": 0}) == pytest.approx(0.7)
    assert costs.change({"a": 8}, "a", 2) == pytest.approx(-0.2) and costs.change({"a": 2}, "a", 3) == pytest.approx(
        0.2
    )


@pytest.mark.parametrize("case", ["option_a", "bert"])
def test_a_target_is_met_in_the_time_of_the_runtime(case, monkeypatch, tmp_path):
    model = cases.make(case)
    serving = Staircase(inner_groups(find_units(model).groups, chain(model))[0])
    monkeypatch.setattr("hf_compress.pruning.verb.serving", lambda context, **settings: serving)
    report = prune(
        model, method="fisher", target={"latency": 0.6}, samples=16, probe_samples=8, **cases.examples_for(model)
    )
    assert report.achieved <= 0.6 and not report.warnings and describe(model) != {}
    if case == "option_a":
        # nothing is gained between two stairs, so nothing stands there
        widths = [line["kept"] for line in report.notes["layers"].values()]
        assert all(width % 4 == 0 for width in widths)


@pytest.mark.parametrize("power", [0.7, 1.0, 1.5, 3.0])
def test_a_network_that_is_not_the_sum_of_its_layers_uses_the_time_it_has(power, monkeypatch):
    """Faster than its layers say, or slower."""
    model = cases.make("option_a")
    serving = Staircase(inner_groups(find_units(model).groups, chain(model))[0])

    def latencies(model, against):
        own, full = (sum(serving.module_seconds(each).values()) for each in (model, against))
        return full * (own / full) ** power, full

    serving.latencies = latencies
    monkeypatch.setattr("hf_compress.pruning.verb.serving", lambda context, **settings: serving)
    options = {"samples": 16, "probe_samples": 8, "min_channels": 2, **cases.examples_for(model)}
    report = prune(model, method="fisher", target={"latency": 0.6}, **options)
    assert 0.9 * 0.6 <= report.achieved <= 0.6 and not report.warnings


def test_widths_between_two_that_were_measured_are_offered_too():
    """With widths in steps of 8, of 24 channels measured in steps of 3."""
    model = cases.timm_network("resnet26", channels=(24, 24, 24, 24))
    groups, _ = inner_groups(find_units(model).groups, chain(model))
    costs = measure_latency_costs(model, groups, Staircase(groups), Context())
    for group in groups:
        widths = _widths(group, costs, 8)
        assert widths == [8, 16, 24] and set(costs.widths(group)) >= {6, 9, 24}
        left = costs.after(model, [group], {g.name: 16 for g in groups})
        assert left.total({group.name: 16}) == left.now and left.total({group.name: 8}) < left.now


@pytest.mark.parametrize(("min_channels", "target"), [(16, 0.4), (64, 0.5)])
def test_blocks_leave_in_a_made_up_time(min_channels, target, monkeypatch):
    """No layer may become narrower than 16 channels, with which half of the time would stay; or no layer at all."""
    model = cases.make("option_a")
    groups, _ = inner_groups(find_units(model, min_channels=min_channels).groups, chain(model))
    serving = Staircase(groups)
    monkeypatch.setattr("hf_compress.pruning.verb.serving", lambda context, **settings: serving)
    options = {"samples": 16, "probe_samples": 8, "min_channels": min_channels, **cases.examples_for(model)}
    report = prune(model, method="fisher", target={"latency": target}, **options)
    assert report.achieved <= target and not report.warnings
    gone = [name for name, line in report.notes["layers"].items() if line["kept"] == 0]
    assert len(gone) == sum(isinstance(module, Removed) for module in model.modules()) > 0
    with pytest.raises(TargetError, match="out of reach"):
        prune(cases.make("option_a"), method="fisher", target={"latency": 0.1}, **options)
    # the blocks behind the first gap make up for it, those of full width too
    blocks = chain(model)
    missing = [isinstance(model.get_submodule(name), Removed) for name in blocks]
    behind = [name for name in blocks[missing.index(True) :] if not missing[blocks.index(name)]]
    inside = {f"{name}.conv2" for name in behind if f"{name}.conv1" in report.notes["layers"]}
    assert inside and inside <= report.notes["repair"].keys()
    whole = [line["kept"] == line["of"] for name, line in report.notes["layers"].items() if line["kept"]]
    assert min_channels == 16 or all(whole)


def test_a_model_that_is_its_own_baseline_is_timed_against_what_it_was(monkeypatch):
    for passes in (1, 2):
        model = cases.make("option_a")
        serving = Staircase(inner_groups(find_units(model).groups, chain(model))[0])
        monkeypatch.setattr("hf_compress.pruning.verb.serving", lambda context, serving=serving, **settings: serving)
        options = {"samples": 16, "probe_samples": 8, "passes": passes, **cases.examples_for(model)}
        report = prune(model, method="fisher", target={"latency": 0.6}, baseline=model, **options)
        assert 0.9 * 0.6 <= report.achieved <= 0.6 and not report.warnings


def test_a_time_that_no_attempt_meets_is_a_warning(monkeypatch):
    """Half of the network's time is in none of its layers."""
    model = cases.make("option_a")
    serving = Staircase(inner_groups(find_units(model).groups, chain(model))[0])

    def latencies(model, against):
        own, full = (sum(serving.module_seconds(each).values()) for each in (model, against))
        reached.append((own + full) / (2 * full))
        return own + full, 2 * full

    reached: list[float] = []
    serving.latencies = latencies
    monkeypatch.setattr("hf_compress.pruning.verb.serving", lambda context, **settings: serving)
    options = {"samples": 16, "probe_samples": 8, **cases.examples_for(model)}
    report = prune(model, method="fisher", target={"latency": 0.4}, **options)
    assert report.achieved == pytest.approx(min(reached)) and report.achieved > 0.5
    assert "0.4 of the baseline's latency" in report.warnings[-1] and "missed by" in report.warnings[-1]


def test_the_same_shapes_in_another_network_are_measured_anew():
    networks = [cases.timm_network("resnet26", channels=(8, 16, 24, 32), output_stride=stride) for stride in (32, 8)]
    paths = set()
    for model in networks:
        groups = find_units(model).groups
        paths.add(_cache_path(model, [], Staircase(groups)))
    assert len(paths) == 2


def test_another_quantization_is_measured_anew():
    model = cases.make("bert")
    paths = set()
    for exclude in ([], ["*.layer.0.*"]):
        for samples in (32, 64):
            options = OpenVinoOptions(exclude=exclude, calibration_samples=samples)
            served = serving(Context(**cases.examples_for(model)), options, precision="int8")
            paths.add(_cache_path(model, [], served))
    assert len(paths) == 2


@pytest.mark.parametrize(("name", "other"), [("cpu_name", "Abacus"), ("instruction_sets", ["avx512_bf16"])])
def test_on_another_cpu_everything_is_measured_anew(monkeypatch, name, other):
    model = cases.make("option_a")
    groups = find_units(model).groups
    here = _cache_path(model, [], Staircase(groups))
    monkeypatch.setattr(f"hf_compress.pruning.latency_costs.{name}", lambda: other)
    assert _cache_path(model, [], Staircase(groups)) != here


def test_a_time_that_is_reached_already_is_refused(monkeypatch):
    dense, model = cases.make("option_a"), cases.make("option_a")
    prune(model, method="magnitude", target={"macs": 0.5})
    serving = Staircase(inner_groups(find_units(dense).groups, chain(dense))[0])
    monkeypatch.setattr("hf_compress.pruning.verb.serving", lambda context, **settings: serving)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    reached = serving.latencies(model, dense)
    reached = reached[0] / reached[1]
    for target in (0.995 * reached, min(1.0, 1.1 * reached)):  # as far as times can be told apart
        with pytest.raises(TargetError, match=f"met already; give less than {reached / 1.01:.4g}"):
            prune(model, method="fisher", target={"latency": target}, baseline=dense, **cases.examples_for(model))
    with pytest.raises(TargetError, match="met already"):
        prune(dense, method="fisher", target={"latency": 1.0}, **cases.examples_for(dense))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_blocks_leave_where_that_saves_most():
    model = cases.make("option_a")
    report = prune(
        model,
        method="fisher",
        target={"latency": 0.5},
        samples=16,
        min_channels=32,  # so that only the last blocks can become narrower
        probe_samples=8,
        measure={"batch": 8, "threads": 1, "seconds": 0.5},
        **cases.examples_for(model),
    )
    assert count(model).macs < count(cases.make("option_a")).macs and report.achieved < 1
    assert (report.achieved > 0.5 * 1.01) == any("missed" in warning for warning in report.warnings)
    gone = [name for name, line in report.notes["layers"].items() if line["kept"] == 0]
    assert len(gone) == sum(isinstance(module, Removed) for module in model.modules()) > 0
    assert torch.isfinite(cases.output_of(model)).all()


@pytest.mark.parametrize("case", ["option_b", "bert"])
@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_seconds_by_module(case, runtime):
    model = cases.make(case)
    serving = Serving(runtime, "fp32" if runtime == "torch" else "f32", batch=2, length=8 if case == "bert" else None)
    seconds = serving.module_seconds(model, repeats=3)
    known = {name for name, _ in model.named_modules()}
    assert {name for name in seconds if name} <= known
    layers = "layer2.1.conv1" if case == "option_b" else "layer.1.output.dense"
    assert sum(value for name, value in seconds.items() if name.endswith(layers)) > 0
    assert sum(seconds.values()) > 0
    exported = to_openvino(model)
    name_convolutions(exported, model)
    assert set(module_seconds(exported, example_inputs(model, 2, serving.length), repeats=2)) <= known | {""}


def test_what_cannot_be_served():
    with pytest.raises(RecipeError, match="measure.precision: got 'fp32' for openvino; allowed are f32, bf16, int8"):
        Serving("openvino", "fp32")
    with pytest.raises(RecipeError, match="nothing here makes models int8"):
        Serving("openvino", "int8")
    model = cases.make("bert")
    with pytest.raises(CompressionError, match=r"target\.latency.*takes a target of macs or params"):
        prune(model, target={"latency": 0.5})
