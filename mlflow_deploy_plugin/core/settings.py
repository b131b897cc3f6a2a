"""All `ONNXSERVE_*` settings of a process, typed and documented.

A setting specifies where this machine stores files and how long this process waits; the
spec (`core/spec/`) specifies what is served and how. Settings are environment
variables: `ONNXSERVE_HOME=/var/lib/onnxserve onnxserve serve …`.

The class is a plain pydantic model, because pydantic-settings would add 0.1 s to the
start of each server process.
"""

import os
import re
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import unquote, urlparse

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PrivateAttr, ValidationError

from mlflow_deploy_plugin.core.errors import InvalidConfig

_PREFIX = "ONNXSERVE_"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MLFLOW_WORKSPACE = "MLFLOW_WORKSPACE"
DEFAULT_WORKSPACE = "default"
_WORKSPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # the same rule as in MLflow
_OF_WORKSPACE = "{workspace}"
_ModelT = TypeVar("_ModelT", bound=BaseModel)


def active_workspace() -> str:
    """Return this process's MLflow workspace, or within MLflow's server the request's;
    empty for the default workspace.

    Raises:
        InvalidConfig: the name is not a valid workspace name.
    """
    # Not imported, because importing MLflow takes 1 s.
    context = sys.modules.get("mlflow.utils.workspace_context")
    if context is None:
        return workspace_of(os.environ)
    return workspace_of({_MLFLOW_WORKSPACE: context.get_request_workspace() or ""})


def workspace_of(environment: Mapping[str, str]) -> str:
    """Return the MLflow workspace of a process with this environment; empty for the
    default workspace.

    Raises:
        InvalidConfig: the name is not a valid workspace name.
    """
    name = environment.get(_MLFLOW_WORKSPACE, "").strip()
    if name and not _WORKSPACE.fullmatch(name):
        expected = "1 to 63 lower-case letters, digits and inner hyphens are expected"
        raise InvalidConfig(f"{_MLFLOW_WORKSPACE}: {expected} (got {name!r})")
    return "" if name == DEFAULT_WORKSPACE else name


def workspace_query() -> str:
    """Return the URL query that selects this workspace on a page of MLflow; empty for
    the default workspace.
    """
    if name := active_workspace():
        return f"?workspace={name}"
    return ""


def workspace_environment() -> dict[str, str]:
    """Return the environment variable that gives a child process this workspace; empty
    for the default workspace.
    """
    if name := active_workspace():
        return {_MLFLOW_WORKSPACE: name}
    return {}


