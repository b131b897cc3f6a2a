"""Null distributions on disk, so that the second window of an hourly monitor costs its window and not its reference."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import NullDistribution
from mlflow_deploy_plugin.monitoring.drift.threshold.figures import ColumnGroup
from mlflow_deploy_plugin.monitoring.drift.threshold.hold_out import HoldOutAlarms
from mlflow_deploy_plugin.statedir import FileCache

_METHOD = 6
"""Part of every key: raise it when figures or nulls are computed in another way."""
_MAX_FILES = 200
_MAX_BYTES = 256 * 1024 * 1024
_SUFFIX = ".npz"
_PLAIN = ("kind", "effective_n", "widening", "block_length", "persistence", "slowest_column", "length")


def load_or_build(
    folder: Path, key: str, build: Callable[[], NullDistribution | Refused]
) -> NullDistribution | Refused:
    """Return what is kept under the key, else what `build` returns, which is kept from now on.

    A file that cannot be read is made anew; a folder that cannot be written costs time, not the verdict.
    """
    files = FileCache(folder, _SUFFIX, _MAX_FILES, _MAX_BYTES)
    path = files.path(key)
    found = _read(path)
    if found is not None:
        return found
    made = build()
    with files.writing(path) as temporary:
        _write(temporary, made)
    return made


def key_of(groups: Sequence[ColumnGroup], *parts: object) -> str:
    """Return 40 hexadecimal digits that name the distribution of these groups.

    Args:
        parts: what else it depends on, each with a plain repr.
    """
    digest = hashlib.sha256(repr((_METHOD, *parts)).encode())
    for group in groups:
        pieces = group.reference.pieces
        for part in (
            (group.segment, group.compared, group.columns, group.reference.bins_key),
            (pieces.steps_start_us, pieces.step_seconds, pieces.window_steps),
            (pieces.window_starts_us, pieces.total.rows),
            pieces.lag_windows,
        ):
            digest.update(repr(part).encode())
        for profile in (*pieces.windows, *pieces.steps):
            digest.update(profile.rows.to_bytes(8, "little"))
        for name in group.columns:
            column = pieces.total.columns.get(name)
            if column is not None:
                digest.update(column.counts.tobytes())
    return digest.hexdigest()[:40]


def _write(path: Path, made: NullDistribution | Refused) -> None:
    if isinstance(made, Refused):
        np.savez(path, about=np.array(json.dumps({"refusal": asdict(made)})))
    else:
        about = {name: getattr(made, name) for name in _PLAIN}
        told = made.held_out
        about["held_out"] = told.reason if isinstance(told, Refused) else asdict(told)
        np.savez(
            path,
            about=np.array(json.dumps({"pool": about})),
            figures=made.figures,
            scales=made.scales,
            floors=made.floors,
            starts=made.starts,
        )


def _read(path: Path) -> NullDistribution | Refused | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            os.utime(path)
            if "refusal" in about:
                return Refused(**about["refusal"])
            arrays = {name: stored[name] for name in ("figures", "scales", "floors", "starts")}
            told = about["pool"].pop("held_out")
            is_refused = isinstance(told, str)
            measured = Refused(told) if is_refused else HoldOutAlarms(**{**told, "columns": tuple(told["columns"])})
            return NullDistribution(**about["pool"], held_out=measured, **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
