"""The tallies of all workers, added up, and as Prometheus' text.

prometheus_client does the same (`MultiProcessCollector`, `generate_latest`) with several objects
for each sample: with 200 endpoints and 2 workers that holds the interpreter eight times as long. Here values are added
by the bytes of their keys, and labels are read once for all buckets of a histogram; a test compares both pages.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import orjson

from mlflow_deploy_plugin.statedir import AGENT, AgentState, is_alive, read_state

MetricKind = Literal["counter", "gauge", "histogram"]
_KINDS: tuple[MetricKind, ...] = ("counter", "gauge", "histogram")
_BOUND = b'"le": "'
"""Before a bucket's bound in a key. It stands nowhere else: inside of a JSON string quotes are escaped."""
_LINES_AT_ONCE, _KEYS_AT_ONCE, _BYTES_AT_ONCE = 1000, 500, 200_000
_PAUSE_SECONDS = 1e-4
"""After half a millisecond's work. A thread that computes keeps the interpreter for 5 ms each time that another wants
it (`sys.getswitchinterval`); one that sleeps hands it over at once."""


@dataclass(slots=True)
class MetricSeries:
    """The values of one label set.

    Attributes:
        value: of a histogram the sum of what was observed.
        buckets: of a histogram: each bound, ascending, and how many observations were at most that.
    """

    labels: dict[str, str]
    value: float = 0.0
    buckets: list[tuple[str, float]] = field(default_factory=list)

    @property
    def count(self) -> float:
        return self.buckets[-1][1] if self.buckets else 0.0


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """A metric: its kind, what it says of itself, and its series by their labels."""

    name: str
    kind: MetricKind
    text: str
    series: dict[tuple[str, ...], MetricSeries] = field(default_factory=dict)


def read_families(folder: Path) -> list[MetricFamily]:
    """The metrics of all workers that have left files in the folder (`mmap_counters.py`), by their names.

    Counters and histograms are added up over the dead too; of gauges, those that are named `gauge_livesum_PID` are
    added up, and of `gauge_max_…` the largest is taken. Sleeps now and then, for the sake of other threads.
    """
    families: dict[str, MetricFamily] = {}
    for kind, values in _added(folder).items():
        buckets: dict[bytes, list[tuple[float, str, float]]] = defaultdict(list)
        for number, (key, value) in enumerate(values.items(), 1):
            if number % _KEYS_AT_ONCE == 0:
                time.sleep(_PAUSE_SECONDS)
            before, mark, after = key.partition(_BOUND)
            if not mark:
                _series(families, kind, key).value = value
                continue
            bound, _, after = after.partition(b'"')
            buckets[before + mark + b'"' + after].append((float(bound), bound.decode(), value))
        for key, found in buckets.items():
            _series(families, kind, key).buckets = _cumulative(found)
    return [families[name] for name in sorted(families)]


def read_counter(folder: Path, name: str) -> list[tuple[dict[str, str], float]]:
    """The labels and values of one counter, added up as in `read_families`; nothing else is read."""
    begin = orjson.dumps([name])[:-1] + b","
    found = [(key, value) for key, value in _added(folder, "counter")["counter"].items() if key.startswith(begin)]
    return [(orjson.loads(key)[2], value) for key, value in found]


def prometheus_text(families: list[MetricFamily]) -> bytes:
    """The page that Prometheus scrapes."""
    lines: list[str] = []
    written = 0
    for family in families:
        shown = family.name + "_total" if family.kind == "counter" else family.name
        text = family.text.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {shown} {text}\n# TYPE {shown} {family.kind}\n")
        for series in family.series.values():
            lines += _lines(family, shown, series)
            if len(lines) - written > _LINES_AT_ONCE:
                written = len(lines)
                time.sleep(_PAUSE_SECONDS)
    return "".join(lines).encode()


