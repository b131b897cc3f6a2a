"""The comparison of two outputs for the same rows: how far they differ, and whether a
tolerance allows it.

Every comparison of predictions calls `compare`. The callers differ only in their
`Tolerance`, which is a constant or a function in the module of the caller. These rules
hold for every tolerance: two NaN are equal, infinities of the same sign are equal, no
tolerance allows a number in place of NaN or infinity, and outputs of different shapes
differ in every row.
"""

from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array, as_table


@dataclass(frozen=True, eq=False)
class Tolerance:
    """The largest allowed difference of two numbers is the sum of `absolute`,
    `relative` and `of_row`, but not more than `most`.

    Attributes:
        absolute: a number, or one number per value of a row, […].
        relative: a share of the expected number.
        of_row: a share of the largest expected number of the row, because small numbers
            may be sums of large ones.
        most: the largest allowed difference.
        is_symmetric: True if `relative` is a share of the larger of both numbers.
        has_signed_zeros: True if 0.0 and -0.0 differ.
        numbers: the kinds of numpy dtypes whose values are numbers. Other values are
            equal, or differ by 1. An integer is a number if it is compared with a
            number of these kinds, because an integer alone may be a code.
    """

    absolute: float | Array = 0.0
    relative: float = 0.0
    of_row: float = 0.0
    most: float = np.inf
    is_symmetric: bool = False
    has_signed_zeros: bool = False
    numbers: str = "f"

    def applies_to(self, want: Array, got: Array) -> bool:
        """Return True if the values of both arrays are numbers."""
        kinds = {want.dtype.kind, got.dtype.kind}
        return not kinds.isdisjoint(self.numbers) and kinds.issubset("fiu" + self.numbers)


EXACT = Tolerance()
LABELS = Tolerance(numbers="")
"""The tolerance for labels, which are equal or different even if they are floats."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """The comparison of two outputs, value by value or row by row.

    Attributes:
        differences: float64 [N, …], the absolute differences. Infinite if only one of
            two values is NaN or infinite.
        excess: float64 [N, …], each difference ÷ its tolerance. Values with an excess
            above 1 differ.
        are_numbers: False if the values are equal (difference 0) or different
            (difference 1).
    """

    differences: Array
    excess: Array
    are_numbers: bool

    @property
    def same(self) -> Array:
        """Return bool [N, …]: True for each value within the tolerance."""
        return np.asarray(self.excess <= 1)

    @property
    def is_same(self) -> bool:
        return bool(self.same.all())

    @property
    def largest(self) -> float:
        """Return the largest difference; 0 without values."""
        return float(self.differences.max(initial=0.0))

    @property
    def worst(self) -> tuple[int, ...]:
        """Return the index of the largest difference that the tolerance does not
        allow.
        """
        sizes = np.where(self.same, -1.0, self.differences)
        return tuple(map(int, np.unravel_index(int(sizes.argmax()), sizes.shape)))

    @property
    def differing_rows(self) -> int:
        return int((self.by_row().excess > 1).sum())

    def by_row(self) -> "Agreement":
        """Return the agreement of each row, [N]: its largest difference and its largest
        excess.
        """
        if self.differences.ndim == 1:
            return self
        return Agreement(
            largest_of_rows(self.differences), largest_of_rows(self.excess), self.are_numbers
        )


def compare(want: Array, got: Array, tolerance: Tolerance = EXACT) -> Agreement:
    """Compare `got`, [N, …], with the expected output `want`, [N, …]. A scalar is
    compared as one row.
    """
    want, got = np.atleast_1d(want, got)
    are_numbers = tolerance.applies_to(want, got)
    if want.shape != got.shape:
        differences = np.full(len(want) or 1, np.inf)  # Without rows, the outputs would agree.
        return Agreement(differences, differences, are_numbers)
    equal = want == got
    if tolerance.has_signed_zeros and are_numbers:
        equal &= np.signbit(want) == np.signbit(got)
    if equal.all():  # This saves half of the time for small outputs.
        differences = np.zeros(want.shape)
        return Agreement(differences, differences, are_numbers)
    equal |= (want != want) & (got != got)
    if not are_numbers:
        return Agreement(1.0 - equal, np.where(equal, 0.0, np.inf), are_numbers)
    want = want.astype(np.float64)
    got = got.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        differences = np.abs(want - got)
        sizes = np.abs(want)
        larger = np.maximum(sizes, np.abs(got)) if tolerance.is_symmetric else sizes
        # The allowed difference is not finite for numbers that are not.
        allowed = tolerance.absolute + tolerance.relative * larger
        if tolerance.of_row:
            largest = largest_of_rows(np.where(np.isfinite(sizes), sizes, 0.0))
            largest = largest.reshape(len(want), *[1] * (want.ndim - 1))
            allowed = allowed + tolerance.of_row * largest
        excess = differences / np.minimum(allowed, tolerance.most)
    for errors in (differences, excess):
        # One value is NaN or infinite, or the tolerance is 0.
        np.copyto(errors, np.inf, where=np.isnan(errors))
        np.copyto(errors, 0.0, where=equal)
    return Agreement(differences, excess, are_numbers)


def largest_of_rows(values: Array) -> Array:
    """Return the largest value of each row of [N, …] numbers; 0 for rows without
    values.
    """
    return np.asarray(as_table(values).max(axis=1, initial=0.0))
