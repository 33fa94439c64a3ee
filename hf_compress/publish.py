"""Uploading a finished run to the Hub: model, card, results and plots in one commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from .errors import CompressionError
from .journal import JOURNAL
from .results import load_results


def push_run(run_dir: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload the `model` folder of a finished run, with its recipe, results and plots, as the repository `repo_id`.

    Args:
        run_dir (`str` or `Path`): a run folder with `results.json` and `model/`.
        repo_id (`str`): `user/name`; made if it does not exist.
        private (`bool`, *optional*, defaults to `False`): whether a new repository is private.

    Returns:
        `str`: the address of the commit.

    Raises:
        `CompressionError`: if the run is not finished.
    """
    run_dir = Path(run_dir)
    load_results(run_dir)
    if not (run_dir / "model").is_dir():
        raise CompressionError(f"{run_dir} has no model folder: the run is not finished; run the recipe again.")
    api = HfApi()
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    files = [*(run_dir / "model").rglob("*")]
    operations = [(path, path.relative_to(run_dir / "model").as_posix()) for path in files if path.is_file()]
    for name in ("recipe.yaml", "results.json", "results.md", "environment.json", JOURNAL):
        if (run_dir / name).exists():
            operations.append((run_dir / name, name))
    operations += [(path, f"plots/{path.name}") for path in sorted((run_dir / "plots").glob("*"))]
    commit = api.create_commit(
        repo_id,
        operations=[_addition(path, name) for path, name in operations],
        commit_message=f"Add {run_dir.name}, compressed with hf_compress",
    )
    return str(commit.commit_url)


def _addition(path: Path, name: str):
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
