"""The connection to MLflow: the client, timeouts, limits for answers, and the
translation of MLflow's errors.
"""

import errno
import os
import posixpath
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial, wraps
from importlib import import_module
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    NotFound,
    NotInstalled,
    OnnxserveError,
    RegistryRefused,
    RegistryUnavailable,
    error_of_status,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry.answers import (
    bounded_answers,
    limit_databricks_retries,
    limit_retries,
)
from mlflow_deploy_plugin.core.registry.rest import (
    MOST_JSON,
    MlflowRest,
    checked_json,
    http_settings,
    send,
)
from mlflow_deploy_plugin.core.settings import active_workspace, load_settings, local_path
from mlflow_deploy_plugin.core.spec.types import is_loopback

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import FileInfo
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from requests import Response

    from mlflow_deploy_plugin.core.store.audit import Login

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_DEFAULT_TIMEOUT = "120"
_SERVICE_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    _TIMEOUT: "5",
    "MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT": "15",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
CALLER = "/onnxserve/caller"
"""The path at which onnxserve's app in MLflow's server returns the names of the caller
and of the registry.
"""
_CALLER_SECONDS = 3
_JSON = "application/json"
_LOCAL_ARTIFACTS = "mlruns"
_importing = threading.Lock()
_WITHOUT_PANDAS = frozenset({"mlflow", "pyarrow", __name__.partition(".")[0]})
_MLFLOW_AT = re.compile(r", in MLflow at \S+|(?<=MLflow) at \S+")
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s,;'\"]*")
_HTTP_FAILURE = re.compile(
    r"API request to endpoint (\S+) failed with error code (\d{3})\b(?:.{,20}Response body: '(<))?",
)
"""The message of MLflow's client about a web page instead of JSON: the route, the
status, and the page's beginning.
"""
_PROXIED = re.compile(r'Response text: \{"error_code": ?"(\w+)", ?"message": ?"(.*?)"\}')
"""The answer of an MLflow server about a file in an artifact store for which the server
is the proxy.
"""
_ANSWERED = re.compile(r"(?<= for url: )(https?://[^/?#\s]+)\S*")
_FAILED_FILE = re.compile(
    r"The following failures occurred .*?##### File (\S+) ##### (.*?)(?: ##### File .*)?$",
)
_WITHOUT_SCHEME = re.compile(r"([\w.-]+|\[[\da-f:]+\]):\d{2,5}(/.*)?")
_WITHOUT_TLS = re.compile(
    r"HTTPSConnectionPool\(host='(.+?)', port=(\d+)\)"
    r".*(?:WRONG_VERSION_NUMBER|record layer failure)",
)
_UNREACHED = re.compile(
    r"(?:Failed to resolve ('[^']+') \(|a new connection: )\[Errno -?\d+\] ([\w ]+)",
)
_OWN_DISK = re.compile(  # MLflow's client raises these errors when it writes its downloads.
    r"(?:^|##### File \S+ #####)\s*"
    rf"\[Errno (?:{errno.ENOSPC}|{errno.EDQUOT}|{errno.EROFS})\] ([\w -]+)",
)
_LOCAL_PATHS = re.compile(r"(\[Errno \d+\] [\w -]+): '[^']*'(?: -> '[^']*')?")
_STATUS = re.compile(r"\b(\d{3}) Client Error")
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
_REFUSED_BY_KUBERNETES = re.compile(rf"\{{'error': \{{'code': '({'|'.join(_REFUSED)})'")
"""The message of MLflow's client about a refusal of mlflow-kubernetes-plugins."""
_STORE_LIBRARIES = frozenset(
    {"boto3", "botocore", "google", "azure", "b2sdk", "ftplib", "paramiko", "pysftp"},
)
_TELL_ANSWERS = ("ftplib", "paramiko")
"""The libraries whose error messages contain the server's answer."""
_STORE_LACKS = re.compile(
    r"\((?:404|NoSuchBucket|NoSuchKey)\)|\b404 (?:Client|GET|HEAD)\b|BlobNotFound",
)
_STORE_REFUSES = re.compile(
    r"\((?:40[13]|AccessDenied|ExpiredToken|InvalidAccessKeyId|InvalidToken|SignatureDoesNotMatch)\)"
    r"|token has expired|credentials|\b40[13] (?:Client|GET|HEAD|POST|PUT)\b"
    r"|AuthorizationFailure|AuthenticationFailed",
)
_SQL = re.compile(r"\(raised as a result of [^)]*\) | \[SQL: .*")
_AZURE = re.compile(
    r"abfss://[^@/?#\\]+@[a-z0-9.-]+\.dfs\."
    r"(core\.(windows\.net|chinacloudapi\.cn|usgovcloudapi\.net)|fabric\.microsoft\.com|storage\.azure\.net)(?=[/?#]|$)",
    re.IGNORECASE,
)
# The pattern ends at the last @, because a password may contain @.
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]+@")


