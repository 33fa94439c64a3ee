from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def fast_collections():
    """Every training collects garbage twice, each time through everything the imports have made; freeze that."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
