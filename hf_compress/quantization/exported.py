"""Exported models in Optimum's own layout: make, save and load them.

The folder holds `openvino_model.xml` and `.bin`, `config.json` and, for a quantized model, `openvino_config.json`;
the tokenizer's files stand beside them. That is all that `OVModelForSequenceClassification.from_pretrained` or
`OVModelForImageClassification.from_pretrained` needs, in a process that knows nothing of this package.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from transformers import AutoConfig, PreTrainedConfig, TimmWrapperConfig

from ..errors import CompressionError, NotFoundError, UnsupportedModelError
from ..measurement import openvino_config, stored_bytes
from ..models.processors import has_tokenizer, load_image_processor, load_tokenizer
from ..storage import explain_full_disk
from .engine import quiet_engine, reason_of, require


if TYPE_CHECKING:
    import openvino
    from optimum.intel.openvino.modeling import OVModel

EXTRA = "openvino"
# not optimum.intel, which imports its parts, and sets up their logging, only when they are asked for
OPTIMUM = "optimum.intel.openvino"
MODEL_FILE = "openvino_model.xml"
GRAPH_BYTES = 2**23  # more than the file of that name takes for a BERT of 24 layers in int8
# by the name of a model's main input
CLASSES = {"input_ids": "OVModelForSequenceClassification", "pixel_values": "OVModelForImageClassification"}


class ExportedTimmConfig(TimmWrapperConfig):
    """The configuration of an exported timm network, which states its labels in the way of Transformers too.

    Optimum reads the `config.json` of any timm network as a plain configuration, in which timm's own `label_names`
    mean nothing: without `id2label` a reloaded classifier would have two labels.
    """

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output["id2label"] = dict(self.id2label)
        output["label2id"] = dict(self.label2id or {})
        return output


def wrap(converted: openvino.Model, model: nn.Module) -> OVModel:
    """
    Put a converted model into the class of Optimum that fits it.

    Args:
        converted (`openvino.Model`): what [`to_openvino`] made of `model`.
        model ([`~transformers.PreTrainedModel`]): a classifier of texts or images.

    Returns:
        `OVModel`: not compiled yet; it will be, in float32, by its first call.

    Raises:
        [`UnsupportedModelError`]: if it is not a classifier of whole texts or images.
    """
    (optimum,) = require(OPTIMUM, extra=EXTRA)
    rank = converted.outputs[0].get_partial_shape().rank
    main = getattr(model, "main_input_name", None)
    if main not in CLASSES or rank.is_dynamic or rank.get_length() != 2:
        raise UnsupportedModelError(
            f"{type(model).__name__} takes {main!r} and gives logits of shape {converted.outputs[0].partial_shape}; "
            "exported are classifiers of texts (input_ids) or images (pixel_values), with logits of shape (batch, "
            "labels)."
        )
    with quiet_engine():
        exported = getattr(optimum, CLASSES[main])(converted, config=exported_config(model), compile=False)
    exported.ov_config = openvino_config("f32")
    return exported


def exported_config(model: nn.Module) -> PreTrainedConfig:
    """A copy of the configuration of `model` for its export, without a trace of how its layers were compressed."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    if isinstance(config, TimmWrapperConfig):
        config = ExportedTimmConfig.from_dict(config.to_dict())
    return config


def is_exported(folder: str | os.PathLike) -> bool:
    """Whether `folder` holds an exported model."""
    return (Path(folder) / MODEL_FILE).is_file()


def served_precision(folder: str | os.PathLike) -> Literal["f32", "int8"]:
    """The `precision` of [`load_exported`] in which the model in `folder` is evaluated and timed.

    A quantized model computes as plain `from_pretrained` lets it, which on every CPU is the fastest; an export in
    float computes in float32, what the model did before.
    """
    return "int8" if (Path(folder) / "openvino_config.json").is_file() else "f32"


