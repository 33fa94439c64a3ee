"""The model card, made from `results.json` alone."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..locate import PACKAGE_ROOT
from .reproduce import public_recipe
from .runs import task_name
from .tables import (
    baseline_stage,
    human_bytes,
    human_count,
    latency_table,
    seconds_table,
    served_latency,
    stage_table,
)


VERBS = {
    "finetune": "fine-tuning",
    "prune": "pruning",
    "factorize": "low-rank factorization",
    "distill": "knowledge distillation",
    "quantize": "quantization",
}
PIPELINES = {"text": "text-classification", "image": "image-classification"}
AUTO_CLASSES = {"text": "ForSequenceClassification", "image": "ForImageClassification"}
NO_ADDRESS = "path/to/model"  # in the loading code of a card whose repository nobody has named yet


def model_card(results: dict, repo_id: str | None = None, comparison: str | None = None) -> str:
    """The card of a run's last stage, with `model-index` metadata.

    Args:
        results (`dict`): the content of `results.json` with at least one stage.
        repo_id (`str`, *optional*): `user/name` on the Hub; `None` writes `path/to/model` in the loading code.
        comparison (`str`, *optional*): a table of the study that the run belongs to, for a section of its own.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML; names in tables are escaped by the tables
    )
    last = results["stages"][-1]
    return environment.get_template("card.md.jinja").render(
        card_data=card_data(results).to_yaml(),
        title=results["name"],
        base_name=f"`{results['recipe']['model']['name_or_path']}`",
        steps_text=", then ".join(VERBS[technique] for technique in _techniques(results)) or "nothing yet",
        headline=_headline(results, last),
        seed_note=f"One run with seed {results['seed']} on {task_name(results)}; its steps chose nothing on the "
        "evaluation split.",
        load_code=_load_code(results, last, repo_id or NO_ADDRESS),
        load_note=_load_note(results, last),
        stage_table=stage_table(results),
        has_latency_plot=served_latency(last) is not None,
        latency_table=latency_table(results),
        skipped=_skipped(results),
        seconds_table=seconds_table(results),
        comparison=comparison,
        recipe_yaml=yaml.safe_dump(public_recipe(results["recipe"]), sort_keys=False, allow_unicode=True),
        setting=_setting(results),
        limits=_limits(results, last),
    )


def card_data(results: dict) -> ModelCardData:
    """The metadata block: base model, data set, metrics and the `model-index` with the last stage's figures. There is
    none of figures on a part of the data, which the Hub would show as those of the whole split."""
    task, last = results["task"], results["stages"][-1]
    evaluations = [
        EvalResult(
            task_type=PIPELINES[task["modality"]],
            dataset_type=task["hub_dataset"],
            dataset_name=task["name"],
            dataset_config=task.get("hub_config"),
            dataset_split=metric.rpartition("/")[0] or task["eval_split"],
            metric_type=metric.rsplit("/", 1)[-1],
            metric_name=metric,
            metric_value=round(value, 6),
        )
        for metric, value in last["metrics"].items()
    ]
    name = results.get("origin", results["recipe"]["model"]["name_or_path"])
    # The Hub takes only its own ids as a base model; the name of a local folder, or of a model of this package, stays
    # in the text of the card.
    is_local = name.startswith((".", "/", "outputs")) or (PACKAGE_ROOT / "models" / name).is_dir()
    base_model = name if name.count("/") == 1 and not is_local else None
    return ModelCardData(
        library_name="hf_compress",
        pipeline_tag=PIPELINES[task["modality"]],
        base_model=base_model,
        datasets=[task["hub_dataset"]],
        metrics=sorted({metric.rsplit("/", 1)[-1] for metric in last["metrics"]}),
        tags=["hf_compress", "compression", *dict.fromkeys(VERBS[t] for t in _techniques(results))],
        **({"model_name": results["name"], "eval_results": evaluations} if _on_all_data(results) else {}),
    )


def _on_all_data(results: dict) -> bool:
    return task_name(results) == results["task"]["name"]


def _techniques(results: dict) -> list[str]:
    return [stage["technique"] for stage in results["stages"] if stage["technique"] in VERBS]


