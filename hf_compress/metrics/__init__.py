"""Metrics as modules of `evaluate`, in the package so that none is downloaded.

`evaluate.load("<package>/metrics/glue/glue.py", "sst2")` takes them by path, as it would take those of the Hub by
name; [`load_metric`] makes them directly.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import evaluate


def load_metric(name: str, config_name: str | None = None) -> evaluate.Metric:
    """Make a metric: `"accuracy"`, or `"glue"` with the name of a subset. Nothing is downloaded, copied or locked."""
    if name == "accuracy":
        from .accuracy.accuracy import Accuracy as Metric
    elif name == "glue":
        from .glue.glue import Glue as Metric
    else:
        raise ValueError(f"metric: got {name!r}; allowed are accuracy, glue.")
    # evaluate makes a folder for intermediate files, which `keep_in_memory` leaves empty
    with tempfile.TemporaryDirectory(prefix="hf_compress-") as folder:
        return Metric(config_name=config_name, keep_in_memory=True, cache_dir=folder)
