"""The connection to MLflow: its client, its timeouts, its errors as ours, and a bound for the answers of any server."""

import errno
import os
import re
import socket
import sys
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache, wraps
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, RegistryRefused, RegistryUnavailable
from mlflow_deploy_plugin.messages import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_SERVICE_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    _TIMEOUT: "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_ANSWER_BYTES, _ANSWER_SECONDS = 1_000_000, 10.0
_answer_bound: ContextVar[tuple[int, float] | None] = ContextVar("answer_bound", default=None)
_MOST_JSON = 32_000_000
"""The size of an answer of MLflow. A search returns up to 10,000 versions of 1.2 kB each."""
_WITHOUT_PANDAS = frozenset({"mlflow", "pyarrow", __name__.partition(".")[0]})
_MLFLOW_AT = re.compile(r", in MLflow at \S+|(?<=MLflow) at \S+")
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s,;'\"]*")
_HTTP_FAILURE = re.compile(
    r"API request to endpoint (\S+) failed with error code (\d{3})\b(?:.{,20}Response body: '(<))?"
)
"""The route, the status, and the beginning of a web page, as of a proxy."""
_PROXIED = re.compile(r'Response text: \{"error_code": ?"(\w+)", ?"message": ?"(.*?)"\}')
"""The answer of an MLflow server about a file in an artifact store of its own."""
_ANSWERED = re.compile(r"(?<= for url: )(https?://[^/?#\s]+)\S*")
_FAILED_FILE = re.compile(r"The following failures occurred .*?##### File (\S+) ##### (.*?)(?: ##### File .*)?$")
_UNREACHED = re.compile(r"(?:Failed to resolve ('[^']+') \(|a new connection: )\[Errno -?\d+\] ([\w ]+)")  # urllib3's
_OWN_DISK = re.compile(  # MLflow's client raises these errors where it writes its downloads
    rf"(?:^|##### File \S+ #####)\s*\[Errno (?:{errno.ENOSPC}|{errno.EDQUOT}|{errno.EROFS})\] ([\w -]+)"
)
_STATUS = re.compile(r"\b(\d{3}) Client Error")
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
_STORE_LIBRARIES = frozenset({"boto3", "botocore", "google", "azure", "b2sdk", "ftplib", "paramiko", "pysftp"})
_TELL_ANSWERS = ("ftplib", "paramiko")
"""The libraries whose errors are in the server's own words."""
_STORE_LACKS = re.compile(r"\((?:404|NoSuchBucket|NoSuchKey)\)|\b404 (?:Client|GET|HEAD)\b|BlobNotFound")
_STORE_REFUSES = re.compile(
    r"\((?:40[13]|AccessDenied|ExpiredToken|InvalidAccessKeyId|InvalidToken|SignatureDoesNotMatch)\)|token has expired|"
    r"credentials|\b40[13] (?:Client|GET|HEAD|POST|PUT)\b|AuthorizationFailure|AuthenticationFailed"
)
_SQL = re.compile(r"\(raised as a result of [^)]*\) | \[SQL: .*")
_AZURE = re.compile(
    r"abfss://[^@/?#\\]+@[a-z0-9.-]+\.dfs\."
    r"(core\.(windows\.net|chinacloudapi\.cn|usgovcloudapi\.net)|fabric\.microsoft\.com|storage\.azure\.net)(?=[/?#]|$)",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]+@")  # up to the last @: a password may hold others


def set_service_timeouts() -> None:
    """Make MLflow give up on a silent server after seconds, not ten minutes. Variables that are set already stay."""
    for variable, value in _SERVICE_SETTINGS.items():
        os.environ.setdefault(variable, value)