class Settings(BaseModel):
    """The settings of this process. The reference page of the docs is generated from
    these fields and docstrings.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    home: Path = Path("~/.onnxserve")
    """Folder for the default store, the logs, the model cache and the inference log."""
    store_uri: str = Field(default="", repr=False)  # may contain a password
    """SQLAlchemy URI of the store, such as postgresql+psycopg://user@host/db.
    {workspace} is replaced by the name of the MLflow workspace. Default: SQLite in
    HOME.
    """
    log_uri: str = ""
    """Folder or URI to which the inference log is written as Parquet. Default:
    HOME/inference_log.
    """
    log_sse: str = Field(default="", pattern=r"^(AES256|aws:kms(:[^\s]+)?)?$")
    """Encryption of the inference log's objects at s3://: AES256, aws:kms or
    aws:kms:KEY-ID. Default: the encryption of the bucket.
    """
    artifact_folders: str = ""
    """Folders of this machine, besides a local server's `mlruns`, in which MLflow's
    server may name a version's files; separated by commas. Default: none.
    """
    keys_file: Path | None = None
    """File with the valid API keys, for servers without a store. `onnxserve keys
    export` prints it. Default: the keys in the store.
    """
    api_key: str = Field(default="", repr=False)
    """API key with which `onnxserve consume` calls the server."""
    secrets: Path | None = None
    """Folder whose files set the environment variables of their names, such as Docker's
    /run/secrets or systemd's credentials. A variable that is set takes precedence.
    """
    redis_url: str = Field(default="", repr=False)  # may contain a password
    """Redis server that stores rate limits and the response cache for all workers, such
    as redis://host:6379/0. Default: each worker has its own in memory.
    """
    host: str = "127.0.0.1"
    """Address that `onnxserve serve` listens on if neither the spec nor an option
    specifies an address.
    """
    port: int | None = Field(default=None, ge=1, le=65535)
    """Port of `onnxserve serve` if neither the spec nor an option specifies it.
    Default: the first free from 8080.
    """
    device: str = ""
    """Device for models, as in `onnxserve serve --device`, if neither the spec nor the
    option specifies a device.
    """
    pyfunc_env: str = ""
    """As `onnxserve serve --env-manager`, if neither the spec nor the option specifies
    it; it is set in images with an environment.
    """
    allow_pickle: bool = False
    """As `onnxserve serve --allow-pickle`: serve joblib and pickle files, and versions
    of MLflow's plain flavors behind a stage or an alias, which can run any code.
    """
    model_uri: str = ""
    """Model that `onnxserve serve` serves if neither an option nor a spec specifies a
    model; it is set in images that follow the registry.
    """
    listener: Path | None = None
    """Unix socket from which a server receives its predecessor's listening socket. It
    also listens at 127.0.0.1. The docker target sets it.
    """
    insecure: bool = False
    """As `onnxserve serve --insecure`; for containers behind a gateway that
    authenticates callers.
    """
    poll_seconds: float = Field(default=30.0, ge=0.1, le=3600)
    """Seconds between two polls of the registry for a followed reference. An MLflow
    server with `--app-name onnxserve` sends changes, and is polled once per hour.
    """
    log_format: Literal["text", "ecs"] = "text"
    """Log format of servers and controllers: text for people, or JSON in the Elastic
    Common Schema.
    """
    log_level: Literal["INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    """Lowest level of log lines. `onnxserve predict MODEL` uses CRITICAL."""
    log_requests: bool = False
    """Log one line for every request."""
    log_fraction: float = Field(default=1.0, ge=0, le=1)
    """Fraction of the successful requests that have a line with
    ONNXSERVE_LOG_REQUESTS. Failed requests always have a line.
    """
    metrics_names: Literal["", "mlserver"] = ""
    """Names that /metrics has in addition to its own: mlserver, for the dashboards of
    MLServer.
    """
    ready_timeout_seconds: PositiveFloat = 120.0
    """Seconds that `mlflow deployments create` waits until the server is ready."""

    kube_context: str | None = None
    """Context of KUBECONFIG that deployments on Kubernetes use. Default: the current
    context; in a pod without a configuration, the pod's own cluster.
    """
    alert_config: Path | None = None
    """File of the channels that receive alerts, in Apprise's YAML or text format; tags
    select among the channels. Default: no alert is sent.
    """
    alert_repeat_seconds: float = Field(default=604800.0, ge=60)
    """Seconds after which an alert that still fires is sent again."""
    monitor_retention_days: int | None = Field(default=None, ge=7, le=36500)
    """Days after which the controller deletes judged windows of monitors and resolved
    alerts from the store. Default: never.
    """
    retention_floor_days: int | None = Field(default=None, ge=1, le=36500)
    """Age in days below which no captured rows, windows and alerts are deleted."""
    callback_secret: str = Field(default="", repr=False)
    """Secret with which a server signs the callbacks of batch jobs, like a webhook of
    MLflow. Default: callbacks are refused.
    """
    mlflow_url: str = ""
    """Address of an MLflow server for the processes that its page starts. Default: its
    port, or the browser's address if `--allowed-hosts` lists it without *.
    """

    mlflow_app: str = ""
    """Login of `mlflow server --app-name onnxserve`: the name of an app of the entry
    point group `mlflow.app`, such as kubernetes-auth or oidc-auth. Default: no
    accounts.
    """
    user_header: str = ""
    """Header with the caller's name from a proxy before MLflow's server, such as
    X-Forwarded-User. Only health checks may lack it. Default: no accounts.
    """
    groups_header: str = ""
    """Header in which the proxy sends the groups of the caller, separated by commas,
    such as X-Forwarded-Groups.
    """
    trusted_proxies: str = ""
    """Addresses and networks from which ONNXSERVE_USER_HEADER is accepted, separated by
    commas, such as 10.1.0.0/16.
    """
    admin_groups: str = ""
    """Groups in ONNXSERVE_GROUPS_HEADER whose members are administrators of the
    console, separated by commas.
    """
    edit_groups: str = ""
    """Groups in ONNXSERVE_GROUPS_HEADER that may change models and runs, separated by
    commas. Others may read and, in a policy's groups, decide. Default: every named
    caller.
    """

    audit_key_file: Path | None = None
    """PEM file of MLflow's server with the key that signs the audit trail, and
    the public keys of other servers. Default: a file in HOME.
    """
    audit_checkpoints: str = ""
    """Folder or s3:// URI for the newest checkpoint of the audit trail, once per hour.
    """
    audit_witnesses: str = ""
    """Witnesses of the audit trail, as URL#NAME+ID+KEY, separated by spaces."""

    _workspace: str = PrivateAttr(default_factory=active_workspace)

    @cached_property
    def home_path(self) -> Path:
        """The folder of the MLflow workspace in HOME; for the default workspace,
        HOME.
        """
        return Path(self._in_workspace(str(self.root_path)))

    @cached_property
    def root_path(self) -> Path:
        """HOME as an absolute path."""
        return absolute_path(self.home)

    @property
    def store_url(self) -> str:
        """The SQLAlchemy URI of the store. Raises InvalidConfig if all workspaces would
        have the same URI.
        """
        if self._workspace and self.store_uri and _OF_WORKSPACE not in self.store_uri:
            raise InvalidConfig(
                "ONNXSERVE_STORE_URI is one store for all MLflow workspaces, and "
                f"{self._workspace} needs its own: put {_OF_WORKSPACE} in the URI, such as "
                f"postgresql+psycopg://user@host/{_OF_WORKSPACE}",
            )
        file = str(self.home_path / "onnxserve.db").replace("%", "%25").replace("?", "%3F")
        return (
            self.store_uri.replace(_OF_WORKSPACE, self._workspace or DEFAULT_WORKSPACE)
            or f"sqlite:///{file}"
        )

    @property
    def audit_key_path(self) -> Path:
        """The key file of MLflow's server."""
        if self.audit_key_file is None:
            return self.root_path / "console" / "audit.pem"
        return absolute_path(self.audit_key_file)

    @property
    def inference_log(self) -> str:
        return self._in_workspace(self.log_root)

    @property
    def log_root(self) -> str:
        """A URI, or an absolute path, because servers do not run in the folder of the
        command that starts them.
        """
        if ":" in self.log_uri:
            return self.log_uri
        if self.log_uri:
            return str(absolute_path(self.log_uri))
        return str(self.root_path / "inference_log")

    @property
    def artifact_paths(self) -> frozenset[Path]:
        """The artifact folders as absolute paths without links."""
        listed = [folder.strip() for folder in self.artifact_folders.split(",")]
        return frozenset(absolute_path(folder).resolve() for folder in listed if folder)

    @property
    def cache_path(self) -> Path:
        return self.home_path / "cache"

    @property
    def deployments_path(self) -> Path:
        return self.home_path / "deployments"

    def _in_workspace(self, path: str) -> str:
        if self._workspace:
            return f"{path.rstrip('/')}/workspaces/{self._workspace}"
        return path

    def state_dir(self, endpoint: str) -> Path:
        """Return the state folder of an endpoint's server on this machine. It may not
        exist.
        """
        return self.deployments_path / endpoint


