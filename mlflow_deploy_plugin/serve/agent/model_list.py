"""The registered models that a pattern selects, such as models:/*@champion.

One listing finds all models that were added, removed or moved. Workers read the list in
wanted.json, and ask for a model at its first request. Only then is the model resolved
and fetched.
"""

import hashlib
import logging
import math
import os
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.core.errors import (
    NotFound,
    OnnxserveError,
    RegistryRefused,
    RegistryUnavailable,
)
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.mlmodel import folder_bytes
from mlflow_deploy_plugin.core.registry.connection import registry_address
from mlflow_deploy_plugin.core.registry.model_uri import ModelURI
from mlflow_deploy_plugin.core.registry.resolution import REFUSED, selected_models
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.spec.types import memory_bytes
from mlflow_deploy_plugin.core.statedir.files import (
    SERVED,
    read_state,
    served_file,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import (
    Listed,
    ServedModel,
    WantedEndpoint,
    is_same_model,
)
from mlflow_deploy_plugin.serve.agent.fetch import RELEASED
from mlflow_deploy_plugin.serve.agent.permitted_steps import steps_refusal
from mlflow_deploy_plugin.serve.agent.resolver import PollPolicy

_log = logging.getLogger(__name__)

_BUSY_SECONDS = 2.0
"""A registry that fails after this time is busy. One that is down fails earlier."""
_START_SECONDS = 60.0
"""The time in which the start of a server waits for a busy registry."""
_RELEASE_SECONDS = 10.0
"""The pause between two looks for models whose files exceed `server.model_disk`."""
_MEMORY_SECONDS = 60.0
"""A model whose file is older is in no worker's memory (`LazyModels`)."""
_COVERED_SECONDS = 300.0
"""The pause between two listings while the change feed is followed, which lacks changes
that were made without MLflow's server with onnxserve.
"""
_PAGE_SECONDS = 0.05
_MOST_SHARE = 0.2
"""The pause between two looks for the first page, and the largest share of the time in
which the registry is listed: a listing of many models takes seconds.
"""


@dataclass
class ModelList:
    """The list of a server's registered models, which `pool` reads from the registry.

    Attributes:
        template: the spec whose only variant has the URI `pattern`.
        listed: the last list; None before the first. A list of an earlier start is only
            used for the same pattern, settings and registry.
        error: the reason why the last listing failed; otherwise empty.
        is_stale: True if the change feed has reported a change.
        count: the number of completed listings.
    """

    state_dir: Path
    pool: Executor
    polling: PollPolicy
    template: EndpointSpec
    pattern: ModelURI
    listed: Listed | None = None
    error: str = ""
    is_stale: bool = True
    count: int = 0

    def __post_init__(self) -> None:
        self.uri = self.pattern.of_model(self.pattern.name)
        # Another spec, such as other requirements, or another registry needs other
        # marks.
        settings = self.template.model_dump_json(exclude={"server"})
        identity = f"{registry_address()} {settings}"
        self._digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        saved = self.listed
        if saved is not None and not (
            saved.uri == self.uri
            and saved.is_complete
            and all(mark.endswith(self._digest) for mark in saved.models.values())
        ):
            self.listed = None
        self._listing: Future[Listed] | None = None
        self._release_at = 0.0
        self._began_at = self.polling.clock()
        self._ended_at = self._began_at
        self._checks_steps = bool(self.template.serve.steps and self.template.requirements)
        self._pause = self.polling.due_at(0) - self._began_at
        if not self.polling.follow:
            self._pause = math.inf

    def round(self, is_covered: bool) -> None:
        """Start a listing if it is due, and write the result of a listing that has
        ended. Wait only for the first list.
        """
        now = self.polling.clock()
        if self._listing is None:
            # The first listing imports MLflow.
            pause = (self._ended_at - self._began_at) / _MOST_SHARE if self.count > 1 else 0.0
            if not self.is_stale:
                is_recent = is_covered and not self.error and not self._checks_steps
                pause = max(pause, _COVERED_SECONDS if is_recent else self._pause)
            if now < self._ended_at + pause:
                return
            self.is_stale = False
            self._began_at = now
            self._listing = self.pool.submit(self._select)
        while self.listed is None and not self._listing.done():
            wait([self._listing], _PAGE_SECONDS)
        if not self._listing.done():
            return
        listing = self._listing
        self._listing = None
        self._ended_at = self.polling.clock()
        self.count += 1
        before = self.listed
        try:
            self.listed = listing.result()
        except Exception as error:  # noqa: BLE001 - after any error, the list is kept
            if not isinstance(error, OnnxserveError):
                _log.exception("the listing of %s failed", self.uri)
            self.error = f"{self.uri}: {getattr(error, 'message', type(error).__name__)}"
            return
        withdrawn = [
            name
            for name, mark in self.listed.models.items()
            if REFUSED in mark.split() and served_file(self.state_dir, name).exists()
        ]
        self.error = ""
        if withdrawn:
            self.error = f"the steps of {join_names(map(repr, withdrawn))} are refused"
        if self.listed != before:
            _log.info("%d registered models are listed", len(self.listed.models))
        for name in before.models.keys() - self.listed.models.keys() if before else ():
            served_file(self.state_dir, name).unlink(missing_ok=True)

    def _select(self) -> Listed:
        """Return the list of the registry. The first list is set after each page,
        because 9,000 models may take half a minute. It is repeated while the registry
        is busy. Runs in a thread of `pool`.
        """
        is_first = self.listed is None

        def listed(marks: Mapping[str, str], is_complete: bool) -> Listed:
            models = {name: f"{mark} {self._digest}" for name, mark in sorted(marks.items())}
            return Listed(uri=self.uri, models=models, is_complete=is_complete)

        def refusal(model: str, tags: dict[str, str] | None) -> OnnxserveError | None:
            error = steps_refusal(self.template, self.template.serve, {model: tags})
            if isinstance(error, RegistryUnavailable):
                raise error
            return error

        marks: dict[str, str] = {}
        clock = self.polling.clock
        began_at = clock()
        while True:
            asked_at = clock()
            try:
                for marks in selected_models(self.pattern, refusal if self._checks_steps else None):
                    if is_first:
                        self.listed = listed(marks, is_complete=False)
                return listed(marks, is_complete=True)
            except RegistryUnavailable as error:
                is_busy = clock() - asked_at >= _BUSY_SECONDS
                is_over = clock() - began_at >= _START_SECONDS
                if not (is_first and is_busy) or is_over or isinstance(error, RegistryRefused):
                    raise
                _log.warning("%s: trying again", error.message)

    def spec(self, model: str) -> EndpointSpec:
        """Return the endpoint of a listed model, or raise NotFound."""
        if self.listed is None or model not in self.listed.models:
            raise NotFound(f"the registry lists no model {model[:100]!r} for {self.uri}")
        uri = self.pattern.of_model(model)
        variants = {
            label: variant.model_copy(update={"model": uri})
            for label, variant in self.template.variants.items()
        }
        return self.template.model_copy(update={"name": model, "variants": variants})

    def write(self, model: str, mark: str, endpoint: WantedEndpoint) -> None:
        """Write the model, whose version is fetched, to its file. Raises OSError."""
        file = served_file(self.state_dir, model)
        before = read_state(file, ServedModel)
        previous = None
        if before is not None and is_same_model(before.mark, mark):
            is_same = before.endpoint.variants == endpoint.variants
            previous = before.previous if is_same else before.endpoint
        write_state(file, ServedModel(name=model, mark=mark, endpoint=endpoint, previous=previous))
        now = self.polling.clock()
        if self.template.server.model_disk is not None and now >= self._release_at:
            self._release_at = now + _RELEASE_SECONDS
            self.release(memory_bytes(self.template.server.model_disk))

    def release(self, size: int) -> None:
        """Forget the least recently used models that are not in memory if the files of
        all models have more than `size` bytes. The cache deletes their files, unless
        another server uses them. A forgotten model is fetched again at its next
        request.
        """
        files = [(file.stat().st_mtime, file) for file in self._served_files()]
        for used_at, file in sorted(files, reverse=True):
            served = read_state(file, ServedModel)
            if served is None:
                continue
            folders = {want.folder for want in served.endpoint.variants.values()}
            if served.previous is not None:
                folders |= {want.folder for want in served.previous.variants.values()}
            size -= sum(map(folder_bytes, folders))
            if size < 0 and time.time() - used_at > _MEMORY_SECONDS:
                _log.info("the files of %s leave the disk (server.model_disk)", served.name)
                file.unlink(missing_ok=True)
                for folder in folders:
                    with suppress(OSError):
                        os.utime(folder, (RELEASED, RELEASED))

    def _served_files(self) -> Iterator[Path]:
        return (self.state_dir / SERVED).glob("[!.]*.json")

    def refuse(self, deaths: Collection[Path], reason: str) -> None:
        """Serve the versions in these folders, and the steps with these digests, no
        longer.
        """
        for file in self._served_files():
            served = read_state(file, ServedModel)
            if served is None:
                continue
            endpoint = served.endpoint
            has_steps = Path(endpoint.serve.digest) in deaths
            errors = {
                label: reason
                for label, want in endpoint.variants.items()
                if has_steps or want.folder in deaths
            }
            if errors:
                endpoint = WantedEndpoint(errors=errors)
                # The earlier version has the same steps.
                previous = None if has_steps else served.previous
                changes = {"endpoint": endpoint, "previous": previous}
                write_state(file, served.model_copy(update=changes))
