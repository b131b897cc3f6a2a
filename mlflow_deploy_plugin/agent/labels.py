"""Feedback from the spool as files of labels: what was said of one endpoint on one day is one file."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pyarrow as pa

from mlflow_deploy_plugin.inference_log.labels import LABELS, Label, labels_table
from mlflow_deploy_plugin.server.feedback import FeedbackFrame

_MICROSECONDS_A_DAY = 86_400_000_000


def label_files(segment: str, frames: Sequence[FeedbackFrame]) -> Iterator[tuple[str, pa.Table]]:
    """Each file's name below the log, and what it holds."""
    groups: dict[tuple[str, int], list[FeedbackFrame]] = defaultdict(list)
    for frame in frames:
        groups[frame.endpoint, frame.received_time // _MICROSECONDS_A_DAY].append(frame)
    for (endpoint, day), group in groups.items():
        date = datetime.fromtimestamp(day * 86_400, UTC).date()
        name = f"{LABELS}/endpoint={endpoint}/date={date}/{segment}-{group[0].offset}-{group[-1].offset}.parquet"
        yield name, labels_table([label for frame in group for label in _labels(segment, frame)])


def _labels(segment: str, frame: FeedbackFrame) -> Iterator[Label]:
    for place, entry in enumerate(frame.entries):
        offset = frame.offset + place
        yield Label(entry.prediction_id, entry.row, entry.key, entry.label, frame.received_time, segment, offset)