@dataclass(frozen=True)
class _Service:
    """A managed registry.

    Attributes:
        module: the module of the package that MLflow's client needs.
        login: the credentials, for an error message.
        permissions: the permissions of a reader.
    """

    package: str
    module: str
    login: str
    permissions: str


_AWS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
_SERVICES = {
    "databricks": _Service(
        "databricks-sdk",
        "databricks.sdk",
        "DATABRICKS_HOST and DATABRICKS_TOKEN, or a profile of Databricks,",
        "USE CATALOG, USE SCHEMA and EXECUTE",
    ),
    "arn:.+:mlflow-app/": _Service(
        "sagemaker-mlflow", "sagemaker_mlflow", _AWS, "sagemaker:CallMlflowAppApi"
    ),
    "arn:": _Service(
        "sagemaker-mlflow", "sagemaker_mlflow", _AWS, "the actions sagemaker-mlflow:*"
    ),
}
"""The managed registries by the beginning of their addresses."""
_LOGIN_FAILS = re.compile(
    "security token|request signature|locate credentials|credential configuration failed"
)


def _service_at(address: str) -> _Service | None:
    return next((service for start, service in _SERVICES.items() if re.match(start, address)), None)


@dataclass
class _Process:
    """The kind of this process, which its entry point sets.

    Attributes:
        is_own: True in a process of onnxserve. MLflow and urllib3 stay as they are in
            any other process.
        imports_mlflow: False in the agent, which uses `MlflowRest` for an MLflow
            server.
    """

    is_own: bool = False
    imports_mlflow: bool = True


_process = _Process()


def own_process(imports_mlflow: bool = True) -> None:
    """Declare that this process belongs to onnxserve: the limits of
    `_limit_mlflow_client` apply to MLflow's client.

    The entry points of our processes call this function, which must not be called in a
    process of a user.
    """
    _process.is_own = True
    _process.imports_mlflow = imports_mlflow


def set_service_timeouts() -> None:
    """Set MLflow's timeouts to seconds instead of ten minutes. Environment variables
    that are already set are kept.
    """
    for variable, value in _SERVICE_SETTINGS.items():
        os.environ.setdefault(variable, value)


