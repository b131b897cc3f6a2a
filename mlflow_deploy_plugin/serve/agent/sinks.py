"""Sinks: send captured requests to other systems, as CloudEvents 1.0 over HTTP, or with
a sink of another distribution.

- `sinks/NAME/<segment>.seg`: hard links to the segments of the spool, which the shipper
  may therefore remove
- `sinks/NAME/<segment>.shipped`: the offset up to which the segment's requests are sent
- `sinks/NAME/dead.jsonl`, `dead.1`: the newest events that the destination has
  rejected, or that failed while it accepted later events

An event is a request together with its answer. Events are sent at least once, in the
order of a segment; an event that is sent again has the same id. An erasure of rows
(`onnxserve log erase`) posts an event itself. Each sink has a thread,
so that a slow destination delays neither the log nor other sinks. Endpoints whose sinks
have the same name share its queue.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md.
The types and the extension attributes are those of KServe's payload logger
(https://github.com/kserve/kserve/tree/master/pkg/logger), and the data are a request
and a response of V2.
"""

import heapq
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import urllib3

from mlflow_deploy_plugin.core.column_names import is_prediction
from mlflow_deploy_plugin.core.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.core.extensions import find_entry
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.processes.child import backoff_seconds
from mlflow_deploy_plugin.core.registry.answers import bounded_answers
from mlflow_deploy_plugin.core.registry.model_uri import model_pattern
from mlflow_deploy_plugin.core.spec.document import load_stored_specs
from mlflow_deploy_plugin.core.spec.parts import SinkSpec
from mlflow_deploy_plugin.core.statedir import files
from mlflow_deploy_plugin.core.statedir.models import SinkState, Wanted
from mlflow_deploy_plugin.serve.agent.ship import captured_columns, to_arrow
from mlflow_deploy_plugin.serve.messages import VISIBLE, new_id, percent_encoded
from mlflow_deploy_plugin.serve.protocols.v2_tensors import array_datatype
from mlflow_deploy_plugin.serve.spool.frames import (
    SHIPPED,
    remove_left_over,
    segments,
    shipped_bytes,
    spool_bytes,
)
from mlflow_deploy_plugin.serve.spool.spool_reader import CapturedBatch, read_batches

_log = logging.getLogger(__name__)

REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"
ERASED = "org.kubeflow.serving.inference.erased"
"""The type of our event that asks a receiver to erase rows."""
DEAD = "dead.jsonl"
_REJECTED = {*range(400, 500)} - {401, 403, 404, 405, 407, 408, 410, 421, 425, 426, 429}
"""The statuses that concern the event. Any other failure seems to concern the address,
the credentials or the state of the destination, and is retried.
"""
_SUSPICIOUS_FAILURES = 10
"""The number of failed rounds after which a round also tries the next events, in case
a single event is the cause, and the maximum number of such events that it skips. Ten
rounds take five minutes.
"""
_SAFE = VISIBLE.replace(" ", "").replace('"', "")
"""The characters that CloudEvents leaves unescaped in a header (section 3.1.3.2)."""
_MOST_BODY_BYTES = 1_000_000
"""The size of a batch, as in Azure Event Grid. A single event may be larger."""
_MOST_DEAD_BYTES = 8 * 1024**2
_MOST_ANSWER_BYTES = 500
_TIMEOUT = urllib3.Timeout(connect=5.0, read=30.0)
_ROUND_SECONDS = 2.0
_END_SECONDS = 10.0
_LONGEST_BACKOFF_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 3600.0


class _Unavailable(Exception):
    """The reason why the destination does not accept events now (first argument), and
    the seconds to wait that it has specified. The reason contains no secret.
    """


class Event(NamedTuple):
    """An event of the request at `offset` in its segment. `data` is JSON."""

    offset: int
    spec: SinkSpec
    attributes: dict[str, str]
    data: bytes

    def document(self) -> dict[str, Any]:
        """Return the event in CloudEvents' JSON format."""
        data = orjson.Fragment(self.data)
        return {**self.attributes, "datacontenttype": "application/json", "data": data}