class _NoRequestTimeout(AbstractContextManager[None]):
    """Removes the timeout of `set_service_timeouts` while at least one thread downloads files.

    MLflow's server fetches a whole file from its artifact store before it sends the first byte. The timeout belongs to
    the process, so other calls have none meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._downloads = 0
        self._timeout: str | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._downloads == 0 and os.environ.get(_TIMEOUT) == _SERVICE_SETTINGS[_TIMEOUT]:
                self._timeout = os.environ.pop(_TIMEOUT)
            self._downloads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._downloads -= 1
            if self._downloads == 0 and self._timeout is not None:
                os.environ[_TIMEOUT], self._timeout = self._timeout, None


no_request_timeout = _NoRequestTimeout()


@contextmanager
def bounded_answers(most_bytes: int = _ANSWER_BYTES, seconds: float = _ANSWER_SECONDS) -> Iterator[None]:
    """Bound each answer that this context reads in the block. A longer answer closes its connection.

    A read timeout bounds only the pause between two packets, so a server could send a byte per second without end.
    `most_bytes` limits the unpacked body, and `seconds` the time from the end of the request to the last byte; a longer
    read timeout of the caller replaces `seconds`. The library that reads raises its own error.
    """
    _extend_urllib3()
    token = _answer_bound.set((most_bytes, seconds))
    try:
        yield
    finally:
        _answer_bound.reset(token)


class _Deadline:
    """Ends the reading of another thread from a socket after some seconds."""

    def __init__(self, reading: socket.socket, seconds: float) -> None:
        self._seconds, self._is_over = seconds, threading.Event()
        # A method of this object would make a cycle, which waits for a garbage collection with the socket.
        self._timer = threading.Timer(seconds, _end_reading, (reading, self._is_over))
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        self._timer.cancel()

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise ProtocolError if the deadline passes within the block, instead of the interrupted read's error."""
        from urllib3.exceptions import ProtocolError  # imported late, as below

        try:
            yield
        except Exception:
            if not self._is_over.is_set():
                raise
        if self._is_over.is_set():
            raise ProtocolError(f"the answer is not complete after {self._seconds:g} s")


def _end_reading(reading: socket.socket, is_over: threading.Event) -> None:
    is_over.set()
    with suppress(OSError):  # it is closed already
        socket.socket.shutdown(reading, socket.SHUT_RDWR)  # SSLSocket.shutdown would not interrupt a read.


@cache
def _extend_urllib3() -> None:
    """Have urllib3 keep to the bound of `bounded_answers`. requests, MLflow's client and Apprise read by it."""
    from urllib3.connection import HTTPConnection  # imported late: it takes 27 ms, and each command starts here
    from urllib3.exceptions import ProtocolError
    from urllib3.response import HTTPResponse

    class BoundedResponse(HTTPResponse):
        deadline: _Deadline
        most_bytes: int

        def stream(self, amt: int | None = 2**16, decode_content: bool | None = None) -> Generator[bytes, None, None]:
            size = 0
            try:
                with self.deadline.enforced():
                    for piece in super().stream(amt, decode_content):
                        size += len(piece)
                        if size > self.most_bytes:
                            self.close()  # Otherwise requests would read the rest of a redirection.
                            raise ProtocolError(f"the answer is larger than {self.most_bytes:,} bytes")
                        yield piece
            finally:
                self.deadline.cancel()

        def drain_conn(self) -> None:
            self.close()  # urllib3 would read an answer to its end before it tries again.

        def close(self) -> None:
            self.deadline.cancel()
            super().close()

    read_head = HTTPConnection.getresponse

    def getresponse(connection: HTTPConnection) -> HTTPResponse:
        if (bound := _answer_bound.get()) is None:
            return read_head(connection)
        patience = connection.timeout if isinstance(connection.timeout, int | float) else 0.0
        deadline = _Deadline(connection.sock, max(bound[1], patience))
        try:
            with deadline.enforced():
                response = read_head(connection)
        except Exception:
            deadline.cancel()
            raise
        response.__class__ = BoundedResponse
        bounded: Any = response
        bounded.deadline, bounded.most_bytes = deadline, bound[0]
        return response

    HTTPConnection.getresponse = getresponse  # type: ignore[method-assign, assignment]


