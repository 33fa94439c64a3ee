"""What the trainer costs: `accelerate launch scripts/benchmark_training.py [--steps 40]`.

Three trainings of the same network run in one process and take turns of a few steps, so that whatever else the machine
does meets all of them alike:

- `hf_compress`: this package's trainer without a teacher, on augmented CIFAR-10;
- `trainer`: plain `transformers.Trainer` on the same data set, with the same arguments and the same memory layout;
- `bare`: a PyTorch loop over normalized tensors that are in memory already, without augmentation.

Written down are the ratios of their seconds for a whole epoch (`--steps` shortens it, and start-up then weighs more),
the share of a step that the input pipeline takes, and how many cores were at work.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, get_scheduler

from hf_compress.errors import CompressionError
from hf_compress.measurement import configure_threads, environment, has_fast_bf16, timing_lock
from hf_compress.models import load_model
from hf_compress.storage import write_json
from hf_compress.tasks import TaskSpec, load_task
from hf_compress.training import CompressionTrainer, build_arguments, default_training, prefer_channels_last


BARS = {"hf_compress / trainer": 1.03, "hf_compress / bare": 1.10, "input pipeline / step": 0.05}


class Turns:
    """Lets one of several threads run at a time, for `steps` steps each, and keeps the seconds of each turn."""

    def __init__(self, names: list[str], steps: int, progress: tqdm):
        self.names, self.steps, self.progress = names, steps, progress
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.cpu_seconds = self.wall_seconds = 0.0
        self.error: BaseException | None = None
        self._gates = {name: threading.Semaphore(0) for name in names}
        self._running = list(names)
        self._taken = dict.fromkeys(names, 0)

    def run(self, contestants: dict[str, Callable[[Callable[[], None]], None]], threads: int) -> None:
        """Run each contestant, a function of what it has to call after every step, to its end."""
        workers = [
            threading.Thread(target=self._run, args=(name, contestant, threads), daemon=True)
            for name, contestant in contestants.items()
        ]
        for worker in workers:
            worker.start()
        self._gates[self.names[0]].release()
        for worker in workers:
            worker.join()
        if self.error is not None:
            raise self.error

    def _run(self, name: str, contestant: Callable, threads: int) -> None:
        try:
            torch.set_num_threads(threads)  # OpenMP keeps the number by thread
            self._begin(name)
            contestant(lambda: self._step(name))
        except BaseException as error:  # the main thread raises it; the others have to come to their end first
            self.error = self.error or error
        finally:
            self._end(name)
            following = self._following(name)
            self._running.remove(name)
            if following != name:
                self._gates[following].release()

    def _step(self, name: str) -> None:
        self.progress.update()
        self._taken[name] += 1
        if self._taken[name] % self.steps == 0 and self._following(name) != name:
            self._end(name)
            self._gates[self._following(name)].release()
            self._begin(name)

    def _begin(self, name: str) -> None:
        self._gates[name].acquire()
        self._started = time.perf_counter(), time.process_time()

    def _end(self, name: str) -> None:
        wall, cpu = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        self.seconds[name].append(wall)
        self.wall_seconds += wall
        self.cpu_seconds += cpu

    def _following(self, name: str) -> str:
        return self._running[(self._running.index(name) + 1) % len(self._running)]


class StepCallback(TrainerCallback):
    """Calls `turn` after every step, once there is one."""

    def __init__(self):
        self.turn: Callable[[], None] = lambda: None

    def on_step_end(self, args, state, control, **kwargs):
        self.turn()


class WatchedTrainer(CompressionTrainer):
    """Measures how long it waits for batches."""

    input_seconds = 0.0

    def get_batch_samples(self, *args, **kwargs):
        started = time.perf_counter()
        batches = super().get_batch_samples(*args, **kwargs)
        self.input_seconds += time.perf_counter() - started
        return batches


def trainer_contestant(
    trainer_class: type[Trainer], model, data, fields: dict, folder: str
) -> tuple[Trainer, Callable]:
    steps = StepCallback()
    arguments = build_arguments(fields, folder, seed=0)
    arguments.remove_unused_columns = False  # the data set gives whole batches
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=data, data_collator=data.collate, callbacks=[steps]
    )

    def run(turn: Callable[[], None]) -> None:
        steps.turn = turn
        trainer.train()

    return trainer, run


def bare_contestant(model, tensors: tuple[torch.Tensor, torch.Tensor], fields: dict, steps: int) -> Callable:
    """What somebody writes who needs nothing but this one training."""
    pixels, labels = tensors
    batch = fields["per_device_train_batch_size"]
    network = model.timm_model
    optimizer = torch.optim.SGD(
        network.parameters(), fields["learning_rate"], 0.9, weight_decay=fields["weight_decay"], nesterov=True
    )
    scheduler = get_scheduler("cosine", optimizer, int(0.05 * steps), steps)

    def run(turn: Callable[[], None]) -> None:
        network.train()
        for step in range(steps):
            start = step * batch % (len(labels) - batch + 1)
            with torch.autocast("cpu", torch.bfloat16) if fields["bf16"] else nullcontext():
                loss = functional.cross_entropy(network(pixels[start : start + batch]), labels[start : start + batch])
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            turn()

    return run


def in_memory(data, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All examples as normalized float32, channels-last where the data set gives them so."""
    parts = [part for _, part in data.plain().batches(batch)]
    pixels = torch.cat([part["pixel_values"].permute(0, 2, 3, 1) for part in parts]).permute(0, 3, 1, 2)
    return pixels, torch.cat([part["labels"] for part in parts])


