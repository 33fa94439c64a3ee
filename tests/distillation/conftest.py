from training.conftest import fast_collections  # noqa: F401
