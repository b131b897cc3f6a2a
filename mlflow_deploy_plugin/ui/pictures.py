"""The charts of an endpoint: traffic, latency and errors per version, labels, rollout
evidence, monitor windows.

The traffic figures are read from the history of the servers
(`core/statedir/history.py`), other figures from the store.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.statedir.history import HISTORY_INTERVALS, Span
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.store import Rollout, Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.server_metrics import (
    CountedInterval,
    HistoryByServer,
    VersionCounters,
)
from mlflow_deploy_plugin.ui.charts import (
    COLOURS,
    LineChart,
    Series,
    Unit,
    ago_axis,
    axis_seconds,
    duration,
    line_chart,
    since_axis,
)
from mlflow_deploy_plugin.ui.mlflow_pages import MlflowPages, MonitorVerdict

SPANS: Mapping[Span, str] = {"hour": "last hour", "day": "last day"}
_LEAST_SLOTS = 12
"""The least number of history lines on a time axis."""
_POINTS = 120
_LATE_SECONDS: Mapping[Span, float] = {"hour": 60.0, "day": 660.0}
"""The age of its newest figures from which a server counts as silent. Figures are
written every 10 s (day: 5 min).
"""
_CLOCK_SECONDS = 60.0
"""The maximum difference between the clocks of two machines for which the page does not
show a notice.
"""
_HISTORY_SECONDS = 1.5
_BARS = 60
_NO_REQUESTS = VersionCounters()

_Version = tuple[str, str]
"""A registered model and its version."""
_Histories = Mapping[str, Sequence[CountedInterval]]


@dataclass(frozen=True)
class Timeline:
    """The newest windows of a monitor, oldest first. `note` is why the monitor is
    paused, or its problem.
    """

    monitor: str
    windows: tuple[MonitorVerdict, ...]
    note: str = ""

    @property
    def latest(self) -> MonitorVerdict | None:
        """Return the newest window that does not wait for a verdict; otherwise the
        newest window, or None.
        """
        judged = (window for window in reversed(self.windows) if window.mark != "waiting")
        return next(chain(judged, reversed(self.windows)), None)


@dataclass(frozen=True)
class RolloutPicture:
    """A rollout with its evidence. `steps` has the traffic share and state (done, now,
    to come) of each step.
    """

    title: str
    state: str
    reason: str
    steps: tuple[tuple[str, str], ...]
    chart: LineChart
    counts: tuple[str, ...]


@dataclass(frozen=True)
class Pictures:
    """The charts of an endpoint. `notice` is the reason for missing traffic figures, or
    empty.
    """

    endpoint: str
    charts: tuple[LineChart, ...]
    notice: str = ""
    rollout: RolloutPicture | None = None
    timelines: tuple[Timeline, ...] = ()


def endpoint_pictures(
    observed: ObservedEndpoint,
    deployments: Deployments,
    pages: MlflowPages,
    span: Span,
    *,
    only_traffic: bool,
) -> Pictures:
    """Return the charts of an endpoint. With `only_traffic`, omit charts that need the
    store or MLflow.
    """
    store = deployments.store
    name = observed.endpoint.name
    now = store.now()
    charts: tuple[LineChart, ...] = ()
    notice = ""
    if observed.endpoint.spec.observe is None:
        histories = deployments.server_history(observed, span, _HISTORY_SECONDS)
        charts, notice = traffic_charts(name, histories, span, now)
    if only_traffic:
        return Pictures(name, charts[:3], notice)
    rollout = None
    for row in store.rollouts(name, limit=1):
        if row.created_at >= observed.endpoint.created_at:
            rollout = rollout_picture(row, now)
    return Pictures(
        endpoint=name,
        charts=charts,
        notice=notice,
        rollout=rollout,
        timelines=monitor_timelines(observed.endpoint.spec, store, pages, _BARS),
    )


def traffic_charts(
    endpoint: str,
    histories: HistoryByServer,
    span: Span,
    now: datetime,
) -> tuple[tuple[LineChart, ...], str]:
    """Return the charts of traffic, summed over the servers, and the reason why newer
    figures are missing, or "".
    """
    readable = {
        server: intervals
        for server, intervals in histories.items()
        if not isinstance(intervals, Refused)
    }
    end, notice = _newest_figures(histories, span, now)
    slots = _Slots(endpoint, readable, _time_axis(endpoint, readable, span, end.timestamp()))
    empty = f"no requests in the {SPANS[span]}" if any(readable.values()) else "no figures yet"
    total = VersionCounters()
    for interval in chain.from_iterable(readable.values()):
        for _, counters in interval.of_endpoint(endpoint):
            total = total.plus(counters)
    failures = f"Failures, {total.failures:,.0f} of {total.requests:,.0f}"
    draw = partial(line_chart, axis=ago_axis(end, slots.axis.seconds), empty=empty)
    latencies = slots.lines(_LATENCIES)
    seconds = chain.from_iterable(line.values for line in latencies)
    unit: Unit = "s"
    if max(filter(None, seconds), default=0.0) < 1:
        unit = "ms"
        latencies = [line.scaled(1000) for line in latencies]
    return (
        draw(f"{endpoint}-requests", "Requests", "/s", series=slots.requests()),
        draw(f"{endpoint}-latency", "Latency", unit, series=latencies),
        draw(f"{endpoint}-errors", failures, "%", series=slots.lines(_FAILURES)),
        draw(f"{endpoint}-rows", "Rows and labels", "/min", series=slots.rows_and_labels()),
    ), notice


def _newest_figures(
    histories: HistoryByServer,
    span: Span,
    now: datetime,
) -> tuple[datetime, str]:
    """Return the time at the right end of the charts, and the reason why newer figures
    are missing, or "".
    """
    unread = {
        server: answer.reason for server, answer in histories.items() if isinstance(answer, Refused)
    }
    ends = [
        intervals[-1].at
        for intervals in histories.values()
        if intervals and not isinstance(intervals, Refused)
    ]
    notice = ""
    if unread:
        whose = f" of {', '.join(unread)}" if len(unread) < len(histories) else ""
        notice = f"No figures{whose}: {next(iter(unread.values()))}"
    if not ends:
        return now, notice
    newest = max(ends)
    late = now.timestamp() - newest
    if late > _LATE_SECONDS[span]:
        last = datetime.fromtimestamp(newest, UTC)
        return now, (
            f"No figures since {last:%Y-%m-%d %H:%M:%S} UTC: the server or its agent does not run"
        )
    if late < -_CLOCK_SECONDS:
        notice = f"The server's clock is {duration(-late)} ahead of this machine's clock"
    # End the charts at the oldest of the servers' newest figures, because the servers'
    # clocks may differ.
    oldest = min(end for end in ends if newest - end <= _LATE_SECONDS[span])
    return datetime.fromtimestamp(oldest, UTC), notice


def _percent(counters: VersionCounters, part: float) -> float | None:
    if not counters.requests:
        return None
    return 100 * part / counters.requests


@dataclass(frozen=True)
class _Figure:
    """A figure of each version in a slot. A figure with a label is a thin line."""

    suffix: str
    label: str
    value: Callable[[VersionCounters], float | None]


_LATENCIES = (
    _Figure(" p99", "", lambda counters: counters.quantile(0.99)),
    _Figure(" median", "median", lambda counters: counters.quantile(0.5)),
)
_FAILURES = (
    _Figure("", "", lambda counters: _percent(counters, counters.failures)),
    _Figure(" refused", "refused (4xx)", lambda counters: _percent(counters, counters.refused)),
)


@dataclass(frozen=True)
class _TimeAxis:
    """The `seconds` before `end`, in slots of equal length."""

    end: float
    seconds: int
    slot_seconds: int

    @property
    def slots(self) -> range:
        return range(self.seconds // self.slot_seconds)

    def overlapped(self, interval: CountedInterval) -> range:
        """Return the slots that the interval overlaps."""
        age = self.end - interval.at
        newest = len(self.slots) - math.floor(age / self.slot_seconds)
        oldest = len(self.slots) - math.ceil((age + interval.seconds) / self.slot_seconds)
        return self.slots[max(oldest, 0) : max(newest, 0)]


def _time_axis(endpoint: str, histories: _Histories, span: Span, end: float) -> _TimeAxis:
    """Return the shortest axis of the span that contains all requests and labels until
    `end` or, without any, all figures.
    """
    line_seconds, lines = HISTORY_INTERVALS[span]
    most = line_seconds * lines
    intervals = [*chain.from_iterable(histories.values())]
    busy = []
    for interval in intervals:
        has_requests = any(counters.requests > 0 for _, counters in interval.of_endpoint(endpoint))
        if has_requests or interval.labels > 0:
            busy.append(interval)
    begin = min((item.at - item.seconds for item in busy or intervals), default=end - most)
    seconds = axis_seconds(min(max(end - begin, line_seconds * _LEAST_SLOTS), most))
    return _TimeAxis(end, seconds, max(int(line_seconds), seconds // _POINTS))


class _Slots:
    """The counts of an endpoint's servers in the slots of a time axis.

    An interval belongs to every slot that it overlaps, so that a long interval does not
    leave gaps.
    """

    def __init__(self, endpoint: str, histories: _Histories, axis: _TimeAxis) -> None:
        self.axis = axis
        self._endpoint = endpoint
        self._intervals: list[defaultdict[str, list[CountedInterval]]] = [
            defaultdict(list) for _ in axis.slots
        ]
        self._counted: list[defaultdict[_Version, VersionCounters]] = [
            defaultdict(VersionCounters) for _ in axis.slots
        ]
        self._requests: defaultdict[_Version, float] = defaultdict(float)
        for server, intervals in histories.items():
            for interval in intervals:
                for slot in axis.overlapped(interval):
                    self._intervals[slot][server].append(interval)
                    counted = self._counted[slot]
                    for version, counters in interval.of_endpoint(endpoint):
                        counted[version] = counted[version].plus(counters)
                        self._requests[version] += counters.requests
        by_requests = sorted(
            self._requests,
            key=lambda key: (-self._requests[key], key),
        )
        ordered = sorted(by_requests[:COLOURS], key=_legend_sort_key)
        if len({key[0] for key in ordered}) == 1:
            by_name = {f"version {key[1]}": key for key in ordered}
        else:
            by_name = {" ".join(key): key for key in ordered}
        self._versions = [*enumerate(by_name.items())]

    def requests(self) -> list[Series]:
        def count(key: _Version, interval: CountedInterval) -> float:
            return sum(
                counters.requests
                for version, counters in interval.of_endpoint(self._endpoint)
                if version == key
            )

        return [
            Series(name, self._rates(partial(count, version)), colour)
            for colour, (name, version) in self._versions
        ]

    def lines(self, figures: Sequence[_Figure]) -> list[Series]:
        """Return a line of each figure for each version."""
        series = []
        for colour, (name, version) in self._versions:
            counters = [counted.get(version, _NO_REQUESTS) for counted in self._counted]
            for figure in figures:
                values = [*map(figure.value, counters)]
                title = f"{name}{figure.suffix}"
                series.append(Series(title, values, colour, bool(figure.label), figure.label))
        return series

    def rows_and_labels(self) -> list[Series]:
        rows = self._rates(lambda interval: 60 * interval.rows.get(self._endpoint, 0.0))
        labels = self._rates(lambda interval: 60 * interval.labels)
        return [Series("rows answered", rows), Series("labels received", labels, 1)]

    def _rates(
        self,
        number: Callable[[CountedInterval], float],
    ) -> list[float | None]:
        """Return a count per second for each slot, summed over all servers; None for a
        slot without an interval.
        """
        rates: list[float | None] = [None for _ in self._intervals]
        for slot, histories in enumerate(self._intervals):
            if histories:
                rates[slot] = sum(
                    sum(map(number, intervals)) / sum(interval.seconds for interval in intervals)
                    for intervals in histories.values()
                )
        return rates


def _legend_sort_key(key: _Version) -> tuple[str, int, str]:
    """Return the model, the number of the version (0 for a text), and the version."""
    model, version = key
    number = int(version) if version.isdecimal() else 0
    return model, number, version


def rollout_picture(rollout: Rollout, now: datetime) -> RolloutPicture:
    """Return the picture of a rollout, from its begin until its end or `now`."""
    until = max(
        ((rollout.ended_at or now) - rollout.created_at).total_seconds(),
        0.0,
    )
    axis = since_axis(rollout.created_at, until)
    version = rollout.spec.get("version", "?")
    steps = []
    done = math.inf if rollout.state == "promoted" else rollout.step
    for index, share in enumerate(rollout.spec.get("steps", ())):
        if index < done:
            place = "done"
        elif index == done and rollout.is_live:
            place = "now"
        else:
            place = "to come"
        steps.append((f"{share} %", place))
    counts = []
    if not rollout.reason:  # The reason contains the number of requests.
        answered = rollout.figures.get("candidate", {}).get("requests", 0)
        counts.append(
            f"The candidate has answered {answered:,.0f} of "
            f"{rollout.spec.get('min_requests', 0):,} required requests in this step"
        )
    for text, criterion in rollout.figures.get("criteria", {}).items():
        counts.append(f"{text}: {criterion.get('figures', '')}")
    return RolloutPicture(
        title=f"Rollout from version {rollout.spec.get('before_version', '?')} to {version}",
        state=rollout.state,
        reason=rollout.reason,
        steps=tuple(steps),
        chart=line_chart(
            f"{rollout.endpoint}-evidence",
            f"Evidence against version {version}",
            "%",
            axis,
            _evidence_series(rollout.figures, until, (axis.end - axis.begin).total_seconds()),
            limit=100.0,
            is_growing=True,
            empty="not judged yet",
        ),
        counts=tuple(counts),
    )


def _evidence_series(figures: Json, until: float, seconds: float) -> list[Series]:
    """Return a line per abort criterion. Each point is the last measured share in
    percent before the time of the point.

    The chart covers `seconds`, of which `until` seconds have passed.
    """
    shares_by_criterion: dict[str, list[float | None]] = {
        text: [None] * _POINTS for text in figures.get("criteria", ())
    }
    # Another version may have stored another format.
    with suppress(TypeError, ValueError, AttributeError):
        for at, _, shares in figures.get("trace", ()):
            slot = int((_POINTS - 1) * min(max(at / seconds, 0), 1))
            for text, share in shares.items():
                if text in shares_by_criterion and share is not None:
                    shares_by_criterion[text][slot] = 100 * share
    now = math.ceil((_POINTS - 1) * min(until / seconds, 1))
    for values in shares_by_criterion.values():
        for slot in range(1, now + 1):
            if values[slot] is None:
                values[slot] = values[slot - 1]
    return [
        Series(text, values, colour)
        for colour, (text, values) in enumerate(shares_by_criterion.items())
    ]


def monitor_timelines(
    spec: EndpointSpec,
    store: Store,
    pages: MlflowPages,
    count: int,
) -> tuple[Timeline, ...]:
    """Return the `count` newest windows of each monitor, in the order of the names."""
    monitors = Monitors(store)
    notes = {}
    for state in monitors.states(spec.name):
        notes[state.monitor] = f"paused by {state.paused_by}" if state.paused else state.note
    verdicts: defaultdict[str, list[MonitorVerdict]] = defaultdict(list)
    windows = monitors.newest_of_each(spec.name, spec.monitors, count)
    for verdict in pages.windows(spec.name, windows):
        verdicts[verdict.stored.monitor].append(verdict)
    return tuple(
        Timeline(
            name,
            newest_verdicts(verdicts[name], count),
            notes.get(name, ""),
        )
        for name in sorted(spec.monitors)
    )


def newest_verdicts(windows: Iterable[MonitorVerdict], count: int) -> tuple[MonitorVerdict, ...]:
    """Return a verdict for each of the newest windows of a monitor, from its last
    judged revision or its last revision.

    `windows` contains the revisions of a window in order.
    """
    newest = {
        (row.stored.end, row.stored.start): row
        for row in sorted(windows, key=lambda row: row.mark not in ("waiting", "failed"))
    }
    return tuple(newest[times] for times in sorted(newest)[-count:])