class _NoRequestTimeout(AbstractContextManager[None]):
    """A context that replaces the timeout of `set_service_timeouts` by MLflow's default
    while at least one thread downloads files. A variable that is removed would fail the
    requests of other threads, which read all variables.

    MLflow's server fetches a complete file from its artifact store before it sends the
    first byte. The timeout applies to the process, so calls of other threads have no
    timeout during a download.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._downloads = 0
        self._timeout: str | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._downloads == 0 and os.environ.get(_TIMEOUT) == _SERVICE_SETTINGS[_TIMEOUT]:
                self._timeout = os.environ[_TIMEOUT]
                os.environ[_TIMEOUT] = _DEFAULT_TIMEOUT
            self._downloads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._downloads -= 1
            if self._downloads == 0 and self._timeout is not None:
                os.environ[_TIMEOUT] = self._timeout
                self._timeout = None


no_request_timeout = _NoRequestTimeout()


def child_environment() -> dict[str, str]:
    """Return a child process's environment: with the same MLflow and default timeouts,
    without run or experiment.
    """
    tracking, registry = mlflow_addresses()
    environment = {
        variable: value
        for variable, value in os.environ.items()
        if _SERVICE_SETTINGS.get(variable) != value
        and not variable.startswith(("MLFLOW_RUN_", "MLFLOW_EXPERIMENT_"))
    }
    return environment | {"MLFLOW_TRACKING_URI": tracking, "MLFLOW_REGISTRY_URI": registry}


@contextmanager
def hidden_pandas() -> Iterator[None]:
    """Make imports of pandas by MLflow, pyarrow and this package fail, to save 0.6 s of
    CPU and 40 MB.

    Other modules can still import pandas: a store plugin of MLflow may need it. Setting
    `sys.modules["pandas"]` to None would not work, because pyarrow would use None as
    the module.
    """
    sys.meta_path.insert(0, _NoPandas)
    try:
        yield
    finally:
        sys.meta_path.remove(_NoPandas)


class _NoPandas:
    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name != "pandas":
            return
        importer: FrameType | None = sys._getframe(1)
        while importer is not None and importer.f_globals["__name__"].startswith("importlib"):
            importer = importer.f_back
        if (
            importer is not None
            and importer.f_globals["__name__"].partition(".")[0] in _WITHOUT_PANDAS
        ):
            raise ModuleNotFoundError("pandas is not imported in this process", name=name)


def import_mlflow_without_pandas() -> None:
    """Import MLflow in a process that only calls the registry. MLflow then runs without
    pandas, like mlflow-skinny.
    """
    if "mlflow" not in sys.modules and "pandas" not in sys.modules:
        with hidden_pandas():
            import mlflow  # noqa: F401


def _import_mlflow() -> None:
    """Import MLflow in one thread at a time: with its circular imports, concurrent
    threads get a _DeadlockError.
    """
    with _importing:
        import mlflow.exceptions  # noqa: F401


def mlflow_addresses() -> tuple[str, str]:
    """Return MLflow's tracking URI and registry URI. MLflow is imported only if the
    environment does not have both.
    """
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    registry = os.environ.get("MLFLOW_REGISTRY_URI", "") or tracking
    if "mlflow" not in sys.modules and _is_web(tracking) and _is_web(registry):
        return tracking, registry
    _import_mlflow()
    import mlflow

    return str(mlflow.get_tracking_uri()), str(mlflow.get_registry_uri())


def is_mlflow_set() -> bool:
    """Return True if MLflow's address is set. Otherwise, MLflow uses a file on this
    machine.
    """
    if rest_client() is not None:
        return True
    import mlflow

    return bool(mlflow.is_tracking_uri_set())


def _is_web(uri: str) -> bool:
    return uri.strip().lower().startswith(("http:", "https:"))


def rest_client() -> MlflowRest | None:
    """Return the client that this process uses instead of MLflow's; None if the process
    or MLflow needs MLflow's.
    """
    if _process.imports_mlflow:
        return None
    limit_retries(waits_after_last=True)
    return MlflowRest.at(*mlflow_addresses())


def registry_client() -> "MlflowClient":
    """Return a client for the configured MLflow. Raises InvalidConfig for an
    unsupported address or a bad setting, and NotInstalled if a managed registry needs
    a package.
    """
    http_settings()  # Report an invalid setting before the first call.
    if (client := rest_client()) is not None:
        return client
    _import_mlflow()
    for address in mlflow_addresses():
        if service := _service_at(address):
            try:
                import_module(service.module)
            except ImportError:
                raise NotInstalled(
                    f"MLflow at {address} needs a package that is not installed: pip install "
                    f"{service.package}",
                ) from None
            if _process.is_own and address.startswith("databricks"):
                limit_databricks_retries()
    import mlflow  # The import takes a second, and a model in a local folder does not need it.
    from mlflow.exceptions import MlflowException

    try:
        harden_mlflow_client()
        if is_unity_catalog():
            # Few registries need this module, which imports MLflow.
            from mlflow_deploy_plugin.core.registry.unity_catalog import UnityCatalogClient

            return UnityCatalogClient()
        return mlflow.MlflowClient()
    except MlflowException as error:
        # MLflow's default is SQLite, which the Docker image `cpu` cannot open.
        if not mlflow.is_tracking_uri_set():
            raise InvalidConfig(
                "MLFLOW_TRACKING_URI is not set: set it to the address of the MLflow server, such "
                "as http://mlflow:5000",
            ) from None
        # MLflow takes 127.0.0.1:5000 for a folder, and localhost:5000 for a scheme.
        address = mlflow_addresses()[0]
        if _WITHOUT_SCHEME.fullmatch(address):
            raise InvalidConfig(
                f"the address of MLflow, {address}, has no scheme: write http://{address}",
            ) from None
        raise InvalidConfig(
            f"MLFLOW_TRACKING_URI or MLFLOW_REGISTRY_URI: {_reason(error)}",
        ) from None


def is_unity_catalog() -> bool:
    """Return True if the registry is Unity Catalog of Databricks."""
    return mlflow_addresses()[1].startswith("databricks-uc")


def harden_mlflow_client() -> None:
    """Limit MLflow's client if this is a process of onnxserve, and not of a user."""
    if _process.is_own:
        limit_retries()
        _limit_mlflow_client()


