"""The change feed of an MLflow server with onnxserve: server-sent events with the
versions that model URIs select.

    GET /onnxserve/changes?uri=models:/X@champion&uri=…
    data: {"models:/X@champion": {"name": "X", "version": "7", …}}

The URIs are stages, aliases and tags. The first events have all URIs, and a later event
the URIs that select another version or whose version has other tags. The value null
means that the client must resolve the URI itself. A comment is sent every few seconds.
"""

from collections.abc import Generator, Mapping

from pydantic import TypeAdapter, ValidationError

from mlflow_deploy_plugin.core.errors import RegistryUnavailable
from mlflow_deploy_plugin.core.registry.connection import app_answer, registry_errors
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel

CHANGES = "/onnxserve/changes"
MAX_URIS = 1000
HEARTBEAT_SECONDS = 5.0
_SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
_HEAD_SECONDS = HEARTBEAT_SECONDS + 3.0
"""The time limit for the head of the answer. A replica of MLflow that hangs behind a
proxy sends no head, and the next connection may reach another replica. The limit is
longer than the pause between two comments, because it remains in force if the
connection is not known.
"""
_MAX_EVENT_BYTES = 4 * 1024 * MAX_URIS
_CHUNK_BYTES = 65_536
_EVENTS = TypeAdapter(dict[str, ResolvedModel | None])
_NAME = b"data: "

Selected = Mapping[str, ResolvedModel | None]
"""A model URI → the version that it selects, or None if the URI must be resolved by the
client.
"""


def event_bytes(selected: Selected) -> bytes:
    """Return the server-sent event of URIs; without URIs, the comment that keeps the
    connection open.
    """
    if selected:
        return _NAME + _EVENTS.dump_json(dict(selected)) + b"\n\n"
    return b":\n\n"


def read_changes(uris: list[str]) -> Generator[Selected]:
    """Follow the feed of the configured registry until the server ends it. A comment
    yields an empty mapping.

    Raises NotFound if the registry has no feed, and RegistryUnavailable if it refuses
    the URIs or stops sending bytes.
    """
    with (
        registry_errors("the change feed"),
        app_answer(
            CHANGES, "text/event-stream", "GET", {"uri": uris}, timeout=_HEAD_SECONDS, stream=True
        ) as answer,
    ):
        if not answer.ok:
            raise RegistryUnavailable(
                f"the change feed answers with the status {answer.status_code}"
            )
        # Replace the time limit for the head by the limit for the pauses of the stream.
        connection = answer.raw.connection
        # http.client releases a connection that will close.
        if connection is not None and connection.sock is not None:
            connection.sock.settimeout(_SILENCE_SECONDS)
        buffer = b""
        while piece := answer.raw.read1(_CHUNK_BYTES, True):  # A proxy may compress the events.
            *events, buffer = (buffer + piece).split(b"\n\n")
            if len(buffer) > _MAX_EVENT_BYTES:
                raise RegistryUnavailable(
                    f"an event of the change feed has more than {_MAX_EVENT_BYTES:,} bytes"
                )
            for event in events:
                selected: Selected = {}
                if event.startswith(_NAME):
                    try:
                        selected = _EVENTS.validate_json(event.removeprefix(_NAME))
                    except ValidationError:  # The server has another version of onnxserve.
                        selected = dict.fromkeys(uris)
                yield selected
