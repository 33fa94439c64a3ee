"""The metrics of GLUE, one configuration a subset, as a module of `evaluate`."""

import datasets
import evaluate
import numpy as np
import scipy.stats


_DESCRIPTION = "The metrics of the nine subsets of GLUE (Wang et al., ICLR 2019)."

_INPUTS = """
Args:
    predictions (`list[int]` or `list[float]`): predicted classes; for "stsb", predicted scores.
    references (`list[int]` or `list[float]`): true classes or scores.

Returns, by configuration:
    cola: matthews_correlation (`float`), in [-1, 1]; 0 where predictions or references are all of one class.
    mrpc, qqp: accuracy and f1 (`float`), in [0, 1]; f1 is that of class 1.
    stsb: pearson and spearmanr (`float`), in [-1, 1]; 0 where predictions or references are all the same.
    mnli, qnli, rte, sst2, wnli: accuracy (`float`), in [0, 1].
"""

_SUBSETS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")


class Glue(evaluate.Metric):
    """The metrics of one subset of GLUE; `config_name` is the name of the subset."""

    def _info(self):
        if self.config_name not in _SUBSETS:
            raise KeyError(f"config_name: got {self.config_name!r}; allowed are {', '.join(_SUBSETS)}.")
        kind = datasets.Value("float64" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": kind, "references": kind}),
            format="numpy",
        )

    def _compute(self, predictions, references):
        predictions, references = np.asarray(predictions), np.asarray(references)
        if self.config_name == "cola":
            return {"matthews_correlation": matthews_correlation(predictions, references)}
        if self.config_name == "stsb":
            ranks = scipy.stats.rankdata(predictions), scipy.stats.rankdata(references)
            return {"pearson": correlation(predictions, references), "spearmanr": correlation(*ranks)}
        scores = {"accuracy": float(np.mean(predictions == references))}
        if self.config_name in ("mrpc", "qqp"):
            scores["f1"] = f1(predictions, references)
        return scores


def f1(predictions, references):
    """The harmonic mean of precision and recall of class 1; 0 where it is neither predicted nor present."""
    hits = np.sum((predictions == 1) & (references == 1))
    named = np.sum(predictions == 1) + np.sum(references == 1)
    return float(2 * hits / named) if named else 0.0


def matthews_correlation(predictions, references):
    """The correlation of two binary variables, from their contingency table."""
    return correlation((predictions == 1).astype(np.float64), (references == 1).astype(np.float64))


def correlation(first, second):
    """Pearson's r. Spearman's is that of the ranks, Matthews' that of the classes."""
    first, second = first - np.mean(first), second - np.mean(second)
    scale = np.sqrt(np.sum(first**2) * np.sum(second**2))
    return float(np.sum(first * second) / scale) if scale > 0 else 0.0
