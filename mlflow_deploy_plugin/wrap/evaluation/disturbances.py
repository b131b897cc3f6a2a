"""Disturbances of rows. Each function takes named arrays and a random generator, and
returns changed copies.

Numbers keep their type and its bounds. A tensor with two dimensions is a table of
columns. A tensor with more dimensions has an image per row; with four, the channels are
the second or the last dimension, whichever is smaller.
"""

import string
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays
from mlflow_deploy_plugin.wrap.evaluation.metrics import spread

UNSEEN = "(never seen)"
_SHARE_OUT_OF_RANGE = 0.1
_MAX_SCALED = 50
"""The maximum number of columns that are scaled separately; each column costs a
prediction of all rows.
"""


def with_noise(rows: NamedArrays, share: float, rng: np.random.Generator) -> NamedArrays:
    """Add normal noise of `share` standard deviations of the column or image. Integers
    remain integers.
    """

    def disturb(values: Array) -> Array:
        scale = (
            np.array([spread(column) for column in values.T])
            if values.ndim == 2
            else spread(values)
        )
        noise = rng.normal(size=values.shape) * share * scale
        if values.dtype.kind == "f":
            return (values + noise).astype(values.dtype)
        return within_type(values.astype(np.float64) + np.round(noise), values.dtype)

    return rows | {
        name: disturb(values) for name, values in rows.items() if values.dtype.kind in "iuf"
    }


def with_missing(rows: NamedArrays, share: float, rng: np.random.Generator) -> NamedArrays:
    """Replace a share of the values in each column with NaN in float columns and None
    in other columns.
    """

    def disturb(values: Array) -> Array:
        gone = rng.random(values.shape) < share
        if values.dtype.kind == "f":
            return np.where(gone, np.nan, values).astype(values.dtype)
        changed = values.astype(object)
        changed[gone] = None
        return changed

    return {name: disturb(values) for name, values in rows.items()}


def with_out_of_range(rows: NamedArrays, ranges: float, rng: np.random.Generator) -> NamedArrays:
    """Move a tenth of the numbers by `ranges` ranges beyond their column's limits;
    replace a tenth of the texts.
    """

    def disturb(values: Array) -> Array:
        moved = rng.random(values.shape) < _SHARE_OUT_OF_RANGE
        if values.dtype.kind == "O":
            changed = values.copy()
            changed[moved & _is_text(values)] = UNSEEN
            return changed
        numbers = values.astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        if values.dtype.kind not in "iuf" or not len(finite):
            return values
        low = finite.min()
        high = finite.max()
        far = max(high - low, 1e-12) * ranges
        ends = np.where(
            rng.random(values.shape) < 0.5,
            low - far,
            high + far,
        )
        return within_type(np.where(moved, ends, numbers), values.dtype)

    return {name: disturb(values) for name, values in rows.items()}