def child_environment() -> dict[str, str]:
    """Return the environment for a child process with the same MLflow, its own timeouts, and no run or experiment."""
    import mlflow

    environment = {
        variable: value
        for variable, value in os.environ.items()
        if _SERVICE_SETTINGS.get(variable) != value and not variable.startswith(("MLFLOW_RUN_", "MLFLOW_EXPERIMENT_"))
    }
    return environment | {
        "MLFLOW_TRACKING_URI": str(mlflow.get_tracking_uri()),
        "MLFLOW_REGISTRY_URI": str(mlflow.get_registry_uri()),
    }


@contextmanager
def hidden_pandas() -> Iterator[None]:
    """Make imports of pandas by MLflow, pyarrow and this package fail, to save 0.6 s of CPU and 40 MB.

    Other modules can import it: a store of MLflow's plugins may need it. None in `sys.modules` would not work, because
    pyarrow takes it for the module.
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
        if importer is not None and importer.f_globals["__name__"].partition(".")[0] in _WITHOUT_PANDAS:
            raise ModuleNotFoundError("pandas is not imported in this process", name=name)


def import_mlflow_without_pandas() -> None:
    """Import MLflow in a process that only calls the registry. MLflow then runs without pandas, like mlflow-skinny."""
    if "mlflow" not in sys.modules and "pandas" not in sys.modules:
        with hidden_pandas():
            import mlflow  # noqa: F401


def registry_client() -> "MlflowClient":
    """Return a client for the environment's MLflow. Raises InvalidConfig for an unsupported address or bad setting."""
    import mlflow  # imported late: it takes a second, and a model on this disk does without
    from mlflow import environment_variables as known
    from mlflow.exceptions import MlflowException

    try:
        for variable in _SERVICE_SETTINGS:
            getattr(known, variable).get()  # The first call would raise the same error
        if known.MLFLOW_TRACKING_INSECURE_TLS.get() and known.MLFLOW_TRACKING_SERVER_CERT_PATH.get():
            raise InvalidConfig("MLFLOW_TRACKING_INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH: set one of them")
        harden_mlflow_client()
        return mlflow.MlflowClient()
    except ValueError as error:
        raise InvalidConfig(str(error)) from None
    except MlflowException as error:
        if not mlflow.is_tracking_uri_set():  # MLflow's default is SQLite, which the image `cpu` cannot open
            raise InvalidConfig(
                "MLFLOW_TRACKING_URI is not set: the address of the MLflow server is expected, as http://mlflow:5000"
            ) from None
        raise InvalidConfig(f"MLFLOW_TRACKING_URI, or MLFLOW_REGISTRY_URI: {_reason(error)}") from None


@cache  # MLflow's modules are changed once
def harden_mlflow_client() -> None:
    """Bound the answers that MLflow's client reads, and the hosts to which it sends its account.

    It reads at most `_MOST_JSON` bytes of JSON; a download of files has no bound. It sends its account only to its own
    addresses, and an Azure account only to Azure. MLflow 3.17 sends it to the source of a version or the folder of a
    run, which authors of models choose.
    """
    from mlflow.store.artifact import azure_data_lake_artifact_repo, http_artifact_repo, mlflow_artifacts_repo
    from mlflow.utils import rest_utils
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import MlflowHostCreds

    def credentials(uri: str) -> MlflowHostCreds:
        known = get_default_host_creds(uri)
        if is_mlflow(uri):
            return known
        tls = {name: getattr(known, name) for name in ("ignore_tls_verification", "server_cert_path")}
        return MlflowHostCreds(uri, **tls)

    for module in (http_artifact_repo, mlflow_artifacts_repo):
        module.get_default_host_creds = credentials
    data_lake = azure_data_lake_artifact_repo.AzureDataLakeArtifactRepository
    open_lake = data_lake.__init__

    @wraps(open_lake)
    def open_own(self: object, artifact_uri: str, *arguments: object, **options: object) -> None:
        if not _AZURE.match(artifact_uri):
            host = urlsplit(artifact_uri).netloc.rpartition("@")[2]
            raise InvalidConfig(f"{host} is no storage of Azure: abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/… is")
        open_lake(self, artifact_uri, *arguments, **options)

    data_lake.__init__ = open_own
    send = rest_utils._get_http_response_with_retries

    @wraps(send)
    def send_bounded(*arguments: object, **options: object) -> object:
        with nullcontext() if options.get("stream") else bounded_answers(_MOST_JSON):
            return send(*arguments, **options)

    rest_utils._get_http_response_with_retries = send_bounded


