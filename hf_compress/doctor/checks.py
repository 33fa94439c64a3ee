"""What is installed, reachable, found and missing, each with the command that helps."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
from huggingface_hub import constants, try_to_load_from_cache
from timm.models import is_model

from .. import locate
from ..errors import CompressionError
from ..measurement import environment
from ..plan import plan
from ..recipe import Recipe, load_recipe
from ..registry import get_method
from ..storage import read_json
from ..tasks import load_task


PATIENCE = 3.0  # seconds for the Hub to answer
EXTRAS = {"openvino": ("openvino", "nncf", "optimum.intel")}  # modules that an extra of the package installs
MINIMUM_FREE = 2**30  # bytes on the disk of the output, below which a warning is due


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        topic (`str`): "machine", "packages", "hub", "data", "model" or "output".
        name (`str`): what was looked at.
        state (`str`): "ok"; "remote" if the Hub would be asked for it; "note" for what to know; "missing" if the
            recipe cannot run without it.
        detail (`str`): what was found.
        remedy (`tuple[str, ...]`): commands that help.
    """

    topic: str
    name: str
    state: str
    detail: str
    remedy: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        return asdict(self)


def machine_findings(folder: Path = Path(".")) -> list[Finding]:
    """The machine, what is installed on it, and whether the Hub answers; `folder` is where results would go."""
    facts = environment()
    sets = ", ".join(facts["instruction_sets"]) or "none of those looked for"
    bf16 = "bf16 is fast" if facts["fast_bf16"] else "bf16 would be emulated, so training uses fp32"
    found = [
        Finding("machine", "cpu", "ok", f"{facts['cpu']}; {sets}; {bf16}"),
        Finding("machine", "threads", "ok", f"{facts['usable_cores']} cores usable, {facts['threads']} threads"),
        Finding("machine", "memory", "ok", f"{facts['memory_bytes'] / 1e9:.1f} GB"),
        _disk(folder),
    ]
    versions = {name: version for name, version in facts["versions"].items() if version}
    found.append(Finding("packages", "versions", "ok", ", ".join(f"{k} {v}" for k, v in versions.items())))
    found += [_extra(extra, "note") for extra in EXTRAS]
    return [*found, _hub()]


def findings(recipes: Iterable[Recipe]) -> list[Finding]:
    """What the recipes need beyond the machine: engines, data, models, teachers, free output folders; each once."""
    return list(dict.fromkeys(finding for recipe in recipes for finding in _findings(recipe)))


def _findings(recipe: Recipe) -> list[Finding]:
    needed = {get_method(step.technique, step.method).extra for step in recipe.steps} - {None, ""}
    found = [_extra(extra, "missing") for extra in sorted(needed)]
    found.append(_data(recipe))
    spec = recipe.model
    found.append(_model("model", spec.name_or_path, spec.from_config))
    found += [_model("teacher", name, False) for name in dict.fromkeys(_teachers(recipe))]
    return [*found, _output(recipe)]


def _disk(folder: Path) -> Finding:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    state = "ok" if free > MINIMUM_FREE else "note"
    return Finding("machine", "disk", state, f"{free / 1e9:.1f} GB free for {folder}")


def _extra(extra: str, state_if_missing: str) -> Finding:
    missing = [name for name in EXTRAS.get(extra, ()) if not _installed(name)]
    if not missing:
        return Finding("packages", extra, "ok", "the extra is installed")
    what = {"openvino": "quantize and OpenVINO latencies"}.get(extra, "some methods")
    detail = f"{', '.join(missing)} not installed; needed for {what}"
    return Finding("packages", extra, state_if_missing, detail, (f'pip install "hf_compress[{extra}]"',))


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def _hub() -> Finding:
    if locate.is_offline():
        return Finding("hub", constants.ENDPOINT, "note", "not asked: HF_HUB_OFFLINE is set; the Hub's cache is used")
    try:
        answer = httpx.head(constants.ENDPOINT, timeout=PATIENCE, follow_redirects=True)
    except httpx.HTTPError as error:
        detail = f"does not answer ({type(error).__name__})"
        return Finding("hub", constants.ENDPOINT, "note", detail, (f"export HF_ENDPOINT={locate.MIRROR}",))
    return Finding("hub", constants.ENDPOINT, "ok", f"answers ({answer.status_code})")


