"""Compress Transformers and timm models, and report honestly what each step did."""

__version__ = "0.1.0"
