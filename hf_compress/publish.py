"""Uploading to the Hub: a finished run as a repository, a study as a collection of them."""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from .errors import CompressionError
from .journal import JOURNAL
from .measurement.size import OTHER_FILES, WEIGHT_SUFFIXES, folder_size, weight_files
from .plan import stage_names
from .report import model_card
from .report.card import NO_ADDRESS
from .report.runs import comparison_table, read_runs, rows
from .results import load_results
from .storage import read_json, write_text


logger = logging.getLogger(__name__)

RECORDS = ("recipe.yaml", "results.json", "results.md", "environment.json", JOURNAL)
SEEDS = ("0", "all")
CARD_DIGESTS = ".cards"  # in the folder of a run: the SHA-256 of every card that was written there
MAX_REPO_ID, MAX_TITLE = 96, 60  # characters that the Hub allows
_FAILURES = (CompressionError, OSError, httpx.HTTPError, HFValidationError)


@dataclass(frozen=True)
class Pushed:
    """One run of a study: where it went, or why it did not."""

    run: str
    repo_id: str
    address: str | None = None
    error: str | None = None


@dataclass
class PushedStudy:
    """What [`push_study`] did.

    Attributes:
        runs (`list[Pushed]`): every finished run that was to go.
        left_out (`dict[str, str]`): by name, runs that are not finished, and how far they are.
        collection (`str`, *optional*): the address of the collection.
        error (`str`, *optional*): why the collection is not complete.
    """

    runs: list[Pushed] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    collection: str | None = None
    error: str | None = None

    @property
    def failed(self) -> int:
        """Uploads that did not succeed, the collection among them."""
        return sum(run.error is not None for run in self.runs) + (self.error is not None)


