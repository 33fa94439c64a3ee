"""Stages shared between runs: a folder of finished stages, each under the hash of its whole history.

Two recipes that begin alike (same task, model, seed, training, measurement and first steps) have the same first
stages. The one that gets there first makes them; the others link them. A stage is made under a lock and in a work
folder that belongs to the store, so that runs side by side make each stage once, and whoever comes after a killed one
goes on with what it left.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from .storage import NO_ROOM, whole_folder


STAGE_FORMAT = 1  # of what lies in a stage's folder; another one shares nothing with this


class StageStore:
    """Finished stages under `root`, by key.

    Args:
        root (`str` or `os.PathLike`): made if it does not exist. On the file system of the runs, if that has hard
            links, they hold links to its files, elsewhere copies.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)

    def folder(self, key: str) -> Path:
        return self.root / key

    def work(self, key: str) -> Path:
        """Where the stage is made."""
        return self.root / ".work" / key

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Wait until nobody else makes this stage, and keep it from others."""
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{key}.lock"):
            yield

    def has(self, key: str) -> bool:
        return self.folder(key).is_dir()

    def take(self, key: str, target: Path) -> None:
        """Link the finished stage as the folder `target`."""
        link_folder(self.folder(key), target)


def stage_key(history: dict) -> str:
    """The hash of what a stage was made from, JSON-plain."""
    text = json.dumps({"stage_format": STAGE_FORMAT, **history}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def link_folder(source: Path, target: Path) -> None:
    """Make `target` a folder of hard links to the files of `source`, whole or not at all; of copies where links cannot
    be.

    Nothing in a finished stage is ever written to, so that the links cost no room and stay equal.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(target) as aside:
        for path in sorted(source.rglob("*")):
            place = aside / path.relative_to(source)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, place)
                except OSError as error:
                    if error.errno in NO_ROOM:
                        raise
                    shutil.copyfile(path, place)  # no links here, or none from there