@cache  # The cache lets the function patch MLflow's modules only once.
def _limit_mlflow_client() -> None:
    """Limit the answers that MLflow's client reads, and the hosts to which it sends
    credentials.

    The client reads at most `MOST_JSON` bytes of JSON; a file download has no limit.
    The client sends MLflow credentials only to MLflow's own addresses, and Azure
    credentials only to Azure. Unpatched, MLflow 3.17 sends credentials also to the
    source of a version and the folder of a run. Authors of models choose these
    addresses.

    A folder is listed completely before its files are downloaded.
    """
    from mlflow.store.artifact import (
        artifact_repo,
        azure_data_lake_artifact_repo,
        http_artifact_repo,
        mlflow_artifacts_repo,
    )
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import MlflowHostCreds

    def credentials(uri: str) -> MlflowHostCreds:
        creds = get_default_host_creds(uri)
        if is_mlflow(uri):
            return creds
        tls = {
            name: getattr(creds, name) for name in ("ignore_tls_verification", "server_cert_path")
        }
        return MlflowHostCreds(uri, **tls)

    data_lake = azure_data_lake_artifact_repo.AzureDataLakeArtifactRepository
    open_lake = data_lake.__init__

    @wraps(open_lake)
    def open_own(
        self: object,
        artifact_uri: str,
        *arguments: object,
        **options: object,
    ) -> None:
        refuse_foreign_azure(artifact_uri)
        open_lake(self, artifact_uri, *arguments, **options)

    def list_files(repository: "ArtifactRepository", folder: str | None) -> list["FileInfo"]:
        files = []
        for entry in repository.list_artifacts(folder):
            if entry.path in (".", folder):  # Some stores list the folder itself.
                continue
            if ".." in posixpath.relpath(entry.path, folder or "").split("/"):
                # MLflow would follow a folder `..` of S3 for ever.
                raise InvalidConfig(
                    f"the folder {folder!r} has the entry {entry.path!r}, which is outside of it; "
                    "remove it"
                )
            files += list_files(repository, entry.path) if entry.is_dir else [entry]
        return files

    send = mlflow_private._get_http_response_with_retries

    @wraps(send)
    def send_bounded(*arguments: object, **options: object) -> object:
        if options.get("stream"):
            return send(*arguments, **options)
        with bounded_answers(MOST_JSON):
            return send(*arguments, **options)

    for module in (http_artifact_repo, mlflow_artifacts_repo):
        module.get_default_host_creds = credentials
    data_lake.__init__ = open_own
    artifact_repo.ArtifactRepository._iter_artifacts_recursive = list_files
    mlflow_private.replace("_get_http_response_with_retries", send_bounded)


