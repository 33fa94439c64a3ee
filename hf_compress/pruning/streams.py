"""The blocks of a network, one after another, on examples that wait on disk between two blocks.

What enters a block is kept for every example and for every version of the network (dense, pruned). So a block can be
run as often as its repair wants it without running those before it again, and memory holds one batch at a time,
however many examples there are. What waits are tensors and plain values, read back with `weights_only`, in a temporary
folder that goes with the repair.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..measurement import device_of, evaluating
from .blocks import chain, check_chain, entering, first_of, moved
from .gradients import MicroBatches
from .speed import plain_attention
from .token_weights import token_weights


if TYPE_CHECKING:
    from ..registry import Batch

LOOKED = ("of", "given", "seen")  # what [`Streams.look`] adds to what waits
Place = tuple[str, str]  # a module's name, and "reads" or "gives"


class Streams:
    """Versions of a network that run side by side, block by block, until it is closed.

    Args:
        models (`Mapping[str, nn.Module]`): versions of one network, whose blocks have the same names.
        batches (`Iterable[Batch]`): inputs; labels are not needed.
        folder (`Path`): an empty folder for what waits.
        judge (`str`, *optional*): the version whose predictions tell what each token counts, see [`token_weights`];
            without one all count the same.

    Attributes:
        blocks (`list[str]`): names of the blocks, in order.

    Raises:
        [`UnsupportedModelError`]: for a network that does more than hand on what a block gives to the next one.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], batches: Iterable[Batch], folder: Path, judge: str | None = None
    ):
        self.models = dict(models)
        self.blocks = chain(next(iter(self.models.values())))
        self._files: list[Path] = []
        parts = None if judge is None else MicroBatches(self.models[judge])
        with ExitStack() as undo:
            for index, batch in enumerate(batches):
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                if not index:  # which has the longest texts
                    for model in self.models.values():
                        check_chain(model, inputs)
                        undo.enter_context(plain_attention(model, inputs))
                mask = inputs.get("attention_mask")
                tokens = mask.float() if mask is not None and mask.ndim == 2 else None
                weights = {} if judge is None else token_weights(self.models[judge], self.blocks, inputs, parts)
                held = {"weights": {name: weights.get(name, tokens) for name in self.blocks}}
                held |= {name: entering(model, self.blocks[0], inputs) for name, model in self.models.items()}
                self._files.append(folder / f"{index:05d}.pt")
                _save(held, self._files[-1])
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Give the models the attention that they came with, see [`plain_attention`]."""
        self._undo.close()

    def look(self, block: str, version: str, places: Collection[Place] = ()) -> None:
        """Run a block of one version on all examples and keep what it gives, and what it reads or gives inside.

        Args:
            block (`str`): its name; of the first one, or the one after the last that was kept.
            version (`str`): the version that is run.
            places (`Collection[tuple[str, str]]`, *optional*): a module's name, and `"reads"` or `"gives"`.
        """
        seen: dict[Place, Tensor] = {}
        handles = [watch(self.models[version].get_submodule(name), (name, kind), seen) for name, kind in places]
        try:
            with evaluating(self.models[version]):
                for path in self._files:
                    held = torch.load(path, weights_only=True)
                    held["of"], held["given"] = block, {version: self._run(block, version, held)}
                    held["seen"] = dict(seen)
                    _save(held, path)
        finally:
            for handle in handles:
                handle.remove()

    def play(
        self, block: str, versions: Collection[str] | None = None, keep: bool = False
    ) -> Iterator[tuple[Tensor | None, dict[Place, Tensor]]]:
        """Run a block of versions on all examples, a batch at a time; whoever hooks on to it sees it all.

        Args:
            block (`str`): its name; of the first one, or the one after the last that was kept.
            versions (`Collection[str]`, *optional*): all by default.
            keep (`bool`, *optional*, defaults to `False`): keep what it gives, as the input of the next block. Of
                versions that [`look`] has run, what it found is taken.

        Yields:
            `tuple`: after each batch, what each of its tokens counts, `(examples, length)`, and what [`look`] saw.
        """
        versions = list(self.models) if versions is None else versions
        with ExitStack() as stack:
            for name in versions:
                stack.enter_context(evaluating(self.models[name]))
            for path in self._files:
                held = torch.load(path, weights_only=True)
                looked = held.get("of") == block
                given, seen = (held[key] if looked else {} for key in ("given", "seen"))
                for name in versions:
                    output = given[name] if keep and name in given else self._run(block, name, held)
                    if keep:
                        held[name]["args"] = [output, *held[name]["args"][1:]]
                if keep:
                    _save({name: value for name, value in held.items() if name not in LOOKED}, path)
                yield held["weights"][block], seen

    def _run(self, block: str, version: str, held: Mapping) -> Tensor:
        model = self.models[version]
        args, kwargs = (moved(held[version][kind], device_of(model)) for kind in ("args", "kwargs"))
        output = model.get_submodule(block)(*args, **kwargs)
        return first_of(output).cpu()

    def pairs(self, block: str, version: str, wanted: str, order: Sequence[int]) -> Iterator[tuple]:
        """What `block` is called with in one version, and what it gives in another, a batch at a time in any order.

        Args:
            wanted (`str`): the other version, which [`look`] has run.
            order (`Sequence[int]`): which batches, by their number; any may come several times.

        Yields:
            `tuple`: positional arguments, keyword arguments, the output wanted, and what each token counts.
        """
        device = device_of(self.models[version])
        for index in order:
            held = torch.load(self._files[index], weights_only=True, mmap=True)  # reads what is used of it
            args, kwargs = (moved(held[version][kind], device) for kind in ("args", "kwargs"))
            yield args, kwargs, held["given"][wanted].to(device), held["weights"][block]

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._files)


def _save(held: Mapping, path: Path) -> None:
    """In place of the file there, which stays as it is for whoever still reads from it."""
    aside = path.with_suffix(".new")
    torch.save(dict(held), aside)
    aside.replace(path)


def watch(module: nn.Module, place: Place, seen: dict[Place, Tensor]) -> RemovableHandle:
    """Keep what a module reads or gives; copies, because what comes after may write into it."""
    if place[1] == "reads":
        return module.register_forward_pre_hook(lambda module, args: seen.update({place: args[0].cpu().clone()}))
    return module.register_forward_hook(
        lambda module, args, output: seen.update({place: first_of(output).cpu().clone()})
    )
