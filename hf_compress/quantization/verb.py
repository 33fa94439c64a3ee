"""`quantize`, on any model and any data, without a recipe."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import CompressionError, UnsupportedModelError
from ..registry import get_method
from ..storage import whole_folder
from ..training import Context, StepReport, apply_method
from .exported import save_exported


def quantize(
    model: nn.Module,
    *,
    backend: str = "openvino",
    output_dir: str | os.PathLike,
    data: Any = None,
    collate_fn: Callable | None = None,
    processor: Any = None,
    seed: int = 0,
    **options,
) -> StepReport:
    """
    Export a model to an inference engine, quantized or not, into a folder of its own.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A classifier of texts or images; pruned and factorized ones included. It is left as it was.
        backend (`str`, *optional*, defaults to `"openvino"`):
            A registered method of the technique `quantize`.
        output_dir (`str` or `os.PathLike`):
            A folder that does not exist yet, or is empty. It appears under this name only when it is complete.
        data (`datasets.Dataset` or another data set, *optional*):
            Training examples for static quantization. Labels are not needed.
        collate_fn (`Callable`, *optional*):
            Makes a batch of examples.
        processor (*optional*):
            A tokenizer or image processor to save beside the model.
        seed (`int`, *optional*, defaults to 0):
            Of the choice of calibration examples.
        **options:
            Of the backend; for `"openvino"` see [`OpenVinoOptions`].

    Returns:
        [`StepReport`]: with the exported model in `model` and the bits of every layer in `notes["layers"]`. That model
        computes what is not int8 in float32. So does one that is loaded from the folder with the `ov_config` below;
        without it OpenVINO takes what the CPU is fastest at, such as bf16 (see [`load_exported`]).

    Raises:
        [`~errors.BackendUnavailableError`]: the engine is not installed.
        [`~errors.CompressionError`]: static quantization without data, or an `output_dir` that is in use.
        [`~errors.RecipeError`]: an unknown backend or option.
        [`~errors.UnsupportedModelError`]: the engine cannot take the model.

    Example:

    ```python
    import hf_compress as hc
    from optimum.intel import OVModelForSequenceClassification

    hc.quantize(model, scheme="static_int8", data=train, collate_fn=collator, output_dir="int8", processor=tokenizer)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    model = OVModelForSequenceClassification.from_pretrained("int8", ov_config=exact)
    ```
    """
    get_method("quantize", backend)
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"quantize: got {type(model).__name__}, which is not a torch model; give the model it was exported from."
        )
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CompressionError(f"output_dir: {folder} exists and is not empty; give a new folder, or remove it.")
    context = Context(data=data, collate_fn=collate_fn, seed=seed)
    report = apply_method(model, "quantize", backend, options, context)
    with whole_folder(folder) as aside:
        save_exported(report.model, aside, processor)
    return report
