"""What the processes of one server tell each other: small JSON files in its state folder.

    spec.yaml           whoever deploys → agent     the endpoints, one YAML document each
    wanted.json         agent → workers             the versions to be served, already on this disk
    workers/PID.json    each worker → everyone      what it has loaded, and what it could not load
    loading/PID.json    each worker → agent         what it is loading just now
    agent.json          agent → everyone            when it last reached the registry, and what went wrong
    followed.json       agent                       the versions served and those before them, for the next start
    commands/ID.json    worker → agent              an endpoint that is to be loaded or unloaded (`server/commands.py`)
    answers/ID.json     agent → worker              how that went
    control.json        agent                       what commands have changed of the spec, for the next start
    look                whoever moved it → agent    a reference was moved in the registry: look there at once
    server.json         supervisor → everyone       process id, host, port
    server.log          supervisor, workers, agent  their log
    spool/              workers → agent             captured requests (`server/capture.py`)
    metrics             gunicorn                    a link to the folder of the workers' tallies (`server/metrics.py`)
    counted.json        gunicorn → agent            the rows that the last workers have counted (`server/counted.py`)
    progress.json       agent                       what it has shipped (`agent/progress.py`)
    mask.key            workers                     the key of masked columns (`server/mask.py`)
    graphs/             workers → workers           optimised graphs for the next start (`runtime/graph_cache.py`)

Every file has one writer and is replaced by an atomic rename, so that a reader sees the old or the new, never half.
With the registry down, or after a restart, what `wanted.json` says goes on being served.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlflow_deploy_plugin.spec import CaptureSpec, EndpointSpec, StickySpec


class _State(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class WantedVariant(_State):
    """One concrete version that is to be served.

    Attributes:
        model_uri: as the spec has it, e.g. models:/flight-delay/Production.
        model / version: what it was resolved to; `version` is the registry's number, or the model id of a model
            that is not registered.
        folder: the MLmodel folder on this disk, verified by the agent.
        aspects: what is shown with the version: stage, run_id, parity, git_commit, …
    """

    model_uri: str
    model: str
    version: str
    folder: Path
    weight: int = 100
    shadow: bool = False
    aspects: dict[str, str] = Field(default_factory=dict)


class WantedEndpoint(_State):
    """The variants that have a version; `errors` says why the others have none, in words that any caller may read."""

    variants: dict[str, WantedVariant]
    capture: CaptureSpec = CaptureSpec()
    sticky: StickySpec | None = None
    errors: dict[str, str] = Field(default_factory=dict)


class Wanted(_State):
    """What every worker is to serve. `generation` grows by one with every change; `unloaded` are endpoints that a
    command has taken out of memory, and another may bring back."""

    generation: int = 0
    endpoints: dict[str, WantedEndpoint] = Field(default_factory=dict)
    unloaded: tuple[str, ...] = ()


class Command(_State):
    """What somebody asks the agent to do.

    Attributes:
        endpoint: its name.
        added: the endpoint itself, where the spec does not have it.
        created_at: seconds of the machine's monotonic clock.
    """

    action: Literal["load", "unload"]
    endpoint: str
    added: EndpointSpec | None = None
    created_at: float


class CommandAnswer(_State):
    """How a command went. `error` is empty where it was done in every worker; `kind` names the class of the error."""

    error: str = ""
    kind: str = ""


class Control(_State):
    """What commands have changed of the spec: endpoints that are not to be served, and some that it does not have."""

    unloaded: tuple[str, ...] = ()
    added: dict[str, EndpointSpec] = Field(default_factory=dict)


class LoadedVariant(_State):
    """What one worker has of a variant: the version that answers, and why the wanted one does not, if it does not.

    Attributes:
        no_batch: why the graph has no batch dimension; empty: it has one, or is none.
    """

    version: str = ""
    error: str = ""
    no_batch: str = ""


class WorkerState(_State):
    """One worker's own account.

    Attributes:
        generation: the `Wanted` it has dealt with, successfully or not.
        endpoints: endpoint → variant → what is loaded.
    """

    pid: int
    generation: int
    endpoints: dict[str, dict[str, LoadedVariant]] = Field(default_factory=dict)


class LoadingState(_State):
    """What a worker is loading just now; one that dies of it leaves this behind."""

    pid: int
    folder: Path


class ShippingState(_State):
    """How the spool gets to the inference log. `error` is empty while the log takes what is shipped.

    Attributes:
        torn_segments: those that a killed worker has left with half a frame at the end, since the agent's start.
        broken_segments: those that made no sense and were set aside, since then.
        complete_until: every row answered before is in the log; seconds since 1970, by tens.
    """

    error: str = ""
    torn_segments: int = 0
    broken_segments: int = 0
    complete_until: float = 0.0


class RefusedVersion(_State):
    """A version that the registry names for a variant and that is not served.

    Attributes:
        cause: gate, fetch, artifact, consent (it would run code of its own) or load.
        reason: one line.
    """

    endpoint: str
    variant: str
    model: str
    version: str
    cause: str
    reason: str


class AgentState(_State):
    """The agent's own account. `error` is empty while the last look at the registry went well; `fatal` says that
    nothing can be served because a model could not be resolved or fetched and there is no earlier version.

    Attributes:
        checked_at: when a look at the registry has last ended, well or not; seconds since 1970.
        looks: how many have ended since the agent's start.
        errors: how many things are wrong; `error` names them all.
        refused: versions that are not served, while those before them are.
    """

    pid: int
    checked_at: float = 0.0
    looks: int = 0
    error: str = ""
    errors: int = 0
    fatal: bool = False
    refused: tuple[RefusedVersion, ...] = ()
    shipping: ShippingState = ShippingState()


class KnownVersion(_State):
    """A version whose files are on this disk; see `agent.fetch.FetchedVersion`."""

    model: str
    version: str
    folder: Path
    aspects: dict[str, str] = Field(default_factory=dict)
    identity: str = ""
    source: str = ""
    runs_code: bool = False


class FollowedReference(_State):
    """What is served for a reference, what was before it, and the version whose tag tells an error, with that."""

    model_uri: str
    require: str = ""
    version: KnownVersion | None = None
    previous: KnownVersion | None = None
    told: tuple[str, str] = ("", "")


class Followed(_State):
    """The agent's memory, for the agent that is started after it was killed."""

    references: tuple[FollowedReference, ...] = ()


