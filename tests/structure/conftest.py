from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from hf_compress.structure import track

from . import cases


def task_of(model) -> str:
    is_image = model.main_input_name == "pixel_values"
    return f"AutoModelFor{'Image' if is_image else 'Sequence'}Classification"


# Every kind of change on BERT and on the stock ResNet-18, and some on the others: loading costs half a second each.
FRESH = [case for case in cases.CASES if case.startswith(("bert", "resnet18", "resnext"))] + [
    "distilbert-everything",
    "roberta-heads",
    "electra-low_rank",
    "resnet20_cifar-channels",
]


class Saved:
    """Models made and saved once each, when a test first asks for them."""

    def __init__(self, root: Path):
        self.root = root
        self._models: dict = {}

    def model(self, case: str):
        """The compressed model in memory, tracked; not to be changed."""
        if case not in self._models:
            model = track(cases.make(case), case=case)
            model.save_pretrained(self.root / case)
            self._models[case] = model
        return self._models[case]

    def folder(self, case: str) -> Path:
        self.model(case)
        return self.root / case

    def load_in_fresh_process(self, names: list[str]) -> dict[str, dict[str, str]]:
        """What became of each folder in one fresh process, before ("unaware") and after `import hf_compress`."""
        manifest = {}
        for case in names:
            model = self.model(case)
            expected = self.root / f"{case}.expected.safetensors"
            save_file({**cases.inputs_for(model), "logits": cases.logits_of(model).contiguous()}, expected)
            manifest[case] = {
                "folder": str(self.folder(case)),
                "task": task_of(model),
                "expected": str(expected),
            }
        paths = self.root / "manifest.json", self.root / "result.json"
        paths[0].write_text(json.dumps(manifest))
        script = Path(__file__).with_name("fresh_process.py")
        # Run elsewhere, so that nothing of the checkout is on the path but what is installed.
        process = subprocess.run(
            [sys.executable, str(script), *map(str, paths)],
            cwd=self.root,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
                "PYTHONSAFEPATH": "1",
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        return json.loads(paths[1].read_text())


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Saved:
    return Saved(tmp_path_factory.mktemp("structures"))


@pytest.fixture(scope="session")
def fresh(saved) -> dict[str, dict[str, str]]:
    return saved.load_in_fresh_process(FRESH)
