"""How sure a word error rate is, and a difference of two: the bootstrap over clips (Bisani and Ney 2004)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

NUM_SAMPLES = 1000
SEED = 0


def bootstrap_interval(
    errors: np.ndarray, words: np.ndarray, *, level: float = 0.95, num_samples: int = NUM_SAMPLES
) -> tuple[float, float]:
    """The percentile interval of the word error rate, clips drawn with replacement.

    Args:
        errors: [clips] errors of each clip.
        words: [clips] words of each clip's reference.

    Returns:
        Low and high, in percent.
    """
    rates = [100 * _rate(weights @ errors, weights @ words) for weights in _draws(len(errors), num_samples)]
    tail = 50 * (1 - level)
    low, high = np.percentile(rates, [tail, 100 - tail])
    return float(low), float(high)


def paired_bootstrap(
    errors_a: np.ndarray, errors_b: np.ndarray, words: np.ndarray, *, num_samples: int = 10 * NUM_SAMPLES
) -> tuple[float, tuple[float, float]]:
    """Whether two recognisers differ on the same clips; both see the same draws.

    Returns:
        The two-sided p-value of no difference: twice the share of draws in which the difference b - a is zero or of
        the other sign, draws and observation counted ((k + 1) / (n + 1)), at most 1. And the 95 % interval of b - a,
        in percent.
    """
    difference = errors_b - errors_a
    drawn = np.array(
        [100 * _rate(weights @ difference, weights @ words) for weights in _draws(len(words), num_samples)]
    )
    tails = ((drawn <= 0).sum(), (drawn >= 0).sum())
    p_value = min(1.0, 2 * (min(tails) + 1) / (num_samples + 1))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(p_value), (float(low), float(high))


def _draws(num_clips: int, num_samples: int) -> Iterator[np.ndarray]:
    """How often each clip is drawn, sample after sample."""
    generator = np.random.default_rng(SEED)
    for _ in range(num_samples):
        yield np.bincount(generator.integers(num_clips, size=num_clips), minlength=num_clips)


def _rate(errors: int, words: int) -> float:
    return errors / words if words else 0.0
