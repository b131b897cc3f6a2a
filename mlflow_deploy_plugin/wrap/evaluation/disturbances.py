"""Disturbances of rows. Each function takes named arrays and a random generator, and
returns changed copies.

Numbers keep their type and its bounds. A tensor with two dimensions is a table of
columns. A tensor with more dimensions has an image per row; with four, the channels are
the second or the last dimension, whichever is smaller.
"""

import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.random import Generator

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError, Refused
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel
from mlflow_deploy_plugin.core.spec.evaluation_names import find_disturbance
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays
from mlflow_deploy_plugin.wrap.evaluation.metrics import spread
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedModel

_Variants: TypeAlias = Iterable[tuple[str, NamedArrays]]
"""The name and the disturbed columns of each variant of a disturbance."""
Disturber: TypeAlias = Callable[[float, Generator], _Variants]
"""A function from a strength to the variants."""
UNSEEN = "(never seen)"
_SHARE_OUT_OF_RANGE = 0.1
_EXACT_INTEGERS = 2**53  # A 64-bit float represents all smaller integers exactly.
_MAX_SCALED = 50
"""The maximum number of columns that are scaled separately; each column costs a
prediction of all rows.
"""


@dataclass(frozen=True, eq=False)
class DisturbedVersion:
    """A version, and the rows that a disturbance changes.

    Attributes:
        rows: N rows with the columns that the model reads.
        truth: the target of the rows, [N].
        model: the loaded version.
        resolved: the source of the version.
        folder: the folder of the version.
        original: the URI of the torch model from which the version was made, or "".
        has_consent: True if the user consents to run the code of an original whose URI
            is read from the version.
        allows_code: False if no code of an original may run.
        shared: values that the disturbances of a measurement share, such as a loaded
            original.
    """

    rows: NamedArrays
    truth: Array
    model: LoadedModel
    resolved: ResolvedModel
    folder: Path
    original: str = ""
    has_consent: bool = True
    allows_code: bool = True
    shared: dict[str, Any] = field(default_factory=dict)


def with_noise(rows: NamedArrays, share: float, rng: Generator) -> NamedArrays:
    """Add normal noise of `share` standard deviations of the column or image. Integers
    remain integers.
    """

    def disturb(values: Array) -> Array:
        scale: Array | float
        if values.ndim == 2:
            scale = np.array([spread(column) for column in values.T])
        else:
            scale = spread(values)
        noise = rng.normal(size=values.shape) * share * scale
        if values.dtype.kind == "f":
            return (values + noise).astype(values.dtype)
        return within_type(values.astype(np.float64) + np.round(noise), values.dtype)

    return rows | {
        name: disturb(values) for name, values in rows.items() if values.dtype.kind in "iuf"
    }


def with_missing(rows: NamedArrays, share: float, rng: Generator) -> NamedArrays:
    """Replace a share of the values in each column with NaN in float columns and None
    in other columns.
    """

    def disturb(values: Array) -> Array:
        is_missing = rng.random(values.shape) < share
        if values.dtype.kind == "f":
            return np.where(is_missing, np.nan, values).astype(values.dtype)
        changed = values.astype(object)
        changed[is_missing] = None
        return changed

    return {name: disturb(values) for name, values in rows.items()}


def with_out_of_range(rows: NamedArrays, ranges: float, rng: Generator) -> NamedArrays:
    """Move a tenth of the numbers by `ranges` ranges beyond their column's limits;
    replace a tenth of the texts.
    """

    def disturb(values: Array) -> Array:
        """Return the changed values. Values that are neither numbers nor texts, and
        columns without a finite number, are unchanged.
        """
        is_moved = rng.random(values.shape) < _SHARE_OUT_OF_RANGE
        if values.dtype.kind == "O":
            changed = values.copy()
            changed[is_moved & _is_text(values)] = UNSEEN
            return changed
        numbers = values.astype(np.float64)
        low, high = value_range(numbers, np.nan)
        if values.dtype.kind not in "iuf" or np.isnan(low):
            return values
        distance = max(high - low, 1e-12) * ranges
        ends = np.where(rng.random(values.shape) < 0.5, low - distance, high + distance)
        return within_type(np.where(is_moved, ends, numbers), values.dtype)

    return {name: disturb(values) for name, values in rows.items()}