def send_headers(read: Callable[[], dict[str, str]]) -> None:
    """Let MLflow's client send more headers, if `read` returns any."""
    mlflow_private._request_header_provider_registry.register(
        partial(SimpleNamespace, in_context=read, request_headers=read)
    )


def app_answer(
    path: str,
    content_type: str,
    method: str,
    query: Mapping[str, object],
    **options: Any,
) -> "Response":
    """Return the answer of onnxserve's app in MLflow's server, with any status. The
    query contains the workspace.

    Raises NotFound if MLflow is not a server with the app. `registry_errors` converts
    the other errors.
    """
    address = mlflow_addresses()[1]
    if _is_web(address):
        if workspace := active_workspace():
            query = {**query, "workspace": workspace}
        options["params"] = query
        if rest_client() is not None:
            answer = send(address, method, path, is_sent_once=True, **options)
        else:
            registry_client()  # Check the settings, and limit the size of answers.
            from mlflow.utils.credentials import get_default_host_creds
            from mlflow.utils.rest_utils import http_request

            options |= {"max_retries": 0, "raise_on_status": False}
            answer = http_request(get_default_host_creds(address), path, method, **options)
        # A server without the app answers with its web page, or refuses the path.
        if answer.status_code not in (200, 404, 405):
            return answer
        has_type = answer.headers.get("Content-Type", "").startswith(content_type)
        if has_type and (answer.ok or "error_code" in answer.text):
            return answer
        answer.close()
    raise NotFound(f"MLflow at {registry_address()} does not run the app of onnxserve")


def app_document(
    what: str,
    path: str,
    method: str,
    query: Mapping[str, object],
    seconds: float,
    document: object = None,
    is_optional: bool = False,
) -> Any:
    """Return the JSON document with which onnxserve's app in MLflow's server answers;
    None without the app.

    Args:
        what: the subject of error messages.
        document: the JSON document to send.
        is_optional: if a proxy refuses the path, return None. The server behind a proxy
            that refuses an unknown path does not have the app, whose own refusals are
            JSON documents with an error code.

    Raises:
        OnnxserveError: the error of the app, with the class of its status.
        RegistryRefused, RegistryUnavailable: another answer, or none.
    """
    with registry_errors(what):
        try:
            answer = app_answer(path, _JSON, method, query, json=document, timeout=seconds)
        except NotFound:
            return None
        is_json = answer.headers.get("Content-Type", "").startswith(_JSON)
        error = answer.json() if is_json and not answer.ok else {}
        if "error_code" not in error:
            if is_optional and 400 <= answer.status_code < 500:
                return None
            return checked_json(answer, path)
    raise error_of_status(answer.status_code)(error["message"])


def find_login() -> "Login":
    """Return the login of this user at MLflow's server.

    A server that fails has no effect, because a command must not depend on the names in
    its audit event.
    """
    from mlflow_deploy_plugin.core.store.audit import Login  # Some images lack SQLAlchemy.

    variables = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    is_web = any(_is_web(os.environ.get(variable, "")) for variable in variables)
    if "mlflow" not in sys.modules and not is_web:
        return Login()  # The import of MLflow takes a second.
    with suppress(OnnxserveError):
        document = app_document("the name of the caller", CALLER, "GET", {}, _CALLER_SECONDS)
        if isinstance(document, dict):
            return Login(str(document.get("user", "")), str(document.get("registry", "")))
    return Login()


