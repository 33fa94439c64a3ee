"""The blocks of a network, one after another, on examples that wait on disk between two blocks.

What enters a block is kept for every example and for every version of the network (dense, pruned). So a block can be
run as often as its repair wants it without running those before it again, and memory holds one batch at a time,
however many examples there are. What waits are tensors and plain values, read back with `weights_only`, in a temporary
folder that goes with the repair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..measurement import device_of, evaluating
from .blocks import chain, check_chain, entering, moved


if TYPE_CHECKING:
    from ..registry import Batch


class Streams:
    """Versions of a network that run side by side, block by block.

    Args:
        models (`Mapping[str, nn.Module]`): versions of one network, whose blocks have the same names.
        batches (`Iterable[Batch]`): inputs; labels are not needed.
        folder (`Path`): an empty folder for what waits.

    Attributes:
        blocks (`list[str]`): names of the blocks, in order.

    Raises:
        [`UnsupportedModelError`]: for a network that does more than hand on what a block gives to the next one.
    """

    def __init__(self, models: Mapping[str, nn.Module], batches: Iterable[Batch], folder: Path):
        self.models = dict(models)
        self.blocks = chain(next(iter(self.models.values())))
        self._files: list[Path] = []
        for index, batch in enumerate(batches):
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            if not index:
                for model in self.models.values():
                    check_chain(model, inputs)
            mask = inputs.get("attention_mask")
            held = {"mask": mask.bool() if mask is not None and mask.ndim == 2 else None}
            held |= {name: entering(model, self.blocks[0], inputs) for name, model in self.models.items()}
            self._files.append(folder / f"{index:05d}.pt")
            torch.save(held, self._files[-1])

    def play(self, block: str, keep: bool = False) -> Iterator[Tensor | None]:
        """Run a block of every version on all examples, a batch at a time; whoever hooks on to it sees it all.

        Args:
            block (`str`): its name; of the first one, or the one after the last that was kept.
            keep (`bool`, *optional*, defaults to `False`): keep what it gives, as the input of the next block.

        Yields:
            `torch.Tensor`, *optional*: after each batch, which tokens of it count, `(examples, length)`.
        """
        with ExitStack() as stack:
            for model in self.models.values():
                stack.enter_context(evaluating(model))
            for path in self._files:
                held = torch.load(path, weights_only=True)
                for name, model in self.models.items():
                    device = device_of(model)
                    args, kwargs = moved(held[name]["args"], device), moved(held[name]["kwargs"], device)
                    output = model.get_submodule(block)(*args, **kwargs)
                    output = output[0] if isinstance(output, tuple) else output
                    held[name]["args"] = [output.cpu(), *held[name]["args"][1:]]
                if keep:
                    torch.save(held, path)
                yield held["mask"]

    def pairs(self, block: str, version: str, wanted: str, order: Sequence[int]) -> Iterator[tuple]:
        """What `block` is called with in one version, and what it gives in another, a batch at a time in any order.

        Args:
            order (`Sequence[int]`): which batches, by their number; any may come several times.

        Yields:
            `tuple`: positional arguments, keyword arguments, the output wanted, and which tokens count.
        """
        device = device_of(self.models[version])
        for index in order:
            held = torch.load(self._files[index], weights_only=True)
            if held.get("of") != block:
                model = self.models[wanted]
                with evaluating(model):
                    args, kwargs = (moved(held[wanted][kind], device) for kind in ("args", "kwargs"))
                    output = model.get_submodule(block)(*args, **kwargs)
                held |= {"of": block, "wanted": (output[0] if isinstance(output, tuple) else output).cpu()}
                torch.save(held, self._files[index])
            args, kwargs = (moved(held[version][kind], device) for kind in ("args", "kwargs"))
            yield args, kwargs, held["wanted"].to(device), held["mask"]

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._files)
