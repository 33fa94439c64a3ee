"""Accuracy, as a module of `evaluate`."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = "The share of predictions that equal their references."

_INPUTS = """
Args:
    predictions (`list[int]`): predicted classes.
    references (`list[int]`): true classes.

Returns:
    accuracy (`float`): in [0, 1].
"""


class Accuracy(evaluate.Metric):
    """The share of predictions that equal their references."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
