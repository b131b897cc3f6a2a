"""What may be expected of a window without labels, of all rows and by segment: `estimate.py`, fed by the log."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.inference_log.reader import WindowRows
from mlflow_deploy_plugin.inference_log.schemas import stack
from mlflow_deploy_plugin.inference_log.windows import EPOCH, Window
from mlflow_deploy_plugin.monitoring.features import Array
from mlflow_deploy_plugin.monitoring.kinds.answers import Answered, read_answers
from mlflow_deploy_plugin.monitoring.kinds.estimate import Earlier, Estimate, estimate
from mlflow_deploy_plugin.monitoring.kinds.measures import Classified
from mlflow_deploy_plugin.monitoring.kinds.segments import segments_of
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.runtime.artifact import Artifact
from mlflow_deploy_plugin.spec import duration_seconds

_EARLIER_WINDOWS = 8
_LOOKED_AT = 24
_EARLIER_ROWS = 10_000
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True)
class Expectation:
    """What is expected of some rows of the window.

    Attributes:
        segment: as `carrier=AA`; empty: all rows.
        rows: how many they are.
    """

    segment: str
    rows: int
    estimate: Estimate


def expect(
    question: Question, rows: WindowRows, artifact: Artifact | None, answered: Answered
) -> tuple[list[Expectation], list[str]] | str:
    """The estimates of all rows and of each segment, each checked on the same rows of earlier windows of the version;
    and what is left out, a line each. A text says why there are none.

    Args:
        answered: the window's rows.
    """
    why_not = _why_not(answered, artifact)
    if why_not:
        return why_not
    tables = [rows.table, *_earlier_tables(question, rows, artifact)]
    together = stack(tables)
    everything = read_answers(together, artifact)
    if isinstance(everything, str) or everything.classified is None:
        return "the rows of earlier windows do not fit"
    number = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    least = question.spec.min_rows
    segments, notes = segments_of(together, question.spec.segment_by, least, number == 0)
    found = []
    for name, chosen in (("", np.ones(len(together), bool)), *((one.name, one.rows) for one in segments)):
        of_rows = _estimate(everything, everything.classified, number, chosen, least)
        if isinstance(of_rows, str):
            return of_rows
        found.append(Expectation(name, int((chosen & (number == 0)).sum()), of_rows))
    return found, notes


def _why_not(answered: Answered, artifact: Artifact | None) -> str:
    if answered.classified is None:
        return "the model answers numbers, and how far they are off cannot be seen from them"
    gives = artifact is not None and any(output.role == "probabilities" for output in artifact.outputs)
    if answered.classified.probabilities is None and gives:
        assert artifact is not None
        labels = len(artifact.classes) or len(answered.classified.classes)
        return (
            "the probability of each label, from which it could be estimated, is not at hand: of at most 8 labels "
            f"they are read from the log, and the model has {labels:,}"
        )
    return ""


def _estimate(everything: Answered, classified: Classified, number: Array, chosen: Array, least: int) -> Estimate | str:
    """Of the chosen rows of window 0; the others with `least` labelled ones check it.

    Args:
        number: [N] the window of each row; chosen: [N] bool.
    """
    earlier = []
    for window in range(1, int(number.max()) + 1):
        places = np.flatnonzero(chosen & (number == window) & everything.is_labelled)
        if len(places) >= least:
            earlier.append(Earlier(everything.truth[places], classified.take(places)))
    return estimate(classified.take(np.flatnonzero(chosen & (number == 0))), earlier)


def _earlier_tables(question: Question, rows: WindowRows, artifact: Artifact | None) -> Iterator[pa.Table]:
    """The labelled rows of the latest windows of the same length that have enough of them."""
    found = 0
    for past in _earlier_windows(question)[:_LOOKED_AT]:
        earlier = question.log.labelled(question.endpoint, past, _EARLIER_ROWS)
        if earlier is None or (earlier.model, earlier.version) != (rows.model, rows.version):
            continue
        answered = read_answers(earlier.table, artifact)
        if not isinstance(answered, str) and answered.is_labelled.sum() >= question.spec.min_rows:
            yield earlier.table.filter(pa.array(answered.is_labelled))
            found += 1
        if found == _EARLIER_WINDOWS:
            return


def _earlier_windows(question: Question) -> list[Window]:
    """Those that have rows and whose labels should be in, the latest first."""
    length = question.window.length
    wait = timedelta(seconds=duration_seconds(question.spec.labels_within) if question.spec.labels_within else 0)
    until = question.window.start - max(math.ceil(wait / length) - 1, 0) * length
    numbers = set()
    for hour in question.log.hours(question.endpoint, Window(EPOCH, until)):
        # so many windows lie between the judged one and the one of the hour's first, and last, microsecond
        numbers |= {(question.window.start - one) // length for one in (hour.start + _TICK, hour.end)}
    starts = [question.window.start - (number + 1) * length for number in sorted(numbers)]
    return [Window(start, start + length) for start in starts if start + length <= until]
