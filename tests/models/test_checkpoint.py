from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_compress.errors import CompressionError, NotFoundError, UnsupportedModelError
from hf_compress.models.checkpoint import check_weights, weight_files


@pytest.fixture
def folder(tmp_path):
    save_file({"a": torch.randn(30, 7), "b": torch.ones(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_whole_file_passes(folder):
    check_weights(folder)
    assert weight_files(folder) == [folder / "model.safetensors"]


@pytest.mark.parametrize("kept", [0, 5, 8, 40, 0.5, 0.99, -1])
def test_truncated_anywhere_is_refused(folder, kept):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    cut = int(len(whole) * kept) if isinstance(kept, float) else kept if kept >= 0 else len(whole) + kept
    path.write_bytes(whole[:cut])
    with pytest.raises(CompressionError, match="model.safetensors is truncated or damaged"):
        check_weights(folder)


def test_more_than_the_header_says_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CompressionError, match="where its header says"):
        check_weights(folder)


def test_lfs_pointer_is_named(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CompressionError, match="Git LFS pointer"):
        check_weights(folder)


def test_shards(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NotFoundError, match="model-00002-of-00002.safetensors is missing"):
        check_weights(folder)
    save_file({"c": torch.ones(2)}, folder / "model-00002-of-00002.safetensors")
    check_weights(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CompressionError, match="index.json is truncated or damaged"):
        check_weights(folder)


def test_bin_file(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(100)}, path)
    check_weights(tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CompressionError, match="pytorch_model.bin is truncated"):
        check_weights(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(NotFoundError, match="from_config: true"):
        check_weights(tmp_path)
    (tmp_path / "openvino_model.xml").touch()
    with pytest.raises(UnsupportedModelError, match="openvino_model.xml"):
        check_weights(tmp_path)
