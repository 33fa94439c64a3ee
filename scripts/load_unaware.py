"""Load models in a process that knows nothing of hf_compress; `check_reload.py` starts it.

`python load_unaware.py JOBS.json OUTCOMES.json`: a job is `{"class", "options", "folder", "batch", "threads"}`. Each
has a list of outcomes, `{"logits"}` or `{"error"}`: of a plain attempt and, for an architecture that only hf_compress
brings to timm, of another in which timm knows it, but Transformers still nothing of how its modules were changed.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import timm
import torch
import transformers
from safetensors.torch import load_file
from timm.models import get_arch_name


def outcome(job: dict) -> dict:
    """What a plain `from_pretrained` of the job's folder comes to."""
    torch.set_num_threads(job["threads"])
    library = importlib.import_module("optimum.intel") if job["class"].startswith("OV") else transformers
    try:
        model = getattr(library, job["class"]).from_pretrained(job["folder"], **job["options"])
        with torch.inference_mode():
            return {"logits": model(**load_file(job["batch"])).logits.tolist()}
    except Exception as error:  # whichever it is: the caller judges its words
        return {"error": f"{type(error).__name__}: {error}"}


def needs_architecture(job: dict) -> bool:
    """Whether a torch model is of an architecture that timm does not know."""
    config = json.loads((Path(job["folder"]) / "config.json").read_text())
    is_timm = config.get("model_type") == "timm_wrapper" and not job["class"].startswith("OV")
    return is_timm and not timm.is_model(get_arch_name(config["architecture"]))


def register_architectures() -> None:
    """Enter the architectures of hf_compress into timm, from their file alone, without importing the package."""
    folder = Path(find_spec("hf_compress").origin).parent
    for name, place in (("entries", folder), ("entries.models", folder / "models")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(place)]
    importlib.import_module("entries.models.cifar_resnet")


def main(jobs_file: str, outcomes_file: str) -> None:
    logging.disable(logging.WARNING)  # a report on every weight that does not fit
    jobs = json.loads(Path(jobs_file).read_text())
    outcomes = [[outcome(job)] for job in jobs]
    unknown = [index for index, job in enumerate(jobs) if needs_architecture(job)]
    if unknown:
        register_architectures()
    for index in unknown:
        outcomes[index].append(outcome(jobs[index]))
    if any(name.partition(".")[0] == "hf_compress" for name in sys.modules):
        raise SystemExit("Something imported hf_compress, so this shows nothing.")
    Path(outcomes_file).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
