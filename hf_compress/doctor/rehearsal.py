"""The steps of a recipe on its model, each for a moment: what is timed, and what follows from it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch
from torch import nn

from ..errors import CompressionError, TargetError, UnsupportedModelError
from ..measurement import (
    PeakMemory,
    count,
    example_inputs,
    has_fast_bf16,
    openvino_callable,
    parameter_bytes,
    predict,
    require_openvino,
    to_openvino,
    torch_callable,
)
from ..measurement.latency import expected_seconds
from ..models import load_model, load_teacher
from ..plan import PlannedStage
from ..recipe import Recipe, Step
from ..registry import get_method
from ..stages import EVALUATION_BATCH, served_shape, step_serving
from ..structure import track
from ..tasks import load_task
from ..training import Context, apply_method
from ..training.arguments import default_training
from .samples import PIXELS, sample
from .stopwatch import Stopwatch, affordable, median_seconds


TRAINING_SECONDS, GLANCE = 1.5, 0.3  # how long steps of one kind, and calls of another, are timed
LARGE = 50e6  # parameters above which surgery and conversion are not tried, but counted by what follows
FEW_EXAMPLES = 32  # for a first look at a surgery that looks at examples
SURGERY = {"prune": 0.03, "factorize": 0.11}  # seconds for a million parameters, on a BERT-large and two cores
CONVERSION = 0.06  # the same, from PyTorch to OpenVINO
ENGINE = 2.0  # seconds of an int8 export, whatever the model
SAMPLES = ("samples", "score_samples", "probe_samples")  # options of methods that look at so many examples
PASSES = 3  # that the engine makes over the calibration examples, one at a time
COPIES = 3  # of the weights, that a surgery or an export holds beside the model


@dataclass(frozen=True)
class Timing:
    """About how long a stage takes, and what room it needs.

    Attributes:
        train, surgery, calibrate, evaluate, measure (`float`): seconds.
        peak_bytes (`int`): of memory, of the whole process.
        disk_bytes (`int`): written, checkpoints among them.
    """

    train: float
    surgery: float
    calibrate: float
    evaluate: float
    measure: float
    peak_bytes: int
    disk_bytes: int


class Rehearsal:
    """A recipe's model on a sample of its data.

    Args:
        recipe ([`Recipe`]): resolved.

    Attributes:
        basis (`list[str]`): what the timings rest on.

    Raises:
        `CompressionError`: if the model is not here, and its architecture not known without it.
    """

    def __init__(self, recipe: Recipe):
        self.recipe, self.basis = recipe, []
        self.task = load_task(recipe.task, seed=recipe.seed)
        self.current, processor = self._load_model()
        self.data, self.sizes, what = sample(self.task, processor)
        self.basis.append(what)
        self.large = sum(parameter.numel() for parameter in self.current.parameters()) > LARGE
        if self.large:
            self.basis.append("surgery and conversion of so large a model are not tried, but counted by its size")
        shape = served_shape(recipe)
        self.batches, self.length = sorted({1, shape["batch"]}), shape["length"]
        self.dense: nn.Module | None = None
        self._dense_calls: dict[tuple[str, str, int], float] = {}  # seconds by runtime, precision and batch
        self._conversion = 0.0  # seconds from PyTorch to compiled models of OpenVINO
        self._import = 0.0  # seconds until the engine can be used, in the first stage
        self._example: float | None = None  # seconds of an example in an evaluation of the current model

    def stage(self, stage: PlannedStage, timed: bool = True) -> Timing | None:
        """Rehearse one stage after the ones before it; without `timed` only what later ones need is done.

        Raises:
            `CompressionError`: if the step cannot be done: its target is out of reach, or the model not supported.
        """
        own = self.current
        if stage.source == "teacher":
            self._take(self._teacher(self._first_teacher()))
        with PeakMemory() as peak:
            train, surgery, calibrate, more_bytes = self._step(stage, timed)
            alone = self.dense is None
            if stage.name.endswith("_baseline"):
                self.dense = copy.deepcopy(self.current)
                self._dense_cost = count(self.dense, length=self.length)
            timing = None
            if timed:
                exported = stage.step is not None and stage.step.technique == "quantize"
                evaluate, measure = self._evaluation(exported), self._measuring(alone, exported)
        if timed:
            if self.task.modality == "image":
                more_bytes += self.sizes.train * int(np.prod(PIXELS))
            # a model is written as it is made and again as the result; a checkpoint holds its optimizer too
            disk_bytes = parameter_bytes(self.current) * (5 if train else 2)
            timing = Timing(train, surgery, calibrate, evaluate, measure, peak.bytes + more_bytes, disk_bytes)
        if stage.source == "teacher":
            self._take(own)
        return timing

    # -- models ------------------------------------------------------------------------------------------------------

    def _load_model(self):
        spec = self.recipe.model
        options = {"config": spec.config, "revision": spec.revision, "seed": self.recipe.seed}
        try:
            return load_model(spec.name_or_path, task=self.task, from_config=spec.from_config, **options)
        except CompressionError:
            # the weights, or the tokenizer, are not here; the architecture may be known all the same
            task = self.task if self.task.modality == "image" else None
            try:
                found = load_model(spec.name_or_path, task=task, from_config=True, config=spec.config)
            except CompressionError:
                found = None
            if found is None:
                raise
        self.basis.append("random weights, because the model's are not here")
        return found

    def _first_teacher(self) -> str:
        return next(step.options.teacher for step in self.recipe.steps if step.technique == "distill")

    def _teacher(self, name: str) -> nn.Module:
        return load_teacher(name, self.task)[0]

    def _take(self, model: nn.Module) -> None:
        self.current, self._example = model, None

    # -- steps -------------------------------------------------------------------------------------------------------

    def _step(self, stage: PlannedStage, timed: bool) -> tuple[float, float, float, int]:
        """Seconds of training, surgery and calibration, and bytes that they need more than what was done here."""
        if stage.step is None:
            return 0.0, 0.0, 0.0, 0
        copies = COPIES * parameter_bytes(self.current)
        if stage.step.technique == "quantize":
            return 0.0, *(self._export_seconds(stage.step) if timed else (0.0, 0.0)), copies
        surgery, calibrate = self._surgery(stage)
        train, more_bytes = 0.0, copies if self.large and surgery else 0
        if timed and stage.step.trains:
            train, lacking = self._training(stage.step)
            more_bytes = max(more_bytes, lacking)
        return train, surgery, calibrate, more_bytes

    def _context(self, step: Step, **fields) -> Context:
        context = Context(
            data=self.data,
            baseline=self.dense,
            load_teacher=self._teacher,
            baseline_cost=None if self.dense is None else self._dense_cost,
            target=step.target,
            training={**self.recipe.training, **step.training, **fields},
            seed=self.recipe.seed,
            length=self.length,
        )
        context.serving = step_serving(self.recipe, context)
        return context

    def _surgery(self, stage: PlannedStage) -> tuple[float, float]:
        """Do what the step does to the modules; seconds of the surgery and of the calibration."""
        step = stage.step
        if get_method(step.technique, step.method).trains:
            return 0.0, 0.0
        if self.large:
            millions = sum(parameter.numel() for parameter in self.current.parameters()) / 1e6
            return SURGERY[step.technique] * millions, 0.0
        track(self.current)
        try:
            seconds = self._apply(step)
        except (TargetError, UnsupportedModelError) as error:
            raise type(error)(f"{stage.name}: {error}") from error
        self._take(self.current)
        return seconds

    def _apply(self, step: Step) -> tuple[float, float]:
        """A method that looks at many examples is tried on few, and on twice as many: the rest follows from that."""
        method = get_method(step.technique, step.method)
        looks = "calibration" in method.needs or getattr(step.options, "repair", False)
        wanted = getattr(step.options, "samples", 0) if looks else 0
        counts = [FEW_EXAMPLES, 2 * FEW_EXAMPLES] if wanted > 2 * FEW_EXAMPLES else [wanted]
        found = []
        for number in counts:
            options = step.options
            if number < wanted:
                counted = [name for name in SAMPLES if hasattr(options, name)]
                fewer = {name: ceil(getattr(options, name) * number / wanted) for name in counted}
                options = replace(options, **fewer)
            model = self.current if number == counts[-1] else copy.deepcopy(self.current)
            report = apply_method(model, step.technique, step.method, options, self._context(step))
            found.append([report.seconds["surgery"], report.seconds["calibrate"]])
        more = (wanted - counts[-1]) / FEW_EXAMPLES
        return tuple(last + more * max(0.0, last - first) for first, last in zip(found[0], found[-1], strict=True))

    def _training(self, step: Step) -> tuple[float, int]:
        """Seconds of the step's training with its watching of the holdout, and bytes that the timed part lacked."""
        fields = {**default_training(self.current), **self.recipe.training, **step.training}
        batch, accumulation = fields["per_device_train_batch_size"], fields.get("gradient_accumulation_steps", 1)
        used = min(len(self.data.train), affordable(4 * self._example_seconds(), batch))
        if used < batch:
            self.basis.append(f"training steps of {batch} examples timed on {used}")
        terms, watch = self._terms(step), Stopwatch(TRAINING_SECONDS)
        with PeakMemory() as before:
            pass
        few = {"per_device_train_batch_size": used, "gradient_accumulation_steps": 1, "learning_rate": 1e-8}
        few |= {"max_steps": 10_000, "eval_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        with PeakMemory() as peak:
            self._context(step, **few).train(self.current, loss_terms=terms, callbacks=[watch])
        gradients = sum(parameter.nbytes for parameter in self.current.parameters())
        held = peak.bytes - before.bytes - gradients - watch.state_bytes
        lacking = max(0, batch * self._activations(fields) - max(0, held))
        steps_an_epoch = ceil(self.sizes.train / (batch * accumulation))
        steps = fields["max_steps"] if fields.get("max_steps", -1) > 0 else fields["num_train_epochs"] * steps_an_epoch
        examples, update = watch.read()
        watching = steps / steps_an_epoch * self.sizes.holdout * self._example_seconds()
        return steps * (accumulation * batch * examples / used + update) + watching, lacking

    def _activations(self, fields: dict) -> int:
        """Bytes that one example, the longest one, leaves behind in the forward pass for the backward pass."""
        train = self.data.train
        longest = np.arange(2) if train.lengths is None else np.argsort(-train.lengths)[:2]
        bf16 = fields.get("bf16", False) and not torch.accelerator.is_available()

        def saved(examples: int) -> int:
            storages: dict[int, int] = {}

            def keep(tensor: torch.Tensor) -> torch.Tensor:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            inputs = dict(train.__getitems__(longest[:examples]))
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    outputs = self.current(**inputs)
            del outputs
            return sum(storages.values())

        return max(0, saved(2) - saved(1))  # whatever does not grow with the batch, weights among it, cancels out

    def _terms(self, step: Step) -> list[Callable]:
        options = step.options if step.technique == "distill" else step.distill
        return [] if options is None else [options.term(self.current, self._context(step))]

    def _export_seconds(self, step: Step) -> tuple[float, float]:
        """Of an export, which is not tried: the engine takes longer to import than most of what is timed here."""
        surgery = ENGINE + CONVERSION * sum(parameter.numel() for parameter in self.current.parameters()) / 1e6
        calibrates = str(getattr(step.options, "scheme", "static")).startswith("static")
        samples = getattr(step.options, "calibration_samples", 0) if calibrates else 0
        lengths = self.data.train.lengths
        length = None if lengths is None else max(1, round(float(np.mean(lengths))))
        return surgery, PASSES * samples * self._calls(self.current, "torch", "fp32", [1], length)[1]

    # -- what is measured of every stage -----------------------------------------------------------------------------

    def _example_seconds(self) -> float:
        if self._example is None:
            batch = EVALUATION_BATCH[self.task.modality]
            view = next(iter(self.data.evaluation.values()))
            two = view.subset(np.arange(min(2, len(view))))
            one = median_seconds(lambda: predict(self.current, two, 2), GLANCE) / len(two)
            used = min(len(view), affordable(one, batch))
            part = view.subset(np.random.default_rng(0).permutation(len(view))[: 2 * used])
            self._example = median_seconds(lambda: predict(self.current, part, used), GLANCE) / len(part)
        return self._example

    def _evaluation(self, exported: bool) -> float:
        self._time_dense()
        return self.sizes.evaluation * self._example_seconds() * (self._export_gain() if exported else 1.0)

    def _export_gain(self) -> float:
        """What an int8 export is counted at: the dense model in OpenVINO at its fastest, by PyTorch in fp32."""
        batch = self.batches[-1]
        fastest = min(seconds for key, seconds in self._dense_calls.items() if key[2] == batch)
        return min(1.0, fastest / self._dense_calls["torch", "fp32", batch])

    def _measuring(self, alone: bool, exported: bool) -> float:
        """Seconds that the latencies take, with the rounds that [`~measurement.latency`] makes of such calls."""
        self._time_dense()
        total, self._import = self._import + self._conversion * (1 if alone or exported else 2), 0.0
        own = None if alone or exported else self._calls(self.current, "torch", "fp32", self.batches, self.length)
        for batch in self.batches:
            dense = {key[:2]: seconds for key, seconds in self._dense_calls.items() if key[2] == batch}
            plain, calls = dense["torch", "fp32"], list(dense.values())
            if exported:
                calls.append(self._export_gain() * plain)
            elif own is not None:
                calls += [seconds * own[batch] / plain for seconds in dense.values()]
            total += expected_seconds(calls, self.recipe.measure.seconds)
        return total

    def _time_dense(self) -> None:
        """Time the dense model in every runtime and precision, once."""
        if self._dense_calls:
            return
        model = self.current if self.dense is None else self.dense
        precisions = {"fp32": "f32", **({"bf16": "bf16"} if has_fast_bf16() else {})}
        for precision in precisions:
            found = self._calls(model, "torch", precision, self.batches, self.length)
            self._dense_calls |= {("torch", precision, batch): seconds for batch, seconds in found.items()}
        try:
            started = time.perf_counter()
            require_openvino()
            imported = time.perf_counter()
            graph = None if self.large else to_openvino(model, share_weights=True)
        except CompressionError:
            return  # without the engine its rows are left out
        self._import, self._conversion = imported - started, time.perf_counter() - imported
        for precision, name in precisions.items():
            if graph is None:
                found = {batch: self._dense_calls["torch", precision, batch] for batch in self.batches}
            else:
                found = self._calls(graph, "openvino", name, self.batches, self.length)
            self._dense_calls |= {("openvino", name, batch): seconds for batch, seconds in found.items()}
        if graph is None:
            self._conversion = CONVERSION * sum(parameter.numel() for parameter in model.parameters()) / 1e6

    def _calls(self, model, runtime: str, precision: str, batches: list[int], length: int | None) -> dict[int, float]:
        """Seconds of a call by batch; of a batch that takes long, from fewer examples."""
        started = time.perf_counter()
        make = torch_callable if runtime == "torch" else openvino_callable
        candidate = make(model, precision, self.recipe.threads)
        if runtime == "openvino":
            self._conversion += time.perf_counter() - started

        def seconds(examples: int) -> float:
            inputs = candidate.prepare(example_inputs(self.current, examples, length))
            return median_seconds(lambda: candidate(inputs), GLANCE)

        found = {1: seconds(1)}
        for batch in batches:
            if batch not in found:
                used = affordable(found[1], batch)
                found[batch] = seconds(used) * batch / used
        return {batch: found[batch] for batch in batches}
