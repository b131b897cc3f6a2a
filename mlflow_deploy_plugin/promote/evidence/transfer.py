"""Transfer of a version with its evidence to another MLflow registry, or to another
model of the same registry.

MLflow copies versions only within one registry. Between two registries, the files, the
training run and the gate report become a run of the target. The version is registered
after the uploaded files have the digest of the source. Each step finds the result of an
interrupted attempt by tags. The verdict is not copied, because the gate of the target
judges.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Param, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.errors import (
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    OnnxserveError,
    RegistryRefused,
)
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.mlmodel import hash_folder
from mlflow_deploy_plugin.core.registry import connection, resolution, tags
from mlflow_deploy_plugin.core.registry.connection import (
    registry_address,
    registry_client,
    registry_errors,
)
from mlflow_deploy_plugin.core.registry.model_files import (
    copy_bundle,
    download,
    fetch,
    version_digest,
)
from mlflow_deploy_plugin.core.registry.resolution import GIT_COMMIT_TAG, PARITY_TAG
from mlflow_deploy_plugin.core.registry.runs import IdempotentRun, log_metrics, logged_run
from mlflow_deploy_plugin.core.settings import (
    active_workspace,
    load_settings,
    workspace_of,
    workspace_query,
)
from mlflow_deploy_plugin.core.signatures import BUNDLE
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.promote.evidence.record import REPORT_RUN, original_of
from mlflow_deploy_plugin.promote.gate.promotion import Promotion
from mlflow_deploy_plugin.promote.gate.run import GATE_JSON_FILE, store_or_default

_KEPT_TAGS = (
    tags.WRAPPED_FROM_TAG,
    tags.OPTIMIZED_FROM_TAG,
    tags.OPTIMIZED_WITH_TAG,
    PARITY_TAG,
    GIT_COMMIT_TAG,
    "mlflow.user",
    "mlflow.note.content",
    "mlflow.source.name",
    "mlflow.source.type",
)
_FILES_TAG = "onnxserve.copied_files"
_RUN_TAG = "onnxserve.copied_run"
_GATE_TAG = "onnxserve.copied_gate"
"""The digest of all files; the page of the training run, and the gate's state and
report, in the source's registry.
"""
_OF_TARGET = re.compile(r"TARGET_((?:MLFLOW|ONNXSERVE|AWS|AZURE|GOOGLE)_.+)")
_OF_SOURCE = re.compile(
    r"MLFLOW_(TRACKING_|REGISTRY_URI|WORKSPACE|RUN_|EXPERIMENT_)|ONNXSERVE_(STORE|HOME|LOG_URI)"
)
"""The environment variables of the source, such as its credentials, which do not apply
to the target.
"""


@dataclass(frozen=True)
class CopiedVersion:
    """A copy of a version, and its source. Addresses have no credentials.

    Attributes:
        copied_from: the page of the source in MLflow.
        source_run: the page of the source's training run in MLflow; empty without a
            run.
        files: the digest of all files, which is equal in both registries.
    """

    model: str
    version: str
    registry: str
    source_model: str
    source_version: str
    copied_from: str
    source_run: str
    files: str

    def __str__(self) -> str:
        source = f"{self.source_model} version {self.source_version}"
        return (
            f"{source} is copied to {self.model} version {self.version} in MLflow at "
            f"{self.registry}"
        )

    @property
    def commands(self) -> dict[str, str]:
        """The commands at the target, and the commands that do the same where
        MLFLOW_TRACKING_URI is the source.
        """
        options = f" --to-registry {self.registry}"
        if self.model != self.source_model:
            options += f" --to-model {self.model}"
        promote = f"onnxserve promote models:/{self.source_model}/{self.source_version}{options} "
        return {
            f"onnxserve promote models:/{self.model}/{self.version} ": promote,
            "`onnxserve gate ": f"`MLFLOW_TRACKING_URI={self.registry} onnxserve gate ",
        }

    def record(
        self,
        promotion: Promotion | None = None,
        *,
        at_target: bool = False,
    ) -> None:
        """Record the copy or its promotion in the store of the current registry, the
        source or the target. A move is recorded always, anything else once.
        """
        action = "copy"
        place = self.registry
        detail = asdict(self)
        is_new = False
        if promotion is not None:
            action = "promote"
            place = f"{promotion.to} of {self.registry}"
            is_new = promotion.is_moved
            detail |= {"to": promotion.to, "gate": promotion.gate, "report": promotion.report}
        after = f"{self.model} version {self.version} in {place}"
        model = self.model if at_target else self.source_model
        version = self.version if at_target else self.source_version
        with store_or_default(None) as trail:
            events = trail.events(model=model, actions=(action,))
            recorded = {(event.version, event.after) for event in events}
            if is_new or (version, after) not in recorded:
                trail.record(
                    action,
                    model=model,
                    version=version,
                    before=self.copied_from,
                    after=after,
                    detail=detail,
                )


@contextmanager
def copied_version(
    model: str,
    version: str,
    to_registry: str,
    to_model: str,
    progress: ProgressCallback = lambda line: None,
) -> Iterator[CopiedVersion]:
    """Copy a version to another registry, or to another model, and use the target
    registry within the block.

    An empty `to_registry` is the current registry, and an empty `to_model` is the name
    of the model. Environment variables with the prefix TARGET_ apply to the target. An
    error within the block reports that the copy exists.

    Raises InvalidArtifact if the files of a copy differ, InvalidConfig if the address
    is not valid or the target is the source, NotFound, and RegistryUnavailable or
    StoreUnavailable if a registry or a store fails or refuses the account.
    """
    if to_registry and "://" not in to_registry:
        raise InvalidConfig(
            f"--to-registry {to_registry!r} is not the address of a registry, such as "
            "https://mlflow"
        )
    resolution.check_new_name(to_model)
    source = _Source.read(model, version)
    name = to_model or model
    address = to_registry.rstrip("/")
    is_same = not to_registry
    if connection.redact_credentials(address) == registry_address().rstrip("/"):
        workspace = active_workspace()
        named = os.environ.get("TARGET_MLFLOW_WORKSPACE", workspace)
        is_same = workspace_of({"MLFLOW_WORKSPACE": named}) == workspace
    if is_same and name == model:
        raise InvalidConfig(
            f"{source} is in {source.registry} already; --to-model NAME copies it to another model"
        )

    target: Callable[[], AbstractContextManager[None]] = (
        nullcontext if is_same else partial(_registry_at, address)
    )
    with _remedy(f"{source} was not copied"), target():
        source.copies(name)  # This call checks that the target answers and accepts the account.
    with (
        temporary_folder("onnxserve-transfer-") as folder,
        _remedy("repeat the command to continue the copy"),
    ):
        progress(f"reading {source} from {source.registry}")
        download(source.uri, folder / "download").rename(folder / "model")
        copy_bundle(source.uri, folder)
        report = f"the gate report of {source}"
        with suppress(NotFound):  # The run of the gate may be deleted.
            for run_id in REPORT_RUN.findall(source.gate.report)[:1]:
                fetch(f"runs:/{run_id}/{tags.GATE_REPORT_FILE}", folder / "source_gate", report)
                fetch(f"runs:/{run_id}/{GATE_JSON_FILE}", folder / "source_gate", report)
        with target():
            copied = source.copy(name, folder, is_same, progress)
            copied.record(at_target=True)
        copied.record()
    remedy = (
        f"{copied}, and the same command, with --to-registry or --to-model, continues from there"
    )
    with _remedy(remedy, {} if is_same else copied.commands), target():
        yield copied


@contextmanager
def _remedy(text: str, commands: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Add the state of the copy, or how to continue, to the message of an error. The
    `commands` for the target are replaced by those that work here.
    """
    try:
        yield
    except OnnxserveError as error:
        message = error.message
        for at_target, here in commands.items():
            message = message.replace(at_target, here)
        raise type(error)(f"{message}; {text}") from error


