"""Compress Transformers and timm models, and report honestly what each step did."""

__version__ = "0.1.0"


from . import structure  # noqa: E402, F401  (registers with Transformers, so that compressed models load)