def _headline(results: dict, last: dict) -> list[tuple[str, str, str]]:
    dense = baseline_stage(results)
    rows = [
        (metric, f"{dense['metrics'].get(metric, float('nan')):.4f}", f"{value:.4f}")
        for metric, value in last["metrics"].items()
    ]
    for label, key, form in (
        ("parameters", "params", human_count),
        ("MACs", "macs", human_count),
        ("size on disk", "size_bytes", human_bytes),
    ):
        rows.append((label, form(dense[key]), form(last[key])))
    served = served_latency(last)
    if served and served.speedup_torch:
        rows.append(
            (
                f"median latency, batch {served.batch}",
                f"{1000 * served.p50 * served.speedup_torch:.1f} ms (PyTorch fp32)",
                f"{1000 * served.p50:.1f} ms ({served.runtime} {served.precision})",
            )
        )
    return rows


def _load_code(results: dict, last: dict, name: str) -> str:
    suffix = AUTO_CLASSES[results["task"]["modality"]]
    if last["technique"] == "quantize":
        computed = _arithmetic(last)
        arguments = f'\n    "{name}",\n    ov_config={json.dumps(computed)},\n' if computed else f'"{name}"'
        return f"from optimum.intel import OVModel{suffix}\n\nmodel = OVModel{suffix}.from_pretrained({arguments})"
    return (
        f"import hf_compress  # registers how compressed layers are rebuilt\n"
        f"from transformers import AutoModel{suffix}\n\n"
        f'model = AutoModel{suffix}.from_pretrained("{name}")'
    )


def _load_note(results: dict, last: dict) -> str:
    if last["technique"] == "quantize":
        need = 'Needs `pip install "optimum-intel[openvino]"`; hf_compress itself is not needed.'
        computed = _arithmetic(last)
        if not computed:
            return need
        return (
            f"{need} The metrics above are those of the model as loaded here, with all that is not int8 computed in "
            f"{computed['INFERENCE_PRECISION_HINT']}. Without `ov_config` OpenVINO computes as the CPU at hand is "
            "fastest: in bf16 where that has AVX512-BF16 or AMX, and with int8 inputs for layers of which only the "
            "weights are int8 where it has VNNI; on another kind of CPU that gives slightly other logits."
        )
    if not _restructured(results, last):
        needed = {
            "text": "so plain Transformers loads it without `import hf_compress` too.",
            "image": "so `import hf_compress` is needed only where timm does not know the architecture, as with the "
            "CIFAR ResNets.",
        }
        return f"Every layer has the shape that `config.json` says, {needed[results['task']['modality']]}"
    return (
        "Without `import hf_compress` loading fails on the shapes of the compressed layers, rather than giving a "
        "wrong model; only `ignore_mismatched_sizes=True` defeats that, so do not pass it."
    )


def _restructured(results: dict, last: dict) -> bool:
    """Whether layers differ from those that `config.json` says by itself; by the steps, in results of releases that
    did not record it."""
    return last.get("restructured", not {"prune", "factorize"}.isdisjoint(_techniques(results)))


def _arithmetic(last: dict) -> dict[str, str]:
    """The `ov_config` that the stage was evaluated with; empty in results of releases that did not record it."""
    return last.get("notes", {}).get("arithmetic", {})


def _skipped(results: dict) -> list[str]:
    reasons = {
        f"{row['runtime']} {row['precision']}: {row['skipped']}"
        for stage in results["stages"]
        for row in stage.get("latency", [])
        if "skipped" in row
    }
    return sorted(reasons)


def _setting(results: dict) -> list[str]:
    environment = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    return [
        f"task: {task_name(results)}, {_splits(results)}",
        f"CPU: {environment['cpu']} ({', '.join(environment['instruction_sets'])}), threads {environment['threads']}",
        f"versions: {versions}",
    ]


def _splits(results: dict) -> str:
    """The evaluation splits with their examples; releases that recorded no predictions did not count them."""
    found = results["stages"][-1].get("predictions") or {results["task"]["eval_split"]: {}}
    return ", ".join(
        f"split `{split}`" + (f" ({kept['examples']:,} examples)" if "examples" in kept else "")
        for split, kept in found.items()
    )


def _limits(results: dict, last: dict) -> list[str]:
    limits = [
        f"Judged on {task_name(results)} alone; other data may lose more.",
        "Latencies hold for the CPU and the settings named above; measure on yours.",
    ]
    warnings = [f"{stage['name']}: {text}" for stage in results["stages"] for text in stage.get("warnings", [])]
    return limits + warnings
