"""The page Requests: the last requests of all workers, with the captured values of their first rows.

Values, predictions and the messages of failed predictions are read from the spool. The page therefore shows only data
that `capture` permits: without the columns in `drop`, with the hashes of those in `mask`, and only of sampled requests.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np

from mlflow_deploy_plugin.errors import InvalidRequest
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.runtime.log_columns import (
    OUTPUT_PREFIX,
    PREDICTION,
    as_text,
    cast_columns_losslessly,
    to_log_columns,
)
from mlflow_deploy_plugin.server.http.views import is_own_host
from mlflow_deploy_plugin.server.inference.server import Server
from mlflow_deploy_plugin.server.messages import RawRequest
from mlflow_deploy_plugin.server.observability.recent_requests import RecentRequest
from mlflow_deploy_plugin.spool.frames import segments
from mlflow_deploy_plugin.spool.reader import CapturedBatch, read_last_batches
from mlflow_deploy_plugin.statedir.files import SPOOL

MOST_REQUESTS = 100
_MOST_COLUMNS, _MOST_CHARACTERS, _MOST_NUMBERS = 100, 200, 8
_TAIL_BYTES = 1024 * 1024
"""The number of bytes that are read from the end of a segment; requests further from its end are shown without values.
The page reads the segments that were written last: a worker writes one segment, and one for its shadows."""
_STATUS = re.compile(r"[1-5](?:\d\d|xx)")

Cells = Mapping[str, str | None]
"""The first row of a request: texts by column, None for a missing value."""


def requests_values(server: Server, request: RawRequest, endpoint: str | None) -> dict[str, Any]:
    """Return the newest requests of the endpoint (None: of the server), as JSON and for the template.

    `shows_values` is False if the server cannot know that the caller may see them; the requests then have only their
    status, time and version. Raises InvalidRequest if `?status=` is neither a status nor a class such as 4xx, and the
    errors of `Repository.find`.
    """
    if endpoint is not None:
        server.repository.find(endpoint)
    status = parse_qs(request.query).get("status", [""])[-1]
    if status and not _STATUS.fullmatch(status):
        raise InvalidRequest(f"the status {status[:20]!r} does not exist; use a status such as 429, or 2xx, 4xx or 5xx")
    shows_values = server.auth.is_required or (not server.spec.insecure and is_own_host(request, server.spec))
    selected = (
        recent
        for recent in server.recent.read()
        if endpoint in (None, recent.endpoint) and str(recent.status).startswith(status.rstrip("x"))
    )
    newest, captured = list(islice(selected, MOST_REQUESTS)), dict[str, Cells]()
    if shows_values:
        ids = {recent.prediction_id for recent in newest} - {""}
        captured = _read_first_rows(server.repository.state_dir / SPOOL, ids, 2 * server.spec.workers)
    rows = [_described(recent, captured.get(recent.prediction_id, {}), shows_values) for recent in newest]
    subject = {"endpoint": endpoint} if endpoint else None
    return {"subject": subject, "requests": rows, "shows_values": shows_values, "status": status}


def _described(recent: RecentRequest, cells: Cells, shows_values: bool) -> dict[str, Any]:
    """Return a request as JSON. Without `shows_values`, texts that a caller has chosen are left out."""
    moment = datetime.fromtimestamp(recent.received_time / 1e6, UTC)
    outputs = {name: cell for name, cell in cells.items() if name == PREDICTION or name.startswith(OUTPUT_PREFIX)}
    is_failed = "_error_code" in cells
    return {
        "time": moment.isoformat(timespec="milliseconds"),
        "status": recent.status,
        "milliseconds": round(recent.seconds * 1000, 3),
        "endpoint": recent.endpoint,
        "variant": recent.variant,
        "version": recent.version,
        "protocol": recent.protocol if shows_values else recent.protocol.partition(" ")[0],
        "rows": recent.rows or None,
        "error_code": recent.error_code,
        "message": (recent.message or cells.get("_message") or "") if shows_values else "",
        "prediction_id": recent.prediction_id if shows_values and (cells or recent.status == 200) else "",
        "values": {} if is_failed else {name: cell for name, cell in cells.items() if name not in outputs},
        "predictions": outputs,
    }


def _read_first_rows(spool: Path, ids: set[str], most_segments: int) -> dict[str, Cells]:
    """Return the first row of each captured request with one of these prediction ids, by prediction id."""
    rows = dict[str, Cells]()
    for segment in segments(spool)[-most_segments:] if ids else ():
        with suppress(FileNotFoundError):  # The agent may have removed the segment.
            for batch in read_last_batches(segment, _TAIL_BYTES):
                rows |= {} if batch.is_shadow else dict(_first_rows(batch, ids))
    return rows


def _first_rows(batch: CapturedBatch, ids: set[str]) -> Iterator[tuple[str, Cells]]:
    content, model = batch.prediction_ids.content.tobytes(), batch.model
    bounds = pairwise(batch.prediction_ids.bounds.tolist())
    wanted = [(index, text) for index, (a, b) in enumerate(bounds) if (text := content[a:b].decode()) in ids]
    columns: dict[str, Array] = batch.outputs
    if wanted and not batch.is_failed:
        arrays = to_log_columns(model.schema, model.prediction, batch.feeds, batch.outputs)
        columns = cast_columns_losslessly(model.schema.dtypes, arrays) | batch.masked
    for index, prediction_id in wanted:
        cells = islice(columns.items(), _MOST_COLUMNS)
        yield prediction_id, {name: _cell(array[index * batch.rows]) for name, array in cells}


def _cell(value: Any) -> str | None:
    """Return the value of a row as a short text: the first numbers of a tensor, with its shape."""
    if not (isinstance(value, np.ndarray) and value.ndim):
        text = as_text(value)
        return text if text is None or len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
    numbers = [str(_cell(number)) for number in value.flat[:_MOST_NUMBERS]]
    shape = " × ".join(map(str, value.shape))
    return f"{', '.join(numbers)}{', …' if value.size > _MOST_NUMBERS else ''} ({shape})"