def _data(recipe: Recipe) -> Finding:
    spec = recipe.task
    name = spec.name if spec.subset is None else f"{spec.name}/{spec.subset}"
    try:
        task = load_task(spec)
    except CompressionError as error:
        first, *rest = str(error).splitlines()
        return Finding("data", name, "missing", first, tuple(line.strip() for line in rest if line.startswith("    ")))
    if task.source != task.hub_dataset:
        return Finding("data", name, "ok", f"found at {task.source}")
    return _on_the_hub("data", name, task.hub_dataset, "datasets")


def _model(what: str, name: str, from_config: bool) -> Finding:
    label = f"{what} {name}"
    try:
        where = locate.resolve(name, "models")
    except CompressionError as error:
        first, *rest = str(error).splitlines()
        return Finding("model", label, "missing", " ".join([first, *(line.strip() for line in rest)]))
    if isinstance(where, Path):
        return Finding("model", label, "ok", f"found at {where}")
    if is_model(name.split(".")[0]) and (from_config or name.endswith("_cifar")):
        return Finding("model", label, "ok", "an entry of timm, with random weights")
    if name.startswith("outputs/"):
        return Finding("model", label, "missing", "the result of another recipe, which has to run first")
    return _on_the_hub("model", label, name, "models")


def _on_the_hub(topic: str, label: str, name: str, kind: locate.Kind) -> Finding:
    file, repo_type = ("config.json", "model") if kind == "models" else ("README.md", "dataset")
    if isinstance(try_to_load_from_cache(name, file, repo_type=repo_type), str):
        return Finding(topic, label, "ok", "in the Hub's cache")
    if locate.is_offline():
        detail = "neither here nor in the Hub's cache, and HF_HUB_OFFLINE is set"
        return Finding(topic, label, "missing", detail, tuple(locate.fetch_commands(name, kind)))
    api = f"{constants.ENDPOINT}/api/{kind}/{name}"
    try:
        status = httpx.get(api, timeout=PATIENCE, follow_redirects=True).status_code
    except httpx.HTTPError as error:
        detail = f"not here, and the Hub does not answer ({type(error).__name__})"
        return Finding(topic, label, "missing", detail, tuple(locate.fetch_commands(name, kind)))
    if status == httpx.codes.OK:
        return Finding(topic, label, "remote", "on the Hub; it is fetched when the recipe runs")
    return Finding(topic, label, "missing", f"not here, and the Hub answers {status} for {name}")


def _teachers(recipe: Recipe) -> Iterator[str]:
    for step in recipe.steps:
        options = step.options if step.technique == "distill" else step.distill
        teacher = getattr(options, "teacher", None)
        if teacher and teacher != "baseline":
            yield teacher


def _output(recipe: Recipe) -> Finding:
    folder = Path(recipe.output_dir).expanduser()
    path = folder / "recipe.yaml"
    if not path.exists():
        return Finding("output", str(folder), "ok", "free")
    from ..runner import resolved  # it loads every technique's engines of torch

    try:
        same = load_recipe(path).identity() == resolved(recipe).identity()
    except CompressionError as error:
        return Finding("output", str(folder), "missing", f"its recipe.yaml cannot be read: {error}")
    if not same:
        remedy = ("hf-compress run RECIPE.yaml output_dir=outputs/another",)
        return Finding("output", str(folder), "missing", "holds a run of another recipe", remedy)
    stages = [stage.name for stage in plan(recipe)]
    done = [name for name in stages if (folder / "stages" / name).is_dir()]
    if (folder / "results.json").exists() and len(done) == len(stages):
        total = sum(
            stage.get("seconds", {}).get("total", 0.0) for stage in read_json(folder / "results.json")["stages"]
        )
        return Finding("output", str(folder), "note", f"this recipe is done already; it took {total:.0f} s")
    return Finding("output", str(folder), "note", f"this recipe goes on after {', '.join(done) or 'its beginning'}")