def check_address(address: str, is_of_server: bool) -> None:
    """Raise InvalidConfig if the files at an address must not be read with the
    permissions or credentials of this user.

    Args:
        address: the address of an artifact store.
        is_of_server: True if MLflow's server, and not the user, has chosen the address.
    """
    if is_of_server:
        refuse_folder(address)
    refuse_foreign_azure(address)
    settings = http_settings()
    has_credentials = (
        settings.authorization or settings.tracking_auth or settings.tracking_aws_sigv4
    )
    if _process.is_own or not has_credentials or not _is_web(address) or is_mlflow(address):
        return
    host = urlsplit(address).netloc.rpartition("@")[2]
    raise InvalidConfig(
        f"the files are at {host}, which is not the address of MLflow, and MLflow's client would "
        "send the credentials of MLflow to it; only a command of onnxserve can read them",
    )


def refuse_foreign_azure(address: str) -> None:
    """Raise InvalidConfig if an address of the scheme abfss is not at Azure, whose
    credentials MLflow would send.
    """
    if urlsplit(address).scheme == "abfss" and not _AZURE.match(address):
        host = urlsplit(address).netloc.rpartition("@")[2]
        raise InvalidConfig(
            f"{host} is not Azure storage (abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/…)",
        )


def refuse_folder(location: str) -> None:
    """Raise InvalidConfig if MLflow is a server and names a folder of this machine, or
    a folder that is mounted here.

    The server, or a user who may change it, could otherwise make this process copy and
    serve any file of its user. A server on this machine may name a folder below
    `mlruns`, where MLflow stores artifacts without a server, and each server may name a
    folder below ONNXSERVE_ARTIFACT_FOLDERS.
    """
    servers = [urlsplit(uri) for uri in mlflow_addresses() if _is_web(uri) or _service_at(uri)]
    try:
        folders = []
        if servers:
            path = local_path(location)
            if path is not None:
                # MLflow's client also decodes %2e in a plain path.
                folders = [path.resolve(), Path(unquote(str(path))).resolve()]
    except ValueError as error:
        redacted = redact_credentials(location)
        raise InvalidConfig(
            f"MLflow at {registry_address()} names the invalid address {redacted!r}: {error}",
        ) from None
    allowed = load_settings().artifact_paths
    is_local = all(is_loopback(server.hostname or "") for server in servers)

    def is_allowed(folder: Path) -> bool:
        if is_local and _LOCAL_ARTIFACTS in folder.parts:
            return True
        return not allowed.isdisjoint((folder, *folder.parents))

    if all(map(is_allowed, folders)):
        return
    raise InvalidConfig(
        f"MLflow at {registry_address()} names the folder {redact_credentials(location)} of this "
        "machine, and a folder that a server names is not read: specify the folder as the model, "
        "set MLFLOW_TRACKING_URI to the database of MLflow, log the model again in an experiment "
        "whose artifacts the server serves (`mlflow server --artifacts-destination FOLDER`, "
        "without --no-serve-artifacts), or set ONNXSERVE_ARTIFACT_FOLDERS to the server's "
        "artifact folder",
    )


def is_mlflow(uri: str) -> bool:
    """Return True if a web address has the scheme, host and port of one of MLflow's own
    addresses.
    """
    # Use the parser of requests, because another parser may extract another host.
    from urllib3.util import parse_url

    def origin(address: str) -> tuple[str | None, str | None, int | None]:
        """Return the scheme, the host and the port of an address."""
        parsed = parse_url(address)
        return (
            parsed.scheme,
            parsed.host,
            parsed.port or {"http": 80, "https": 443}.get(parsed.scheme or ""),
        )

    with suppress(ValueError):  # requests also refuses such an address.
        return origin(uri) in map(origin, filter(_is_web, mlflow_addresses()))
    return False


def registry_address() -> str:
    """Return the registry's URI without user and password."""
    return redact_credentials(mlflow_addresses()[1])


def redact_credentials(text: str) -> str:
    return _CREDENTIALS.sub("", text)


def redact_addresses(text: str) -> str:
    """Remove the addresses of MLflow and of its files from a text that any client of
    the server can read.
    """
    return _ADDRESS.sub("…", _MLFLOW_AT.sub("", text))


