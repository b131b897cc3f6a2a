"""Reads the inference log: the rows of one endpoint in one window of event time, each once, in bounded memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.inference_log.files import Hour, LogFile, list_all, list_endpoints, list_files, list_hours
from mlflow_deploy_plugin.inference_log.joining import Labels, with_labels
from mlflow_deploy_plugin.inference_log.lists import summarise_lists
from mlflow_deploy_plugin.inference_log.location import FAILURES, LogLocation, locate_log
from mlflow_deploy_plugin.inference_log.rows import Wanted, hour_rows, microseconds_of
from mlflow_deploy_plugin.inference_log.sample import Sample
from mlflow_deploy_plugin.inference_log.windows import Window, window_at
from mlflow_deploy_plugin.runtime.rows import EVENT_TIME
from mlflow_deploy_plugin.spec import duration_seconds

MAX_ROWS = 100_000


@dataclass(frozen=True, eq=False)
class WindowRows:
    """The rows that one version answered in a window; what shadows answered is not among them.

    Attributes:
        table: at most `MAX_ROWS` rows in the order of their hashes; lists are summarised (`lists.py`).
        rows: how many there are; exact where `is_sampled` is False, else estimated.
        other_versions: rows that other versions answered in the same window, by "MODEL version N".
    """

    model: str
    version: str
    table: pa.Table
    rows: int
    is_sampled: bool
    other_versions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class InferenceLog:
    """A log, read file by file.

    Attributes:
        unreadable: files that made no sense when they were read and were passed over, and why.
    """

    location: LogLocation
    unreadable: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def filesystem(self) -> Any:
        return self.location.filesystem

    @property
    def root(self) -> str:
        return self.location.root

    @property
    def shown(self) -> str:
        """The log's name in messages."""
        return self.location.shown

    @property
    def failures(self) -> "InferenceLog":
        """The log of requests that got no answer: `_status` says why not, and the model's columns are not there."""
        location = replace(self.location, root=f"{self.root}/{FAILURES}", shown=f"{self.shown.rstrip('/')}/{FAILURES}")
        return InferenceLog(location, self.unreadable)

    def endpoints(self) -> list[str]:
        """The endpoints that have rows."""
        return list_endpoints(self.location)

    def hours(self, endpoint: str, window: Window | None = None) -> list[Hour]:
        """The hours that have rows, ascending; with a window, those that overlap it."""
        return list_hours(self.location, endpoint, window)

    def files(self, hour: Hour) -> list[LogFile]:
        """The files of an hour, by name."""
        return list_files(self.location, hour.folder)

    def all_files(self, endpoint: str) -> dict[Hour, list[LogFile]]:
        """Every hour that has files, ascending, with its files, in one listing."""
        return list_all(self.location, endpoint)

    def batches(
        self, endpoint: str, window: Window, columns: Sequence[str] | None = None, shadows: bool = False
    ) -> Iterator[pa.Table]:
        """The rows of a window, each once, hour by hour and some thousand at a time.

        Args:
            columns: only these, where a file has them; its schema may differ from the next one's.
            shadows: also what shadows answered.

        Raises:
            OnnxserveError: the log is down.
        """
        wanted = Wanted(columns, window.start_us, window.end_us, shadows)
        for hour in self.hours(endpoint, window):
            yield from hour_rows(self.location, hour.folder, wanted, self.unreadable)

    def count(self, endpoint: str, window: Window) -> int:
        """How many rows a window has, each once; raises as `batches`."""
        return sum(len(batch) for batch in self.batches(endpoint, window, columns=["_row"]))

    def latest_window(self, endpoint: str, every: str, now: datetime) -> Window:
        """The last window of length `every` that is over and has rows.

        Raises:
            NotFound: there is none; the message says what there is.
        """
        unfinished = None
        for hour in reversed(self.hours(endpoint)):
            for window in self._windows_of(hour, every):
                if window.end <= now:
                    return window
                unfinished = window
        if unfinished is not None:
            raise NotFound(
                f"no whole window of {every} has rows of endpoint {endpoint!r}; {unfinished} is not over yet: "
                "name a window that is (--window START/END)"
            )
        raise NotFound(f"nothing was captured of endpoint {endpoint!r} so far (looked in {self.shown})")

    def read(self, endpoint: str, window: Window, max_rows: int = MAX_ROWS) -> WindowRows | None:
        """The rows of the version that answered most of the window; None where the window has none at all."""
        samples: dict[tuple[str, str], Sample] = {}
        for batch in self.batches(endpoint, window):
            identities = pc.binary_join_element_wise(batch.column("_model"), batch.column("_version"), "\n")
            for identity in pc.unique(identities).to_pylist():
                model, _, version = identity.rpartition("\n")
                rows = batch.filter(pc.equal(identities, identity))
                samples.setdefault((model, version), Sample(max_rows)).add(summarise_lists(rows))
        if not samples:
            return None
        counts = {identity: sample.rows() for identity, sample in samples.items()}
        model, version = chosen = max(counts, key=lambda identity: (counts[identity], identity))
        return WindowRows(
            model=model,
            version=version,
            table=samples[chosen].table(),
            rows=counts[chosen],
            is_sampled=samples[chosen].is_full,
            other_versions={f"{m} version {v}": rows for (m, v), rows in counts.items() if (m, v) != chosen},
        )

    def labelled(self, endpoint: str, window: Window, max_rows: int = MAX_ROWS) -> WindowRows | None:
        """As `read`, with the columns `_label` (text) and `_label_number` (float64), null where no label is in.

        Of several labels of a row the last one wins (`labels.py`).
        """
        rows = self.read(endpoint, window, max_rows)
        if rows is None:
            return None
        table = with_labels(rows.table, Labels(self.location, endpoint, self.unreadable))
        return WindowRows(rows.model, rows.version, table, rows.rows, rows.is_sampled, rows.other_versions)

    def _windows_of(self, hour: Hour, every: str) -> list[Window]:
        """The windows that have rows in this hour, the last one first."""
        if duration_seconds(every) % 3600 == 0:  # an hour lies in one window, and has rows, or no file
            return [window_at(int(hour.start.timestamp()) * 1_000_000, every)] if self.files(hour) else []
        times: set[int] = set()
        length = duration_seconds(every) * 1_000_000
        for batch in hour_rows(self.location, hour.folder, Wanted([EVENT_TIME]), self.unreadable):
            times.update(np.unique(microseconds_of(batch.column(EVENT_TIME)) // length).tolist())
        return [window_at(number * length, every) for number in sorted(times, reverse=True)]


def open_log(log_uri: str) -> InferenceLog:
    """The log at `log_uri`.

    Raises:
        InvalidConfig: the URI is of a kind that cannot be read.
    """
    return InferenceLog(locate_log(log_uri))
