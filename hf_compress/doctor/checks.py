"""What is installed, reachable, found and missing, each with the command that helps."""

from __future__ import annotations

import importlib.metadata
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, get_token, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from packaging.requirements import Requirement

from .. import locate
from ..errors import CompressionError
from ..measurement import environment
from ..measurement.machine import usable_memory
from ..models import find_model, find_teacher
from ..models.checkpoint import WEIGHTS, check_weights
from ..models.known_configs import known_config
from ..plan import history, may_follow, plan
from ..preflight import check_trainings, teachers
from ..recipe import Recipe, load_recipe
from ..registry import get_method
from ..storage import read_json
from ..store import stage_key
from ..tasks import load_task


PACKAGE = "hf_compress"
PATIENCE = 3.0  # seconds for the Hub to answer
GIVING_UP = 8.0  # the same, of a name server or a proxy too, which know no such limit
NOT_FOR_USERS = {"test"}  # extras of the package
MINIMUM_FREE = 2**30  # bytes on the disk of the output, below which a warning is due


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        topic (`str`): "machine", "packages", "hub", "data", "model", "output" or "recipe".
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
    memory = f"{facts['memory_bytes'] / 1e9:.1f} GB, {usable_memory()[1] / 1e9:.1f} of them free"
    found = [
        Finding("machine", "cpu", "ok", f"{facts['cpu']}; {sets}; {bf16}"),
        Finding("machine", "threads", "ok", f"{facts['usable_cores']} cores usable, {facts['threads']} threads"),
        Finding("machine", "memory", "ok", memory),
        _disk(folder),
    ]
    versions = {name: version for name, version in facts["versions"].items() if version}
    found.append(Finding("packages", "versions", "ok", ", ".join(f"{k} {v}" for k, v in versions.items())))
    found += [_extra(extra, "note") for extra in extras()]
    return [*found, _hub()]


def findings(recipes: Iterable[Recipe], store: Path | None = None) -> list[Finding]:
    """What the recipes need beyond the machine: engines, data, models, teachers, output folders, a token; each once.

    Args:
        recipes (`Iterable[Recipe]`): resolved.
        store (`Path`, *optional*): the shared stages of the study that they belong to.

    Raises:
        `RecipeError`: if a training block is not valid, as a run would.
    """
    recipes = list(recipes)
    for recipe in recipes:
        check_trainings(recipe)
    return list(dict.fromkeys(finding for recipe in recipes for finding in _findings(recipe, store)))


def _findings(recipe: Recipe, store: Path | None) -> Iterator[Finding]:
    needed = {get_method(step.technique, step.method).extra for step in recipe.steps} - {None}
    options = [options for step in recipe.steps for options in (step.options, step.distill)]
    needed |= {"openvino"} & {getattr(each, "teacher_runtime", None) for each in options}
    yield from (_extra(extra, "missing") for extra in sorted(needed))
    yield _data(recipe)
    spec, by_token = recipe.model, recipe.task.name == "glue"
    yield _model("model", spec.name_or_path, spec.from_config, spec.revision, by_token)
    for name in dict.fromkeys(step.teacher for _, step in teachers(recipe)):
        yield _model("teacher", name, False, None, by_token)
    yield _output(recipe, store)
    if recipe.hub.push:
        yield _token()


def finished_stages(recipe: Recipe, store: Path | None = None) -> list[str]:
    """The stages of a (resolved) recipe that lie in its output folder, or among those that its study shares."""
    folder, stages = Path(recipe.output_dir).expanduser(), plan(recipe)
    here = folder / "stages" if _belongs(recipe, folder) else None
    done = []
    for index, stage in enumerate(stages):
        shared = store is not None and (store / stage_key(history(recipe, stages, index))).is_dir()
        if shared or (here is not None and (here / stage.name).is_dir()):
            done.append(stage.name)
    return done


