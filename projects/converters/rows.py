"""Hostile rows of a judge that does not know how the proof generates its rows.

The rows do not depend on the inside of a model. The points where a model decides are
found from outside: two rows with different predictions are moved together by bisection,
in the precision of the numbers, until there is no number between them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

STRANGE_TEXTS = (
    *("", " ", "\t\n", "a", "--", "żółw", "ŻÓŁW", "straße", "STRASSE", "ﬁne", "naïve café"),
    *("日本語 テキスト", "e\u0301te\u0301", "été déjà vu", "good_bad", "good-bad", "good's"),
    *("goodé bad", "good٣", "good1 bad_", "I\u0307t good", "good_é", "bad\u0301", "GOOD gOoD"),
    *("good.bad,ugly;fine", "good\u00a0bad", "good\u200bbad", "a b c d", "the good the bad"),
    *("\x00good", "good\x1fbad", "good good bad " * 50, "ſtrange", "K good", "good\u2028bad"),
    *("Москва", "😀 good", "ο ΛΟΓΟΣ", "  good   bad  ", "good  ", "İ", "xİ fine"),
)
_FAR = (-3.7e5, -2.3e4, -130.0, -4.5, 4.5, 130.0, 2.3e4, 3.7e5)
_PAIRS = 60
_HALVINGS = 1200  # fewer steps move a double to any other double

Table = pd.DataFrame
Answer = Callable[[Table], np.ndarray]
"""N rows → [N, k] numbers or [N] labels of the original."""


def hostile(example: Table, fresh: Table, answer: Answer, seed: int) -> Iterator[tuple[str, Table]]:
    """Return rows by the reason why they are hard; the original may refuse some."""
    random = np.random.default_rng(seed)
    yield "fresh", fresh
    yield "trained", example.iloc[random.permutation(len(example))[:150]].reset_index(drop=True)
    numbers = [name for name in map(str, fresh) if _is_number(fresh[name])]
    if numbers:
        yield "far", _far(fresh, numbers, random)
        yield "all far", _all_far(fresh, numbers, random)
        yield "constant", _constant(fresh, numbers)
        yield "halfway", _halfway(example, numbers, random)
    floats = [name for name in map(str, fresh) if fresh[name].dtype.kind == "f"]
    if floats:
        yield from edges(fresh, floats, answer, random)
    for name in map(str, fresh):
        if fresh[name].dtype.kind == "f" or _is_text(fresh[name]):
            gap = None if _is_text(fresh[name]) else np.nan
            yield f"missing {name}", _set(fresh.head(6), name, [gap] * 6)
    for name in map(str, fresh):
        if _is_text(fresh[name]):
            yield f"strange {name}", _strange(fresh, name)
        elif _is_number(fresh[name]) and fresh[name].nunique() <= 20:
            yield f"unseen {name}", _set(fresh.head(4), name, np.array([-7, 99, 12345, 0]))


def edges(
    fresh: Table,
    names: list[str],
    answer: Answer,
    random: np.random.Generator,
) -> Iterator[tuple[str, Table]]:
    """Return both rows of each pair between which the prediction changes, and their
    32-bit neighbours.
    """
    count = len(fresh)
    low = fresh.iloc[random.integers(0, count, _PAIRS)].reset_index(drop=True)
    high = low.copy()
    donors = fresh.iloc[random.integers(0, count, _PAIRS)].reset_index(drop=True)
    moved = np.array([names[position % len(names)] for position in range(_PAIRS)])
    for name in names:
        high.loc[moved == name, name] = donors.loc[moved == name, name]
    try:
        start = answer(low)
        end = answer(high)
        differ = (
            _apart(start, end)
            & low.notna().all(axis=1).to_numpy()
            & high.notna().all(axis=1).to_numpy()
        )
    except Exception:  # noqa: BLE001 - an original that refuses its own kind of rows has no edges
        return
    low, high = (part[differ].reset_index(drop=True) for part in (low, high))
    start = start[differ]
    end = end[differ]
    moved = moved[differ]
    if not len(low):
        return
    for _ in range(_HALVINGS):
        middle, open_ = _middle(low, high, moved, names)
        if not open_.any():
            break
        answers = answer(middle)
        is_low = _distance(answers, start) <= _distance(answers, end)
        _replace(low, middle, open_ & is_low)
        _replace(high, middle, open_ & ~is_low)
        start = np.where(_column(open_ & is_low, start), answers, start)
        end = np.where(_column(open_ & ~is_low, end), answers, end)
    jumps = _apart(start, end)
    if jumps.any():
        both = pd.concat([low[jumps], high[jumps]], ignore_index=True)
        yield "edges", both
        single = both.copy()
        for name in names:
            with np.errstate(over="ignore"):
                single[name] = both[name].astype(np.float32).astype(both[name].dtype)
        yield "edges in 32 bits", single


def _middle(
    low: Table,
    high: Table,
    moved: np.ndarray,
    names: list[str],
) -> tuple[Table, np.ndarray]:
    middle = low.copy()
    open_ = np.zeros(len(low), dtype=bool)
    for name in names:
        mine = moved == name
        a = low[name].to_numpy()
        b = high[name].to_numpy()
        half = (a / 2 + b / 2).astype(a.dtype)
        middle.loc[mine, name] = half[mine]
        open_ |= mine & (half != a) & (half != b)
    return middle, open_


def _replace(table: Table, by: Table, where: np.ndarray) -> None:
    table.loc[where] = by.loc[where]


def _column(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def _distance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.dtype.kind in "fiu":
        apart = np.abs(left.astype(np.float64) - right.astype(np.float64))
    else:
        apart = (left != right).astype(np.float64)
    return apart.reshape(len(apart), -1).max(axis=1)


def _apart(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    scale = np.nanstd(left.astype(np.float64)) if left.dtype.kind in "fiu" else 0.0
    return _distance(left, right) > 1e-3 * scale


def _far(fresh: Table, names: list[str], random: np.random.Generator) -> Table:
    """Return rows in which one number is far outside the range of its column."""
    parts = []
    for name in names:
        some = fresh.iloc[random.integers(0, len(fresh), len(_FAR))].reset_index(drop=True)
        reach = np.nanmax(np.abs(fresh[name].to_numpy(dtype=np.float64)), initial=1.0)
        parts.append(_set(some, name, np.array(_FAR) * reach))
    return pd.concat(parts, ignore_index=True)


def _all_far(fresh: Table, names: list[str], random: np.random.Generator) -> Table:
    some = fresh.iloc[random.integers(0, len(fresh), 48)].reset_index(drop=True)
    factor = random.choice(np.array(_FAR), 48) * random.uniform(0.5, 1, 48)
    for name in names:
        some = _set(some, name, some[name].to_numpy(dtype=np.float64) * factor)
    return some


def _constant(fresh: Table, names: list[str]) -> Table:
    values = (0.0, -0.0, 1.0, -1.0, 1e-30, 5e-324, 0.1, float(np.float32(0.1)))
    some = fresh.head(len(values)).reset_index(drop=True)
    for name in names:
        some = _set(some, name, np.array(values))
    return some


def _halfway(example: Table, names: list[str], random: np.random.Generator) -> Table:
    """Return points between two training rows, at the same distance from both."""
    left, right = (
        example.iloc[random.integers(0, len(example), 100)].reset_index(drop=True) for _ in range(2)
    )
    for name in names:
        left = _set(
            left,
            name,
            left[name].to_numpy(np.float64) / 2 + right[name].to_numpy(np.float64) / 2,
        )
    return left


def _strange(fresh: Table, name: str) -> Table:
    count = len(STRANGE_TEXTS)
    some = fresh.iloc[np.arange(2 * count) % len(fresh)].reset_index(drop=True)
    known = fresh[name].dropna().iloc[0]
    return _set(some, name, [*STRANGE_TEXTS, *(f"{known} {text}" for text in STRANGE_TEXTS)])


def _set(table: Table, name: str, values: Any) -> Table:
    dtype = table[name].dtype
    if dtype.kind in "iu":
        values = np.clip(np.round(values), -(2**31), 2**31).astype(dtype)
    return table.reset_index(drop=True).assign(
        **{name: pd.Series(values, dtype=None if dtype.kind in "iu" else dtype)},
    )


def _is_number(series: "pd.Series[Any]") -> bool:
    return series.dtype.kind in "fiu"


def _is_text(series: "pd.Series[Any]") -> bool:
    return (
        not _is_number(series)
        and series.dtype.kind != "b"
        and not isinstance(series.dtype, pd.CategoricalDtype)
    )
