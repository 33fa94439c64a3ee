"""The plug-in that lets plain `from_pretrained` and `save_pretrained` keep the structure of a compressed model.

Transformers has one registry through which a package may change a model between its construction and the loading of
its weights: that of quantization methods. `hf_compress` enters itself there; nothing is quantized by it.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import StructureError
from .describe import check_describable, describe
from .rebuild import rebuild
from .specs import KINDS, ModuleSpec
from .weights import align, check_weights, expected_shapes, follow_dtype, loaded_shapes, shapes_in_files


QUANT_METHOD = "hf_compress"
FORMAT_VERSION = 1


class HfCompressConfig(QuantizationConfigMixin):
    """The structure of a compressed model, as `config.json` carries it under `quantization_config`.

    Args:
        modules (`dict[str, ModuleSpec]`, *optional*): how modules differ from what the rest of the config describes.
        history (`list[dict]`, *optional*): JSON-plain facts, one dict a step; carried along, never acted upon.
        format_version (`int`, *optional*, defaults to 1): of this layout.
        hf_compress_version (`str`, *optional*): of the package that wrote it, for error messages.

    Raises:
        StructureError: for a layout this version does not know, or one that is not valid.
    """

    def __init__(
        self,
        modules: dict[str, ModuleSpec] | None = None,
        history: list[dict[str, Any]] | None = None,
        format_version: int = FORMAT_VERSION,
        hf_compress_version: str | None = None,
        quant_method: str = QUANT_METHOD,
        **unused: Any,
    ):
        self.quant_method = QUANT_METHOD
        self.format_version = format_version
        self.hf_compress_version = hf_compress_version or _version()
        self.modules = {} if modules is None else modules
        self.history = [] if history is None else history
        self._check()

    def get(self, key: str, default: Any = None) -> Any:
        """As of a mapping: Transformers asks so when a config that was loaded before is given to `from_pretrained`."""
        return getattr(self, key, default)

    def _check(self) -> None:
        needed = (
            f"It was written by hf_compress {self.hf_compress_version}, this is {_version()}: "
            "`pip install --upgrade hf_compress`."
        )
        version = self.format_version
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            raise StructureError(
                f"quantization_config.format_version: got {version!r}; this version of hf_compress reads versions up "
                f"to {FORMAT_VERSION}. {needed}"
            )
        if not isinstance(self.modules, dict) or not isinstance(self.history, list):
            raise StructureError(
                "quantization_config: modules must be a mapping from module names to specs, and history a list; got "
                f"{type(self.modules).__name__} and {type(self.history).__name__}."
            )
        for name, spec in self.modules.items():
            kind = spec.get("kind") if isinstance(spec, dict) else None
            if kind not in KINDS:
                raise StructureError(
                    f"quantization_config.modules[{name!r}]: unknown kind {kind!r}; this version of hf_compress knows "
                    f"{', '.join(KINDS)}. {needed}"
                )


class HfCompressQuantizer(HfQuantizer):
    """Rebuilds the structure before weights are loaded, checks them afterwards, and describes it when saving."""

    requires_calibration = False
    _expected: dict[str, tuple[int, ...]] | None = None
    _dtypes: dict[str, torch.dtype] | None = None
    _specs: dict[str, ModuleSpec] | None = None

    def validate_environment(self, *args, **kwargs):
        if not self.pre_quantized:
            raise StructureError(
                "quantization_config=HfCompressConfig(...) describes a model that is compressed already; it does not "
                "compress while loading. Load the model without it, then call hf_compress.prune or factorize."
            )

    def update_dtype(self, dtype):
        return dtype

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **kwargs):
        self._specs = specs_for(model, self.quantization_config.modules)
        rebuild(model, self._specs)
        self._expected = expected_shapes(model)
        self._dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        files = [str(file) for file in checkpoint_files or ()]
        if files and all(file.endswith(".safetensors") for file in files):
            # Before anything is read: here left-over tensors can still be seen, and a lie costs no memory.
            check_weights(model, self._expected, shapes_in_files(files), self._specs, complete=False)
        return model

    def _process_model_after_weight_loading(self, model, **kwargs):
        check_weights(model, self._expected, loaded_shapes(model), self._specs, complete=True)
        follow_dtype(model, self._dtypes)
        self._expected = self._dtypes = self._specs = None
        attach(model, self)
        return model

    def get_state_dict_and_metadata(self, model):
        """Called by `save_pretrained` before it writes the config: describe the model as it is now."""
        if not getattr(model, "_hf_peft_config_loaded", False):  # else only an adapter is saved
            self.refresh(model)
        return None, {}

    def refresh(self, model: PreTrainedModel) -> None:
        """Put the present structure of `model` on its config, or nothing where the config says it all."""
        self.quantization_config = HfCompressConfig(describe(model), self.quantization_config.history)
        if self.quantization_config.modules:
            model.config.quantization_config = self.quantization_config
        elif hasattr(model.config, "quantization_config"):
            del model.config.quantization_config

    def is_serializable(self):
        return True

    @property
    def is_trainable(self):
        return True

    @property
    def is_qat_trainable(self):
        return True

    def _dequantize(self, model, dtype=None):
        raise StructureError(
            "Compression by hf_compress is a structure, not a number format: what was removed cannot be brought back. "
            "Use the model as it is, or load the dense one it came from."
        )


def track(model: PreTrainedModel, **history: Any) -> PreTrainedModel:
    """Make a model keep its structure wherever it is saved, after surgery on its modules.

    Afterwards `save_pretrained`, `push_to_hub`, `Trainer` and its checkpoints write a folder that plain
    `from_pretrained` loads back once `hf_compress` is imported. May be called again and again; the verbs of
    `hf_compress` call it themselves.

    Args:
        model (`PreTrainedModel`): changed only in what is needed to save it.
        history (*optional*): JSON-plain facts about the step just done, such as `method="magnitude"`.

    Returns:
        `PreTrainedModel`: the same model.

    Raises:
        StructureError: if the model differs from its config in a way that cannot be stored; the message names the
            module. Also if it is managed by another quantization method.
    """
    # Facts become what JSON gives back, so that an entry is the same before saving and after loading.
    try:
        facts = json.loads(json.dumps(history, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StructureError(f"history: got {history!r}; give values that JSON can hold ({error}).") from error
    present = _quantizer_of(model)
    quantizer = HfCompressQuantizer(
        HfCompressConfig(history=list(present.quantization_config.history if present else ()))
    )
    if facts and quantizer.quantization_config.history[-1:] != [facts]:
        quantizer.quantization_config.history.append(facts)
    quantizer.refresh(model)
    attach(model, quantizer)
    return model


def check_trackable(model: PreTrainedModel) -> None:
    """Refuse, before surgery, a model that [`track`] could not keep after it.

    Raises:
        StructureError: as [`track`].
    """
    _quantizer_of(model)
    check_describable(model)


def _quantizer_of(model: PreTrainedModel) -> HfCompressQuantizer | None:
    present = getattr(model, "hf_quantizer", None)
    if present is not None and not isinstance(present, HfCompressQuantizer):
        raise StructureError(
            f"The model is managed by {type(present).__name__}; a structure can be kept for floating-point models "
            "only. Prune and factorize first, then quantize."
        )
    return present


def history_of(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The facts that `track` has noted for `model`, oldest first."""
    quantizer = getattr(model, "hf_quantizer", None)
    return list(quantizer.quantization_config.history) if isinstance(quantizer, HfCompressQuantizer) else []