def warm_up(model, tensors: tuple[torch.Tensor, torch.Tensor], fields: dict) -> None:
    """Whatever is set up once a process (kernels for these shapes, memory) must not fall to the first contestant."""
    bare_contestant(copy.deepcopy(model), tensors, fields, steps=3)(lambda: None)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines of two trainers at once."""
    level = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.ERROR)
    yield
    logging.getLogger("transformers").setLevel(level)


def benchmark(options: argparse.Namespace) -> dict:
    threads = configure_threads(options.threads)
    task = load_task(TaskSpec("cifar10", data_dir=options.data_dir), seed=0)
    model, processor = load_model(options.model, task=task, from_config=True)
    data = task.prepare(processor).train
    steps = options.steps or -(-len(data) // options.batch)
    fields = {
        **default_training(model),
        "per_device_train_batch_size": options.batch,
        "max_steps": steps,
        "bf16": has_fast_bf16() if options.precision is None else options.precision == "bf16",
        "use_cpu": True,
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    tensors = in_memory(data, options.batch)
    if options.layout == "channels_last":
        prefer_channels_last(model, torch.device("cpu"))
    with quiet(), tempfile.TemporaryDirectory() as folder, timing_lock():
        warm_up(model, tensors, fields)
        trainers, contestants = {}, {}
        for name, trainer_class in (("hf_compress", WatchedTrainer), ("trainer", Trainer)):
            view = data.subset(range(len(data)))  # each with an epoch of its own
            trainers[name], contestants[name] = trainer_contestant(
                trainer_class, copy.deepcopy(model), view, fields, folder
            )
        contestants["bare"] = bare_contestant(copy.deepcopy(model), tensors, fields, steps)
        with tqdm(total=3 * steps, unit="step", file=sys.stderr) as progress:
            turns = Turns(list(contestants), options.turn, progress)
            turns.run(contestants, threads)
    settings = {
        "model": options.model,
        "examples": len(data),
        "steps": steps,
        "whole_epoch": steps * options.batch >= len(data),
        "batch": options.batch,
        "steps_a_turn": options.turn,
        "precision": "bf16" if fields["bf16"] else "fp32",
        "layout": options.layout,
        "threads": threads,
    }
    return {"settings": settings, "environment": environment(), **_summary(turns, trainers["hf_compress"], steps)}


def _summary(turns: Turns, ours: WatchedTrainer, steps: int) -> dict:
    total = {name: sum(seconds) for name, seconds in turns.seconds.items()}
    ratios = {
        "hf_compress / trainer": total["hf_compress"] / total["trainer"],
        "hf_compress / bare": total["hf_compress"] / total["bare"],
        "input pipeline / step": ours.input_seconds / total["hf_compress"],
    }
    # of neighbouring turns, the first and last ones with their start-up left out: hardly moved by a single disturbance
    inner = {name: seconds[1:-1] for name, seconds in turns.seconds.items()}
    paired = {
        f"hf_compress / {other}": statistics.median(
            a / b for a, b in zip(inner["hf_compress"], inner[other], strict=False)
        )
        for other in ("trainer", "bare")
        if inner[other]
    }
    return {
        "seconds": {name: round(value, 3) for name, value in total.items()},
        "milliseconds_a_step": {name: round(1000 * value / steps, 2) for name, value in total.items()},
        "ratios": {name: round(value, 4) for name, value in ratios.items()},
        "bars": {name: {"at_most": bar, "met": ratios[name] <= bar} for name, bar in BARS.items()},
        "median_of_paired_turns": {name: round(value, 4) for name, value in paired.items()},
        "cores_at_work": round(turns.cpu_seconds / turns.wall_seconds, 2),
        "turns": {name: [round(value, 3) for value in seconds] for name, seconds in turns.seconds.items()},
    }


def report(results: dict) -> str:
    lines = [f"{name:<24}{results['milliseconds_a_step'][name]:>10.1f} ms/step" for name in results["seconds"]]
    for name, bar in results["bars"].items():
        lines.append(
            f"{name:<24}{results['ratios'][name]:>10.3f}   {'within' if bar['met'] else 'ABOVE'} {bar['at_most']:g}"
        )
    lines.append(
        f"{'cores at work':<24}{results['cores_at_work']:>10.2f}   of {results['settings']['threads']} threads"
    )
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="steps of each training; a whole epoch without it")
    parser.add_argument("--turn", type=int, default=8, help="steps of one turn")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--model", default="resnet20_cifar", help="a timm entry with batch normalization")
    parser.add_argument("--data_dir", help="where CIFAR-10 is; 'sample' is the one in the package")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="bf16 where the CPU computes in it, by default")
    parser.add_argument("--layout", choices=["channels_last", "contiguous"], default="channels_last")
    parser.add_argument("--threads", type=int, help="all cores by default, whatever the launcher has set")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_training.json"))
    options = parser.parse_args(arguments)
    for name in ("steps", "turn", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: got {value}; give at least 1.")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        results = benchmark(options)
    except CompressionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, results)
    print(report(results))
    print(f"Written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
