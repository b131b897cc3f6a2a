"""A registry that answers as the test specifies, and a follower whose clock the test
sets.
"""

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel
from mlflow_deploy_plugin.core.registry.tags import gate_status_of
from mlflow_deploy_plugin.core.statedir.files import (
    SPEC,
    WANTED,
    read_state,
    worker_file,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import (
    FetchedVersion,
    Wanted,
    WorkerState,
)
from mlflow_deploy_plugin.serve.agent.follow import Follower
from mlflow_deploy_plugin.serve.agent.resolver import PollPolicy, VersionResolver
from tests.support.waiting import wait_until

STAGE = "models:/tiny/Production"


class AtOnce(Executor):
    """An executor that runs each function immediately in the caller's thread."""

    def submit(self, function, /, *arguments, **named):
        future = Future()
        try:
            future.set_result(function(*arguments, **named))
        except OnnxserveError as error:
            future.set_exception(error)
        return future


class Later(Executor):
    """An executor that runs functions only when the test calls it."""

    def __init__(self):
        self.waiting = []

    def submit(self, function, /, *arguments, **named):
        self.waiting.append((Future(), lambda: function(*arguments, **named)))
        return self.waiting[-1][0]

    def go_on(self):
        waiting = self.waiting
        self.waiting = []
        for future, work in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(work())

    def go_on_once_asked(self):
        """Let another thread run the next submitted function while the submitting
        thread waits.
        """

        def go_on():
            wait_until(lambda: self.waiting)
            self.go_on()

        Thread(target=go_on).start()


@dataclass
class World:
    """A registry that answers with `versions[uri]` (or raises it), and versions that
    are already on this disk.
    """

    make_model: Callable[..., Path]
    root: Path
    versions: dict[str, str | OnnxserveError] = field(default_factory=dict)
    unusable: dict[str, OnnxserveError] = field(default_factory=dict)
    pyfuncs: set[str] = field(default_factory=set)
    environments: dict[str, str | OnnxserveError] = field(default_factory=dict)
    resolved: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    trusted: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    gates: dict[str, str] = field(default_factory=dict)
    judged: dict[str, str] = field(default_factory=dict)
    """The digest of the files that the gate judged; by default, the digest of the
    version's files.
    """
    unapproved: set[str] = field(default_factory=set)
    """The versions without the approvals that Production requires."""
    unjudged: dict[str, str] = field(default_factory=dict)
    """The reasons of versions without a verdict in the audit trail."""
    signed_as: dict[str, str] = field(default_factory=dict)
    """The versions in the signatures; by default, the version itself."""
    calls: int = 0
    received: int = 0
    is_deaf: bool = False

    def resolve(self, model_uri):
        self.calls += 1
        self.resolved.append(model_uri)
        answer = self.versions[model_uri]
        if isinstance(answer, OnnxserveError):
            raise answer
        followed = not model_uri.rpartition("/")[2].isdigit()
        judged = {
            "onnxserve.gate": self.gates.get(answer, ""),
            "onnxserve.gate.digest": self.judged.get(answer, "own"),
        }
        status = gate_status_of(judged)
        name = parse_model_uri(model_uri).name
        return ResolvedModel(
            model_uri, name, answer, f"models:/{name}/{answer}", followed, gate_status=status
        )

    def fetch(self, resolved, trusted_file=""):
        self.fetched.append(resolved.version)
        self.trusted.append(trusted_file)
        if resolved.version in self.unusable:
            raise self.unusable[resolved.version]
        folder = self.root / resolved.version
        if not folder.exists():
            self.make_model(folder)
        runs_code = resolved.version in self.pyfuncs
        return FetchedVersion(
            model=resolved.name,
            version=resolved.version,
            folder=folder,
            identity=resolved.identity,
            source=resolved.source,
            runs_code=runs_code,
            digest="own",
            signed_as=self.signed_as.get(resolved.version, resolved.source),
            unjudged=self.unjudged.get(resolved.version, ""),
            unapproved_at=("Production",) if resolved.version in self.unapproved else (),
        )

    def build_environment(self, fetched):
        answer = self.environments[fetched.version]
        if isinstance(answer, OnnxserveError):
            raise answer
        return fetched.model_copy(update={"python": answer})

    def adopt(self, found):
        raise NotImplementedError

    def received_bytes(self, resolved):
        return self.received

    def report_failure(self, source, error):
        if self.is_deaf:
            return False
        self.failures.append((source, error))
        return True


@dataclass
class Case:
    state_dir: Path
    world: World
    now: float = 1000.0
    jumped: float = 0.0

    def spec(self, *variants):
        lines = [f"  v{number}: {{model: '{uri}'}}" for number, uri in enumerate(variants, 1)]
        (self.state_dir / SPEC).write_text("\n".join(["name: e", "variants:", *lines]))

    def require_gate(self, *variants):
        self.require("gate=passed", *variants)

    def require(self, requirements, *variants):
        self.spec(*variants)
        text = (self.state_dir / SPEC).read_text()
        (self.state_dir / SPEC).write_text(f"{text}\nrequire: {requirements}\n")

    def follower(self, follow=True, looks=None, fetches=None):
        clock = lambda: self.now  # noqa: E731
        polling = PollPolicy(2.0, follow, clock, uniform=lambda low, high: 1.0)
        resolver = VersionResolver(self.world, looks or AtOnce(), fetches or AtOnce(), polling)
        return Follower(self.state_dir, resolver, lambda: self.now + self.jumped)

    def serving(self, version):
        """Return a follower of the stage after the round that makes it serve this
        version.
        """
        self.spec(STAGE)
        self.world.versions[STAGE] = version
        follower = self.follower()
        follower.round()
        return follower

    def move(self, version):
        """Move the stage to a version, and advance the clock to the next poll."""
        self.world.versions[STAGE] = version
        self.now += 2

    @property
    def wanted(self):
        return read_state(self.state_dir / WANTED, Wanted) or Wanted()

    @property
    def versions(self):
        return {
            name: variant.version for name, variant in self.wanted.endpoints["e"].variants.items()
        }

    def worker_says(self, **loaded):
        state = WorkerState(
            pid=os.getpid(), generation=self.wanted.generation, endpoints={"e": loaded}
        )
        write_state(worker_file(self.state_dir, os.getpid()), state)
