"""Means with bootstrap intervals, paired comparison of two models, Fréchet distance. Everything seeded.

Intervals are percentiles of the bootstrap distribution (Efron 1979): items are drawn with replacement, as many as
there are. Distances between sets are biased upwards by drawing (a resample has fewer different items), so theirs take
only the spread of the resamples.
"""

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np


def mean_interval(
    items: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Weighted mean of `items` and the ends of its interval: (score, low, high). One item's interval has no width.

    Raises:
        ValueError: no items, as many weights as items not given, weights without a sum, impossible options.
    """
    values, shares = _checked(items, weights)
    drawn = bootstrap(lambda chosen: _mean(values, shares, chosen), len(values), resamples=resamples, seed=seed)
    low, high = percentiles(drawn, level)
    return _mean(values, shares), low, high


def bootstrap(score: Callable[[np.ndarray], float], count: int, *, resamples: int, seed: int) -> np.ndarray:
    """`score(indices)` of `resamples` draws of `count` indices from 0..count-1, with replacement -> [resamples]."""
    if count < 1 or resamples < 2:
        raise ValueError(f"Got {count} items and {resamples} resamples; an interval needs at least 1 and 2.")
    rng = np.random.default_rng(seed)
    return np.array([score(rng.integers(count, size=count)) for _ in range(resamples)])


def percentiles(drawn: np.ndarray, level: float) -> tuple[float, float]:
    """Ends of the interval that holds the share `level` of the resamples in its middle."""
    _check_level(level)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def spread_interval(score: float, drawn: np.ndarray, level: float) -> tuple[float, float]:
    """`score` plus and minus the normal quantile of `level` times the deviation of the resamples, not below 0."""
    _check_level(level)
    reach = NormalDist().inv_cdf((1 + level) / 2) * float(np.std(drawn, ddof=1))
    return max(0.0, score - reach), score + reach


def compare(
    items_a: Sequence[float],
    items_b: Sequence[float],
    weights: Sequence[float] | None = None,
    weights_b: Sequence[float] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Is model a's score another than model b's? Paired: the same items in the same order, judged of both. `weights`
    are of the items of a, and of those of b where it has none of its own.

    Returns:
        {"difference": score of a minus score of b, "low", "high": its interval, "p": two-sided}. `p` is twice the
        smaller share of resamples on one side of 0, counting one more than was seen: never below 2 / (resamples + 1).
    """
    if len(items_a) != len(items_b):
        raise ValueError(
            f"Got {len(items_a)} and {len(items_b)} items; a paired comparison needs the same items of both."
        )
    sides = _checked(items_a, weights), _checked(items_b, weights if weights_b is None else weights_b)

    def difference(chosen: np.ndarray | slice = slice(None)) -> float:
        first, second = (_mean(values, shares, chosen) for values, shares in sides)
        return first - second

    drawn = bootstrap(difference, len(items_a), resamples=resamples, seed=seed)
    low, high = percentiles(drawn, level)
    side = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p = min(1.0, 2 * (side + 1) / (resamples + 1))
    return {"difference": difference(), "low": low, "high": high, "p": p}


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Fréchet distance of the normal distributions fitted to two sets of vectors [N, D] and [M, D].

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), covariances divided by N - 1 (Heusel et al. 2017). With C = R^T R, by
    QR, the last trace is the sum of the singular values of R1 R2^T: no root of a nearly singular matrix is taken.
    """
    sets = [np.asarray(side, np.float64) for side in (first, second)]
    shapes = [side.shape for side in sets]
    if any(len(shape) != 2 or shape[0] < 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"Got vectors of shapes {shapes[0]} and {shapes[1]}; give [N, D] and [M, D], N and M above 1."
        )
    means = [side.mean(0) for side in sets]
    roots = [
        np.linalg.qr(side - mean, mode="r") / np.sqrt(len(side) - 1) for side, mean in zip(sets, means, strict=True)
    ]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    traces = sum(np.square(root).sum() for root in roots) - 2 * shared
    return max(0.0, float(np.square(means[0] - means[1]).sum() + traces))  # rounding may take it below


def frechet_result(
    name: str, first: Sequence[Any], second: Sequence[Any], resamples: int, level: float, seed: int
) -> dict[str, float]:
    """Result of a metric: the distance between two lists of items, each with its vectors [n, D], and its interval.

    Items are resampled in pairs: the i-th of both lists belong to one prompt.
    """

    def distance(chosen: Sequence[int]) -> float:
        return frechet_distance(*(np.concatenate([side[i] for i in chosen]) for side in (first, second)))

    if len(first) < 2:
        raise ValueError(f"Got {len(first)} items; a distance of distributions needs at least 2.")
    if not all(np.isfinite(vectors).all() for side in (first, second) for vectors in side):
        raise ValueError("Got features that are NaN or infinite. Look at the items they were made from.")
    score = distance(range(len(first)))
    drawn = bootstrap(distance, len(first), resamples=resamples, seed=seed)
    low, high = spread_interval(score, drawn, level)
    return {name: score, "low": low, "high": high}


def item_result(
    name: str,
    items: Sequence[float],
    weights: Sequence[float] | None,
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """Result of a metric whose score is the mean of its items: {name, "low", "high", "items"[, "weights"]}."""
    score, low, high = mean_interval(items, weights, resamples=resamples, level=level, seed=seed)
    result = {name: score, "low": low, "high": high, "items": [float(item) for item in items]}
    return result if weights is None else result | {"weights": [float(weight) for weight in weights]}


def _checked(items: Sequence[float], weights: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(items, np.float64)
    shares = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    if values.ndim != 1 or len(values) == 0 or shares.shape != values.shape or not np.isfinite(values).all():
        raise ValueError(
            f"Got items of shape {values.shape} and weights of shape {shares.shape}; give one finite number per item."
        )
    wrong = shares[~(np.isfinite(shares) & (shares > 0))]
    if len(wrong):
        raise ValueError(f"Got a weight of {wrong[0]:g}; weights are finite and above 0. Leave such items out.")
    return values, shares


def _mean(values: np.ndarray, shares: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> float:
    return float(values[chosen] @ shares[chosen] / shares[chosen].sum())


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"Got an interval of level {level}; it is a share between 0 and 1, such as 0.95.")