def within_type(numbers: Array, dtype: np.dtype[Any]) -> Array:
    """Return the numbers in the type: clipped to its bounds, and rounded for integers.
    NaN and infinity remain in floats.
    """
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        clipped = np.clip(numbers, limits.min, limits.max)
        return np.where(np.isfinite(numbers), clipped, numbers).astype(dtype)
    bounds = np.iinfo(dtype)
    low = max(bounds.min, -_EXACT_INTEGERS)
    high = min(bounds.max, _EXACT_INTEGERS)
    return np.clip(np.round(numbers), low, high).astype(dtype)


def unfit_reason(name: str, rows: NamedArrays) -> str:
    """Return the reason why the disturbance does not apply to these rows; empty if it
    applies.
    """
    kinds = [(values.dtype.kind, values.ndim) for values in rows.values()]  # with their ranks
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


def with_swaps(rows: NamedArrays, share: float, rng: Generator) -> NamedArrays:
    """Swap a share of the values within each column, like a join by the wrong key."""

    def swap(values: Array) -> Array:
        changed = values.copy()
        table = changed.reshape(len(values), -1)
        for column in table.T:  # Each column is a view of `changed`.
            order = rng.permutation(np.flatnonzero(rng.random(len(column)) < share))
            column[order] = column[np.roll(order, 1)]
        return changed

    return rows | {name: swap(values) for name, values in rows.items() if values.ndim <= 2}


def with_typos(rows: NamedArrays, share: float, rng: Generator) -> NamedArrays:
    """Mistype a share of the characters of each text: drop, double or replace a
    character, or swap it with the next.
    """

    def mistype(text: str) -> str:
        """Return the text with a random mistake at each selected character."""
        characters = list(text)
        for index in np.flatnonzero(rng.random(len(text)) < share):
            mistake = rng.integers(4)
            if mistake == 0:
                characters[index] = ""
            elif mistake == 1:
                characters[index] *= 2
            elif mistake == 2 or index + 1 == len(text):
                characters[index] = string.ascii_lowercase[rng.integers(26)]
            else:
                characters[index : index + 2] = characters[index + 1], characters[index]
        return "".join(characters)

    return _change_texts(
        rows, lambda texts: np.array([mistype(text) for text in texts], dtype=object)
    )


def with_unseen(rows: NamedArrays, share: float, rng: Generator) -> NamedArrays:
    """Replace a share of the texts with an unseen text."""
    return _change_texts(
        rows, lambda texts: np.where(rng.random(len(texts)) < share, UNSEEN, texts)
    )


def scaled_columns(rows: NamedArrays, factor: float, rng: Generator) -> _Variants:
    """Yield the rows with one column multiplied by the factor; an image is scaled as
    one column.
    """
    # The position is None unless the array has two dimensions.
    columns: list[tuple[str, int | None]] = []
    for name, values in rows.items():
        if values.dtype.kind in "iuf":
            positions = range(values.shape[1]) if values.ndim == 2 else [None]
            columns += product([name], positions)
    if len(columns) > _MAX_SCALED:
        sample = np.sort(rng.choice(len(columns), _MAX_SCALED, replace=False))
        columns = [columns[index] for index in sample]
    for name, column in columns:
        label = name if column is None else f"{name}[{column}]"
        selection = np.s_[:] if column is None else np.s_[:, column]
        changed = rows[name].copy()
        scaled = changed[selection].astype(np.float64) * factor
        changed[selection] = within_type(scaled, changed.dtype)
        yield label, {**rows, name: changed}


def brightened(rows: NamedArrays, share: float, rng: Generator) -> _Variants:
    """Yield brighter images, then darker images, by this share of the value range;
    values stay in the range.
    """
    yield "brighter", _change_images(rows, partial(_shift_values, share))
    yield "darker", _change_images(rows, partial(_shift_values, -share))


def _shift_values(share: float, values: Array) -> Array:
    """Add a share of the value range, within the range."""
    low, high = value_range(values)
    return within_type(np.clip(values + share * (high - low), low, high), values.dtype)