def local_path(location: str) -> Path | None:
    """Return the path of a path or a file: URI; None for another URI. One letter before
    the first colon is a drive of Windows.
    """
    url = urlparse(location)
    if url.scheme == "file":
        return Path(re.sub("^/(?=[A-Za-z]:)", "", unquote(url.path)))
    return Path(location) if len(url.scheme) < 2 else None


def absolute_path(path: Path | str) -> Path:
    """Return an absolute path for a path that a person wrote; ~ and ~USER become the
    home folder.

    Raises:
        InvalidConfig: the user does not exist or has no home folder, or the current
            folder was deleted.
    """
    try:
        return Path(path).expanduser().absolute()
    except FileNotFoundError:
        raise InvalidConfig(
            f"{path}: the current folder was deleted; run the command in another folder",
        ) from None
    except RuntimeError:
        home = Path(path).parts[0]
        raise InvalidConfig(
            f"{path}: {home} has no known home folder: set HOME, or use an absolute path",
        ) from None


def load_settings() -> Settings:
    """Return the settings of the environment.

    Raises:
        InvalidConfig: a value is not valid; the message names the variable.
    """
    return read_environment(Settings, _PREFIX)


def read_environment(model: type[_ModelT], prefix: str) -> _ModelT:
    """Return the environment variables with this prefix as a model.

    Raises InvalidConfig if a value is not valid, with the variable and, unless it may
    be a secret, the value.
    """
    values = {
        name.removeprefix(prefix).lower(): text
        for name, text in os.environ.items()
        if name.startswith(prefix)
    }
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        reason = first["msg"].removeprefix("Value error, ")
        received = f" (got {first['input']!r})" if model.model_fields[field].repr else ""
        raise InvalidConfig(f"{prefix}{field.upper()}: {reason}{received}") from None


def load_secrets() -> None:
    """Set environment variables from the files of ONNXSERVE_SECRETS, without the line
    break at the end of a file.

    Raises:
        InvalidConfig: the folder or a file cannot be read. The message contains the
            path but never a value.
    """
    folder = os.environ.get(f"{_PREFIX}SECRETS")
    if not folder:
        return
    try:
        for file in sorted(Path(folder).iterdir()):
            if _VARIABLE.fullmatch(file.name) and file.name not in os.environ:
                os.environ[file.name] = file.read_text().removesuffix("\n")
    except (OSError, ValueError) as error:  # A ValueError means invalid UTF-8 or a null character.
        where = getattr(error, "filename", None) or file
        why = getattr(error, "strerror", None) or "it is not a text"
        raise InvalidConfig(f"ONNXSERVE_SECRETS: {where} cannot be read: {why}") from None