class Sinks:
    """The sinks of a server's endpoints, and their `states` by name. `max_bytes` limits
    the spool and the queue of a sink together.
    """

    def __init__(self, state_dir: Path, max_bytes: float = math.inf) -> None:
        self.max_bytes = max_bytes
        self.states: dict[str, SinkState] = {}
        self._state_dir = state_dir
        self._files: list[tuple[int, int, int] | None] = []
        self._default: Mapping[str, SinkSpec] = {}
        """The sinks of all models of a server of all registered models."""
        self._specs: dict[str, Mapping[str, SinkSpec]] = {}
        self._sinks: dict[str, Sink] = {}
        self._stop = threading.Event()

    def hold(self, listed: Sequence[Path]) -> None:
        """Queue the listed segments for the sinks, and start the threads of new sinks.
        The shipper calls this function before it removes segments.
        """
        paths = self._state_dir / files.WANTED, self._state_dir / files.SPEC
        identities = [files.file_identity(path) for path in paths]
        if identities != self._files:
            self._files = identities
            wanted = files.read_state(paths[0], Wanted) or Wanted()
            # The requests of an endpoint that was unloaded must still be sent.
            for name, endpoint in wanted.endpoints.items():
                self._specs[name] = endpoint.capture.sinks
            with suppress(OSError, ValueError, OnnxserveError):  # The agent logs the error.
                specs = load_stored_specs(paths[1].read_text())
                if model_pattern(specs) is not None:
                    self._default = specs[0].capture.sinks
        if not (self._specs or self._default):
            return
        names = set(self._default).union(*self._specs.values())
        # A sink that was removed only empties its queue.
        left = {folder.name for folder in (self._state_dir / files.SINKS).glob("*")}
        for name in names | left:
            try:
                if name not in self._sinks:
                    self._sinks[name] = Sink(name, self._state_dir, self._sinks_of, self._stop)
                    self._sinks[name].start()
                self.states[name] = self._sinks[name].hold(
                    listed if name in names else [], self.max_bytes
                )
            except OSError as error:  # The log must still be written.
                _log.error("sink %s: requests cannot be queued: %s", name, error)

    def _sinks_of(self, endpoint: str) -> Mapping[str, SinkSpec]:
        return self._specs.get(endpoint, self._default)

    def end(self) -> None:
        """Send the waiting requests within ten seconds, and end the threads. The next
        agent sends the rest.
        """
        self._stop.set()
        until = time.monotonic() + _END_SECONDS
        for sink in self._sinks.values():
            sink.join(max(0.0, until - time.monotonic()))


