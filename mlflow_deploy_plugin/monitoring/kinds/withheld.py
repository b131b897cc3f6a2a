"""Columns that the log does not hold as they were: `capture.drop` leaves them out, `capture.mask` writes hashes.

What stands in the log of them differs from any reference by intention, and is not judged.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from mlflow_deploy_plugin.monitoring.drift.references import DriftReference
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.spec import CaptureSpec

_DROPPED = "capture.drop leaves it out of the log"
_MASKED = "capture.mask writes hashes of its values into the log"


def excluded_columns(capture: CaptureSpec, columns: Iterable[str]) -> dict[str, str]:
    """Of these columns, those that the log withholds, and why; parts of a vector (`output.probabilities.0`) too."""
    reasons = {**dict.fromkeys(capture.drop, _DROPPED), **dict.fromkeys(capture.mask, _MASKED)}
    found = {}
    for column in columns:
        name = next((name for name in reasons if column == name or column.startswith(f"{name}.")), None)
        if name is not None:
            found[column] = reasons[name]
    return found


def reference_without(reference: DriftReference, columns: Mapping[str, str]) -> DriftReference:
    if not columns:
        return reference
    pieces = reference.pieces
    return replace(
        reference,
        bins={name: bins for name, bins in reference.bins.items() if name not in columns},
        pieces=replace(
            pieces,
            blocks=tuple(profile_without(block, columns) for block in pieces.blocks),
            steps=tuple(profile_without(step, columns) for step in pieces.steps),
            total=profile_without(pieces.total, columns),
            lagged=None if pieces.lagged is None else profile_without(pieces.lagged, columns),
        ),
    )


def profile_without(profile: Profile, columns: Mapping[str, str]) -> Profile:
    return Profile(profile.rows, {name: one for name, one in profile.columns.items() if name not in columns})