def is_mlflow(uri: str) -> bool:
    """Return True if a web address has the scheme, host and port of one of MLflow's own addresses."""
    import mlflow
    from mlflow.utils.uri import is_http_uri
    from urllib3.util import parse_url  # requests uses this parser; another parser may find another host

    def origin(address: str) -> tuple[str | None, str | None, int | None]:
        parsed = parse_url(address)
        return parsed.scheme, parsed.host, parsed.port or {"http": 80, "https": 443}.get(parsed.scheme or "")

    own = filter(is_http_uri, (mlflow.get_tracking_uri(), mlflow.get_registry_uri()))
    with suppress(ValueError):  # requests also refuses it
        return origin(uri) in map(origin, own)
    return False


def registry_address() -> str:
    """Return the registry's URI without user and password."""
    import mlflow

    return redact_credentials(str(mlflow.get_registry_uri()))


def redact_credentials(text: str) -> str:
    return _CREDENTIALS.sub("", text)


def redact_addresses(text: str) -> str:
    """Remove the addresses of MLflow and of its files from a text that any client of the server may read."""
    return _ADDRESS.sub("…", _MLFLOW_AT.sub("", text))


def ignore_warnings() -> None:
    """Ignore the warnings of MLflow's client at every call: stages, and MLFLOW_TRACKING_INSECURE_TLS."""
    from urllib3.exceptions import InsecureRequestWarning

    for category in (FutureWarning, InsecureRequestWarning):
        warnings.simplefilter("ignore", category)


@contextmanager
def registry_errors(what: str) -> Iterator[None]:
    """Turn errors of MLflow and its artifact store into NotFound, RegistryUnavailable or RegistryRefused on `what`."""
    from mlflow.exceptions import MlflowException

    try:
        with warnings.catch_warnings():
            ignore_warnings()
            yield
    except Exception as error:
        if not isinstance(error, MlflowException | OSError) and not _is_of_store(error):
            raise
        raise store_failure(what, "", error) from None


def _is_of_store(error: Exception) -> bool:
    """Return True for an error that MLflow's client found at an artifact store, without a word of MLflow's server."""
    from mlflow.exceptions import RestException

    if type(error).__module__.partition(".")[0] in _STORE_LIBRARIES:
        return True
    is_answer = isinstance(error, RestException | OSError) or _HTTP_FAILURE.match(str(error))
    return getattr(error, "error_code", "") in _REFUSED and not is_answer


def _registry_failure(what: str, error: Exception) -> NotFound | RegistryUnavailable:
    from requests.utils import get_environ_proxies, select_proxy  # MLflow's client uses it

    code = getattr(error, "error_code", "")
    if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return NotFound(f"{what} does not exist: {_reason(error).removeprefix(f'{code}: ')}")
    failure, status = _HTTP_FAILURE.match(str(error)), _STATUS.search(str(error))
    code = failure[2] if failure else status[1] if status else code
    address = registry_address()
    where = f"MLflow at {address}"
    if address.startswith("http") and (proxy := select_proxy(address, get_environ_proxies(address))):
        host = proxy.rpartition("@")[2]  # without its user and password
        where += f" (asked through the proxy {host}; NO_PROXY names the hosts that need none)"
    if code in ("401", "UNAUTHENTICATED"):
        names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN,"
        return RegistryRefused(f"{what}: {where} refuses the account: {names} are missing or wrong")
    if code in ("403", "PERMISSION_DENIED") and not (failure and failure[3]):
        reason = "the account has no permission for it there, or it does not exist"
        return RegistryRefused(f"{what}: {where} refuses this: {reason}")
    return RegistryUnavailable(f"{what}: {where} does not answer as it should: {_reason(error)}")