@dataclass(frozen=True)
class _Source:
    """The version that is copied. `gate` has the verdict on it, or on the original of a
    copy that was not judged.
    """

    entry: ModelVersion
    uri: str
    registry: str
    page: str
    run: Run | None
    run_page: str
    gate: tags.GateStatus

    def __str__(self) -> str:
        return f"{self.entry.name} version {self.entry.version}"

    def copies(
        self,
        name: str,
        digest: str | None = None,
    ) -> list[str]:
        """Return the copies of this version in the model `name` of the current
        registry, or only the copies whose files have this digest.
        """
        with registry_errors(f"model {name}"):
            versions = resolution.all_versions(registry_client(), name)
        # In the registry of the source, MLflow's copy_model_version sets this address.
        uri = self.uri if _page_of(self.entry) == self.page else None
        numbers = []
        for item in versions:
            is_copy = item.tags.get(tags.COPIED_FROM_TAG) == self.page or item.source == uri
            # MLflow's copies have no digest.
            has_files = digest is None or item.tags.get(_FILES_TAG, digest) == digest
            if is_copy and has_files:
                numbers.append(str(item.version))
        return sorted(numbers, key=int)

    @staticmethod
    def read(model: str, version: str) -> "_Source":
        """Return a version of the current registry. Its original and its run may be
        deleted.
        """
        resolved = resolution.registered_version(model, version)
        client = registry_client()
        with registry_errors(resolved.source):
            entry = client.get_model_version(model, resolved.version)
            original = entry
        with suppress(NotFound, InvalidConfig), registry_errors(resolved.source):
            original = original_of(entry, client)
        judged = entry if tags.GATE_REPORT_TAG in entry.tags else original
        run = None
        run_page = ""
        run_id = entry.run_id
        with suppress(NotFound), registry_errors(f"run {run_id}"):
            if run_id:
                page = logged_run(client, run_id).url
                run = client.get_run(run_id)
                run_page = connection.redact_credentials(page) or run_id
        return _Source(
            entry=entry,
            uri=resolved.source,
            registry=registry_address(),
            page=_page_of(entry),
            run=run,
            run_page=run_page,
            gate=tags.gate_status_of(judged.tags),
        )

    def copy(
        self,
        name: str,
        folder: Path,
        is_same: bool,
        progress: ProgressCallback,
    ) -> CopiedVersion:
        """Return the copy in the model `name` of the target, which is the current
        registry. It is created if necessary. Raises InvalidArtifact if the files of the
        copy, or of the run for the copy, differ from the source.
        """
        digest = hash_folder(folder / "model")
        with suppress(FileNotFoundError):  # Few versions are signed.
            (folder / BUNDLE).rename(folder / "model" / BUNDLE)
        has_report = (folder / "source_gate" / tags.GATE_REPORT_FILE).is_file()
        gate = f"{self.gate.state}: {self.gate.report}" if has_report else "no report"
        progress(f"gate of {self}: {gate}")
        origin = {
            tags.COPIED_FROM_TAG: self.page,
            _FILES_TAG: digest,
            _GATE_TAG: gate,
            _RUN_TAG: self.run_page,
        }
        run_id = self.entry.run_id
        location = self.uri
        if copies := self.copies(name, digest):
            location = f"models:/{name}/{copies[0]}"
        elif not is_same:
            run_id, location = self._log_run(name, folder, origin, progress)
        progress(f"comparing {location} in {registry_address()} with the source")
        if version_digest(location) != digest:
            raise InvalidArtifact(f"the files of {location} differ from {self}: delete {location}")
        if not copies:
            progress(f"registering {self} as a version of {name} in {registry_address()}")
            client = registry_client()
            with registry_errors(f"model {name}"):
                # If the model does not exist afterwards, the next call reports it.
                with suppress(MlflowException):
                    client.create_registered_model(name)
                client.create_model_version(
                    name,
                    location,
                    run_id,
                    tags.kept_tags(self.entry.tags, *_KEPT_TAGS) | origin,
                    description=tags.with_description_section(self.entry.description or "", []),
                    await_creation_for=0,
                )
        # MLflow's client may repeat a call, and register two versions.
        number = self.copies(name, digest)[0]
        return CopiedVersion(
            model=name,
            version=number,
            registry=registry_address(),
            source_model=str(self.entry.name),
            source_version=str(self.entry.version),
            copied_from=self.page,
            source_run=self.run_page,
            files=digest,
        )

    def _log_run(
        self,
        name: str,
        folder: Path,
        origin: dict[str, str],
        progress: ProgressCallback,
    ) -> tuple[str, str]:
        """Log the training run and the folder to a run of the target. Return its id and
        the address of the folder model.
        """
        run = self.run

        def log_content(client: MlflowClient, run_id: str, _: int) -> None:
            """Log the parameters, metrics and datasets of the training run, if there is
            one, and the files of the folder.
            """
            if run is not None:
                client.log_batch(
                    run_id,
                    params=[Param(key, value) for key, value in run.data.params.items()],
                )
                log_metrics(
                    client,
                    run_id,
                    "",
                    run.data.metrics.items(),
                    at_ms=run.info.start_time,
                )
                client.log_inputs(run_id, datasets=run.inputs.dataset_inputs)
            sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
            progress(f"uploading {len(sizes)} files ({sum(sizes):,} bytes) to {registry_address()}")
            client.log_artifacts(run_id, str(folder))

        title = str(self)
        run_tags: dict[str, str] = {}
        if run is not None:
            title = str(run.info.run_name)
            run_tags = tags.kept_tags(run.data.tags, *_KEPT_TAGS)
        identity = {key: origin[key] for key in (tags.COPIED_FROM_TAG, _FILES_TAG)}
        copy = IdempotentRun(
            f"the copy of {self}",
            f"onnxserve/{name}",
            identity,
            ("onnxserve.copied", "complete"),
        )
        run_id = copy.log(title, run_tags | origin, log_content).run_id
        with registry_errors(f"run {run_id}"):
            artifact_uri = registry_client().get_run(run_id).info.artifact_uri
        return run_id, f"{artifact_uri.rstrip('/')}/model"


