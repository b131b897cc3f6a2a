"""Transfer of a version with its evidence to another MLflow registry, or to another model of the same registry.

MLflow's `copy_model_version` copies only within one registry. Between two registries, the files, the training run and
the gate report become a run of the target, which its tags identify (`IdempotentRun`). The version is registered after
the uploaded files have the digest of the source. Each step finds the result of an interrupted attempt by tags, so that
the same command continues the transfer. The verdict is not copied, because the gate of the target judges the copy.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Param, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.s3_artifact_repo import _cached_get_s3_client
from mlflow.utils import credentials

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError, RegistryRefused, RegistryUnavailable
from mlflow_deploy_plugin.gate.promotion import Promotion
from mlflow_deploy_plugin.gate.run import JSON, store_or_default
from mlflow_deploy_plugin.logs import ProgressCallback
from mlflow_deploy_plugin.registry import (
    PARITY_TAG,
    all_versions,
    parse_model_uri,
    redact_credentials,
    registered_version,
    registry_address,
    registry_client,
    registry_errors,
)
from mlflow_deploy_plugin.registry.model_files import download, fetch, version_digest
from mlflow_deploy_plugin.registry.resolution import GIT_COMMIT_TAG
from mlflow_deploy_plugin.registry.runs import IdempotentRun, log_metrics, logged_run
from mlflow_deploy_plugin.registry.tags import (
    CAUSE_TAG,
    COPIED_FROM_TAG,
    DATA_DIGEST_TAG,
    GATE_REPORT_FILE,
    OPTIMIZED_FROM_TAG,
    OPTIMIZED_WITH_TAG,
    PARENT_TAG,
    TRAINING_TAG,
    WRAPPED_FROM_TAG,
    GateStatus,
    gate_status_of,
    kept_tags,
    with_description_section,
)
from mlflow_deploy_plugin.runtime import combine_hashes, hash_files
from mlflow_deploy_plugin.settings import active_workspace, load_settings, workspace_of, workspace_query
from mlflow_deploy_plugin.statedir.files import temporary_folder
from mlflow_deploy_plugin.store import AuditEvent, current_actor

_VERSION_TAGS = (
    *(CAUSE_TAG, DATA_DIGEST_TAG, PARENT_TAG, TRAINING_TAG, WRAPPED_FROM_TAG, OPTIMIZED_FROM_TAG, OPTIMIZED_WITH_TAG),
    *(PARITY_TAG, GIT_COMMIT_TAG),
)
_RUN_TAGS = (GIT_COMMIT_TAG, "mlflow.user", "mlflow.note.content", "mlflow.source.name", "mlflow.source.type")
_FILES_TAG = "onnxserve.copied_files"
"""The digest of all files of a copied version."""
_RUN_TAG, _GATE_TAG = "onnxserve.copied_run", "onnxserve.copied_gate"
"""The page of the training run, and the gate's state and report, in the registry that a version was copied from."""
_DONE = ("onnxserve.copied", "complete")
_MAX_PARAMS = 100  # MLflow's limit of parameters per call.
_REPORT_RUN = re.compile(rf"(?:^|/runs/)(\w+)/(?:artifacts/)?{re.escape(GATE_REPORT_FILE)}")
_TARGET = "TARGET_"
_OF_SOURCE = re.compile(
    r"MLFLOW_(TRACKING_|REGISTRY_URI|WORKSPACE|RUN_|EXPERIMENT_)|ONNXSERVE_(STORE_URI|HOME|LOG_URI)$"
)
"""The environment variables of the source, such as its credentials, which do not apply to the target."""


