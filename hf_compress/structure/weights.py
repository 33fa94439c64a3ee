"""Do the stored weights fit the structure? Transformers does not check this for models that bring a quantizer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from ..errors import StructureError
from .specs import ModuleSpec


Shape = tuple[int, ...]

_ALIGNMENT = 64  # bytes, of PyTorch's CPU allocator


def expected_shapes(model: PreTrainedModel) -> dict[str, Shape]:
    """The shape of every tensor that belongs in a weights file of `model`."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def shapes_in_files(files: Iterable[str | Path]) -> dict[str, Shape]:
    """The shape of every tensor in safetensors files, read from their headers.

    Raises:
        StructureError: if a file cannot be read.
    """
    shapes: dict[str, Shape] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                shapes.update({key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()})
        except (SafetensorError, OSError) as error:
            raise StructureError(
                f"{file}: the weights cannot be read ({error}). The file is missing, truncated or damaged; copy or "
                "download it again."
            ) from error
    return shapes


def loaded_shapes(model: PreTrainedModel) -> dict[str, Shape]:
    """The shapes of the tensors that loading has filled, as Transformers marks them."""
    state = model.state_dict(keep_vars=True)
    return {name: tuple(t.shape) for name, t in state.items() if getattr(t, "_is_hf_initialized", False)}


def check_weights(
    model: PreTrainedModel,
    expected: Mapping[str, Shape],
    stored: Mapping[str, Shape],
    specs: Mapping[str, ModuleSpec],
    *,
    complete: bool,
) -> None:
    """Refuse weights that do not fit the rebuilt structure.

    A head that is absent as a whole is left to Transformers, which makes a new one and says so.

    Args:
        model (`PreTrainedModel`): the rebuilt model, for its names and rules.
        expected (`Mapping[str, tuple]`): from `expected_shapes`.
        stored (`Mapping[str, tuple]`): from `shapes_in_files` or `loaded_shapes`.
        specs (`Mapping[str, ModuleSpec]`): the structure, under the names that `model` has.
        complete (`bool`): whether tensors outside of those modules must be there, too. Not in files, where they may
            have the older names that Transformers translates while loading.

    Raises:
        StructureError: if a shape differs, a tensor is missing, or one is left over in a described module.
    """
    found: dict[str, Shape] = {}
    for key, shape in stored.items():
        names = _names_of(key, model.base_model_prefix)
        name = next((name for name in names if name in expected), None)
        if name is not None:
            found[name] = shape
        elif any(_is_described(name, specs) for name in names):
            raise StructureError(
                f"The weights hold {key} {list(shape)}, which the described structure lacks. {_ADVICE}"
            )
    for name, shape in found.items():
        if shape != expected[name]:
            raise StructureError(_mismatch(model, name, shape, expected[name]))
    missing = [name for name in expected if name not in found and _is_described(name, specs)]
    missing = missing or (_missing(model, expected, found) if complete else [])
    if missing:
        raise StructureError(
            f"The weights lack {', '.join(missing[:3])}{f' and {len(missing) - 3} more' if missing[3:] else ''}, "
            f"which the described structure has. {_ADVICE}"
        )


_ADVICE = (
    "The quantization_config in config.json and the weights do not belong together, or one of them is damaged: use "
    "the files as `save_pretrained` wrote them."
)


def _names_of(key: str, prefix: str) -> list[str]:
    return [key, f"{prefix}.{key}", key.removeprefix(f"{prefix}.")]


def _is_described(name: str, specs: Mapping[str, ModuleSpec]) -> bool:
    """Whether the tensor is one of a resized module's own, or anywhere inside a replaced one."""
    parts = name.split(".")
    owners = [".".join(parts[:end]) for end in range(len(parts))]
    return owners[-1] in specs or any(owner in specs and specs[owner]["kind"] != "Resized" for owner in owners)


def _missing(model: PreTrainedModel, expected: Iterable[str], found: Collection[str]) -> list[str]:
    def part(name: str) -> str:
        # the child of the model, or of its base model, that the tensor belongs to
        return name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]

    tolerated = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    present = {part(name) for name in found}
    return [
        name
        for name in expected
        if name not in found
        and name not in model.all_tied_weights_keys
        and not any(pattern.search(name) for pattern in tolerated)
        and part(name) in present
    ]


def _mismatch(model: PreTrainedModel, name: str, stored: Shape, expected: Shape) -> str:
    labels, head = model.config.num_labels, name.rpartition(".")[0]
    *_, (last, _) = model.named_parameters()
    if head == last.rpartition(".")[0] and stored[1:] == expected[1:] and expected[:1] == (labels,):
        return (
            f"The weights are of a model with {stored[0]} labels, but num_labels={labels} was asked for ({name} is "
            f"{list(stored)}, not {list(expected)}). Load it with num_labels={stored[0]} and replace the head: "
            f"`model.{head} = torch.nn.Linear(model.{head}.in_features, {labels}); model.config.num_labels = "
            f"model.num_labels = {labels}`."
        )
    return f"{name} is {list(stored)} in the weights, but {list(expected)} in the described structure. {_ADVICE}"


def align(model: PreTrainedModel) -> None:
    """Put the weights at addresses where PyTorch itself would allocate them.

    Weights read from a file stay mapped at whatever offset they have there, and on unaligned memory matrix products
    may round differently in the last bit: with this, a model and its copy from disk give exactly equal results.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()


def follow_dtype(model: PreTrainedModel, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give the floating tensors the dtypes asked for; Transformers keeps those of the file where it renames a key."""
    in_fp32 = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    for name, tensor in model.state_dict(keep_vars=True).items():
        dtype = dtypes.get(name, tensor.dtype)
        kept = tensor.dtype == torch.float32 and any(part in in_fp32 for part in name.split("."))
        if tensor.is_floating_point() and tensor.dtype != dtype and not kept:
            tensor.data = tensor.data.to(dtype)