def _page_of(entry: ModelVersion) -> str:
    """Return the page of a version in the current registry, without quotes, because
    MLflow's filters cannot escape.
    """
    version = f"models/{quote(entry.name)}/versions/{entry.version}"
    page = f"{registry_address().rstrip('/')}/#/{version}{workspace_query()}"
    return page.replace("'", "%27")


@contextmanager
def _registry_at(address: str) -> Iterator[None]:
    """Use another registry in this process, with the variables TARGET_…, and without
    the credentials of the source.

    Without its own home or store, the audit trail of the target is in a folder of this
    machine's home, because the events of two models with the same name must not be
    mixed.
    """
    tracking_uri = mlflow.get_tracking_uri()
    environment = {**os.environ}
    find_file = mlflow_private._get_credentials_path
    folder = quote(connection.redact_credentials(address), safe="")
    home = load_settings().root_path / "registries" / folder
    variables = {name: value for name, value in environment.items() if not _OF_SOURCE.match(name)}
    variables["ONNXSERVE_HOME"] = str(home)
    for name in environment:
        if match := _OF_TARGET.fullmatch(name):
            variables[match[1]] = environment[name]
    try:
        _set_environment(variables)
        # The file ~/.mlflow/credentials is for the source.
        mlflow_private.replace("_get_credentials_path", lambda: os.devnull)
        mlflow.set_tracking_uri(address)
        yield
    except RegistryRefused as error:  # The message names the variables of the credentials.
        raise RegistryRefused(error.message.replace(" MLFLOW_", " TARGET_MLFLOW_")) from None
    finally:
        mlflow.set_tracking_uri(tracking_uri)
        mlflow_private.replace("_get_credentials_path", find_file)
        _set_environment(environment)


def _set_environment(variables: dict[str, str]) -> None:
    """Replace the environment variables, and forget the clients that have the
    credentials of the variables before.
    """
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
    mlflow_private._cached_get_s3_client.cache_clear()
