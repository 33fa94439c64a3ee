from __future__ import annotations

import builtins

import pytest
import torch

from hf_compress.measurement import to_openvino

from .architectures import build


HALF = {"roberta"}  # converted from bfloat16 weights


@pytest.fixture(scope="session")
def exports():
    """Gives a model by name and its export, converted from training mode with one part frozen."""
    made = {}

    def get(name):
        if name not in made:
            pytest.importorskip("openvino")
            model = build(name).train()
            next(model.children()).eval()
            if name in HALF:
                model.bfloat16()
            flags = [module.training for module in model.modules()]
            state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            made[name] = model, to_openvino(model)
            assert [module.training for module in model.modules()] == flags
            assert torch.is_grad_enabled()
            assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
            assert model.dtype == (torch.bfloat16 if name in HALF else torch.float32)
            model.eval().float()  # what an export of half precision computes in, too
        return made[name]

    return get


@pytest.fixture
def own_lock(tmp_path, monkeypatch):
    """Timings in this test neither wait for others nor let others wait."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "hf_compress_timing.lock"


@pytest.fixture
def without_openvino(monkeypatch):
    """OpenVINO as good as not installed."""
    original = builtins.__import__

    def guarded(name, *args, **kwargs):
        if name.split(".")[0] == "openvino":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