def ignore_warnings() -> None:
    """Ignore the warnings that MLflow's client issues at every call: stages, and
    MLFLOW_TRACKING_INSECURE_TLS.
    """
    warnings.simplefilter("ignore", FutureWarning)
    # The import of urllib3's InsecureRequestWarning would delay each start.
    warnings.filterwarnings("ignore", "Unverified HTTPS request")


@contextmanager
def registry_errors(what: str) -> Iterator[None]:
    """Convert errors of MLflow and of its store to NotFound, RegistryUnavailable or
    RegistryRefused about `what`.
    """
    try:
        with warnings.catch_warnings():
            ignore_warnings()
            yield
    except Exception as error:
        if not (
            isinstance(error, OSError)
            or _is_mlflow_error(error, "MlflowException")
            or _is_of_store(error)
        ):
            raise
        raise store_failure(what, "", error) from None


def _is_mlflow_error(error: Exception, name: str) -> bool:
    """Return True if this is an exception of MLflow's class `name`. This check does not
    import MLflow.
    """
    exceptions = sys.modules.get("mlflow.exceptions")
    return exceptions is not None and isinstance(error, getattr(exceptions, name, ()))


def _is_of_store(error: Exception) -> bool:
    """Return True if an artifact store, and not MLflow's server, has caused the
    error.
    """
    if type(error).__module__.partition(".")[0] in _STORE_LIBRARIES:
        return True
    is_of_server = isinstance(error, OSError) or _is_mlflow_error(error, "RestException")
    is_answer = is_of_server or _HTTP_FAILURE.match(str(error))
    return getattr(error, "error_code", "") in _REFUSED and not is_answer


def _registry_failure(what: str, error: Exception) -> NotFound | RegistryUnavailable:
    """Return the error about `what` for an error of MLflow's server or of the
    connection to it.
    """
    code = getattr(error, "error_code", "")
    if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        reason = _reason(error).removeprefix(f"{code}: ")
        return NotFound(f"{what} does not exist: {reason}")
    failure = _HTTP_FAILURE.match(str(error))
    status = _STATUS.search(str(error)) or _REFUSED_BY_KUBERNETES.search(str(error))
    if failure:
        code = failure[2]
    elif status:
        code = status[1]
    address = registry_address()
    where = f"MLflow at {address}"
    if address.startswith("http"):
        # MLflow's client uses these functions too.
        from requests.utils import get_environ_proxies, select_proxy

        if proxy := select_proxy(address, get_environ_proxies(address)):
            host = proxy.rpartition("@")[2]  # Omit the user and the password before the @.
            where += f" (through the proxy {host}; NO_PROXY lists the hosts that bypass it)"
    service = _service_at(address)
    if service and _LOGIN_FAILS.search(str(error)):
        code = "401"
    elif (
        service
        and _is_mlflow_error(error, "RestException")
        and "error_code" not in getattr(error, "json", {})
    ):
        # AWS refused the request before it reached MLflow, whose errors have a code.
        code = "403"
    if code in ("401", "UNAUTHENTICATED"):
        names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN,"
        reason = ""
        if service:
            names = service.login
            reason = f" ({_reason(error)})"
        return RegistryRefused(
            f"{what}: {where} refuses the credentials: {names} are missing, wrong or expired"
            f"{reason}",
        )
    if code in ("403", "PERMISSION_DENIED") and not (failure and failure[3]):
        reason = "the account does not have permission, or the object does not exist"
        if service:
            reason += f"; it needs {service.permissions} ({_reason(error)})"
        return RegistryRefused(f"{what}: {where} refuses the request: {reason}")
    reason = _reason(error)
    if address.startswith("databricks"):
        reason += "; check DATABRICKS_HOST and the network"
    return RegistryUnavailable(f"{what}: {where} does not answer correctly: {reason}")


