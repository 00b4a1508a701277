"""Wavelets by name: the filters that put a signal together from its smooth and its detailed half."""

from __future__ import annotations

import math
from functools import cache

import torch

FAMILIES = {"db": (1, 38), "sym": (2, 20), "coif": (1, 17)}  # Daubechies, symlets, coiflets: their orders


def named(wavelet: str) -> tuple[str, int]:
    """Family and order of a wavelet; ValueError if there is none of that name."""
    family, order = wavelet.rstrip("0123456789"), wavelet.lstrip("abcdefghijklmnopqrstuvwxyz")
    first, last = FAMILIES.get(family, (1, 0))
    if order != order.lstrip("0") or not order.isdecimal() or not first <= int(order) <= last:
        known = ", ".join(f"{name}{a} to {name}{b}" for name, (a, b) in FAMILIES.items())
        raise ValueError(f"wavelet_family={wavelet!r} is none of {known}.")
    return family, int(order)


@cache
def filters(family: str, order: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The low-pass and the high-pass filter. ImportError where they come from a package that is missing."""
    if family == "db":
        low = daubechies(order)
    else:
        try:
            import pywt
        except ImportError as error:
            raise ImportError(f"The filters of '{family}{order}' need the package PyWavelets.") from error
        low = tuple(pywt.Wavelet(f"{family}{order}").rec_lo)
    high = tuple(-h if i % 2 else h for i, h in enumerate(reversed(low)))
    return low, high


def daubechies(order: int) -> tuple[float, ...]:
    """The low-pass filter with `order` zeros at the highest frequency, of the least phase: 2·order numbers.

    Daubechies, "Ten Lectures on Wavelets", chapter 6: the other zeros are those within the unit circle of
    P((2 - z - 1/z) / 4), where P(y) is the sum of binomial(order - 1 + k, k)·yᵏ for k below `order`.
    """
    with torch.device("cpu"):
        p = torch.tensor([math.comb(order - 1 + k, k) / 4**k for k in range(order)], dtype=torch.float64)
        companion = torch.diag(torch.ones(order - 1, dtype=torch.float64)[1:], -1)
        if order > 1:
            companion[:, -1] = -p[:-1] / p[-1]
        half = 1 - torch.linalg.eigvals(companion) / 2
    zeros = [min(h + (h * h - 1) ** 0.5, h - (h * h - 1) ** 0.5, key=abs) for h in half.tolist()]
    filter_: list[complex] = [1]
    for zero in [-1, *zeros[: order - 1]] + [-1] * (order - 1):  # times (1 - zero / z)
        filter_ = [a - zero * b for a, b in zip([*filter_, 0], [0, *filter_], strict=True)]
    return tuple((h / sum(filter_)).real * math.sqrt(2) for h in filter_)
