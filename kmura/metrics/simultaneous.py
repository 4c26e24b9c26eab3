"""Simultaneous inference for several differences of scores from bootstrap resamples."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Simultaneous:
    """Differences with intervals and p-values that are corrected for their number; all arrays [P].

    Attributes:
        difference: as given.
        low, high: intervals that contain all true differences together with the probability `level`; NaN where the
            difference does not vary between the resamples.
        p: two-sided p-values for the null hypothesis that no true difference differs from 0, 1 / (R + 1) or more; NaN
            where there is no interval.
    """

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def simultaneous(difference, drawn, level: float = 0.95) -> Simultaneous:
    """Returns differences with simultaneous intervals and single-step maxT p-values.

    The largest of the studentised deviations |d* - d| / s of a resample is the reference for all differences: its
    quantile q gives the intervals d +- q s, and the share of resamples in which it reaches |d| / s is the p-value
    (Westfall & Young 1993, sections 2.3 and 2.5; Hothorn, Bretz & Westfall 2008 for the intervals). Differences may
    depend on each other, since all come from the same resamples. s is the standard deviation of d* over the resamples.
    Resamples in which a difference is undefined do not count for this difference.

    Args:
        difference: [P].
        drawn: [R, P], the differences in R resamples; NaN where undefined.
        level: coverage, 0..1.
    """
    difference, drawn = np.asarray(difference, float), np.asarray(drawn, float)
    defined = ~np.isnan(drawn)
    number = defined.sum(0)
    mean = np.where(defined, drawn, 0).sum(0) / np.maximum(number, 1)
    spread = np.sqrt(np.where(defined, (drawn - mean) ** 2, 0).sum(0) / np.maximum(number - 1, 1))
    usable = (number > 1) & (spread > 1e-9) & ~np.isnan(difference)
    nothing = np.full(len(difference), np.nan)
    low, high, p = nothing.copy(), nothing.copy(), nothing.copy()
    if usable.any():
        scale, chosen = spread[usable], difference[usable]
        deviations = np.abs(drawn[:, usable] - chosen) / scale
        largest = np.where(defined[:, usable], deviations, -np.inf).max(1)
        largest = largest[np.isfinite(largest)]
        half = np.quantile(largest, level) * scale
        low[usable], high[usable] = chosen - half, chosen + half
        reached = largest[:, None] >= np.abs(chosen) / scale
        p[usable] = (1 + reached.sum(0)) / (1 + len(largest))
    return Simultaneous(difference, low, high, p)