class Sink(threading.Thread):
    """A sink with its queue, and the thread that sends the queue. `sinks_of` returns
    the sinks of an endpoint by name.
    """

    def __init__(
        self,
        name: str,
        state_dir: Path,
        sinks_of: Callable[[str], Mapping[str, SinkSpec]],
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.folder = state_dir / files.SINKS / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._spool = state_dir / files.SPOOL
        self._sinks_of = sinks_of
        self._ended = stop
        self._clock = clock
        self._pool = urllib3.PoolManager()
        self._counts = Counter[str]()
        self._error = ""
        self._failures = 0
        self._suspects: list[tuple[Event, int | None, str]] = []
        self._retry_at = float("-inf")

    def hold(self, listed: Sequence[Path], max_bytes: float) -> SinkState:
        """Link the listed segments into the queue, and return the state. If the spool
        and the queue are too large, drop the oldest segments that only the queue has.
        Raises OSError.
        """
        for segment in listed:
            link = self.folder / segment.name
            if not link.exists():
                # A new sink does not receive the requests that are already in the log.
                self._record(link, shipped_bytes(segment))
                os.link(segment, link)
        room = max_bytes - spool_bytes(self._spool)
        waiting_bytes = 0
        for segment in reversed(segments(self.folder)):
            try:
                size = segment.stat().st_size
            except FileNotFoundError:
                continue  # The sink's thread has just removed it.
            waiting_bytes += size - shipped_bytes(segment)
            if self._in_spool(segment):
                continue
            room -= size
            if room < 0:
                dropped = sum(len(batch.offsets) for batch in self._read(segment)[0])
                self._counts["dropped"] += dropped
                segment.unlink(missing_ok=True)
                _log.error(
                    "sink %s: %d requests are dropped, because server.max_spool_bytes is reached",
                    self.name,
                    dropped,
                )
        remove_left_over(self.folder)
        return SinkState(events=self._counts, waiting_bytes=waiting_bytes, error=self._error)

    def run(self) -> None:
        """Send the queue regularly, and once more at the end."""
        while not self._ended.wait(_ROUND_SECONDS):
            self.round()
        self._retry_at = float("-inf")
        self.round()

    def round(self) -> None:
        """Send the queue, unless the last attempt has failed recently. A failure is
        logged when it begins, changes or ends.
        """
        if self._clock() < self._retry_at:
            return
        error = ""
        pause = 0.0
        sent = self._counts["sent"]
        self._suspects = []
        try:
            for segment in segments(self.folder):
                with suppress(FileNotFoundError):  # `hold` may drop the segment.
                    self._send_segment(segment)
        except _Unavailable as failure:
            error, pause = failure.args
        except Exception as failure:  # noqa: BLE001 - an error must not end the thread
            error = f"{type(failure).__name__}: {failure}"
        if error != self._error:
            _log.warning("sink %s: %s", self.name, error or "requests are sent again")
        self._error = error
        if not error or self._counts["sent"] > sent:
            self._failures = 0
        if error:
            self._failures += 1
            backoff = backoff_seconds(self._failures, _LONGEST_BACKOFF_SECONDS, first=2.0)
            self._retry_at = self._clock() + max(pause, backoff)

    def _send_segment(self, segment: Path) -> None:
        """Send the new requests of a segment, and remove a segment that cannot grow."""
        # Check before the segment is read: the shipper removes a segment only after
        # its worker has released it.
        is_final = not self._in_spool(segment)
        if segment.stat().st_size > shipped_bytes(segment):
            batches, end = self._read(segment)
            unsent: list[Event] = []
            unsent_bytes = 0
            for event in heapq.merge(*map(self._events, batches)):
                if unsent and (
                    event.spec != unsent[0].spec
                    or len(unsent) == event.spec.batch_size
                    or unsent_bytes + len(event.data) > _MOST_BODY_BYTES
                ):
                    self._send(segment, unsent)
                    self._record(segment, event.offset)
                    unsent = []
                    unsent_bytes = 0
                unsent.append(event)
                unsent_bytes += len(event.data)
            if unsent:
                self._send(segment, unsent)
            if self._suspects:
                raise _Unavailable(self._suspects[0][2], 0.0)
            self._record(segment, end)
        if is_final:
            segment.unlink(missing_ok=True)
            segment.with_suffix(SHIPPED).unlink(missing_ok=True)

    def _in_spool(self, segment: Path) -> bool:
        return (self._spool / segment.name).exists()

    def _read(self, segment: Path) -> tuple[list[CapturedBatch], int]:
        """Return the answered requests of the segment that must be sent, and the
        segment's end.
        """
        captured = read_batches(segment, shipped_bytes(segment))
        batches = [
            batch
            for batch in captured.batches
            if self.name in self._sinks_of(batch.endpoint)
            and not (batch.is_shadow or batch.is_failed)
        ]
        return batches, captured.end

    def _events(self, batch: CapturedBatch) -> Iterator[Event]:
        """Yield the events of a batch by offset: one per request, or two for receivers
        of KServe's payload logger.
        """
        spec = self._sinks_of(batch.endpoint)[self.name]
        times = batch.event_times.view("datetime64[us]")
        for number, (request, response) in enumerate(_documents(batch)):
            documents = {RESPONSE: request | response}
            if spec.kserve:
                documents = {REQUEST: request, RESPONSE: response}
            for kind, document in documents.items():
                attributes = _attributes(kind, document["id"], times[number], batch.endpoint)
                attributes["endpoint"] = batch.variant
                # orjson cannot write arrays of texts.
                data = orjson.dumps(document, np.ndarray.tolist, orjson.OPT_SERIALIZE_NUMPY)
                yield Event(int(batch.offsets[number]), spec, attributes, data)

    def _send(self, segment: Path, events: Sequence[Event]) -> None:
        """Send events of one spec. Events that the destination rejects, or that fail
        while it accepts later ones, are written to a file. Raises _Unavailable.
        """
        if any(event.spec != events[0].spec for event, _, _ in self._suspects):
            # These events may have another destination, which proves nothing.
            raise _Unavailable(self._suspects[0][2], 0.0)
        try:
            status, text = _post(self._pool, events)
        except _Unavailable as failure:
            is_suspicious = self._failures and self._failures % _SUSPICIOUS_FAILURES == 0
            if not is_suspicious or len(self._suspects) == _SUSPICIOUS_FAILURES:
                raise
            status = None
            text = failure.args[0]
        if status is not None and status not in _REJECTED:
            self._counts["sent"] += len(events)
        elif len(events) > 1:
            # Halve the batch to find the events that are not accepted.
            middle = len(events) // 2
            self._send(segment, events[:middle])
            self._record(segment, events[middle].offset)
            self._send(segment, events[middle:])
            return
        else:
            self._suspects.append((events[0], status, text))
        if status is None:
            return
        # The destination works, so the events before these were the cause.
        path = self.folder / DEAD
        if path.exists() and path.stat().st_size > _MOST_DEAD_BYTES:
            path.replace(path.with_suffix(".1"))
        for event, status, text in self._suspects:
            rejected = {"status": status, "answer": text, "event": event.document()}
            with path.open("ab") as file:
                file.write(orjson.dumps(rejected) + b"\n")
            self._counts["rejected"] += 1
            _log.error("sink %s: the destination rejects an event: see %s", self.name, path)
        self._suspects = []

    def _record(self, segment: Path, offset: int) -> None:
        """Record that the requests before this offset are sent, unless some of them are
        suspects.
        """
        if not self._suspects:
            files.write_atomically(segment.with_suffix(SHIPPED), str(offset).encode())


def post_erased(endpoint: str, spec: SinkSpec, column: str, values: Sequence[str]) -> str:
    """Ask a sink's destination to erase the rows of the endpoint whose column has one
    of the values, and return why it does not accept the event; empty if it does.
    """
    data = orjson.dumps({"column": column, "values": values})
    attributes = _attributes(ERASED, new_id(), np.datetime64("now", "us"), endpoint)
    try:
        status, text = _post(urllib3.PoolManager(), [Event(0, spec, attributes, data)])
    except _Unavailable as failure:
        return str(failure.args[0])
    return f"the destination answers {status}: {text}" if status in _REJECTED else ""


def _attributes(kind: str, event_id: str, moment: np.datetime64, endpoint: str) -> dict[str, str]:
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": f"/endpoints/{percent_encoded(endpoint, '')}",
        "type": kind,
        "time": f"{moment}Z",
        "inferenceservicename": endpoint,
        "namespace": os.environ.get("POD_NAMESPACE", "default"),
        "component": "predictor",
    }


