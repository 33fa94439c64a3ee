from __future__ import annotations

import pytest
import torch

from hf_compress.errors import NotFoundError
from hf_compress.measurement import folder_size, parameter_bytes

from .architectures import bert


def test_only_weights_count(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert folder_size(tmp_path) == size
    assert parameter_bytes(model) <= size <= parameter_bytes(model) + 20_000
    for name in ("training_args.bin", "optimizer.pt", "vocab.txt", "openvino_tokenizer.bin", "openvino_model.xml"):
        (tmp_path / name).write_bytes(b"x" * 100)
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"x" * 100)
    assert folder_size(str(tmp_path)) == size
    (tmp_path / "openvino_model.bin").write_bytes(b"x" * 100)
    assert folder_size(tmp_path) == size + 100


def test_shards_are_summed(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert folder_size(tmp_path) >= parameter_bytes(model) * 0.99


def test_bytes_follow_the_type_and_shared_tensors_count_once():
    model = bert()
    size = parameter_bytes(model)
    model.bert.encoder.layer[1].output.dense.weight = model.bert.encoder.layer[0].output.dense.weight
    assert parameter_bytes(model) == size - 4 * 32 * 64
    buffers = sum(b.numel() * b.element_size() for b in model.buffers() if not b.is_floating_point())
    assert parameter_bytes(model.to(torch.bfloat16)) - buffers == (size - 4 * 32 * 64 - buffers) // 2


@pytest.mark.parametrize("present", [True, False])
def test_folder_without_weights(tmp_path, present):
    folder = tmp_path if present else tmp_path / "nowhere"
    with pytest.raises(NotFoundError, match="no weight files"):
        folder_size(folder)