def attach(model: PreTrainedModel, quantizer: HfCompressQuantizer) -> None:
    """Let `model` and the models inside it (such as `model.bert`) save through `quantizer`."""
    align(model)
    tensors = [*model.parameters(), *model.buffers()]
    quantized = any(tensor.dtype in (torch.int8, torch.uint8) for tensor in tensors)
    if getattr(model, "_weight_conversions", None) is not None:
        # What Transformers renamed while loading, it names back when saving; for its oldest names (LayerNorm.gamma)
        # that would give checkpoints which `Trainer` cannot resume from. Without this it saves by today's names.
        del model._weight_conversions
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.hf_quantizer = quantizer
            # Transformers refuses `.float()` and `.half()` to quantized models.
            module.is_quantized = quantized
            module.quantization_method = QUANT_METHOD
            module.config._is_quantized = quantized


def specs_for(model: nn.Module, specs: dict[str, ModuleSpec]) -> dict[str, ModuleSpec]:
    """The specs under the names that `model` has, with or without its base model's prefix.

    A model of another class than the saved one (`AutoModel` on a classifier) lacks the saved head: its specs are left
    out.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    prefix = model.base_model_prefix
    same_class = type(model).__name__ in (getattr(model.config, "architectures", None) or [type(model).__name__])
    resolved: dict[str, ModuleSpec] = {}
    for name, spec in specs.items():
        names = [name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")]
        found = next((candidate for candidate in names if candidate in modules), None)
        if not same_class:
            part = name.partition(".")[0]
            if found is None and part not in (*model._modules, *model.base_model._modules, prefix):
                continue  # a head this class does not have
            if found is not None and isinstance(modules[found], nn.Identity):
                continue  # timm puts an identity where the head would be
        resolved[found or name] = spec
    return resolved


def register() -> None:
    """Enter the plug-in into Transformers' registries; entering it again replaces the entry."""
    AUTO_QUANTIZATION_CONFIG_MAPPING.pop(QUANT_METHOD, None)
    AUTO_QUANTIZER_MAPPING.pop(QUANT_METHOD, None)
    register_quantization_config(QUANT_METHOD)(HfCompressConfig)
    register_quantizer(QUANT_METHOD)(HfCompressQuantizer)


def _version() -> str:
    from .. import __version__

    return __version__


register()