def _belongs(recipe: Recipe, folder: Path) -> bool:
    """Whether `folder` holds a run of the recipe, or one that it may go on from."""
    path = folder / "recipe.yaml"
    try:
        other = load_recipe(path) if path.exists() else recipe
    except CompressionError:
        return False
    return other.identity() == recipe.identity() or may_follow(recipe, other, folder)


# -- the machine ------------------------------------------------------------------------------------------------------


def _disk(folder: Path) -> Finding:
    free = free_bytes(folder)
    state = "ok" if free > MINIMUM_FREE else "note"
    return Finding("machine", "disk", state, f"{free / 1e9:.1f} GB free for {folder}")


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk that `folder` is, or would be, on."""
    folder = folder.expanduser().absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def extras() -> dict[str, list[Requirement]]:
    """The extras of this package for its users, with what each needs; none where it runs without being installed."""
    try:
        needed = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or ()]
        names = importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or ()
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {
        name: [one for one in needed if one.marker and one.marker.evaluate({"extra": name})]
        for name in names
        if name not in NOT_FOR_USERS
    }


def _extra(extra: str, state_if_missing: str) -> Finding:
    lacking = [text for text in map(_lacks, extras().get(extra, ())) if text]
    if not lacking:
        return Finding("packages", extra, "ok", "the extra is installed")
    remedy = (f'pip install "{PACKAGE}[{extra}]"',)
    return Finding("packages", extra, state_if_missing, f"the extra is not complete: {'; '.join(lacking)}", remedy)


def _lacks(needed: Requirement) -> str | None:
    try:
        version = importlib.metadata.version(needed.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{needed.name} is not installed"
    if needed.specifier.contains(version, prereleases=True):
        return None
    return f"{needed.name} is {version}, and has to be {needed.specifier}"


# -- the Hub ----------------------------------------------------------------------------------------------------------


def _hub() -> Finding:
    if locate.is_offline():
        return Finding("hub", constants.ENDPOINT, "note", "not asked: HF_HUB_OFFLINE is set; the Hub's cache is used")
    answer = _within(lambda: httpx.head(constants.ENDPOINT, timeout=PATIENCE, follow_redirects=True))
    if isinstance(answer, Exception):
        remedy = () if constants.ENDPOINT == locate.MIRROR else (f"export HF_ENDPOINT={locate.MIRROR}",)
        return Finding("hub", constants.ENDPOINT, "note", f"does not answer ({_named(answer)})", remedy)
    return Finding("hub", constants.ENDPOINT, "ok", f"answers ({answer.status_code})")


def _token() -> Finding:
    if get_token():
        return Finding("hub", "token", "ok", "there is one, for pushing")
    return Finding("hub", "token", "missing", "hub.push is set, and there is no token", ("hf auth login",))


def _within(ask: Callable[[], Any]) -> Any:
    """What `ask` returns or raises, or a `TimeoutError` after a few seconds, whatever it still waits for."""
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append(ask())
        except Exception as error:
            answer.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(GIVING_UP)
    return answer[0] if answer else TimeoutError(f"no answer in {GIVING_UP:.0f} s")


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


def _on_the_hub(topic: str, label: str, name: str, kind: locate.Kind, revision: str | None, cached: bool) -> Finding:
    if cached:
        return Finding(topic, label, "ok", "in the Hub's cache")
    if locate.is_offline():
        return _told(topic, label, locate.not_found(name, kind))
    api = HfApi()
    info = api.model_info if kind == "models" else api.dataset_info
    answer = _within(lambda: info(name, revision=revision, timeout=PATIENCE))
    if not isinstance(answer, Exception):
        return Finding(topic, label, "remote", "on the Hub; it is fetched when the recipe runs")
    if isinstance(answer, GatedRepoError):
        detail = "on the Hub, which lets only those in who have accepted its terms and have a token"
        return Finding(topic, label, "missing", detail, (f"open {constants.ENDPOINT}/{name}", "hf auth login"))
    if isinstance(answer, RepositoryNotFoundError | RevisionNotFoundError):
        wanted = name if revision is None else f"{name} at {revision}"
        answer = CompressionError(f"there is no {wanted}, or it is private and needs a token")
    return _told(topic, label, locate.not_found(name, kind, cause=answer))


def _told(topic: str, label: str, error: Exception) -> Finding:
    """A finding of an error that lists the places looked at, and below them, indented, the commands that help."""
    lines = str(error).splitlines()
    commands = tuple(line.strip() for line in lines if line.startswith("    "))
    said = [line.strip() for line in lines if not line.startswith("    ") and not line.startswith("To fetch it")]
    text = "; ".join(line.removeprefix("- ") for line in said).replace(":; ", ": ")
    return Finding(topic, label, "missing", text, commands)


# -- what a recipe names ----------------------------------------------------------------------------------------------


def _data(recipe: Recipe) -> Finding:
    spec = recipe.task
    name = spec.name if spec.subset is None else f"{spec.name}/{spec.subset}"
    try:
        task = load_task(spec)
    except CompressionError as error:
        return _told("data", name, error)
    if task.source != task.hub_dataset:
        return Finding("data", name, "ok", f"found at {task.source}")
    import datasets  # slow, and not needed where the data are a folder

    kept = Path(datasets.config.HF_DATASETS_CACHE) / task.hub_dataset.replace("/", "___") / task.hub_config
    return _on_the_hub("data", name, task.hub_dataset, "datasets", None, kept.is_dir())


def _model(what: str, name: str, from_config: bool, revision: str | None, needs_tokenizer: bool) -> Finding:
    label = f"{what} {name}"
    try:
        where, entry = (find_teacher(name), None) if what == "teacher" else find_model(name, from_config, revision)
        if isinstance(where, Path) and not from_config:
            check_weights(where)
    except CompressionError as error:
        finding = _told("model", label, error)
        if name.startswith("outputs/") and not Path(name).exists():
            finding = Finding(
                "model", label, "missing", f"the result of another recipe, which has to run first; {name}"
            )
        return finding
    if isinstance(where, Path):
        return Finding("model", label, "ok", f"found at {where}")
    if entry is not None:
        return Finding("model", label, "ok", f"{entry}, an entry of timm, with random weights")
    if from_config and not needs_tokenizer and known_config(where) is not None:
        return Finding("model", label, "ok", "known to this package, with random weights")
    files = ("config.json",) if from_config else WEIGHTS
    cached = any(isinstance(try_to_load_from_cache(where, file, revision=revision), str) for file in files)
    return _on_the_hub("model", label, where, "models", revision, cached)


def _output(recipe: Recipe, store: Path | None) -> Finding:
    folder = Path(recipe.output_dir).expanduser()
    name, finished = str(folder), (folder / "results.json").exists()
    if not (folder / "recipe.yaml").exists():
        return Finding("output", name, "ok", "free")
    if _is_locked(folder / ".lock"):
        return Finding("output", name, "missing", "another process runs in this folder; wait for it")
    if not _belongs(recipe, folder):
        if store is not None and not finished:
            return Finding("output", name, "note", "holds an earlier form of this variant, which gives way")
        remedy = ("hf-compress run RECIPE.yaml output_dir=outputs/another",)
        return Finding("output", name, "missing", "holds a run of another recipe, or one that cannot be read", remedy)
    done = finished_stages(recipe, store)
    if finished and len(done) == len(plan(recipe)):
        stages = read_json(folder / "results.json")["stages"]
        seconds = sum(stage.get("seconds", {}).get("total", 0.0) for stage in stages)
        return Finding("output", name, "note", f"this recipe is done already; it took {seconds:.0f} s")
    begun = sorted(path.name for path in (folder / "stages" / ".work").glob("*"))
    half = f"; begun: {', '.join(begun)}" if begun else ""
    return Finding("output", name, "note", f"this recipe goes on after {', '.join(done) or 'its beginning'}{half}")


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # not ours to write
        return False
    lock.release()
    return False
