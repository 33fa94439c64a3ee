"""`DistillationTrainer`: a drop-in for `Trainer` that also has a teacher."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, TrainingArguments

from ..training import CompressionTrainer
from .term import DistillationTerm, check_ranges


@dataclass
class DistillationArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] and what distillation adds.

    Args:
        temperature (`float`, *optional*, defaults to 4.0): softens both distributions; above 0.
        alpha (`float`, *optional*, defaults to 0.9): the weight of the teacher, from 0 to 1; labels weigh 1 - alpha.
        hidden (`float`, *optional*, defaults to 0): the weight of the layers' hidden states.
    """

    temperature: float = field(default=4.0, metadata={"help": "Softens both distributions; above 0."})
    alpha: float = field(default=0.9, metadata={"help": "The weight of the teacher, from 0 to 1."})
    hidden: float = field(default=0.0, metadata={"help": "The weight of the layers' hidden states."})

    def __post_init__(self):
        check_ranges(self.temperature, self.alpha, hidden=self.hidden)
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # or bf16 would be refused
        super().__post_init__()


class DistillationTrainer(CompressionTrainer):
    """A [`~transformers.Trainer`] whose student also learns from a teacher's logits.

    Args:
        model ([`~transformers.PreTrainedModel`]): the student.
        args ([`DistillationArguments`]): plain `TrainingArguments` mean the default temperature and alpha.
        *others, **kwargs: as for `Trainer`: `train_dataset`, `eval_dataset`, `data_collator`, `processing_class`, …
        teacher ([`~transformers.PreTrainedModel`]): a trained model of the same task.

    Example:

    ```python
    >>> trainer = DistillationTrainer(
    ...     model=student, teacher=teacher, args=DistillationArguments("out", alpha=0.9), train_dataset=train
    ... )
    >>> trainer.train()
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: TrainingArguments | None = None,
        *others,
        teacher: PreTrainedModel,
        **kwargs,
    ):
        if args is None:
            args = DistillationArguments()
        super().__init__(model, args, *others, **kwargs)
        term = DistillationTerm(
            self.model,
            teacher,
            temperature=getattr(args, "temperature", DistillationArguments.temperature),
            alpha=getattr(args, "alpha", DistillationArguments.alpha),
            hidden=getattr(args, "hidden", DistillationArguments.hidden),
        )
        self.loss_terms = (term, *self.loss_terms)