def _post(pool: urllib3.PoolManager, events: Sequence[Event]) -> tuple[int, str]:
    """Post events, and return the status, which is a success or in `_REJECTED`, and
    the text of the answer. Raises _Unavailable.
    """
    spec = events[0].spec
    authorization = ""
    if spec.authorization is not None:
        authorization = os.environ.get(spec.authorization, "").strip()
        if not authorization:
            raise _Unavailable(f"set the environment variable {spec.authorization}", 0.0)
    headers = {"content-type": "application/cloudevents-batch+json"}
    body = orjson.dumps([event.document() for event in events])
    if not spec.url.startswith(("http://", "https://")):
        try:
            _sender(spec.url.partition(":")[0])(spec.url, authorization, orjson.loads(body))
        except InvalidRequest as error:
            return InvalidRequest.http_status, one_line(error, _MOST_ANSWER_BYTES)
        except BaseException as error:  # CancelledError does not derive from Exception.
            raise _Unavailable(f"{type(error).__name__}: {one_line(error, 500)}", 0.0) from error
        return 200, ""
    if spec.batch_size == 1:
        attributes = events[0].attributes
        headers = {f"ce-{key}": percent_encoded(attributes[key], _SAFE) for key in attributes}
        headers["content-type"] = "application/json"
        body = events[0].data
    if authorization:
        headers["authorization"] = authorization
    try:
        with bounded_answers():
            # Without retries, urllib3 does not follow redirects either.
            answer = pool.request(
                "POST", spec.url, body=body, headers=headers, retries=False, timeout=_TIMEOUT
            )
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        # The text of the error may contain the address or a header.
        raise _Unavailable(f"events cannot be posted: {type(error).__name__}", 0.0) from None
    if answer.status not in {*range(200, 300), *_REJECTED}:
        pause = 0.0
        with suppress(urllib3.exceptions.InvalidHeader):
            pause = urllib3.Retry().parse_retry_after(answer.headers.get("retry-after", ""))
        pause = min(pause, _LONGEST_RETRY_AFTER_SECONDS)
        raise _Unavailable(f"the destination answers {answer.status}", pause)
    return answer.status, answer.data[:_MOST_ANSWER_BYTES].decode(errors="replace")


@cache
def _sender(scheme: str) -> Any:
    """Return the function of a sink of another distribution, which sends events to a
    URL with an authorization. Raises OnnxserveError; errors are not kept, because the
    distribution may be installed later.
    """
    return find_entry("onnxserve.sinks", scheme, "sink", ["http", "https"])


def _documents(batch: CapturedBatch) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each request of a batch and its response as documents of V2."""
    columns = captured_columns(batch)
    prediction_ids = to_arrow(batch.prediction_ids).to_pylist()
    request_ids = to_arrow(batch.request_ids).to_pylist()
    answered = {"model_name": batch.model.model, "model_version": batch.model.version}
    for number, prediction_id in enumerate(prediction_ids):
        identity = {"id": prediction_id, "parameters": {"request_id": request_ids[number]}}
        tensors: dict[bool, list[object]] = {False: [], True: []}
        for name, array in columns.items():
            rows = array[number * batch.rows : (number + 1) * batch.rows]
            tensors[is_prediction(name)].append(
                {
                    "name": name,
                    "shape": rows.shape,
                    "datatype": array_datatype(rows),
                    "data": rows.ravel(),
                }
            )
        request = {**identity, "inputs": tensors[False]}
        yield request, {**identity, **answered, "outputs": tensors[True]}
