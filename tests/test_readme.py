from __future__ import annotations

import re
from pathlib import Path

import pytest


README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.mark.parametrize("code", BLOCKS)
def test_the_code_of_the_readme_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    if "again" in names:
        import torch

        batch = {"pixel_values": torch.zeros(2, 3, 32, 32)}
        with torch.no_grad():
            assert torch.equal(names["again"](**batch).logits, names["model"].eval()(**batch).logits)


def test_the_readme_shows_python():
    assert BLOCKS
