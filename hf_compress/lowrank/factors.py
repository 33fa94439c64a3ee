"""What to cut: the best factors of a weight under a weighting, and the error of every rank.

One formula covers the family. For `y = W x`, the rank-r matrix that minimizes `|L (W - W_r) R|` (Frobenius) is the
truncated SVD of `L W R` with `L` and `R` undone. `L = R = 1` is the plain SVD (Eckart and Young, 1936);
`R R^T = E[x x^T]`, the second moment of the input, minimizes the error of the output (DRONE, SVD-LLM); a diagonal of
gradients gives FWSVD. Whoever adds a weighting provides a [`Metric`] and nothing else.

The truncated SVD is a projection: with `U` the leading left singular vectors of `L W R`, `W_r = L^-1 U U^T L W`; with
`V` the right ones, `W_r = W R V V^T R^-1`. So only the smaller side is decomposed, as the eigenvectors of its Gram
matrix in double precision: singular values are good to about 1e-8 of the largest, finer than float32 weights, at a
third to a fifth of the time of an SVD. A [`Basis`] keeps that projection for the ranks that will be asked for, and a
rank then costs one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


# eigenvalues of a metric below this part of the largest are raised to it: directions that calibration never saw stay
# part of the weight, and the inverse stays harmless
RIDGE = 1e-7


class Metric:
    """A weighting of one side of a weight: the symmetric positive semi-definite `R R^T` (or `L^T L`).

    Args:
        matrix (`torch.Tensor`): of shape `(n, n)`, or `(n,)` for a diagonal; read in double precision.
    """

    def __init__(self, matrix: Tensor):
        self.matrix = matrix.double()

    def gram(self, factor: Tensor) -> Tensor:
        """`factor M factor^T` for a factor of shape `(k, n)`."""
        weighted = factor * self.matrix if self.matrix.ndim == 1 else factor @ self.matrix
        return weighted @ factor.T

    def roots(self) -> tuple[Tensor, Tensor]:
        """The symmetric root of the matrix and its inverse, both `(n, n)`."""
        if self.matrix.ndim == 1:
            values, vectors = self.matrix, torch.eye(len(self.matrix), dtype=torch.float64, device=self.matrix.device)
        else:
            values, vectors = torch.linalg.eigh(self.matrix)
        largest = values.max().clamp_min(0)
        roots = values.clamp_min(largest * RIDGE).sqrt() if largest > 0 else torch.ones_like(values)
        return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


@dataclass(frozen=True)
class Basis:
    """The projections onto the leading `k` directions of a weight `(m, n)`.

    Args:
        side (`str`): `"left"` for `W_r = exit @ entry @ W`, `"right"` for `W_r = W @ exit @ entry`.
        exit (`torch.Tensor`): `(m, k)`, or `(n, k)` for the right side, in the weight's precision.
        entry (`torch.Tensor`, *optional*): `(k, m)` or `(k, n)`; `None` where it is the transposed `exit`.
        errors (`torch.Tensor`): `(min(m, n) + 1,)` in double precision: the squared weighted error of every rank.
    """

    side: str
    exit: Tensor
    entry: Tensor | None
    errors: Tensor

    def factors(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """`down` of shape `(rank, n)` and `up` of shape `(m, rank)`, so that `up @ down` is `W_r`."""
        if not 1 <= rank <= self.exit.shape[1]:
            raise ValueError(f"rank: got {rank}; this basis holds 1 to {self.exit.shape[1]}.")
        wide = _computing(weight)
        exit_ = self.exit[:, :rank].to(wide.dtype)
        entry = exit_.T if self.entry is None else self.entry[:rank].to(wide.dtype)
        up, down = (exit_, entry @ wide) if self.side == "left" else (wide @ exit_, entry)
        return _balanced(down, up)

    def relative_error(self, rank: int) -> float:
        """`|L (W - W_r) R| / |L W R|`, 0 for a weight of zeros."""
        return float((self.errors[rank] / self.errors[0]).sqrt()) if self.errors[0] > 0 else 0.0


def decompose(
    weight: Tensor, left: Metric | None = None, right: Metric | None = None, max_rank: int | None = None
) -> Basis:
    """Find the best projections of a weight for all ranks up to `max_rank`.

    Args:
        weight (`torch.Tensor`): of shape `(m, n)`, of any floating type; the work is done in double precision.
        left ([`Metric`], *optional*): `L^T L` of size `m`.
        right ([`Metric`], *optional*): `R R^T` of size `n`.
        max_rank (`int`, *optional*): how many directions to keep; all if not given.

    Returns:
        [`Basis`]: `basis.factors(weight, rank)` are the factors.
    """
    matrix = weight.detach().double()
    tall = matrix.shape[0] > matrix.shape[1]
    # a tall weight is worked on as its transpose, where left and right change places
    near, far = (right, left) if tall else (left, right)
    side = matrix.T if tall else matrix
    root = inverse = None
    if near is not None:
        root, inverse = near.roots()
        side = root @ side
    gram = side @ side.T if far is None else far.gram(side)
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    errors = torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)])
    vectors = _signed(vectors[:, : max_rank or len(values)])
    kept = torch.promote_types(weight.dtype, torch.float32)
    if near is None:
        return Basis("right" if tall else "left", vectors.to(kept).contiguous(), None, errors)
    # left: L^-1 U and U^T L; right: R V and V^T R^-1; both roots are symmetric
    exit_, entry = (root @ vectors, vectors.T @ inverse) if tall else (inverse @ vectors, vectors.T @ root)
    return Basis("right" if tall else "left", exit_.to(kept), entry.to(kept), errors)


def smallest_rank(errors: Tensor, energy: float) -> int:
    """The least rank, at least 1, that keeps the part `energy` of the squared norm."""
    allowed = (1 - energy) * float(errors[0])
    # a sum of rounding errors is no energy
    allowed = max(allowed, 1e-12 * float(errors[0]))
    return max(1, int((errors > allowed).sum()))


def _signed(vectors: Tensor) -> Tensor:
    """The largest entry of every column positive, so that factors do not depend on the sign LAPACK came up with."""
    largest = vectors.abs().argmax(0, keepdim=True)
    return vectors * torch.where(vectors.gather(0, largest) < 0, -1.0, 1.0)


def _balanced(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Give both factors of each direction the same norm, which suits weight decay and integer ranges alike."""
    rows, columns = down.norm(dim=1), up.norm(dim=0)
    tiny = torch.finfo(down.dtype).tiny ** 0.5
    scale = torch.where((rows > tiny) & (columns > tiny), (rows / columns.clamp_min(tiny)).sqrt(), 1.0)
    return down / scale.clamp_min(tiny)[:, None], up * scale


def _computing(weight: Tensor) -> Tensor:
    weight = weight.detach()
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
