"""Make a model folder of a checkpoint of https://github.com/akamaster/pytorch_resnet_cifar10 (BSD-2-Clause).

    python scripts/convert_resnet_cifar.py resnet56-4bfd9763.th hub/models/resnet56_cifar10
    export HF_COMPRESS_DATA=$PWD/hub

The checkpoints, of ResNet-20 to 110, are in `pretrained_models` there. The network, one of the `resnet…_cifar` of
timm's registry with shortcut "A", is told by how many blocks there are.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import hf_compress as hc
from hf_compress.errors import CompressionError
from hf_compress.storage import whole_folder, write_json
from hf_compress.tasks.cifar10 import LABELS


NAMES = {"linear": "fc"}  # theirs: ours
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of their input pipeline


def convert(checkpoint: Path, folder: Path) -> str:
    """Write the model of `checkpoint` as `folder`, which must not exist, and return its architecture."""
    if folder.exists():
        raise CompressionError(f"{folder} is there already; move it away, or give another folder.")
    try:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        weights = {_renamed(name): value.contiguous() for name, value in stored.items()}
    except OSError as error:
        raise CompressionError(f"{checkpoint} cannot be read: {error}") from error
    except Exception as error:  # pickle, zipfile and torch have errors of their own for files of another kind
        raise CompressionError(f"{checkpoint} is no checkpoint with a `state_dict`: {error}") from error
    depth = 2 + 6 * len({name for name in weights if re.fullmatch(r"layer1\.\d+\.conv1\.weight", name)})
    architecture = f"resnet{depth}_cifar"
    config = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperForImageClassification"],
        "architecture": architecture,
        "model_args": {"shortcut": "A"},
        "num_classes": len(LABELS),
        "label_names": list(LABELS),
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "mean": list(MEAN),
            "std": list(STD),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "fixed_input_size": False,
            "pool_size": [8, 8],
            "classifier": "fc",
            "first_conv": "conv1",
        },
        "dtype": "float32",
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as aside:
        write_json(aside / "config.json", config)
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
        network = hc.load_model(aside)[0].timm_model  # refuses weights that are missing or of another shape
        if other := sorted(weights.keys() - network.state_dict().keys()):
            raise CompressionError(f"{checkpoint} has weights that {architecture} has not: {', '.join(other)}.")
    return architecture


def _renamed(name: str) -> str:
    first, _, rest = name.removeprefix("module.").partition(".")
    return f"{NAMES.get(first, first)}.{rest}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        print(f"{options.folder}: {convert(options.checkpoint, options.folder)}")
    except CompressionError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