def within_type(numbers: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        return np.where(
            np.isfinite(numbers),
            np.clip(numbers, limits.min, limits.max),
            numbers,
        ).astype(dtype)
    bounds = np.iinfo(dtype)
    return np.clip(
        np.round(numbers),
        max(bounds.min, -(2**53)),
        min(bounds.max, 2**53),
    ).astype(
        dtype,
    )


def unfit_reason(name: str, rows: NamedArrays) -> str:
    """Return the reason why the disturbance does not apply to these rows; empty if it
    applies.
    """
    kinds = [(values.dtype.kind, values.ndim) for values in rows.values()]
    has_texts = any(_is_text(values).any() for values in rows.values() if values.dtype.kind == "O")
    if name in ("unseen", "typos") and not has_texts:
        return "the model has no text inputs"
    if name in ("noise", "scale") and not any(kind in "iuf" for kind, _ in kinds):
        return "the model has no numeric inputs"
    if name in ("brightness", "occlusion") and not any(
        kind in "iuf" and rank > 2 for kind, rank in kinds
    ):
        return "the model has no image inputs (tensors with more than two dimensions)"
    if name in ("missing", "swap") and not any(rank <= 2 for _, rank in kinds):
        return "the model has image inputs and no columns"
    return ""


def with_swaps(rows: NamedArrays, share: float, rng: np.random.Generator) -> NamedArrays:
    """Swap a share of the values within each column, like a join by the wrong key."""

    def swapped(values: Array) -> Array:
        changed = values.copy()
        table = changed.reshape(len(values), -1)
        for column in table.T:  # Each column is a view of `changed`.
            order = rng.permutation(np.flatnonzero(rng.random(len(column)) < share))
            column[order] = column[np.roll(order, 1)]
        return changed

    return rows | {name: swapped(values) for name, values in rows.items() if values.ndim <= 2}


def with_typos(rows: NamedArrays, share: float, rng: np.random.Generator) -> NamedArrays:
    """Mistype a share of the characters of each text: drop, double or replace a
    character, or swap it with the next.
    """

    def mistyped(text: str) -> str:
        characters = list(text)
        for index in np.flatnonzero(rng.random(len(text)) < share):
            wrong = rng.integers(4)
            if wrong == 0:
                characters[index] = ""
            elif wrong == 1:
                characters[index] *= 2
            elif wrong == 2 or index + 1 == len(text):
                characters[index] = string.ascii_lowercase[rng.integers(26)]
            else:
                characters[index : index + 2] = characters[index + 1], characters[index]
        return "".join(characters)

    return _of_texts(
        rows,
        lambda texts: np.array([mistyped(text) for text in texts], dtype=object),
    )


def with_unseen(rows: NamedArrays, share: float, rng: np.random.Generator) -> NamedArrays:
    """Replace a share of the texts with an unseen text."""
    return _of_texts(
        rows,
        lambda texts: np.where(rng.random(len(texts)) < share, UNSEEN, texts),
    )


def scaled_columns(
    rows: NamedArrays,
    factor: float,
    rng: np.random.Generator,
) -> Iterator[tuple[str, NamedArrays]]:
    """Yield the rows with one column multiplied by the factor; an image is scaled as
    one column.
    """
    columns = list(_numeric_columns(rows))
    if len(columns) > _MAX_SCALED:
        columns = [
            columns[index]
            for index in np.sort(rng.choice(len(columns), _MAX_SCALED, replace=False))
        ]
    for name, column in columns:
        label = name if column is None else f"{name}[{column}]"
        selection = np.s_[:] if column is None else np.s_[:, column]
        changed = rows[name].copy()
        changed[selection] = within_type(
            changed[selection].astype(np.float64) * factor, changed.dtype
        )
        yield label, {**rows, name: changed}


def _numeric_columns(rows: NamedArrays) -> Iterator[tuple[str, int | None]]:
    """Yield the name and the position of each column of numbers. The position is None
    unless the array has two dimensions.
    """
    for name, values in rows.items():
        if values.dtype.kind not in "iuf":
            continue
        if values.ndim == 2:
            yield from product([name], range(values.shape[1]))
        else:
            yield name, None


def brightened(
    rows: NamedArrays,
    share: float,
    rng: np.random.Generator,
) -> Iterator[tuple[str, NamedArrays]]:
    """Yield brighter images, then darker images, by this share of the value range;
    values stay in the range.
    """
    for name, sign in (("brighter", 1.0), ("darker", -1.0)):

        def shifted(values: Array, sign: float = sign) -> Array:
            low, high = value_range(values)
            return within_type(
                np.clip(values + sign * share * (high - low), low, high),
                values.dtype,
            )

        yield name, _of_pictures(rows, shifted)


def occluded(rows: NamedArrays, share: float, rng: np.random.Generator) -> NamedArrays:
    """Cover a box of this share of each image, at a random position, with the mean of
    all values.
    """

    def covered(values: Array) -> Array:
        first = 1 if values.ndim <= 4 else -2
        if values.ndim == 4 and values.shape[1] <= values.shape[3]:
            first = 2
        changed = np.moveaxis(
            values.copy(),
            (first, first + 1),
            (1, 2),
        )  # The result is a view.
        sides = np.maximum(
            np.round(np.sqrt(share) * np.array(changed.shape[1:3])).astype(int),
            1,
        )
        corners = rng.integers(
            0,
            np.array(changed.shape[1:3]) - sides + 1,
            (len(values), 2),
        )
        grey = within_type(np.nanmean(values, keepdims=True), values.dtype).item()
        for picture, (top, left) in zip(changed, corners, strict=True):
            picture[top : top + sides[0], left : left + sides[1]] = grey
        return np.ascontiguousarray(
            np.moveaxis(
                changed,
                (1, 2),
                (first, first + 1),
            )
        )

    return _of_pictures(rows, covered)


def value_range(values: Array, empty: float = 0.0) -> tuple[float, float]:
    """Return the smallest and the largest finite number, or `empty` if no number is
    finite.
    """
    finite = values[np.isfinite(values)]
    if finite.size:
        return (float(finite.min()), float(finite.max()))
    return (empty, empty)


def _of_pictures(rows: NamedArrays, change: Callable[[Array], Array]) -> NamedArrays:
    return rows | {
        name: change(values)
        for name, values in rows.items()
        if values.ndim > 2 and values.dtype.kind in "iuf"
    }


def _of_texts(rows: NamedArrays, change: Callable[[Array], Array]) -> NamedArrays:
    changed = {}
    for name, values in rows.items():
        changed[name] = values
        if values.dtype.kind == "O" and (is_text := _is_text(values)).any():
            changed[name] = values.copy()
            changed[name][is_text] = change(values[is_text])
    return changed


def _is_text(values: Array) -> Array:
    return np.array(
        [isinstance(value, str) for value in values.flat],
        dtype=bool,
    ).reshape(
        values.shape,
    )


_Disturb = Callable[[NamedArrays, float, np.random.Generator], Iterator[tuple[str, NamedArrays]]]


def _one(change: Callable[[NamedArrays, float, np.random.Generator], NamedArrays]) -> _Disturb:
    return lambda rows, strength, rng: iter([("", change(rows, strength, rng))])


DISTURB: Mapping[str, _Disturb] = {
    "noise": _one(with_noise),
    "missing": _one(with_missing),
    "swap": _one(with_swaps),
    "scale": scaled_columns,
    "unseen": _one(with_unseen),
    "typos": _one(with_typos),
    "brightness": brightened,
    "occlusion": _one(occluded),
}
"""The functions that yield the variants of a disturbance with their names. A single
variant has an empty name.
"""