def push_run(run_dir: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload the `model` folder of a finished run, with its recipe, results and plots, as the repository `repo_id`.

    Args:
        run_dir (`str` or `Path`): a run folder with `results.json` and `model/`.
        repo_id (`str`): `user/name`, or `name` alone for one's own; made, or brought up to date if it exists.
        private (`bool`, *optional*, defaults to `False`): whether a new repository is private.

    Returns:
        `str`: the address of the commit.

    Raises:
        `CompressionError`: if the run is not finished, the Hub does not let this user in, or the upload fails.
    """
    run_dir = Path(run_dir)
    _check_repo_id(repo_id)
    results = check_finished(run_dir)
    card = (run_dir / "model" / "README.md").read_text(encoding="utf-8")  # perhaps with what its owner has added

    def card_for(name: str) -> str:
        return card.replace(f'"{_written_for(results)}"', f'"{name}"')

    api = _signed_in()
    try:
        return _upload(api, run_dir, repo_id, results["name"], card_for, private)[1]
    except _FAILURES as error:
        raise CompressionError(
            f"{run_dir} was not pushed to {repo_id} ({_reason(error)}). The run is kept: "
            f"`hf-compress push {run_dir} --repo_id {repo_id}{' --private' * private}` tries again."
        ) from error


def push_study(study_dir: str | Path, repo_id: str, *, private: bool = False, seeds: str = "0") -> PushedStudy:
    """Upload every finished run of a study to a repository of its own, and gather them in a collection.

    A run goes to `<repo_id>-<variant>`, with the study's comparison in its card. An upload that fails is kept in the
    answer, and the others go on. Pushed again, repositories and collection are brought up to date.

    Args:
        study_dir (`str` or `Path`): a study's folder, with `study.json`.
        repo_id (`str`): `user/name`, what the names of all repositories begin with.
        private (`bool`, *optional*, defaults to `False`): whether new repositories and a new collection are private.
        seeds (`str`, *optional*, defaults to `"0"`): `"0"` for the lowest seed of each variant, or `"all"`, where a
            run goes to `<repo_id>-<variant>-seed<seed>`.

    Returns:
        [`PushedStudy`]: what went where, and what did not.

    Raises:
        `CompressionError`: if there is nothing to push, or the Hub does not let this user in.
    """
    study_dir = Path(study_dir)
    study = read_json(study_dir / "study.json")
    if not isinstance(study, dict) or not isinstance(study.get("runs"), list):
        raise CompressionError(f"{study_dir / 'study.json'} is no record of a study; give the folder of one.")
    if seeds not in SEEDS:
        raise CompressionError(f"seeds: got {seeds!r}; allowed are {' and '.join(SEEDS)}.")
    done = [run for run in study["runs"] if run["status"] == "done"]
    first: dict[str, int] = {}
    for run in study["runs"]:
        first[run["variant"]] = min(run["seed"], first.get(run["variant"], run["seed"]))
    chosen = [run for run in done if seeds == "all" or run["seed"] == first[run["variant"]]]
    if not chosen:
        there = f"; there are those with seed {', '.join(str(run['seed']) for run in done)}" if done else ""
        raise CompressionError(
            f"{study_dir}: no finished run {'' if seeds == 'all' else 'with the first seed '}yet{there}."
        )
    api = _signed_in()
    names = repository_names(repo_id, [(run["variant"], run["seed"] if seeds == "all" else None) for run in chosen])
    answer = PushedStudy(left_out={_name(run): run["status"] for run in study["runs"] if run["status"] != "done"})
    comparison = _comparison([study_dir / run["folder"] for run in done])
    for run, name in zip(chosen, names, strict=True):
        logger.info("Pushing %s to %s", _name(run), name)
        answer.runs.append(_push_one(api, study_dir / run["folder"], _name(run), name, comparison, private))
    pushed = [run.repo_id for run in answer.runs if run.error is None]
    if pushed:
        _collect(api, study["name"], pushed, private, answer)
    return answer


def edited_card(run_dir: Path, repo_id: str | None) -> str | None:
    """The card in the folder of a finished run, for the repository `repo_id`, if its owner has changed it since
    [`remember_card`]."""
    path = run_dir / "model" / "README.md"
    try:
        written_for = _written_for(load_results(run_dir))
        card = path.read_text(encoding="utf-8")
        if _digest(card) in (run_dir / CARD_DIGESTS).read_text():
            return None
    except (CompressionError, FileNotFoundError):
        return None
    logger.info("%s is kept, for it is not the one that was written; delete it for a new one.", path)
    return card.replace(f'"{written_for}"', f'"{repo_id or NO_ADDRESS}"')


def remember_card(run_dir: Path, card: str) -> None:
    """Keep of a card that is about to be written what tells it from one that its owner has changed."""
    path = run_dir / CARD_DIGESTS
    known = path.read_text() if path.exists() else ""
    if _digest(card) not in known:
        write_text(path, f"{known}{_digest(card)}\n")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _written_for(results: dict) -> str:
    """What the loading code of a run's own card names."""
    return (results["recipe"].get("hub") or {}).get("repo_id") or NO_ADDRESS


def check_finished(run_dir: Path) -> dict:
    """The results of a run of which every stage is recorded and the last one's model is whole.

    Raises:
        `CompressionError`: says what is missing.
    """
    results = load_results(run_dir)
    steps = results["recipe"].get("steps") or []
    planned = stage_names([next(iter(step)) for step in steps])
    found = [stage["name"] for stage in results["stages"]]
    again = "the run is not finished; run the recipe again."
    if missing := [name for name in planned if name not in found]:
        raise CompressionError(f"{run_dir}: results.json has no stage {', '.join(missing)}: {again}")
    model = run_dir / "model"
    if not model.is_dir():
        raise CompressionError(f"{run_dir} has no model folder: {again}")
    needed = ["config.json", "README.md"]
    needed += [f"{path.stem}.xml" for path in weight_files(model) if path.name.startswith("openvino_")]
    if missing := [name for name in needed if not (model / name).is_file()]:
        raise CompressionError(f"{model} has no {' and no '.join(missing)}: {again}")
    size, expected = folder_size(model), results["stages"][-1]["size_bytes"]
    if size != expected:
        raise CompressionError(
            f"{model} holds {size:,} bytes of weights, and the last stage, {found[-1]}, has {expected:,}: {again}"
        )
    return results


def repository_names(prefix: str, runs: Sequence[tuple[str, int | None]]) -> list[str]:
    """A repository for each variant, with its seed where that is given: of letters, digits, `.`, `_` and `-`, as the
    Hub allows, and no two the same. A name that would be too long, or taken, ends in a hash of the variant's.

    Raises:
        `CompressionError`: if the prefix itself is no name of a repository.
    """
    _check_repo_id(prefix)
    owner, separator, start = prefix.rpartition("/")
    names: list[str] = []
    for variant, seed in runs:
        end = "" if seed is None else f"-seed{seed}"
        plain = owner + separator + _allowed(f"{start}-{variant}")
        if len(plain + end) > MAX_REPO_ID or (plain + end).lower() in map(str.lower, names):
            end = f"-{hashlib.sha256(variant.encode()).hexdigest()[:6]}{end}"
            plain = plain[: MAX_REPO_ID - len(end)].rstrip("-.")
        names.append(plain + end)
    return names


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CompressionError(f"repo_id: {error}") from None


def _allowed(name: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    name = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", name)).strip("-.")
    return re.sub(r"\.git$", "-git", name)


def _name(run: dict) -> str:
    return f"{run['variant']}/seed{run['seed']}"


def _comparison(folders: Sequence[Path]) -> str:
    """The study's table: how each run ended, and the dense models that they started from."""
    records = [record for folder in folders if folder.is_dir() for record in read_runs([folder])[0]]  # in their order
    table, seen = [], set()
    for row in rows(records):
        dense = row.stage.endswith("_baseline")
        figures = tuple(row.figures.get(name) for name in ("metric", "params", "size_bytes"))
        if row.last or (dense and figures not in seen):
            table.append(row)
        if dense:
            seen.add(figures)
    return comparison_table(table)


def _push_one(api: HfApi, folder: Path, run: str, repo_id: str, comparison: str, private: bool) -> Pushed:
    try:
        results = check_finished(folder)
        card_for = functools.partial(model_card, results, comparison=comparison)
        return Pushed(run, *_upload(api, folder, repo_id, results["name"], card_for, private))
    except _FAILURES as error:
        return Pushed(run, repo_id, error=_reason(error))


def _upload(
    api: HfApi, run_dir: Path, repo_id: str, name: str, card_for: Callable[[str], str], private: bool
) -> tuple[str, str]:
    """One commit with all of a run; returns the repository's full name, which the card is for, and the commit's
    address."""
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    model = run_dir / "model"
    files = {path.relative_to(model).as_posix(): path for path in model.rglob("*") if path.is_file()}
    files |= {name: run_dir / name for name in RECORDS if (run_dir / name).exists()}
    files |= {f"plots/{path.name}": path for path in sorted((run_dir / "plots").glob("*"))}
    operations = [CommitOperationAdd(place, str(path)) for place, path in files.items() if place != "README.md"]
    operations.append(CommitOperationAdd("README.md", card_for(repo_id).encode()))
    # weights of an earlier push under other names would be loaded in place of these, or beside them
    operations += [CommitOperationDelete(place) for place in api.list_repo_files(repo_id) if _is_stale(place, files)]
    message = f"Add {name}, compressed with hf_compress"
    return repo_id, str(api.create_commit(repo_id, operations=operations, commit_message=message).commit_url)


def _is_stale(name: str, files: dict[str, Path]) -> bool:
    weights = Path(name).suffix in (*WEIGHT_SUFFIXES, ".xml") or name.endswith(".index.json")
    return weights and "/" not in name and name not in files and name not in OTHER_FILES


def _collect(api: HfApi, title: str, repo_ids: Sequence[str], private: bool, answer: PushedStudy) -> None:
    """Put the repositories into the owner's collection of this title, which is made if there is none."""
    owner, title, errors = repo_ids[0].split("/")[0], title[:MAX_TITLE], []
    try:
        known = [found for found in api.list_collections(owner=owner) if found.title == title]
        collection = (known or [api.create_collection(title, namespace=owner, private=private, exists_ok=True)])[0]
    except _FAILURES as error:
        answer.error = f"the collection {title!r}: {_reason(error)}"
        return
    answer.collection = collection.url
    for repo_id in repo_ids:
        try:
            api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True)
        except _FAILURES as error:
            errors.append(f"{repo_id}: {_reason(error)}")
    answer.error = "; ".join(errors) or None


def _signed_in() -> HfApi:
    """The Hub's client, once the Hub has said that it knows the token."""
    api = HfApi()
    try:
        api.whoami()
    except LocalTokenNotFoundError:
        raise CompressionError(
            "The Hub needs a token to let you write; run `hf auth login`, or set HF_TOKEN to one of "
            f"{api.endpoint}/settings/tokens."
        ) from None
    except OfflineModeIsEnabled:
        raise CompressionError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it.") from None
    except HfHubHTTPError as error:
        raise CompressionError(f"{api.endpoint} does not take this token: {_reason(error)}") from error
    except httpx.HTTPError as error:
        raise CompressionError(f"{api.endpoint} cannot be reached ({_reason(error)}); push again later.") from error
    return api


def _reason(error: Exception) -> str:
    """An error in one line; those of the Hub's client have a request id and an empty line in between."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) if lines else type(error).__name__
