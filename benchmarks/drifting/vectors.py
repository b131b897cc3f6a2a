"""Images and embeddings: how often a change is found in a day, and how often an
unchanged day is called drifted.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from sklearn.datasets import load_digits

from benchmarks.drifting.judging import (
    Flags,
    Judge,
    Line,
    found_line,
    is_alarm,
    on_all_cores,
    rate_line,
)
from benchmarks.drifting.worlds import DAY_US, Array, Rows, reference_of

_DAYS = 39
_ROWS = 100
_WINDOWS = 6
_SIZE = 384
"""The size of the embeddings of small sentence transformers."""
_WORLDS = 20
_SHIFTS = {
    f"embeddings moved by {share:g} of their spread": share for share in (0.1, 0.2, 0.3, 0.5)
}


def of_vectors(share: float) -> Iterator[Line]:
    worlds = max(round(_WORLDS * share), 2)
    for judged, name in ((_judge_digits, "digits"), (_judge_embeddings, "embeddings")):
        calm, changed = zip(*on_all_cores(judged, list(range(worlds))), strict=True)
        yield rate_line(f"unchanged days of {name}", calm)
        for what in changed[0]:
            yield found_line(what, [flags[what] for flags in changed], None)


def _judge_digits(seed: int) -> tuple[Flags, dict[str, list[bool]]]:
    """Judge days of scikit-learn's handwritten digits, drawn with replacement."""
    rng = np.random.default_rng([seed, 23])
    digits = load_digits()
    images = digits.images[rng.integers(0, len(digits.images), (_DAYS + _WINDOWS) * _ROWS)]
    low = digits.images[digits.target < 5]
    day = images[-_ROWS:]
    changed = {
        "digits rotated by 90°": np.rot90(day, axes=(1, 2)),
        "digits mirrored": day[:, :, ::-1],
        "digits moved a pixel to the right": np.roll(day, 1, axis=2),
        "only digits 0 to 4": low[rng.integers(0, len(low), _ROWS)],
        "digits a tenth darker": day * 0.9,
    }
    return _judge(images, changed)


def _judge_embeddings(seed: int) -> tuple[Flags, dict[str, list[bool]]]:
    """Judge days of unit vectors around a common one, whose dimensions differ in their
    spread.
    """
    rng = np.random.default_rng([seed, 29])
    center = 3 * rng.normal(size=_SIZE)
    scale = rng.gamma(1, 1, _SIZE)
    vectors = center + scale * rng.normal(size=((_DAYS + _WINDOWS) * _ROWS, _SIZE))
    direction = rng.normal(size=_SIZE)
    direction *= np.sqrt(np.square(scale).sum() / np.square(direction).sum())
    changed = {
        what: _of_length_one(vectors[-_ROWS:] + share * direction)
        for what, share in _SHIFTS.items()
    }
    return _judge(_of_length_one(vectors), changed)


def _of_length_one(vectors: Array) -> Array:
    unit: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _judge(values: Array, changed: dict[str, Array]) -> tuple[Flags, dict[str, list[bool]]]:
    times = np.repeat(np.arange(_DAYS + _WINDOWS), _ROWS) * DAY_US
    rows = Rows(pa.table({"x": values.tolist()}), times)
    judge = Judge(reference_of(rows.between(0, _DAYS * DAY_US), _DAYS * DAY_US, DAY_US))
    starts = [(_DAYS + number) * DAY_US for number in range(_WINDOWS)]
    flags = [is_alarm(judge(rows.between(start, start + DAY_US).table, start)) for start in starts]
    found = {
        what: [bool(is_alarm(judge(pa.table({"x": table.tolist()}), starts[-1])))]
        for what, table in changed.items()
    }
    return flags, found