def store_failure(what: str, store: str, error: Exception) -> NotFound | RegistryUnavailable:
    """Return an error of an artifact store (empty: MLflow's server) as ours, in one line without credentials."""
    text, code = redact_credentials(one_line(error)), getattr(error, "error_code", "")
    if full := _OWN_DISK.search(text):
        return RegistryUnavailable(f"{what}: the disk of this machine takes no more: {full[1].strip()}")
    account = "the account"
    if answered := _ANSWERED.search(text):  # The answering server is named, because a run's files may be anywhere
        store = "" if is_mlflow(answered[0]) else answered[1]
    elif not store and _is_of_store(error):
        store = "the artifact store"
    if not store:
        if (answer := _PROXIED.search(text)) is None:
            return _registry_failure(what, error)
        store, account = f"the artifact store of MLflow at {registry_address()}", "the account of MLflow's server"
        code, text = answer[1], answer[2]
    elif answered:  # Otherwise the version's tag would show the author the answer of any server
        text = text.partition(" Response text: ")[0]
        account += " (MLflow's is for MLflow's own addresses; ~/.netrc may have one for this host)"
    elif type(error).__module__.startswith(_TELL_ANSWERS):  # also the greeting of a database
        text = f"{type(error).__name__} {text[:3] * text[:3].isdigit()}".strip()
    elif store.startswith("s3:") or "boto" in type(error).__module__:
        account += " (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role)"
    if code == "RESOURCE_DOES_NOT_EXIST" or _STORE_LACKS.search(text):
        return NotFound(f"{what}: not found in {store}: {_reason(text)}")
    if code in _REFUSED or _STORE_REFUSES.search(text):
        return RegistryRefused(f"{what}: {store} refuses {account}: {_reason(text)}")
    return RegistryUnavailable(f"{what}: {store} does not answer as it should: {_reason(text)}")


def _reason(error: object) -> str:
    text = _SQL.sub("", redact_credentials(one_line(error)))
    if failed := _FAILED_FILE.match(text):
        text = f"{failed[1]}: {failed[2]}"
    if "Max retries exceeded" in text or "Connection refused" in text or "HTTPConnectionPool(" in text:
        if "Connection refused" in text:
            return "connection refused"
        if found := re.search(r"too many (\d+) error responses", text):
            return f"its answers have the status {found[1]}"
        if found := re.search(r"certificate verify failed: ([^(]+?) \(", text):
            if "expired" in found[1] or "not yet valid" in found[1]:
                return f"{found[1]} by the clock of this machine"
            return f"{found[1]} (MLFLOW_TRACKING_SERVER_CERT_PATH names the file of the authority to trust)"
        if "timed out" in text:
            return f"no answer in time ({_TIMEOUT}, in seconds: {os.environ.get(_TIMEOUT, 'the default')})"
        if found := _UNREACHED.search(text):
            name = f"the name {found[1]} does not resolve: " if found[1] else ""
            return f"{name}{found[2].lower()}"
        return f"…{text[-200:]}"
    if failure := _HTTP_FAILURE.match(text):
        if failure[2] == "404":
            return f"it has no {failure[1]}: another address is meant, or it is an MLflow before 3"
        if failure[3]:
            return (
                f"its answer is a web page with the status {failure[2]}, as of a proxy before it: MLflow answers JSON"
            )
    return text if len(text) <= 300 else text[:297] + "…"
