"""Low-rank factorization: the technique `factorize`."""

from .factors import Basis, Metric, decompose
from .svd import SvdOptions, factorize_svd
from .verb import factorize


__all__ = ["Basis", "Metric", "SvdOptions", "decompose", "factorize", "factorize_svd"]