def save_exported(model: OVModel, folder: str | os.PathLike, processor: Any = None) -> None:
    """
    Save an exported model with its tokenizer or image processor.

    Args:
        model (`OVModel`): as [`quantize`] gives it.
        folder (`str` or `os.PathLike`): made if it does not exist. Write into a folder aside and rename it, if nothing
            half-written may be seen under its final name.
        processor (*optional*): a tokenizer or image processor. timm's image processor lives in `config.json`.

    Raises:
        [`DiskFullError`]: if the disk is full; [`CompressionError`]: if the folder may not be written.
    """
    folder = Path(folder)
    try:
        # OpenVINO gives no reason for a file that it cannot write, and removes it
        with quiet_engine(), explain_full_disk(folder, needed=stored_bytes(model.model) + GRAPH_BYTES):
            folder.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(folder)
            if processor is not None and not isinstance(model.config, TimmWrapperConfig):
                processor.save_pretrained(folder)
    except (OSError, RuntimeError) as error:  # OpenVINO raises RuntimeError for a file that it cannot write
        raise CompressionError(
            f"{folder}: the exported model cannot be written ({reason_of(error)}); give another folder."
        ) from error


def load_exported(
    folder: str | os.PathLike, *, precision: Literal["f32", "bf16", "int8"] = "f32", threads: int | None = None
) -> tuple[OVModel, Any]:
    """
    Load an exported model, to compute in a stated precision, and its processor.

    Args:
        folder (`str` or `os.PathLike`): what [`save_exported`] wrote.
        precision (`str`, *optional*, defaults to `"f32"`): the type in which what is not int8 is computed: `"f32"`,
            `"bf16"`, or `"int8"` for what this CPU is faster at. Left alone, OpenVINO does the last, so that the same
            file gives slightly other logits on another machine: on one with AVX512-BF16 or AMX it computes in bf16,
            and with VNNI it makes int8 of the inputs of layers of which only the weights were made int8.
        threads (`int`, *optional*): of inference; by default what the run was configured for.

    Returns:
        `tuple[OVModel, Any]`: the model, which compiles in its first call, and its tokenizer or image processor, or
        `None`.

    Raises:
        [`BackendUnavailableError`]: without the extra `openvino`; [`NotFoundError`]: without an exported model in
        `folder`; [`CompressionError`]: if its files are damaged.
    """
    folder = Path(folder)
    if not is_exported(folder):
        raise NotFoundError(f"{folder} holds no {MODEL_FILE}; give the folder of an exported model.")
    (optimum,) = require(OPTIMUM, extra=EXTRA)
    try:
        with quiet_engine():
            config = AutoConfig.from_pretrained(folder)
            is_text = config.model_type != "timm_wrapper" and _is_text(config, folder)
            name = CLASSES["input_ids" if is_text else "pixel_values"]
            # as a text: Optimum takes the name of a folder apart
            model = getattr(optimum, name).from_pretrained(
                str(folder), compile=False, ov_config=openvino_config(precision, threads)
            )
            processor = _processor(config, folder, is_text)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, CompressionError):
            raise
        raise CompressionError(
            f"{folder}: the exported model cannot be read ({reason_of(error)}); export it again."
        ) from error
    return model, processor


def _is_text(config: PreTrainedConfig, folder: Path) -> bool:
    for architecture in config.architectures or ():
        if architecture.endswith("ForSequenceClassification"):
            return True
        if architecture.endswith("ForImageClassification"):
            return False
    raise UnsupportedModelError(
        f"{folder}: config.json names the architectures {config.architectures}; one that ends in "
        "ForSequenceClassification or ForImageClassification is needed."
    )


def _processor(config: PreTrainedConfig, folder: Path, is_text: bool) -> Any:
    if is_text:
        return load_tokenizer(folder, None) if has_tokenizer(folder) else None
    if config.model_type == "timm_wrapper":
        return load_image_processor(config, folder, None) if getattr(config, "pretrained_cfg", None) else None
    return load_image_processor(config, folder, None) if (folder / "preprocessor_config.json").is_file() else None