Phase = Literal["starting", "serving", "stopping"]


class ServerState(_State):
    """Written by the supervisor once it knows its port; removed when it ends in good order.

    Attributes:
        restarts: how often gunicorn was killed, and started anew, since `started_at`.
    """

    pid: int
    host: str
    port: int
    started_at: float
    phase: Phase = "starting"
    restarts: int = 0


StateT = TypeVar("StateT", bound=_State)

LOADING = "loading"
WANTED, AGENT, SERVER, SPEC, LOG = "wanted.json", "agent.json", "server.json", "spec.yaml", "server.log"
FOLLOWED = "followed.json"
COMMANDS, ANSWERS, CONTROL, LOOK = "commands", "answers", "control.json", "look"
METRICS, SPOOL = "metrics", "spool"


def write_state(path: Path, state: _State) -> None:
    """Replaces the file in one step; readers see the old content or the new."""
    write_atomically(path, state.model_dump_json().encode())


def write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # not the process id: containers that share a volume have the same ones
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk whoever writes tries again and again
        raise


def read_state(path: Path, kind: type[StateT]) -> StateT | None:
    """The file's content, or None where there is no (readable) file yet."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def worker_file(state_dir: Path, pid: int) -> Path:
    return state_dir / "workers" / f"{pid}.json"


def read_workers(state_dir: Path) -> list[WorkerState]:
    """The accounts of all workers that left one."""
    states = (read_state(path, WorkerState) for path in sorted((state_dir / "workers").glob("*.json")))
    return [state for state in states if state is not None]


@contextmanager
def loading(state_dir: Path, folder: Path) -> Iterator[None]:
    """Within it a worker loads the version of this folder, and whoever looks knows what it died of."""
    file = state_dir / LOADING / f"{os.getpid()}.json"
    with suppress(OSError):  # a full disk
        write_state(file, LoadingState(pid=os.getpid(), folder=folder))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def take_deaths(state_dir: Path) -> list[Path]:
    """The folders that workers have died of loading since the last call."""
    folders = []
    for file in sorted((state_dir / LOADING).glob("[!.]*.json")):
        state = read_state(file, LoadingState)
        if state is not None and not lives(state.pid):
            file.unlink(missing_ok=True)
            folders.append(state.folder)
    return folders


def lives(pid: int) -> bool:
    """Whether a process of this id lives; it may be another one than the file meant."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