@dataclass(frozen=True)
class CopiedVersion:
    """A copy of a version.

    Attributes:
        registry: the address of the target, without credentials.
        copied_from: the page of the source in MLflow, which is the tag `onnxserve.copied_from` of the copy.
        source_model / source_version / source_registry: the source.
        files: the digest of all files, which is equal in both registries.
    """

    model: str
    version: str
    registry: str
    copied_from: str
    source_model: str
    source_version: str
    source_registry: str
    files: str

    @property
    def text(self) -> str:
        source = f"{self.source_model} version {self.source_version}"
        return f"{source} is copied to {self.model} version {self.version} in MLflow at {self.registry}"

    def record_promotion(self, promotion: Promotion) -> None:
        """Record the promotion of the copy in the audit trail of the source. Call this after `copied_version`."""
        after = f"{self.model} version {self.version} in {promotion.to} of {self.registry}"
        result = {"to": promotion.to, "gate": promotion.gate, "report": promotion.report}
        self.record("promote", self.source_model, self.source_version, after, result, is_repeated=promotion.is_moved)

    def record(
        self,
        action: str,
        model: str,
        version: str,
        after: str,
        result: Mapping[str, str] = {},
        *,
        before: str = "",
        is_repeated: bool = False,
    ) -> None:
        """Write an event to the store of the current registry. Unless `is_repeated`, an equal event is kept instead."""
        with store_or_default(None) as trail:
            detail = {**asdict(self), **result}
            event = AuditEvent(trail.now(), current_actor(), action, "", model, version, before, after, "", detail)

            def decide(events: list[AuditEvent]) -> AuditEvent | None:
                is_known = any((known.version, known.after) == (version, after) for known in events)
                return event if is_repeated or not is_known else None

            trail.record_next(model, (action,), decide)


@contextmanager
def copied_version(
    model: str, version: str, to_registry: str, to_model: str, progress: ProgressCallback = lambda line: None
) -> Iterator[CopiedVersion]:
    """Copy a version to another registry, or to another model, and use the target registry within the block.

    An empty `to_registry` is the current registry, and an empty `to_model` is the name of the model. Environment
    variables with the prefix TARGET_ apply to the target. An error within the block reports that the copy exists.

    Raises:
        InvalidConfig: the address is not valid, or the target is the source.
        NotFound: the version does not exist.
        RegistryUnavailable, StoreUnavailable: a registry or a store refuses the account, or does not answer.
    """
    if to_registry and "://" not in to_registry:
        raise InvalidConfig(f"--to-registry {to_registry!r} is not the address of a registry, such as https://mlflow")
    source, name = _read_source(model, version), to_model or model
    is_same = not to_registry or _is_current(to_registry)
    if is_same and name == source.model:
        raise InvalidConfig(
            f"{source.text} is already in {source.registry}; --to-model NAME copies it to another model"
        )

    def target() -> AbstractContextManager[None]:
        return nullcontext() if is_same else _registry_at(to_registry.rstrip("/"))

    with _remedy("nothing was copied"), target():
        source.copies(name)  # The target answers and accepts the account.
    with temporary_folder("onnxserve-transfer-") as folder, _remedy("repeat the command to continue the copy"):
        files, report = _fetch(source, folder, progress)
        with target():
            copied = _copy(source, name, files, report, is_same, progress)
            copied.record("copy", name, copied.version, f"version {copied.version}", before=source.page)
        after = f"{name} version {copied.version} in {copied.registry}"
        copied.record("copy", source.model, source.version, after)
    with _remedy(f"{copied.text}, and the same command continues from there"), target():
        yield copied


@contextmanager
def _remedy(text: str) -> Iterator[None]:
    """Add a text to the message of an error: the outcome of the transfer, and how to continue it."""
    try:
        yield
    except OnnxserveError as error:
        raise type(error)(f"{error.message}; {text}") from error


@dataclass(frozen=True)
class _Source:
    """A version of the current registry. `gate` and `report_run` are from the version, or from the original of a copy.

    Attributes:
        page: the version's page in MLflow.
        run_page: the page of the training run; empty if there is no run.
        report_run: the run with the report of the gate; empty if there is no report.
    """

    entry: ModelVersion
    registry: str
    page: str
    run: Run | None
    run_page: str
    gate: GateStatus
    report_run: str

    @property
    def model(self) -> str:
        return str(self.entry.name)

    @property
    def version(self) -> str:
        return str(self.entry.version)

    @property
    def text(self) -> str:
        return f"{self.model} version {self.version}"

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.version}"

    def copies(self, name: str) -> list[ModelVersion]:
        """Return the copies of this version in the model `name` of the current registry, which may be the target."""
        with registry_errors(f"model {name}"):
            versions = all_versions(registry_client(), name)
        is_source = registry_address() == self.registry
        own = [v for v in versions if v.tags.get(COPIED_FROM_TAG) == self.page or (is_source and v.source == self.uri)]
        return sorted(own, key=lambda version: int(version.version))


