"""From a torch model to an OpenVINO model with the input and output names that Optimum expects."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ..errors import BackendUnavailableError, UnsupportedModelError
from .inputs import example_inputs
from .states import evaluating


if TYPE_CHECKING:
    import openvino

    from ..registry import Batch

# Optimum's batch, and a length that is no multiple of anything in the model
NO_STATISTICS = {"CI": "true", "NNCF_CI": "1"}
EXAMPLE_BATCH, EXAMPLE_LENGTH = 2, 7


def require_openvino():
    """The `openvino` module, or a [`BackendUnavailableError`] that names the extra."""
    try:
        with without_statistics():  # the import alone sends some
            import openvino
    except ImportError as error:
        raise BackendUnavailableError(
            "OpenVINO is not installed; install it with `pip install hf_compress[openvino]`."
        ) from error
    return openvino


def to_openvino(model: nn.Module, inputs: Batch | None = None, *, share_weights: bool = False) -> openvino.Model:
    """
    Convert a torch model for OpenVINO, in float32 and with a dynamic batch, length and image size.

    The result goes into `OVModelForSequenceClassification(result, config=model.config)` or
    `OVModelForImageClassification`, and from there to Optimum's quantizer and `save_pretrained`.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A classifier of tokens or images on the CPU. Its training flags are left as they were; a model of another
            floating type is converted from a float32 copy.
        inputs (`dict[str, torch.Tensor]`, *optional*):
            Example inputs; their names become those of the inputs, in the order given. Made from the configuration
            by default. Labels are dropped.
        share_weights (`bool`, *optional*, defaults to `False`):
            Let the result read the memory of the torch parameters. Saves a copy of the weights, but training or
            compressing `model` afterwards changes the result.

    Returns:
        `openvino.Model`: inputs named as in the model's forward (int64 tokens, float32 pixels), output `logits` of
        shape `(batch, num_labels)`.

    Raises:
        [`BackendUnavailableError`]: without the extra `openvino`.
        [`UnsupportedModelError`]: for a model that cannot be traced, or has no logits.
    """
    openvino = require_openvino()
    if inputs is None:
        length = EXAMPLE_LENGTH if getattr(model, "main_input_name", None) == "input_ids" else None
        inputs = example_inputs(model, EXAMPLE_BATCH, length)
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    if any(parameter.dtype != torch.float32 for parameter in model.parameters() if parameter.is_floating_point()):
        model, share_weights = copy.deepcopy(model).float(), False
    exact = torch.autocast("cpu", enabled=False)  # its casts cannot be traced
    with evaluating(model), exact, _traceable_masks(), _quiet_tracer(), without_statistics():
        try:
            converted = openvino.convert_model(model, example_input=inputs, share_weights=share_weights)
        except Exception as error:  # the converter raises bare RuntimeErrors and its own private classes
            reason = str(error).strip().splitlines()[:3]
            raise UnsupportedModelError(
                f"OpenVINO cannot convert {type(model).__name__}: {' '.join(reason)} Measure or quantize this model "
                "with another runtime."
            ) from error
    return _named(converted, inputs, type(model).__name__)


@contextmanager
def without_statistics() -> Iterator[None]:
    """Keep OpenVINO and NNCF from sending usage statistics, by the variables that they read themselves.

    Without them every conversion starts a process that calls a server, which costs about two seconds offline too.
    """
    before = {name: os.environ.get(name) for name in NO_STATISTICS}
    os.environ.update(NO_STATISTICS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _named(converted: openvino.Model, inputs: Batch, owner: str) -> openvino.Model:
    for port in converted.inputs:
        # tracing leaves aliases such as 'input.1' that differ from run to run
        name = next((name for name in inputs if name in port.get_names()), None)
        if name is None:
            raise UnsupportedModelError(
                f"OpenVINO gave {owner} an input {sorted(port.get_names())}; expected one of {', '.join(inputs)}."
            )
        port.get_tensor().set_names({name})
    outputs = [port for port in converted.outputs if "logits" in port.get_names()]
    if not outputs:
        found = [sorted(port.get_names()) for port in converted.outputs]
        raise UnsupportedModelError(f"{owner} has the outputs {found}; an exported classifier needs 'logits'.")
    for port in [port for port in converted.outputs if port not in outputs]:
        converted.remove_result(port.get_node())  # hidden states that the configuration asks for
    outputs[0].get_tensor().set_names({"logits"})
    converted.validate_nodes_and_infer_types()
    return converted


@contextmanager
def _traceable_masks() -> Iterator[None]:
    """Let attention masks be traced: transformers 5.5 takes the traced query length for its old `cache_position`."""
    originals = {name: ALL_MASK_ATTENTION_FUNCTIONS[name] for name in ("sdpa", "eager")}
    try:
        for name, function in originals.items():
            ALL_MASK_ATTENTION_FUNCTIONS[name] = _with_positions(function)
        yield
    finally:
        for name in originals:
            del ALL_MASK_ATTENTION_FUNCTIONS[name]  # the entry of this instance, which hid the global one


def _with_positions(function: Callable) -> Callable:
    @wraps(function)
    def masks(*args, **kwargs):
        length = kwargs.get("q_length")
        if isinstance(length, torch.Tensor) and length.ndim == 0 and _takes_positions():
            kwargs["q_length"] = torch.arange(length) + kwargs.pop("q_offset", 0)
        return function(*args, **kwargs)

    return masks


def _takes_positions() -> bool:
    return Version(transformers.__version__) < Version("5.6")


@contextmanager
def _quiet_tracer() -> Iterator[None]:
    """Hide the tracer's warnings about branches on shapes and about its deprecation; neither is for the user."""
    masks = logging.getLogger("transformers.masking_utils")  # announces the end of cache_position, see above
    level = masks.level
    try:
        masks.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated.*", category=FutureWarning)
            yield
    finally:
        masks.setLevel(level)
