"""Whether counts agree with a law, by chi-square, with a bound that a right sampler exceeds once in a million runs.

The likeliest tokens have a cell each, as far as 5 draws or more are expected of them; all others share one. The bound
is for a family of tests: the chance that any of them fails although every law is right is at most `FAMILY_ALPHA`.
"""

import math
from statistics import NormalDist

import torch
from torch import Tensor

FAMILY_ALPHA = 1e-6
FAMILY = 20
"""As many tests as share `FAMILY_ALPHA`, or more."""

CELLS = 200


def counted(tokens: Tensor, vocab: int) -> Tensor:
    """Count how often each token was drawn."""
    return torch.bincount(tokens.long(), minlength=vocab)


def excess(statistic: float, freedom: int) -> float:
    """Give the statistic as a share of its bound (Wilson and Hilferty's approximation): above 1 is too much."""
    normal = NormalDist().inv_cdf(1 - FAMILY_ALPHA / FAMILY)
    bound = freedom * (1 - 2 / (9 * freedom) + normal * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic / bound


def excess_over_law(counts: Tensor, law: Tensor) -> float:
    """Compare counts with a law, both `[vocab]`; above 1 they disagree. A token outside the law is infinitely many."""
    if counts[law == 0].any():
        return math.inf
    expected = law.double() * counts.sum()
    order = expected.argsort(descending=True)[:CELLS]
    cells = order[expected[order] >= 5]
    rest = expected.sum() - expected[cells].sum()
    expected = torch.cat([expected[cells], rest[None]])
    got = torch.cat([counts[cells], (counts.sum() - counts[cells].sum())[None]]).double()
    full = expected > 1e-9 * counts.sum()  # no rest: all tokens have their cells
    return excess(float(((got - expected)[full] ** 2 / expected[full]).sum()), int(full.sum()) - 1)


def excess_over_independence(table: Tensor) -> float:
    """Compare a table of counts `[rows, columns]` with the products of its margins; above 1 they disagree."""
    expected = table.sum(1, keepdim=True).double() * table.sum(0, keepdim=True) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return excess(float(((table - expected) ** 2 / expected).sum()), freedom)