def _lines(family: MetricFamily, shown: str, series: MetricSeries) -> Iterator[str]:
    named = [(name, f'{name}="{_escaped(value)}"') for name, value in sorted(series.labels.items())]
    labels = ",".join(text for _, text in named)
    braced = f"{{{labels}}}" if labels else ""
    if family.kind != "histogram":
        yield f"{shown}{braced} {series.value!r}\n"
        return
    if series.buckets:
        before = "".join(f"{text}," for name, text in named if name < "le")
        after = "".join(f",{text}" for name, text in named if name > "le")
        begin, end = f'{shown}_bucket{{{before}le="', f'"{after}}} '
        for bound, count in series.buckets:
            yield f"{begin}{bound}{end}{count!r}\n"
        yield f"{shown}_count{braced} {series.count!r}\n"
    yield f"{shown}_sum{braced} {series.value!r}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _series(families: dict[str, MetricFamily], kind: MetricKind, key: bytes) -> MetricSeries:
    """The series of a key; a new one of a new family where there is none."""
    name, _, labels, text = orjson.loads(key)
    labels.pop("le", None)
    family = families.get(name)
    if family is None:
        family = families[name] = MetricFamily(name, kind, text)
    identity = tuple(
        labels.values()
    )  # keys are written with their names sorted, and a family has the same names always
    series = family.series.get(identity)
    if series is None:
        series = family.series[identity] = MetricSeries(labels)
    return series


def _cumulative(buckets: list[tuple[float, str, float]]) -> list[tuple[str, float]]:
    buckets.sort()
    counted = 0.0
    found = []
    for _, bound, value in buckets:
        counted += value
        found.append((bound, counted))
    return found


def _added(folder: Path, only: str = "") -> dict[MetricKind, dict[bytes, float]]:
    """By kind and key: the value over all files, or over those of one kind."""
    added: dict[MetricKind, dict[bytes, float]] = {kind: {} for kind in _KINDS}
    for path in sorted(folder.glob(f"{only}*.db")):
        kind, _, mode = path.name.partition("_")
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # a worker has died, and its gauges with it
            continue
        values = added[kind]  # type: ignore[index]
        if kind == "gauge" and mode.startswith("max"):
            for key, value in _entries(content):
                values[key] = max(value, values.get(key, value))
        else:
            for key, value in _entries(content):
                values[key] = values.get(key, 0.0) + value
    return added


def _entries(content: bytes) -> Iterator[tuple[bytes, float]]:
    """Every key of a tally's file and its value; each entry begins at a multiple of 8."""
    if not content:  # its worker has just made it
        return
    view = memoryview(content)
    lengths, values = view.cast("i"), view.cast("d")
    position, used = 8, lengths[0]
    pause_at = _BYTES_AT_ONCE
    while position < used:
        begin = position + 4
        stop = begin + lengths[position >> 2]
        position = (stop + 8) & -8  # a key is filled up with one to eight spaces
        yield content[begin:stop], values[position >> 3]
        position += 16
        if position > pause_at:
            pause_at = position + _BYTES_AT_ONCE
            time.sleep(_PAUSE_SECONDS)


def agent_metrics_page(state_dir: Path) -> bytes:
    """Metrics of the agent, as Prometheus' text; empty where there is no agent."""
    state = read_state(state_dir / AGENT, AgentState)
    if state is None:
        return b""
    refused = [
        {
            "endpoint": one.endpoint,
            "variant": one.variant,
            "model": one.model,
            "version": one.version,
            "cause": one.cause,
        }
        for one in state.refused
    ]
    families = [
        _family("onnxserve_agent_up", "Whether the agent lives.", {(): float(is_alive(state.pid))}),
        _family(
            "onnxserve_agent_errors", "Things that keep what the spec names from being served.", {(): state.errors}
        ),
        _family(
            "onnxserve_registry_checked_timestamp_seconds",
            "When a look at the registry has last ended, well or not, since 1970.",
            {(): state.checked_at},
        ),
        _family(
            "onnxserve_log_complete_until_timestamp_seconds",
            "Every row that was answered before is in the inference log, or was dropped; since 1970, by tens.",
            {(): state.shipping.complete_until},
        ),
        _family(
            "onnxserve_wanted_version_refused",
            "Versions that the registry names and that are not served: gate, fetch, artifact, consent or load.",
            {tuple(labels.items()): 1.0 for labels in refused},
        ),
    ]
    return prometheus_text(families)


def _family(name: str, text: str, values: Mapping[tuple[tuple[str, str], ...], float]) -> MetricFamily:
    kind: MetricKind = "gauge"
    series = {
        tuple(value for _, value in labels): MetricSeries(dict(labels), float(value))
        for labels, value in values.items()
    }
    return MetricFamily(name, kind, text, series)