def store_failure(what: str, store: str, error: Exception) -> NotFound | RegistryUnavailable:
    """Return the error with a one-line message without credentials. An empty `store`
    means MLflow's server.
    """
    text = _LOCAL_PATHS.sub(r"\1", redact_credentials(one_line(error)))
    code = getattr(error, "error_code", "")
    if full := _OWN_DISK.search(text):
        return RegistryUnavailable(
            f"{what}: the disk of this machine cannot be written: {full[1].strip()}",
        )
    account = "the credentials"
    # Name the host that answered, because a run's files may be on any host.
    if answered := _ANSWERED.search(text):
        store = "" if is_mlflow(answered[0]) else answered[1]
    elif not store and _is_of_store(error):
        store = "the artifact store"
    if not store:
        if (answer := _PROXIED.search(text)) is None:
            return _registry_failure(what, error)
        store = f"the artifact store of MLflow at {registry_address()}"
        account = "the credentials of MLflow's server"
        code = answer[1]
        text = answer[2]
    elif answered:
        # The model's author, who may choose the server, must not see its answer in a
        # tag.
        text = text.partition(" Response text: ")[0]
        account += (
            " (MLflow's are only for MLflow's own addresses; ~/.netrc may have credentials for "
            "this host)"
        )
    elif type(error).__module__.startswith(_TELL_ANSWERS):  # The text may be any server's greeting.
        text = f"{type(error).__name__} {text[:3] * text[:3].isdigit()}".strip()
    elif store.startswith("s3:") or "boto" in type(error).__module__:
        account += " (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role)"
    if code == "RESOURCE_DOES_NOT_EXIST" or _STORE_LACKS.search(text):
        return NotFound(f"{what}: not found in {store}: {_reason(text)}")
    if code in _REFUSED or _STORE_REFUSES.search(text):
        return RegistryRefused(f"{what}: {store} refuses {account}: {_reason(text)}")
    return RegistryUnavailable(f"{what}: {store} does not answer correctly: {_reason(text)}")


def _reason(error: object) -> str:
    """Return the text of an error on one line, without credentials; for an error of the
    connection or a web page, a description instead.
    """
    text = _SQL.sub("", redact_credentials(one_line(error)))
    if failed := _FAILED_FILE.match(text):
        text = f"{failed[1]}: {failed[2]}"
    of_connection = ("Max retries exceeded", "Connection refused", "HTTPConnectionPool(")
    if any(words in text for words in of_connection):
        if "Connection refused" in text:
            return "connection refused"
        if match := _WITHOUT_TLS.search(text):
            return f"it answers without TLS: write http://{match[1]}:{match[2]}"
        if match := re.search(r"too many (\d+) error responses(?:, Retry-After (\d+))?", text):
            pause = f" and asks for a pause of {match[2]} s" if match[2] else ""
            return f"it returns the status {match[1]}{pause}"
        if match := re.search(r"certificate verify failed: ([^(]+?) \(", text):
            if "expired" in match[1] or "not yet valid" in match[1]:
                return f"{match[1]} according to the clock of this machine"
            return (
                f"{match[1]} (set MLFLOW_TRACKING_SERVER_CERT_PATH to the certificate file of the "
                "trusted authority)"
            )
        if "timed out" in text:
            seconds = os.environ.get(_TIMEOUT, "the default")
            return f"no answer in time ({_TIMEOUT}, in seconds: {seconds})"
        if match := _UNREACHED.search(text):
            name = f"the name {match[1]} does not resolve: " if match[1] else ""
            return f"{name}{match[2].lower()}"
        return f"…{text[-200:]}"
    if failure := _HTTP_FAILURE.match(text):
        if failure[2] == "404":
            return (
                f"it has no {failure[1]}: the address is wrong, or its MLflow is older than "
                "version 3"
            )
        if failure[3]:
            return (
                f"it returned a web page with the status {failure[2]} instead of JSON, probably "
                "from a proxy"
            )
    return text if len(text) <= 300 else text[:297] + "…"
