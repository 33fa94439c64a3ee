from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap

import pytest
import rich

from hf_compress.errors import BackendUnavailableError
from hf_compress.quantization import load_exported, quantize
from hf_compress.quantization.engine import quiet_engine, require

from .models import dataset, make_bert, texts


def test_importing_the_technique_imports_no_engine():
    code = """
        import sys
        import hf_compress
        from hf_compress.quantization import OpenVinoOptions
        hf_compress.quantize
        print(*{name.partition(".")[0] for name in sys.modules} & {"openvino", "optimum", "nncf", "onnx"})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("missing", ["optimum.intel.openvino", "nncf"])
def test_a_missing_engine_names_the_extra_and_leaves_nothing(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BackendUnavailableError, match=r'pip install "hf_compress\[openvino\]"'):
        quantize(make_bert(), data=dataset(texts()), output_dir=tmp_path / "int8")
    assert list(tmp_path.iterdir()) == []


def test_loading_without_the_engine_names_the_extra(monkeypatch, tmp_path):
    (tmp_path / "openvino_model.xml").touch()
    monkeypatch.setitem(sys.modules, "optimum.intel.openvino", None)
    with pytest.raises(BackendUnavailableError, match=r'pip install "hf_compress\[openvino\]"'):
        load_exported(tmp_path)


def test_require_gives_the_modules_in_order():
    assert require("json", "math", extra="openvino") == (sys.modules["json"], sys.modules["math"])


def test_quiet_engine_restores_what_it_changes(monkeypatch):
    monkeypatch.setenv("CI", "false")
    monkeypatch.delenv("NNCF_CI", raising=False)
    logger = logging.getLogger("nncf")
    before = logger.level, list(logger.filters), rich.get_console().quiet
    with pytest.raises(RuntimeError), quiet_engine():
        assert os.environ["CI"] == "true" and os.environ["NNCF_CI"] == "1"
        assert rich.get_console().quiet
        assert not logger.isEnabledFor(logging.WARNING)
        raise RuntimeError
    assert os.environ["CI"] == "false" and "NNCF_CI" not in os.environ
    assert (logger.level, list(logger.filters), rich.get_console().quiet) == before
