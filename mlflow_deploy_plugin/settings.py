"""Every `ONNXSERVE_*` setting of a process, typed and documented in one place.

A setting says where this machine keeps things and how long this process waits; the spec (`spec/`) says what is served
and how. Settings are read from the environment: `ONNXSERVE_HOME=/var/lib/onnxserve onnxserve serve …`.

A plain pydantic model does: pydantic-settings would cost each process of a server a tenth of a second.
"""

import os
import re
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from mlflow_deploy_plugin.errors import InvalidConfig

_PREFIX = "ONNXSERVE_"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MLFLOW_WORKSPACE, DEFAULT_WORKSPACE = "MLFLOW_WORKSPACE", "default"
_WORKSPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # as MLflow has it
_OF_WORKSPACE = "{workspace}"


def active_workspace() -> str:
    """Return the MLflow workspace of this process, in MLflow's server of the request; empty for the default one.

    Raises:
        InvalidConfig: it is no name of a workspace.
    """
    context = sys.modules.get("mlflow.utils.workspace_context")  # never imported for this: MLflow takes a second
    return workspace_of({_MLFLOW_WORKSPACE: context.get_request_workspace() or ""} if context else os.environ)


def workspace_of(environment: Mapping[str, str]) -> str:
    """Return the MLflow workspace of a process with these variables; empty for the default one.

    Raises:
        InvalidConfig: it is no name of a workspace.
    """
    name = environment.get(_MLFLOW_WORKSPACE, "").strip()
    if name and not _WORKSPACE.fullmatch(name):
        expected = "lower-case letters, digits and - within are expected, 63 at most"
        raise InvalidConfig(f"{_MLFLOW_WORKSPACE}: {expected} (got {name!r})")
    return "" if name == DEFAULT_WORKSPACE else name


def workspace_query() -> str:
    """Return the query by which a page of MLflow shows this workspace; empty for the default one."""
    return f"?workspace={name}" if (name := active_workspace()) else ""


def workspace_environment() -> dict[str, str]:
    """Return the variable by which another process has this workspace; none for the default one."""
    return {_MLFLOW_WORKSPACE: name} if (name := active_workspace()) else {}


