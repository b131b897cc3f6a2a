"""The pydantic models of the files in a server's state folder."""

from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mlflow_deploy_plugin.core.spec.parts import (
    CaptureSpec,
    EndpointSpec,
    GuardSpec,
    ServeSpec,
    StickySpec,
)


class State(BaseModel):
    """The content of a state file. Unknown fields are ignored, so that old readers
    accept files of newer writers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


class WantedVariant(State):
    """A version that workers must serve.

    Attributes:
        model_uri: the URI in the spec, such as models:/flight-delay@champion.
        version: the registry's version number, or the model id of a model that is not
            registered.
        folder: the MLmodel folder on this disk, which the agent has verified.
        aspects: details that are reported with the version: stage, run_id, parity,
            git_commit, …
        digest: the digest of all files of a version at an endpoint with requirements,
            which workers compare before they load it; otherwise empty.
        python: the Python of the environment that uv built for a pyfunc; empty for the
            server's own Python.
    """

    model_uri: str
    model: str
    version: str
    folder: Path
    weight: int = 100
    shadow: bool = False
    aspects: dict[str, str] = Field(default_factory=dict)
    digest: str = ""
    python: str = ""


class WantedEndpoint(State):
    """The variants that have a version. `errors` explains why others do not; any caller
    may read these texts.
    """

    variants: dict[str, WantedVariant] = Field(default_factory=dict)
    capture: CaptureSpec = CaptureSpec()
    serve: ServeSpec = ServeSpec()
    sticky: StickySpec | None = None
    guard: GuardSpec | None = None
    errors: dict[str, str] = Field(default_factory=dict)


class Listed(State):
    """The registered models that the pattern `uri` selects, each with a mark. A mark
    begins with the version's number. It changes if the model must be fetched again.
    During the first listing, the list is not complete.

    The parts of a mark are the version's number, the time of the last change, the time
    at which the model was created, `refused` if the steps are refused, and a digest of
    the registry and of the settings.
    """

    uri: str
    models: dict[str, str]
    is_complete: bool = True


def is_same_model(mark: str, other: str) -> bool:
    """Return True if a version with one mark may answer until the version with the
    other can be served. A model that was deleted and created again, refused steps,
    other requirements and another registry exclude this.
    """
    return mark.split()[2:] == other.split()[2:]


class Wanted(State):
    """The models that every worker must serve: the `endpoints` are loaded at once, and
    the models in `listed` at their first request.

    Every change of the endpoints increments `generation`. The endpoints in `unloaded`
    were unloaded by commands, and may be loaded again. `listed` is None unless the
    server serves all registered models.
    """

    generation: int = 0
    endpoints: dict[str, WantedEndpoint] = Field(default_factory=dict)
    unloaded: tuple[str, ...] = ()
    listed: Listed | None = None


class ServedModel(State):
    """A registered model of `Listed` with this `mark`, whose version is on this disk,
    and the endpoint that was served before.
    """

    name: str
    mark: str
    endpoint: WantedEndpoint
    previous: WantedEndpoint | None = None


class Command(State):
    """A request to the agent to load or unload an endpoint, or to fetch a model of
    `Listed` with this `mark`. `created_at` is a time by the machine's monotonic clock.
    `actor` is the name of the caller's key; empty if the server requires no keys.
    """

    action: Literal["load", "unload", "fetch"]
    endpoint: str
    added: EndpointSpec | None = None
    actor: str = ""
    mark: str = ""
    created_at: float


class CommandAnswer(State):
    """The result of a command. `error` is empty after a success on all workers; `kind`
    is the error's class.
    """

    error: str = ""
    kind: str = ""


class Control(State):
    """The changes that commands have made to the spec: endpoints that were unloaded,
    and endpoints that were added.
    """

    unloaded: tuple[str, ...] = ()
    added: dict[str, EndpointSpec] = Field(default_factory=dict)


Scope = Literal["infer", "read", "admin", "observe"]
"""A caller's right: `infer` (predict, explain, feedback), `read` (metrics, metadata,
pages), `admin` (load, unload), `observe` (push the events of a model that another
server serves, to MLflow's server).
"""


class KeyEntry(State):
    """The rights of an API key.

    Attributes:
        endpoints: the endpoints that the key gives access to; empty for all endpoints.
        expires_at: the key's end in seconds since 1970; None if the key does not
            expire.
        limits: rate limits for predictions in the syntax of `server.rate_limit`, with
            the shortest period first.
        counted_as: the name in metrics, common to all callers of a token issuer; if
            empty, `name` is used.
    """

    name: str
    scopes: tuple[Scope, ...]
    endpoints: tuple[str, ...] = ()
    expires_at: float | None = None
    limits: tuple[str, ...] = ()
    counted_as: str = ""


class ValidKeys(State):
    """The valid keys, each identified by the SHA-256 of its text in hexadecimal."""

    keys: dict[str, KeyEntry] = Field(default_factory=dict)


class LoadedVariant(State):
    """The version that a worker serves for a variant; empty if no version is loaded.
    `error` is the reason why the wanted version is not loaded, and `no_batch` why the
    graph has no batch dimension; otherwise, these are empty. With `is_error_of_steps`,
    the error is about the steps of the endpoint and not about the version.
    """

    version: str = ""
    error: str = ""
    no_batch: str = ""
    is_error_of_steps: bool = False


class WorkerState(State):
    """The versions that a worker has loaded, by endpoint and variant, for the `Wanted`
    of the same generation.
    """

    pid: int
    generation: int
    endpoints: dict[str, dict[str, LoadedVariant]] = Field(default_factory=dict)

    def loaded(self, endpoint: str, variant: str) -> LoadedVariant:
        """Return the loaded version of a variant; empty if the worker has not tried to
        load a version yet.
        """
        return self.endpoints.get(endpoint, {}).get(variant, LoadedVariant())

    @property
    def has_versions(self) -> bool:
        loaded = chain.from_iterable(variants.values() for variants in self.endpoints.values())
        return any(variant.version for variant in loaded)


class LoadingState(State):
    """The version that a worker is loading. If the worker dies during loading, the file
    remains.
    """

    pid: int
    folder: Path


class SinkState(State):
    """The state of a sink since the agent's start.

    Attributes:
        events: the number of events by outcome: sent, rejected (by the destination), or
            dropped (the disk space of the spool was full).
        waiting_bytes: the size of the requests that wait.
        error: the reason why requests wait; empty if they are sent.
    """

    events: dict[str, int] = Field(default_factory=dict)
    waiting_bytes: int = 0
    error: str = ""


class ShippingState(State):
    """The state of shipping the spool to the inference log.

    Attributes:
        error: the reason why the log cannot be written; empty if the log can be
            written.
        torn_segments: the number of segments with an incomplete last frame since the
            agent's start (killed workers).
        broken_segments: the number of malformed segments that were set aside since the
            agent's start.
        complete_until: the time before which all answered rows are in the log; seconds
            since 1970, in steps of 10.
    """

    error: str = ""
    torn_segments: int = 0
    broken_segments: int = 0
    complete_until: float = 0.0
    sinks: dict[str, SinkState] = Field(default_factory=dict)


class RefusedVersion(State):
    """A version that the registry names for a variant and that is not served. `cause`
    is gate, signature, fetch, artifact, load, consent (the version would run its own
    code) or steps.
    """

    endpoint: str
    variant: str
    model: str
    version: str
    cause: str
    reason: str


class AgentState(State):
    """The agent's status report.

    Attributes:
        checked_at: the end of the registry's last poll, even if the poll failed; in
            seconds since 1970.
        looks: the number of completed polls since the agent's start.
        fatal: True if no version can be served: none could be fetched, and there is no
            earlier version.
        keys_fetched_at: the time of the last fetch of API keys or an issuer's keys, in
            seconds since 1970; 0 if none.
    """

    pid: int
    checked_at: float = 0.0
    looks: int = 0
    error: str = ""
    errors: int = 0
    fatal: bool = False
    refused: tuple[RefusedVersion, ...] = ()
    shipping: ShippingState = ShippingState()
    keys_fetched_at: float = 0.0


class FetchedVersion(State):
    """A version whose verified files from `source` are on this disk. `runs_code` is
    True for a version without an ONNX form. `digest` is the digest of all fetched
    files; empty for a folder that is served in place. `unapproved_at` has the gated
    stages and @aliases of the model if it requires approvals and the version has none.
    `unjudged` is the reason why an endpoint that requires the gate refuses it, if the
    audit trail has no passed verdict on its files. `signed_as` is the URI
    models:/NAME/VERSION in the required signature, if it has one. `python` is as in
    `WantedVariant`.

    A version without an ONNX form may be converted (`serve/agent/forms.py`): `rows` are
    the rows for the proof, namely its input example, made rows, or made rows of a
    `file` that is always converted; empty if it cannot be converted. `content` is a
    digest of its files. `original` is the version from which this form was converted.
    `is_file` is True for a model file that has no MLmodel folder yet.
    """

    model: str
    version: str
    folder: Path
    aspects: dict[str, str] = Field(default_factory=dict)
    identity: str = ""
    source: str = ""
    runs_code: bool = False
    digest: str = ""
    unapproved_at: tuple[str, ...] = ()
    unjudged: str = ""
    signed_as: str = ""
    python: str = ""
    rows: Literal["", "example", "made", "file"] = ""
    content: str = ""
    original: "FetchedVersion | None" = None
    is_file: bool = False


class Conversion(State):
    """The result of converting a version when it was loaded: the `digest` of the ONNX
    form's files, the text of its `proof` and its `parity`, or the `reason` why it has
    none. `attempts` is the number of starts that ended without a result, for example
    because the process was killed; 0 for a result.
    """

    digest: str = ""
    proof: str = ""
    parity: str = ""
    reason: str = ""
    attempts: int = 0


class FollowedReference(State):
    """The served and the previous version of a reference. `told` is the source and
    error in the last written tag.
    """

    model_uri: str
    require: str = ""
    trusted_file: str = ""
    requires_name: bool = False
    version: FetchedVersion | None = None
    previous: FetchedVersion | None = None
    told: tuple[str, str] = ("", "")

    @property
    def versions(self) -> "list[FetchedVersion | None]":
        """All versions, with the originals of converted forms."""
        forms = [self.version, self.previous]
        return [*forms, *(form.original for form in forms if form is not None)]


class Followed(State):
    """The agent's checkpoint, from which the next agent continues."""

    references: tuple[FollowedReference, ...] = ()


Phase = Literal["starting", "serving", "stopping"]


class ServerState(State):
    """The supervisor's status report, which is written when the port is known and
    removed at a normal end. `restarts` is the number of gunicorn's restarts since
    `started_at`.
    """

    pid: int
    host: str
    port: int
    started_at: float
    phase: Phase = "starting"
    restarts: int = 0