def _read_source(model: str, version: str) -> _Source:
    resolved, client = registered_version(model, version), registry_client()
    with registry_errors(resolved.source):
        original = entry = client.get_model_version(resolved.name, resolved.version)
    with suppress(NotFound, InvalidConfig), registry_errors(resolved.source):  # An original may be deleted.
        while (copied := parse_model_uri(original.source or "")).kind == "version":
            original = client.get_model_version(copied.name, copied.selector)
    run, run_page, gate = None, "", gate_status_of(entry.tags)
    gate = gate if gate.report else gate_status_of(original.tags)
    if run_id := entry.run_id or original.run_id:
        with suppress(NotFound), registry_errors(f"run {run_id}"):  # The run may be deleted.
            run, logged = client.get_run(run_id), logged_run(client, run_id)
            run_page = redact_credentials(logged.url) or run_id
    address = registry_address().rstrip("/")
    page = f"{address}/#/models/{quote(resolved.name)}/versions/{resolved.version}{workspace_query()}"
    match = _REPORT_RUN.search(gate.report)
    return _Source(entry, address, page.replace("'", "%27"), run, run_page, gate, match[1] if match else "")


def _fetch(source: _Source, folder: Path, progress: ProgressCallback) -> tuple[Path, Path]:
    """Download the files of the version and its gate report. Return both folders; without a report, it is empty."""
    report = folder / "report"
    report.mkdir()
    (folder / "files").mkdir()
    progress(f"reading {source.text} from {source.registry}")
    files = download(source.uri, folder / "files")
    for name in (GATE_REPORT_FILE, JSON) if source.report_run else ():
        with suppress(NotFound):
            fetch(f"runs:/{source.report_run}/{name}", report, f"the gate report of {source.text}")
    if not any(report.iterdir()):
        progress(f"{source.text} has no gate report")
    return files, report


def _copy(
    source: _Source, name: str, files: Path, report: Path, is_same: bool, progress: ProgressCallback
) -> CopiedVersion:
    """Return the copy in the model `name` of the target, which is the current registry. It is created if necessary."""
    digest, address = combine_hashes(hash_files(files)), registry_address()
    gate = f"{source.gate.state}: {source.gate.report}" if any(report.iterdir()) else "no report"
    origin = {COPIED_FROM_TAG: source.page, _FILES_TAG: digest, _GATE_TAG: gate, _RUN_TAG: source.run_page}

    def numbers() -> list[str]:
        return [str(v.version) for v in source.copies(name) if v.tags.get(_FILES_TAG, digest) == digest]

    if not (known := numbers()):
        run_id, location = source.entry.run_id, source.uri
        if not is_same:
            run_id, location = _copy_run(source, name, files, report, origin, progress)
        progress(f"registering {source.text} as the next version of {name} in {address}")
        with registry_errors(f"model {name}"):
            _register(name, location, run_id, source.entry, origin)
        known = numbers()  # MLflow's client repeats a call without an answer, which may register two versions.
    progress(f"{source.text} is {name} version {known[0]} in {address}")
    return CopiedVersion(name, known[0], address, source.page, source.model, source.version, source.registry, digest)


def _register(name: str, location: str, run_id: str | None, entry: ModelVersion, origin: dict[str, str]) -> None:
    client = registry_client()
    try:
        client.create_registered_model(name)
    except MlflowException as error:  # An account that may add versions may lack the permission to create models.
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED"):
            raise
    description = with_description_section(entry.description or "", []) or None
    tags = kept_tags(entry.tags, *_VERSION_TAGS) | origin
    client.create_model_version(name, location, run_id or None, tags, description=description, await_creation_for=0)


