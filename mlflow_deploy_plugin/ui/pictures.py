"""The charts of an endpoint: traffic, latency and errors per version, labels, rollout
evidence, monitor windows.

The traffic figures are read from the history of the servers
(`core/statedir/history.py`), other figures from the store.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.statedir.history import HISTORY_INTERVALS, Span
from mlflow_deploy_plugin.core.store.monitors import Monitors
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
    duration,
    line_chart,
    since_axis,
)
from mlflow_deploy_plugin.ui.mlflow_pages import MlflowPages, MonitorVerdict

SPANS: Mapping[Span, str] = {"hour": "last hour", "day": "last day"}
_LENGTHS: Mapping[Span, tuple[int, ...]] = {
    "hour": (480, 1200, 2400, 3600),
    "day": (14400, 28800, 43200, 86400),
}
"""The lengths of the time axis in seconds. The shortest length that contains all
figures is used.
"""
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
_QUANTILES = {"p99": 0.99, "median": 0.5}

_Version = tuple[str, str]
"""A registered model and its version."""


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
        newest = self.windows[::-1]
        return next(
            (window for window in newest if window.mark != "waiting"),
            newest[0] if newest else None,
        )


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
    charts, notice = traffic_charts(
        name,
        deployments.server_history(observed, span, _HISTORY_SECONDS),
        span,
        now,
    )
    if only_traffic:
        return Pictures(name, charts[:3], notice)
    rollouts = [
        row
        for row in store.rollouts(name, limit=1)
        if row.created_at >= observed.endpoint.created_at
    ]
    return Pictures(
        endpoint=name,
        charts=charts,
        notice=notice,
        rollout=rollout_picture(rollouts[-1], now) if rollouts else None,
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
    read = {
        server: intervals
        for server, intervals in histories.items()
        if not isinstance(intervals, Refused)
    }
    intervals = [interval for series in read.values() for interval in series]
    end, notice = _newest_figures(histories, span, now)
    age = end.timestamp() - min(
        (interval.at - interval.seconds for interval in intervals),
        default=-math.inf,
    )
    length = next((length for length in _LENGTHS[span] if length >= age), _LENGTHS[span][-1])
    slots = _Slots(
        endpoint,
        read,
        end.timestamp(),
        length,
        max(int(HISTORY_INTERVALS[span][0]), length // _POINTS),
    )
    rates = []
    latencies = []
    errors = []
    for colour, (name, version) in enumerate(slots.versions().items()):
        counters = slots.counted(version)
        rates.append(Series(name, slots.rates(partial(slots.requests, version)), colour))
        for quantile, share in _QUANTILES.items():
            values = [counter.quantile(share) if counter else None for counter in counters]
            is_median = quantile == "median"
            latencies.append(
                Series(
                    f"{name} {quantile}",
                    values,
                    colour,
                    is_median,
                    "median" if is_median else "",
                ),
            )
        answered = [counter if counter and counter.requests else None for counter in counters]
        failed = [
            100 * counter.failures / counter.requests if counter else None for counter in answered
        ]
        refused = [
            100 * counter.refused / counter.requests if counter else None for counter in answered
        ]
        errors += [
            Series(name, failed, colour),
            Series(f"{name} refused", refused, colour, True, "refused (4xx)"),
        ]
    rows = Series(
        "rows answered",
        slots.rates(lambda interval: 60 * interval.rows.get(endpoint, 0.0)),
    )
    labels = Series("labels received", slots.rates(lambda interval: 60 * interval.labels), 1)
    axis = ago_axis(end, length)
    empty = f"no requests in the {SPANS[span]}" if intervals else "no figures yet"
    drawn: list[tuple[str, str, Unit, list[Series]]] = [
        ("requests", "Requests", "/s", rates),
        ("latency", "Latency", *_in_readable_unit(latencies)),
        ("errors", "Failures", "%", errors),
        ("rows", "Rows and labels", "/min", [rows, labels]),
    ]
    charts = (
        line_chart(f"{endpoint}-{id}", title, unit, axis, lines, empty=empty)
        for id, title, unit, lines in drawn
    )
    return tuple(charts), notice


def _in_readable_unit(latencies: Sequence[Series]) -> tuple[Unit, list[Series]]:
    values = (value for line in latencies for value in line.values if value is not None)
    if max(values, default=0.0) >= 1:
        return "s", [*latencies]
    return "ms", [
        replace(line, values=[value and 1000 * value for value in line.values])
        for line in latencies
    ]


def _newest_figures(histories: HistoryByServer, span: Span, now: datetime) -> tuple[datetime, str]:
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
        return (
            now,
            f"No figures since {last:%Y-%m-%d %H:%M:%S} UTC: the server or its agent does not run",
        )
    if late < -_CLOCK_SECONDS:
        notice = f"The server's clock is {duration(-late)} ahead of this machine's clock"
    # End the charts at the oldest of the servers' newest figures, because the servers'
    # clocks may differ.
    counted = min(at for at in ends if newest - at <= _LATE_SECONDS[span])
    return datetime.fromtimestamp(counted, UTC), notice


class _Slots:
    """The counts of an endpoint's servers before `end`, in slots of equal length.

    An interval belongs to every slot that it overlaps, so that a long interval does not
    leave gaps.
    """

    def __init__(
        self,
        endpoint: str,
        histories: Mapping[str, Sequence[CountedInterval]],
        end: float,
        seconds: int,
        slot_seconds: int,
    ) -> None:
        count = seconds // slot_seconds
        self._endpoint = endpoint
        self._intervals: list[defaultdict[str, list[CountedInterval]]] = [
            defaultdict(list) for _ in range(count)
        ]
        self._requests: defaultdict[_Version, float] = defaultdict(float)
        self._counted: list[dict[_Version, VersionCounters]] = [{} for _ in range(count)]
        for server, interval in (
            (server, entry) for server, entries in histories.items() for entry in entries
        ):
            counters = {
                key: counted for key, counted in interval.counters.items() if key[0] == endpoint
            }
            newest = count - 1 - math.floor((end - interval.at) / slot_seconds)
            oldest = count - math.ceil((end - interval.at + interval.seconds) / slot_seconds)
            for slot in range(max(oldest, 0), min(newest, count - 1) + 1):
                self._intervals[slot][server].append(interval)
                for (_, _, model, version), counted in counters.items():
                    previous = self._counted[slot].get((model, version))
                    self._counted[slot][model, version] = (
                        previous.plus(counted) if previous else counted
                    )
                    self._requests[model, version] += counted.requests

    def versions(self) -> dict[str, _Version]:
        """Return the versions with the most requests by name, oldest first."""
        busiest = sorted(self._requests, key=lambda key: (-self._requests[key], key))[:COLOURS]
        ordered = sorted(
            busiest,
            key=lambda key: (key[0], int(key[1]) if key[1].isdecimal() else 0, key[1]),
        )
        is_one_model = len({model for model, _ in ordered}) == 1
        return {
            f"version {version}" if is_one_model else f"{model} {version}": (model, version)
            for model, version in ordered
        }

    def counted(self, version: _Version) -> list[VersionCounters | None]:
        return [counted.get(version) for counted in self._counted]

    def requests(self, version: _Version, interval: CountedInterval) -> float:
        of_version = (self._endpoint, *version)
        return sum(
            counted.requests
            for (endpoint, _, *of_model), counted in interval.counters.items()
            if (endpoint, *of_model) == of_version
        )

    def rates(self, number: Callable[[CountedInterval], float]) -> list[float | None]:
        """Return a count per second for each slot, summed over all servers; None for a
        slot without an interval.
        """
        return [
            sum(
                sum(map(number, entries)) / sum(entry.seconds for entry in entries)
                for entries in slot.values()
            )
            if slot
            else None
            for slot in self._intervals
        ]


def rollout_picture(rollout: Rollout, now: datetime) -> RolloutPicture:
    until = max(((rollout.ended_at or now) - rollout.created_at).total_seconds(), 0.0)
    axis = since_axis(rollout.created_at, until)
    spec = rollout.spec
    figures = rollout.figures
    done = math.inf if rollout.state == "promoted" else rollout.step
    steps = tuple(
        (
            f"{share} %",
            "done" if index < done else "now" if index == done and rollout.is_live else "to come",
        )
        for index, share in enumerate(spec.get("steps", ()))
    )
    criteria = figures.get("criteria", {})
    chart = line_chart(
        f"{rollout.endpoint}-evidence",
        f"Evidence against version {spec.get('version', '?')}",
        "%",
        axis,
        _evidence(
            figures.get("trace", ()),
            [*criteria],
            until,
            (axis.end - axis.begin).total_seconds(),
        ),
        limit=100.0,
        is_growing=True,
        empty="not judged yet",
    )
    answered = figures.get("candidate", {}).get("requests", 0)
    needed = spec.get("min_requests", 0)
    counts = [
        f"The candidate has answered {answered:,.0f} of {needed:,} required requests in this step",
    ]
    counts = [] if rollout.reason else counts  # Do not repeat figures that the reason contains.
    counts += [f"{text}: {criterion.get('figures', '')}" for text, criterion in criteria.items()]
    title = f"Rollout from version {spec.get('before_version', '?')} to {spec.get('version', '?')}"
    return RolloutPicture(title, rollout.state, rollout.reason, steps, chart, tuple(counts))


def _evidence(
    trace: Sequence[tuple[float, int, Json]],
    criteria: Sequence[str],
    until: float,
    seconds: float,
) -> list[Series]:
    """Return a line per abort criterion. Each point is the last measured share in
    percent before the time of the point.

    The chart covers `seconds`, of which `until` seconds have passed.
    """
    shares_by_criterion: dict[str, list[float | None]] = {
        text: [None] * _POINTS for text in criteria
    }
    with suppress(
        TypeError,
        ValueError,
        AttributeError,
    ):  # Another version may have stored another format.
        for at, _, shares in trace:
            slot = int((_POINTS - 1) * min(max(at / seconds, 0), 1))
            for text, share in shares.items():
                if text in shares_by_criterion and share is not None:
                    shares_by_criterion[text][slot] = 100 * share
    now = math.ceil((_POINTS - 1) * min(until / seconds, 1))
    for values in shares_by_criterion.values():
        for slot in range(1, now + 1):
            values[slot] = values[slot - 1] if values[slot] is None else values[slot]
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
    monitors = Monitors(store)
    notes = {
        row.monitor: f"paused by {row.paused_by}" if row.paused else row.note
        for row in monitors.states(spec.name)
    }
    verdicts = pages.windows(spec.name, monitors.newest_of_each(spec.name, spec.monitors, count))
    return tuple(
        Timeline(
            name,
            newest_verdicts([row for row in verdicts if row.stored.monitor == name], count),
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
