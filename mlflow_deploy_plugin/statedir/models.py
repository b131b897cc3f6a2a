"""The contents of the files in a server's state folder, as pydantic models."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mlflow_deploy_plugin.spec import CaptureSpec, EndpointSpec, StickySpec


class State(BaseModel):
    """The content of one state file. Unknown fields are ignored, so that an older reader copes with a newer writer."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class WantedVariant(State):
    """One concrete version that is to be served.

    Attributes:
        model_uri: the URI in the spec, such as models:/flight-delay/Production.
        version: the registry's number, or the model id of a model that is not registered.
        folder: the MLmodel folder on this disk, verified by the agent.
        aspects: details reported with the version: stage, run_id, parity, git_commit, …
    """

    model_uri: str
    model: str
    version: str
    folder: Path
    weight: int = 100
    shadow: bool = False
    aspects: dict[str, str] = Field(default_factory=dict)


class WantedEndpoint(State):
    """The variants that have a version. `errors` has the reasons why the others have none; any caller may read it."""

    variants: dict[str, WantedVariant]
    capture: CaptureSpec = CaptureSpec()
    sticky: StickySpec | None = None
    errors: dict[str, str] = Field(default_factory=dict)


class Wanted(State):
    """The endpoints that every worker is to serve. Every change increases `generation`. A command has unloaded the
    endpoints in `unloaded`, and another may load them again."""

    generation: int = 0
    endpoints: dict[str, WantedEndpoint] = Field(default_factory=dict)
    unloaded: tuple[str, ...] = ()


class Command(State):
    """A request to the agent to load or unload an endpoint, at a time of the machine's monotonic clock. The actor is
    the name of the caller's key; empty if callers need none."""

    action: Literal["load", "unload"]
    endpoint: str
    added: EndpointSpec | None = None
    actor: str = ""
    created_at: float


class CommandAnswer(State):
    """The result of a command. `error` is empty if every worker has done it; `kind` names the class of the error."""

    error: str = ""
    kind: str = ""


class Control(State):
    """The changes that commands have made to the spec: endpoints that are not served, and endpoints that were added."""

    unloaded: tuple[str, ...] = ()
    added: dict[str, EndpointSpec] = Field(default_factory=dict)


Scope = Literal["infer", "read", "admin"]
"""A right of a caller: predictions, explanations and feedback; metrics, metadata and pages; loading and unloading."""


class KeyEntry(State):
    """The rights of an API key.

    Attributes:
        endpoints: the endpoints that it is for; empty: all.
        expires_at: seconds since 1970; None: never.
        limits: rates of its predictions in the syntax of `server.rate_limit`, the shortest period first.
        counted_as: its name in metrics; empty: its own. The many callers of an issuer share one name.
    """

    name: str
    scopes: tuple[Scope, ...]
    endpoints: tuple[str, ...] = ()
    expires_at: float | None = None
    limits: tuple[str, ...] = ()
    counted_as: str = ""


class ValidKeys(State):
    """The valid keys, each by the SHA-256 of its text in hex."""

    keys: dict[str, KeyEntry] = Field(default_factory=dict)


class LoadedVariant(State):
    """The version that one worker serves for a variant; empty if none is loaded. `error` is the reason why the wanted
    version is not loaded, `no_batch` the reason why the graph has no batch dimension; empty without one."""

    version: str = ""
    error: str = ""
    no_batch: str = ""


class WorkerState(State):
    """The versions that one worker has loaded, by endpoint and variant, of the `Wanted` with this generation."""

    pid: int
    generation: int
    endpoints: dict[str, dict[str, LoadedVariant]] = Field(default_factory=dict)

    def loaded(self, endpoint: str, variant: str) -> LoadedVariant:
        """Return the loaded version of a variant; empty before the worker has tried to load one."""
        return self.endpoints.get(endpoint, {}).get(variant, LoadedVariant())

    @property
    def has_versions(self) -> bool:
        return any(variant.version for variants in self.endpoints.values() for variant in variants.values())


class LoadingState(State):
    """The version that a worker is loading. A worker that dies while loading leaves the file behind."""

    pid: int
    folder: Path


class ShippingState(State):
    """The state of shipping the spool into the inference log.

    Attributes:
        error: why the log cannot be written; empty if it can.
        torn_segments: segments with half a frame at the end, left by a killed worker, since the agent's start.
        broken_segments: segments that were malformed and set aside, since the agent's start.
        complete_until: every row answered before is in the log; seconds since 1970, in steps of ten.
    """

    error: str = ""
    torn_segments: int = 0
    broken_segments: int = 0
    complete_until: float = 0.0


class RefusedVersion(State):
    """A version that the registry names for a variant and that is not served. Its cause is gate, fetch, artifact,
    consent (it would run code of its own) or load."""

    endpoint: str
    variant: str
    model: str
    version: str
    cause: str
    reason: str


class AgentState(State):
    """The agent's report on itself.

    Attributes:
        checked_at: the end of the last poll of the registry, also of a failed one; seconds since 1970.
        looks: the number of polls that have ended since the agent's start.
        fatal: nothing can be served: no version could be fetched, and there is no earlier version.
        keys_fetched_at: the last fetch of API keys and of an issuer's, in seconds since 1970; 0 without any.
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
    """A version whose verified files, from `source`, are on this disk. `identity` is empty for a version that was
    restored from wanted.json. `runs_code` is True for a version without an ONNX form. `digest` is that of all its files
    as they were fetched; empty for a folder that is served in place."""

    model: str
    version: str
    folder: Path
    aspects: dict[str, str] = Field(default_factory=dict)
    identity: str = ""
    source: str = ""
    runs_code: bool = False
    digest: str = ""


class FollowedReference(State):
    """The version served for a reference, and the one before it; `told` has the source and error in a version's tag."""

    model_uri: str
    require: str = ""
    version: FetchedVersion | None = None
    previous: FetchedVersion | None = None
    told: tuple[str, str] = ("", "")


class Followed(State):
    """The agent's checkpoint, from which the next agent continues."""

    references: tuple[FollowedReference, ...] = ()


Phase = Literal["starting", "serving", "stopping"]


class ServerState(State):
    """The supervisor's report on itself, written once it knows its port and removed at an orderly end. Gunicorn was
    restarted `restarts` times since `started_at`."""

    pid: int
    host: str
    port: int
    started_at: float
    phase: Phase = "starting"
    restarts: int = 0
