"""The trainer that every training of this package goes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer

from .callbacks import Divergence, EpochOrder, LogBeforeSave, StepSeed
from .order import GlobalBatchSampler, lengths_of


# Left on the model by accelerate; they outlive the trainer, wrap the model in its autocast, and keep the next trainer
# from preparing the model again.
TRACES = ("forward", "_original_forward", "_is_accelerate_prepared")

# (loss, outputs, inputs, model) -> loss; the loss is None where the data has no labels
LossTerm = Callable[[torch.Tensor | None, Any, dict, nn.Module], torch.Tensor]


class CompressionTrainer(Trainer):
    """A [`~transformers.Trainer`] with an exact order of examples, loss terms, and no traces left on the model.

    It differs from `Trainer` in what follows, and takes everything else from it:

    - the order of examples is a function of (seed, epoch) over global batches, see [`GlobalBatchSampler`]; dropout is
      a function of (seed, step, process). So a training that was stopped goes on exactly;
    - with accumulation the loss is the mean over the accumulated batches;
    - parameters of normalization layers and biases have no weight decay;
    - only the first process writes.

    Args:
        *args, **kwargs: as for `Trainer`.
        loss_terms (`Sequence[Callable]`, *optional*): each is called as `term(loss, outputs, inputs, model)` during
            training, inside autocast, and what it returns replaces the loss. Evaluation leaves them out. One whose
            `needs_hidden_states` is true finds them in the outputs.
    """

    def __init__(self, *args, loss_terms: Sequence[LossTerm] = (), **kwargs):
        config = getattr(kwargs.get("model", args[0] if args else None), "config", None)
        # `Trainer` overwrites it, and would leave it in every config.json saved from now on
        self.config_use_cache = vars(config).get("use_cache") if config is not None else None
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # or losses of accumulated batches would be added up
        self.loss_terms = tuple(loss_terms)
        self.epoch_order = EpochOrder()
        for callback in (self.epoch_order, StepSeed(), LogBeforeSave(), Divergence()):
            self.add_callback(callback)
        if self.args.process_index > 0 and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self.args.save_only_model = True  # and of the model only the first process writes anything

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            self.remove_traces()

    def remove_traces(self) -> None:
        """Give the model back as it was before a trainer prepared it, its trained weights aside."""
        for name in TRACES:
            self.model.__dict__.pop(name, None)
        config = getattr(self.model, "config", None)
        if config is not None and self.config_use_cache is None:
            vars(config).pop("use_cache", None)
        elif config is not None:
            config.use_cache = self.config_use_cache

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training or not self.loss_terms:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        asked = dict(inputs)  # a copy, because label smoothing takes the labels out
        if any(getattr(term, "needs_hidden_states", False) for term in self.loss_terms):
            asked["output_hidden_states"] = True
        if any(name in inputs for name in self.label_names):
            loss, outputs = super().compute_loss(model, asked, True, num_items_in_batch)
        else:
            loss, outputs = None, model(**asked)
        with self.accelerator.autocast():
            for term in self.loss_terms:
                loss = term(loss, outputs, inputs, model)
        return (loss, outputs) if return_outputs else loss

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        dataset, config = loader.dataset, self.args.accelerator_config
        if (
            isinstance(dataset, IterableDataset)
            or self.args.train_sampling_strategy == "sequential"
            or config.split_batches
            or config.dispatch_batches
        ):
            return loader  # an order that was asked for, or that only the data set knows
        sampler = GlobalBatchSampler(
            len(dataset),
            loader.batch_sampler.batch_size,
            parts=self.args.world_size * self.args.gradient_accumulation_steps,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            lengths=lengths_of(self.train_dataset, self.args.length_column_name),
            drop_last=self.args.dataloader_drop_last,
        )
        self.epoch_order.sampler, self.epoch_order.dataset = sampler, dataset
        return self.accelerator.prepare(
            DataLoader(
                dataset,
                batch_sampler=sampler,
                collate_fn=loader.collate_fn,
                num_workers=loader.num_workers,
                pin_memory=loader.pin_memory,
                # workers that stay would not learn which epoch it is
                persistent_workers=loader.persistent_workers and not hasattr(dataset, "set_epoch"),
                prefetch_factor=loader.prefetch_factor,
                worker_init_fn=loader.worker_init_fn,
                multiprocessing_context=loader.multiprocessing_context,
            )
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
        excluded = {
            f"{name}.{parameter}" if name else parameter
            for name, module in model.named_modules()
            for parameter, _ in module.named_parameters(recurse=False)
            if isinstance(module, norms) or parameter == "bias"
        }
        return [name for name in super().get_decay_parameter_names(model) if name not in excluded]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # walks over all parameters at every step, and for an image its figure means nothing
