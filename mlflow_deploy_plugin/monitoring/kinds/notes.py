"""What the reader of a judgement has to know of the rows that it was made of."""

from collections.abc import Iterator

from mlflow_deploy_plugin.inference_log.reader import InferenceLog, WindowRows

_SHOWN_FILES = 3


def row_notes(rows: WindowRows, log: InferenceLog) -> Iterator[str]:
    """Of rows that were left out."""
    for other, count in rows.other_versions.items():
        yield f"{count:,} rows of the window were answered by {other} and are left out"
    if rows.is_sampled:
        yield f"the window has about {rows.rows:,} rows, of which {len(rows.table):,} are judged"
    yield from unreadable_notes(log)


def unreadable_notes(log: InferenceLog) -> Iterator[str]:
    """Of files of the log that were passed over."""
    for path in sorted(log.unreadable)[:_SHOWN_FILES]:
        yield f"{path} cannot be read and was passed over: {log.unreadable[path]}"
    if (more := len(log.unreadable) - _SHOWN_FILES) > 0:
        yield f"{more:,} more files cannot be read and were passed over"
