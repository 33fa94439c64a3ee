from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hf_compress
from hf_compress import registry


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_compress"
# each group imports only from itself, where it is not a technique, and from those before it
GROUPS = [
    {"errors", "endings", "registry", "fields", "storage", "results", "journal", "locate", "store"},
    {"recipe_text", "recipe", "study", "plan", "method_table", "tasks", "models", "metrics"},
    {"structure", "measurement", "allocate"},
    {"training"},
    {"pruning", "lowrank", "distillation", "quantization"},
    {"report", "publish"},
    {"preflight", "stages", "outcome", "runner", "reload", "study_runner", "doctor"},
    {"cli"},
]
RANKS = {name: rank for rank, group in enumerate(GROUPS) for name in group}
TECHNIQUES = GROUPS[4]


def imported_parts(path: Path) -> set[str]:
    """Top-level parts of the package that a module imports, inside functions too."""
    parts = set()
    package = ("hf_compress", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split("."))
            names = [(*module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        parts |= {name[1] for name in (tuple(filter(None, name)) for name in names) if name[0] == "hf_compress"}
    return parts & RANKS.keys()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own not in RANKS:
        assert own == "__init__"
        return
    for part in imported_parts(path) - {own}:
        assert RANKS[part] <= RANKS[own], f"{own} imports {part}"
        assert not {own, part} <= TECHNIQUES, f"the technique {own} imports {part}"


def test_importing_the_package_imports_no_engine():
    code = "import sys, hf_compress; hf_compress.load_methods(); print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "transformers" in loaded
    assert not loaded & {"openvino", "optimum", "nncf", "onnx", "onnxruntime", "optuna", "torch_pruning", "matplotlib"}


@pytest.mark.parametrize(
    ("command", "registers"), [(["report", "."], False), (["journal", "show", "."], False), (["methods"], True)]
)
def test_what_never_sees_a_model_starts_without_pytorch(command, registers):
    code = (
        f"import sys; sys.argv = {['/somewhere/hf-compress', *command]!r}; import hf_compress.cli; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("torch" in done.stdout.split()) is registers


def test_every_exported_name_is_there():
    for name in hf_compress.__all__:
        assert callable(getattr(hf_compress, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'prun'"):
        hf_compress.prun  # noqa: B018


def test_every_technique_has_a_documented_method():
    hf_compress.load_methods()
    for technique in registry.TECHNIQUES:
        assert registry.methods(technique), technique
    for method in registry.methods():
        assert method.summary, method.name
        assert method.options.__doc__ and "dataclass" not in method.options.__doc__


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_committed_recipes_are_valid_and_name_no_machine(path):
    from hf_compress.recipe import load_recipe
    from hf_compress.study import is_study, load_study

    hf_compress.load_methods()
    raw = yaml.safe_load(path.read_text())
    if is_study(path):
        assert load_study(path).runs
    for size in raw.get("sizes", {None: {}}):
        if not is_study(path):
            load_recipe(path, [f"size={size}"] * (size is not None))
    assert not re.search(r"(^|[\s:'\"])/", path.read_text(), re.M), "an absolute path"
    parts = path.relative_to(ROOT / "recipes").with_suffix("").parts
    assert "_".join(parts).removeprefix("studies_") == raw["name"].replace("-", "_")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "course").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sizes_of_a_course_recipe_set_the_same_kind_of_things(path):
    sizes = yaml.safe_load(path.read_text())["sizes"]
    assert set(sizes) == {"lab", "full"} and yaml.safe_load(path.read_text())["size"] == "lab"
    allowed = {"model", "task", "training", "measure"}
    for key in (key for block in sizes.values() for key in block):
        assert key.split(".")[0] in allowed or key.endswith((".teacher", ".num_train_epochs")), key