def _copy_run(
    source: _Source, name: str, files: Path, report: Path, origin: Mapping[str, str], progress: ProgressCallback
) -> tuple[str, str]:
    """Log the files, the training run and the gate report to a run of the target. Return its id and the files' URI."""
    location, run = "", source.run

    def log_content(client: MlflowClient, run_id: str, earlier_starts: int) -> None:
        nonlocal location
        if run is not None:
            params = [Param(key, value) for key, value in run.data.params.items()]
            for start in range(0, len(params), _MAX_PARAMS):
                client.log_batch(run_id, params=params[start : start + _MAX_PARAMS])
            log_metrics(client, run_id, "", run.data.metrics.items(), at_ms=run.info.start_time)
            client.log_inputs(run_id, datasets=run.inputs.dataset_inputs)
        location = f"{client.get_run(run_id).info.artifact_uri.rstrip('/')}/model"
        if not (earlier_starts and _has_files(location, origin[_FILES_TAG])):
            sizes = [path.stat().st_size for path in files.rglob("*") if path.is_file()]
            progress(f"uploading {len(sizes)} files ({sum(sizes):,} bytes) to {registry_address()}")
            client.log_artifacts(run_id, str(files), "model")
        client.log_artifacts(run_id, str(report), "source_gate")
        progress("comparing the uploaded files with the source")
        if not _has_files(location, origin[_FILES_TAG]):
            raise RegistryUnavailable(f"the files in run {run_id} differ from {source.text}: delete this run")

    run_tags = kept_tags(run.data.tags, *_RUN_TAGS) if run is not None else {}
    identity = {key: origin[key] for key in (COPIED_FROM_TAG, _FILES_TAG)}
    logged = IdempotentRun(f"the copy of {source.text}", f"onnxserve/{name}", identity, _DONE).log(
        (run and run.info.run_name) or source.text, {**run_tags, **origin}, log_content
    )
    return logged.run_id, location


def _has_files(location: str, digest: str) -> bool:
    with suppress(NotFound):
        return version_digest(location) == digest
    return False


def _is_current(to_registry: str) -> bool:
    workspace = os.environ.get(f"{_TARGET}MLFLOW_WORKSPACE", active_workspace())
    is_here = workspace_of({"MLFLOW_WORKSPACE": workspace}) == active_workspace()
    return is_here and redact_credentials(to_registry).rstrip("/") == registry_address().rstrip("/")


@contextmanager
def _registry_at(address: str) -> Iterator[None]:
    """Use another registry in this process, with the variables TARGET_…, and without the credentials of the source.

    Without its own home or store, the audit trail of the target is in a folder of this machine's home, because the
    events of two models with the same name must not be mixed.
    """
    before, uri = dict(os.environ), mlflow.get_tracking_uri()
    read_credentials: Callable[[], tuple[str | None, str | None]] = credentials._read_mlflow_creds_from_file
    home = load_settings().root_path / "registries" / quote(redact_credentials(address), safe="")
    kept = {name: value for name, value in before.items() if not _OF_SOURCE.match(name)} | {"ONNXSERVE_HOME": str(home)}
    own = {name.removeprefix(_TARGET): value for name, value in before.items() if name.startswith(_TARGET)}
    own["MLFLOW_TRACKING_URI"] = address
    credentials._read_mlflow_creds_from_file = lambda: (None, None)  # ~/.mlflow/credentials is for the source.
    try:
        _set_environment(kept | own, address)
        yield
    except RegistryRefused as error:  # The message names the variables of the credentials.
        raise RegistryRefused(error.message.replace(" MLFLOW_", f" {_TARGET}MLFLOW_")) from None
    finally:
        credentials._read_mlflow_creds_from_file = read_credentials
        _set_environment(before, uri)


def _set_environment(variables: Mapping[str, str], tracking_uri: str) -> None:
    _cached_get_s3_client.cache_clear()  # The clients have the credentials of the other environment.
    mlflow.set_tracking_uri(tracking_uri)  # This also sets MLFLOW_TRACKING_URI, so the variables are set afterwards.
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
