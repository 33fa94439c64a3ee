"""Try a recipe without its evaluation split: the steps, each judged by the holdout of the training split.

    python scripts/try_on_holdout.py recipes/minilm_sst2_fisher_int8.yaml steps.0.refine=3 seed=1

What is chosen by it, the evaluation split has not seen. It prints a line of JSON for the dense model and for every
step: the metrics, the mean divergence of the predictions from the dense model's (KL of classes softened by a
temperature of 2; less noisy than a metric), the target reached and the seconds. Nothing is kept. A pretrained model
may have been trained on the holdout; then the divergence alone tells.
"""

import argparse
import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

import hf_compress as hc
from hf_compress.measurement import configure_threads
from hf_compress.measurement.accuracy import predict
from hf_compress.models.load import load_teacher
from hf_compress.pruning.sensitivity import divergence
from hf_compress.recipe import load_recipe
from hf_compress.stages import step_serving
from hf_compress.training import Context, apply_method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    hc.load_methods()
    recipe = load_recipe(options.recipe, options.overrides)
    if any(step.technique == "finetune" for step in recipe.steps):
        parser.error("steps: got finetune; give a recipe that starts from the fine-tuned model.")
    configure_threads(recipe.threads)
    task = hc.load_task(recipe.task, recipe.seed)
    spec = recipe.model
    loading = {"from_config": spec.from_config, "revision": spec.revision, "config": spec.config, "seed": recipe.seed}
    model, processor = hc.load_model(spec.name_or_path, task=task, **loading)
    data, dense = task.prepare(processor), copy.deepcopy(model)
    expected, labels = predict(dense, data.holdout)

    def show(step: str, logits: np.ndarray, **facts) -> None:
        metrics = {name: round(float(value), 4) for name, value in data.compute_metrics(logits, labels).items()}
        metrics["divergence"] = divergence(torch.from_numpy(logits), torch.from_numpy(expected))
        print(json.dumps({"step": step, **metrics, **facts}), flush=True)

    show("dense", expected)
    baseline_cost = None
    for number, step in enumerate(recipe.steps):
        with tempfile.TemporaryDirectory() as folder:
            context = Context(
                data=data,
                baseline=dense,
                load_teacher=lambda name: load_teacher(name, task)[0],
                baseline_cost=baseline_cost,
                target=step.target,
                training={**recipe.training, **step.training},
                seed=recipe.seed,
                output_dir=Path(folder),
                length=recipe.length,
            )
            context.serving = step_serving(recipe, context)
            if baseline_cost is None:
                context.set_baseline_cost(context.cost(dense))
                baseline_cost = context.baseline_cost
            report = apply_method(model, step.technique, step.method, step.options, context, distill=step.distill)
            model = report.model
            facts = {"achieved": report.achieved, "seconds": report.seconds, "warnings": report.warnings}
            show(f"{number}: {step.technique}/{step.method}", predict(model, data.holdout)[0], **facts)


if __name__ == "__main__":
    main()