def occluded(rows: NamedArrays, share: float, rng: Generator) -> NamedArrays:
    """Cover a box of this share of each image, at a random position, with the mean of
    all values.
    """

    def cover(values: Array) -> Array:
        """Return the images, [N, …], each with a grey box."""
        image_axes = (1, 2)  # the height and the width
        if values.ndim > 4:
            image_axes = (-2, -1)
        elif values.ndim == 4 and values.shape[1] <= values.shape[3]:  # The channels are first.
            image_axes = (2, 3)
        changed = np.moveaxis(values.copy(), image_axes, (1, 2))  # This is a view.
        size = np.array(changed.shape[1:3])
        sides = np.maximum(np.round(np.sqrt(share) * size).astype(int), 1)
        corners = rng.integers(0, size - sides + 1, (len(values), 2))
        grey = within_type(np.nanmean(values, keepdims=True), values.dtype).item()
        for image, (top, left) in zip(changed, corners, strict=True):
            image[top : top + sides[0], left : left + sides[1]] = grey
        return np.ascontiguousarray(np.moveaxis(changed, (1, 2), image_axes))

    return _change_images(rows, cover)


def value_range(values: Array, empty: float = 0.0) -> tuple[float, float]:
    """Return the smallest and the largest finite number, or `empty` if no number is
    finite.
    """
    finite = values[np.isfinite(values)]
    if finite.size:
        return (float(finite.min()), float(finite.max()))
    return (empty, empty)


def _change_images(rows: NamedArrays, change: Callable[[Array], Array]) -> NamedArrays:
    """Return the rows in which `change` replaces each array of images, [N, …]."""
    return rows | {
        name: change(values)
        for name, values in rows.items()
        if values.ndim > 2 and values.dtype.kind in "iuf"
    }


def _change_texts(rows: NamedArrays, change: Callable[[Array], Array]) -> NamedArrays:
    """Return the rows in which `change` replaces all texts of an array, [T]."""
    changed_rows = dict(rows)
    for name, values in rows.items():
        if values.dtype.kind != "O":
            continue
        is_text = _is_text(values)
        if is_text.any():
            changed = values.copy()
            changed[is_text] = change(values[is_text])
            changed_rows[name] = changed
    return changed_rows


def _is_text(values: Array) -> Array:
    is_text = np.array([isinstance(value, str) for value in values.flat], dtype=bool)
    return is_text.reshape(values.shape)


_Disturb = Callable[[NamedArrays, float, Generator], _Variants]


def _single_variant(change: Callable[[NamedArrays, float, Generator], NamedArrays]) -> _Disturb:
    return lambda rows, strength, rng: iter([("", change(rows, strength, rng))])


DISTURB: Mapping[str, _Disturb] = {
    "noise": _single_variant(with_noise),
    "missing": _single_variant(with_missing),
    "swap": _single_variant(with_swaps),
    "scale": scaled_columns,
    "unseen": _single_variant(with_unseen),
    "typos": _single_variant(with_typos),
    "brightness": brightened,
    "occlusion": _single_variant(occluded),
}
"""The functions that yield the variants of a disturbance with their names. A single
variant has an empty name.
"""


def find_disturber(name: str, version: DisturbedVersion) -> Disturber | Refused:
    """Return the function that disturbs the rows; a Refused if the disturbance does not
    apply to them. Both functions raise InvalidConfig if the code of an entry point
    fails.
    """
    if name in DISTURB:
        reason = unfit_reason(name, version.rows)
        return Refused(reason) if reason else partial(DISTURB[name], version.rows)
    registered = find_disturbance(name)
    with _running(name):
        disturb = registered.disturber(version)
    if isinstance(disturb, Refused):
        return disturb

    def reshaped(rows: NamedArrays) -> NamedArrays:
        shapes = {name: values.shape for name, values in version.rows.items()}
        return {name: np.reshape(values, shapes[name]) for name, values in rows.items()}

    def variants(strength: float, rng: Generator) -> _Variants:
        with _running(name):
            changed = [(str(label), reshaped(rows)) for label, rows in disturb(strength, rng)]
        if not changed:
            raise InvalidConfig(f"the disturbance {name} yields no rows")
        return changed

    return variants


@contextmanager
def _running(name: str) -> Iterator[None]:
    try:
        yield
    except OnnxserveError:
        raise
    except Exception as error:
        raise InvalidConfig(
            f"the disturbance {name} failed: {type(error).__name__}: {one_line(error, 300)}"
        ) from error