class Settings(BaseModel):
    """Settings of this process. The reference page of the docs is made of these fields and the texts below them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    home: Path = Path("~/.onnxserve")
    """Folder for the default store, the logs, the model cache and the inference log."""
    store_uri: str = Field(default="", repr=False)  # may hold a password
    """SQLAlchemy URI of the store, e.g. postgresql+psycopg://user@host/db. Default: SQLite in HOME. {workspace} in it
    stands for the MLflow workspace, of which each has a store of its own."""
    log_uri: str = ""
    """Where the inference log is written as Parquet. Default: HOME/inference_log."""
    log_sse: str = Field(default="", pattern=r"^(AES256|aws:kms(:[^\s]+)?)?$")
    """How objects of an inference log at s3:// are encrypted there: AES256, aws:kms or aws:kms:KEY-ID. Default: as the
    bucket does it."""
    keys_file: Path | None = None
    """File of the API keys that hold, as `onnxserve keys export` prints it, for servers without a store: a mounted
    secret. Default: the keys of the store."""
    secrets: Path | None = None
    """Folder whose files are environment variables: each has the name of one, and its value: the secrets of Docker
    (/run/secrets), the credentials of systemd. What the environment says itself wins."""
    redis_url: str = Field(default="", repr=False)  # may hold a password
    """Redis that rate limits and the response cache are shared in, e.g. redis://host:6379/0. Default: each worker has
    its own in memory."""
    host: str = "127.0.0.1"
    """Address that `onnxserve serve` listens on where neither the spec nor an option says one."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Port, likewise. Default: the first free one from 8080 up."""
    device: str = ""
    """As `onnxserve serve --device`, likewise."""
    model_uri: str = ""
    """Model that `onnxserve serve` serves where neither an option nor a spec names one; images that follow the registry
    have it."""
    listener: Path | None = None
    """Unix socket at which a server gets a listening socket that it shares with the server whose place it takes, beside
    its own at 127.0.0.1; the docker target sets it."""
    insecure: bool = False
    """As `onnxserve serve --insecure`, for containers behind a gateway with its own auth."""
    poll_seconds: float = Field(default=2.0, ge=0.1, le=3600)
    """Seconds between two looks at the registry for a followed reference."""
    log_format: Literal["text", "ecs"] = "text"
    """How servers and controllers log: lines for people, or JSON in the Elastic Common Schema."""
    log_requests: bool = False
    """One line in the log for every request."""
    ready_timeout_seconds: float = Field(default=120.0, gt=0)
    """Seconds `mlflow deployments create` waits for the server to be ready."""

    kube_context: str | None = None
    """Context of KUBECONFIG that deployments on Kubernetes use. Default: its current one; in a pod without a
    configuration, the cluster that it runs in."""
    alert_config: Path | None = None
    """File of the channels that alerts go to, in Apprise's YAML or text format; tags choose among them. Default: nobody
    is told."""
    alert_repeat_seconds: float = Field(default=86400.0, ge=60)
    """An alarm that goes on is told again after so long."""
    monitor_retention_days: int | None = Field(default=None, ge=7, le=36500)
    """Judged windows of monitors and alerts that are over are deleted from the store by the controller when they are
    older than so many days. Default: never."""
    mlflow_url: str = ""
    """Address at which an MLflow server with `--app-name onnxserve` reaches itself for what its page starts. Default:
    its own port, else the address that the browser uses, if `--allowed-hosts` names it without a *."""

    _workspace: str = PrivateAttr(default_factory=active_workspace)

    @cached_property
    def home_path(self) -> Path:
        """The folder of the MLflow workspace in HOME, which is HOME itself for the default workspace."""
        return Path(self._in_workspace(str(self.root_path)))

    @cached_property
    def root_path(self) -> Path:
        """HOME, by an absolute path."""
        return absolute_path(self.home)

    @property
    def store_url(self) -> str:
        """Raises InvalidConfig if it is the same for all workspaces."""
        if self._workspace and self.store_uri and _OF_WORKSPACE not in self.store_uri:
            raise InvalidConfig(
                f"ONNXSERVE_STORE_URI is the store of one MLflow workspace, and {self._workspace} needs its own: write "
                f"{_OF_WORKSPACE} into it, where their names differ, as in postgresql+psycopg://user@host/{_OF_WORKSPACE}"
            )
        file = str(self.home_path / "onnxserve.db").replace("%", "%25").replace("?", "%3F")
        return self.store_uri.replace(_OF_WORKSPACE, self._workspace or DEFAULT_WORKSPACE) or f"sqlite:///{file}"

    @property
    def inference_log(self) -> str:
        return self._in_workspace(self.log_root)

    @property
    def log_root(self) -> str:
        """A URI, or an absolute path: servers run in other folders than the commands that start them."""
        if ":" in self.log_uri:
            return self.log_uri
        return str(absolute_path(self.log_uri) if self.log_uri else self.root_path / "inference_log")

    @property
    def cache_path(self) -> Path:
        return self.home_path / "cache"

    @property
    def deployments_path(self) -> Path:
        return self.home_path / "deployments"

    def _in_workspace(self, place: str) -> str:
        return f"{place.rstrip('/')}/workspaces/{self._workspace}" if self._workspace else place

    def state_dir(self, endpoint: str) -> Path:
        """Return the state folder of an endpoint's server on this machine. It may not exist."""
        return self.deployments_path / endpoint


def absolute_path(path: Path | str) -> Path:
    """Return a path that a person wrote, with the home folder in place of ~ or ~USER.

    Raises:
        InvalidConfig: there is no such user, this one has no home folder, or the current folder was deleted.
    """
    try:
        return Path(path).expanduser().absolute()
    except FileNotFoundError:
        raise InvalidConfig(f"{path}: the current folder was deleted; run the command in another one") from None
    except RuntimeError:
        home = Path(path).parts[0]
        raise InvalidConfig(f"{path}: no home folder is known for {home}: set HOME, or give the whole path") from None


def load_settings() -> Settings:
    """Return the settings of the environment.

    Raises:
        InvalidConfig: a value does not fit; the message names the variable.
    """
    try:
        variables = {name.removeprefix(_PREFIX): text for name, text in os.environ.items() if name.startswith(_PREFIX)}
        return Settings.model_validate({name.lower(): text for name, text in variables.items()})
    except ValidationError as error:
        first = error.errors()[0]
        variable = _PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise InvalidConfig(f"{variable}: {first['msg']} (got {first['input']!r})") from None


def load_secrets() -> None:
    """Set the environment variables that the files of ONNXSERVE_SECRETS hold; a line break at the end is left out.

    Raises:
        InvalidConfig: the folder or a file cannot be read; the message names it, and no value.
    """
    folder = os.environ.get(f"{_PREFIX}SECRETS")
    try:
        for file in sorted(Path(folder).iterdir()) if folder else ():
            if _VARIABLE.fullmatch(file.name) and file.name not in os.environ:
                os.environ[file.name] = file.read_text().removesuffix("\n")
    except (OSError, ValueError) as error:  # a ValueError: no text, or a null character
        where = (error.filename if isinstance(error, OSError) else None) or file
        why = (error.strerror if isinstance(error, OSError) else None) or "it is no text"
        raise InvalidConfig(f"ONNXSERVE_SECRETS: {where} cannot be read: {why}") from None
