"""A small client of MLflow's REST API for the agent, because MLflow's client takes 40
MB and a second to import.

The client reads versions, runs and files from an MLflow server, and sets tags. It has
the same names, settings and errors as MLflow's client. `MlflowRest.at` returns None for
a registry that only MLflow's client can use.
"""

import base64
import configparser
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.answers import bounded_answers
from mlflow_deploy_plugin.core.settings import active_workspace, read_environment

if TYPE_CHECKING:
    from requests import Response, Session

_API = "/api/2.0/mlflow"
_FILES = "/api/2.0/mlflow-artifacts/artifacts"
_SERVER_INFO = ("/api/3.0/mlflow/server-info", "/api/3.0/mlflow/server-features")
"""The routes that show whether a server has workspaces. An older server has only the
second one.
"""
_CREDENTIALS = Path("~/.mlflow/credentials")
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_CHUNK_BYTES = 1024 * 1024
_FILE_THREADS = 8
MOST_JSON = 32_000_000
"""The maximum size of an answer from MLflow in bytes. A search returns up to 10,000
versions of 1.2 kB each.
"""
_IS_NO_PROMPT = "tag.`mlflow.prompt.is_prompt` != 'true'"

_ModelT = TypeVar("_ModelT", bound=BaseModel)


def _boolean(text: str) -> str:
    """Refuse the values, such as `yes`, that pydantic accepts and MLflow's client does
    not.
    """
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError("true, false, 1 or 0 is expected")
    return text


_Boolean = Annotated[bool, BeforeValidator(_boolean)]


def _header_text(text: str) -> str:
    """Refuse the characters that a header cannot contain, because the error of requests
    would contain the token.
    """
    if not (text.isascii() and text.isprintable()):
        raise ValueError(
            "only printable ASCII characters are expected, without a line break at the end"
        )
    return text


class HttpSettings(BaseModel):
    """The variables MLFLOW_… of MLflow's HTTP client, with MLflow's defaults and
    bounds.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    http_request_max_retries: int = Field(default=7, ge=0, le=10)
    http_request_backoff_factor: int = Field(default=2, ge=0, le=120)
    http_request_backoff_jitter: float = 1.0
    http_request_timeout: int = 120
    http_respect_retry_after_header: _Boolean = True
    allow_http_redirects: _Boolean = True
    enable_artifacts_progress_bar: _Boolean = True
    enable_proxy_multipart_download: _Boolean = False
    tracking_username: str = ""
    tracking_password: str = Field(default="", repr=False)
    tracking_token: Annotated[str, AfterValidator(_header_text)] = Field(default="", repr=False)
    tracking_auth: str = ""
    tracking_aws_sigv4: _Boolean = False
    tracking_insecure_tls: _Boolean = False
    tracking_client_cert_path: str = ""
    tracking_server_cert_path: str = ""

    @property
    def authorization(self) -> dict[str, str]:
        """Return the header with the credentials of the environment or of MLflow's
        file; empty without credentials.
        """
        username = self.tracking_username
        password = self.tracking_password
        file = configparser.ConfigParser(interpolation=None)
        if (
            not (username and password)
            and file.read(_CREDENTIALS.expanduser())
            and file.has_section("mlflow")
        ):
            username = username or file["mlflow"].get("mlflow_tracking_username", "")
            password = password or file["mlflow"].get("mlflow_tracking_password", "")
        if username and password:
            encoded = base64.standard_b64encode(f"{username}:{password}".encode()).decode()
            return {"Authorization": f"Basic {encoded}"}
        if self.tracking_token:
            return {"Authorization": f"Bearer {self.tracking_token}"}
        return {}


def http_settings() -> HttpSettings:
    """Return the settings of the environment. Raises InvalidConfig if a value is not
    valid, with the variable.
    """
    settings = read_environment(HttpSettings, "MLFLOW_")
    if settings.tracking_insecure_tls and settings.tracking_server_cert_path:
        raise InvalidConfig(
            "MLFLOW_TRACKING_INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH: set only one"
        )
    return settings


class RestError(OSError):
    """An answer of MLflow's server that is an error. The text is the text of MLflow's
    client.
    """

    def __init__(self, message: str, error_code: str = "") -> None:
        super().__init__(message)
        self.error_code = error_code


def checked_json(answer: "Response", path: str) -> Any:
    """Return the document of an answer to a request for `path`. Raises RestError for an
    error or another content.
    """
    try:
        document = answer.json()
    except ValueError:
        document = None
    if answer.status_code != 200:
        if isinstance(document, dict) and "error_code" in document:
            code = str(document["error_code"])
            raise RestError(f"{code}: {document.get('message', '')}", code)
        body = f"Response body: '{answer.text}'"
        raise RestError(
            f"API request to endpoint {path} failed with error code {answer.status_code} != 200. "
            f"{body}"
        )
    if document is None:
        raise _invalid(answer.text)
    return document


def _invalid(answer: object) -> RestError:
    message = (
        "API request to endpoint was successful but the response body was not in a valid JSON "
        "format"
    )
    return RestError(f"{message}. Response body: '{answer}'")


def _mapping(key: str, value: str) -> BeforeValidator:
    """Return a validator that converts MLflow's list of pairs to a mapping, as in the
    entities of MLflow's client.
    """

    def convert(pairs: Any) -> Any:
        if not isinstance(pairs, list):
            return pairs
        return {pair.get(key): pair.get(value, "") for pair in pairs if isinstance(pair, dict)}

    return BeforeValidator(convert)


_Tags = Annotated[dict[str, str], _mapping("key", "value")]
_Aliases = Annotated[dict[str, str], _mapping("alias", "version")]


class _Version(BaseModel):
    name: str
    version: str
    creation_timestamp: int = 0
    current_stage: str = ""
    source: str = ""
    run_id: str = ""
    tags: _Tags = {}


class _Model(BaseModel):
    name: str
    latest_versions: list[_Version] = []
    tags: _Tags = {}
    aliases: _Aliases = {}
    creation_timestamp: int = 0
    last_updated_timestamp: int = 0


class _Page(list[_ModelT]):
    """A page of results, as in MLflow's client. `token` selects the next page."""

    token: str | None = None


class _LoggedModel(BaseModel):
    model_id: str
    name: str = ""
    artifact_location: str = Field(default="", alias="artifact_uri")
    source_run_id: str = ""
    tags: _Tags = {}


class _RunInfo(BaseModel):
    run_id: str


class _RunData(BaseModel):
    tags: _Tags = {}


class _Run(BaseModel):
    info: _RunInfo
    data: _RunData = _RunData()


class _File(BaseModel):
    path: str
    is_dir: bool = False


class _Files(BaseModel):
    files: list[_File] = []


def _parsed(kind: type[_ModelT], document: Any) -> _ModelT:
    try:
        return kind.model_validate(document)
    except ValidationError:
        raise _invalid(document) from None


@cache
def _session(
    retries: int | None, backoff_factor: int, jitter: float, respects_retry_after: bool
) -> "Session":
    """Return the session of all threads for requests with these retries. Without
    retries, any status is an answer.
    """
    import requests  # The import takes 70 ms, which each command would pay.
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    policy = Retry(
        total=retries or 0,
        raise_on_status=retries is not None,
        status_forcelist=_RETRIED,
        allowed_methods=None,
        backoff_factor=backoff_factor,
        backoff_jitter=jitter,
        respect_retry_after_header=respects_retry_after,
    )
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=policy))
    return session


def send(
    address: str,
    method: str,
    path: str,
    timeout: float | None = None,
    is_sent_once: bool = False,
    **options: Any,
) -> "Response":
    """Return MLflow's answer to a request with the credentials of the environment.

    Args:
        address: the tracking or the registry URI, an http or https address.
        timeout: the time limit for the connection and for each pause. By default, the
            setting of the environment.
        is_sent_once: do not retry the request. The answer may then have any status.
        options: arguments of `requests.Session.request`. The answer is limited to
            `MOST_JSON` bytes, unless it is a stream.

    Raises:
        InvalidConfig: a variable of the environment is not valid.
        requests.RequestException: the server does not answer, or answers with a status
            that was retried.
    """
    settings = http_settings()
    retries = None if is_sent_once else settings.http_request_max_retries
    session = _session(
        retries,
        settings.http_request_backoff_factor,
        settings.http_request_backoff_jitter,
        settings.http_respect_retry_after_header,
    )
    headers = {"User-Agent": "onnxserve", **settings.authorization}
    if workspace := active_workspace():
        headers["X-MLFLOW-WORKSPACE"] = workspace
    bounds = nullcontext() if options.get("stream") else bounded_answers(MOST_JSON)
    with bounds:
        return session.request(
            method,
            address.removesuffix("/") + path,
            headers=headers,
            timeout=settings.http_request_timeout if timeout is None else timeout,
            allow_redirects=settings.allow_http_redirects,
            verify=settings.tracking_server_cert_path or not settings.tracking_insecure_tls,
            cert=settings.tracking_client_cert_path or None,
            **options,
        )


@cache
def _header_plugins() -> object:
    """Return the plugins of other distributions that add headers to the requests of
    MLflow's client. The search reads a file of each installed distribution.
    """
    return entry_points(group="mlflow.request_header_provider")


@dataclass(frozen=True)
class MlflowRest:
    """The calls of MLflow's client that the agent needs, with the same arguments,
    results and errors.
    """

    tracking_uri: str
    registry_uri: str

    @classmethod
    def at(cls, tracking_uri: str, registry_uri: str) -> "MlflowRest | None":
        """Return the client for these addresses; None if they are not servers or need a
        plugin of MLflow's client.
        """
        settings = http_settings()
        for uri in (tracking_uri, registry_uri):
            if not uri.startswith(("http://", "https://")):
                return None
        if settings.tracking_auth or settings.tracking_aws_sigv4 or _header_plugins():
            return None
        return cls(tracking_uri, registry_uri)

    def get_registered_model(self, name: str) -> _Model:
        return _parsed(_Model, self._read("registered-models/get", "registered_model", name=name))

    def get_model_version(self, name: str, version: str) -> _Version:
        return _parsed(
            _Version, self._read("model-versions/get", "model_version", name=name, version=version)
        )

    def get_model_version_by_alias(self, name: str, alias: str) -> _Version:
        return _parsed(
            _Version, self._read("registered-models/alias", "model_version", name=name, alias=alias)
        )

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        return str(
            self._read(
                "model-versions/get-download-uri", "artifact_uri", name=name, version=version
            )
        )

    def search_model_versions(
        self,
        filter_string: str,
        max_results: int,
        order_by: Sequence[str] = (),
        page_token: str | None = None,
    ) -> _Page[_Version]:
        query = {"filter": filter_string, "max_results": max_results, "order_by": order_by}
        return self._search("model-versions", "model_versions", _Version, page_token, query)

    def search_registered_models(
        self, max_results: int, page_token: str | None = None
    ) -> _Page[_Model]:
        query = {"filter": _IS_NO_PROMPT, "max_results": max_results}
        return self._search("registered-models", "registered_models", _Model, page_token, query)

    def _search(
        self,
        route: str,
        field: str,
        kind: type[_ModelT],
        page_token: str | None,
        query: dict[str, Any],
    ) -> _Page[_ModelT]:
        """Return a page of the registry's answer to a search."""
        query = {**query, "page_token": page_token}
        document = self._call(self.registry_uri, "GET", f"{route}/search", params=query)
        page = _Page(_parsed(kind, entry) for entry in document.get(field, []))
        page.token = document.get("next_page_token")
        return page

    def get_run(self, run_id: str) -> _Run:
        document = self._call(self.tracking_uri, "GET", "runs/get", params={"run_id": run_id})
        return _parsed(_Run, document.get("run"))

    def get_logged_model(self, model_id: str) -> _LoggedModel:
        document = self._call(self.tracking_uri, "GET", f"logged-models/{quote(model_id, safe='')}")
        return _parsed(_LoggedModel, (document.get("model") or {}).get("info"))

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        document = {"name": name, "version": version, "key": key, "value": value}
        self._call(self.registry_uri, "POST", "model-versions/set-tag", json=document)

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        document = {"name": name, "version": version, "key": key}
        self._call(self.registry_uri, "DELETE", "model-versions/delete-tag", json=document)

    def serves(self, location: str) -> bool:
        """Return True if MLflow's server is the proxy for the files at this address,
        and sends complete files.
        """
        parts = urlsplit(location)
        is_proxied = parts.scheme == "mlflow-artifacts" and not parts.netloc
        return is_proxied and not http_settings().enable_proxy_multipart_download

    def download(self, location: str, destination: Path) -> Path:
        """Copy a file or a folder that MLflow's server `serves` into the folder
        `destination`, and return the copy.
        """
        root = urlsplit(location).path.strip("/")
        _check_workspace(self.tracking_uri, active_workspace())
        copied = destination / PurePosixPath(root).name
        names = list(self._file_names(root)) or [""]  # A file has no listing.
        paths = [f"{root}/{name}".rstrip("/") for name in names]
        with ThreadPoolExecutor(_FILE_THREADS) as pool:
            # The list raises the error of a failed copy.
            list(pool.map(self._copy, paths, [copied / name for name in names]))
        return copied

    def _file_names(self, folder: str) -> Iterator[str]:
        """Yield the paths of all files below a folder, relative to it. Raises RestError
        for a name that could lead out of the folder.
        """
        answer = send(self.tracking_uri, "GET", _FILES, params={"path": folder})
        _check_file(answer)
        for entry in _parsed(_Files, answer.json()).files:
            if entry.path in ("", ".", "..") or any(mark in entry.path for mark in "/\\\0"):
                raise RestError(
                    f"MLflow's server lists a file with the name {entry.path!r}, which is not "
                    "allowed"
                )
            if not entry.is_dir:
                yield entry.path
                continue
            for name in self._file_names(f"{folder}/{entry.path}"):
                yield f"{entry.path}/{name}"

    def _copy(self, path: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with send(self.tracking_uri, "GET", f"{_FILES}/{quote(path)}", stream=True) as answer:
            _check_file(answer)
            with target.open("wb") as file:
                for chunk in answer.iter_content(_CHUNK_BYTES):
                    file.write(chunk)

    def _read(self, route: str, field: str, default: Any = None, **query: Any) -> Any:
        """Return a field of the registry's answer to a GET request. Raises RestError if
        it is missing.
        """
        document = self._call(self.registry_uri, "GET", route, params=query)
        value = document.get(field, default)
        if value is None:
            raise _invalid(document)
        return value

    def _call(self, address: str, method: str, route: str, **options: Any) -> dict[str, Any]:
        """Return the JSON object with which a server answers a request. Raises
        RestError for an error or another content.
        """
        _check_workspace(address, active_workspace())
        path = f"{_API}/{route}"
        document = checked_json(send(address, method, path, **options), path)
        if not isinstance(document, dict):
            raise _invalid(document)
        return document


@cache
def _check_workspace(address: str, workspace: str) -> None:
    """Raise RestError if a workspace is active, and the server would ignore it."""
    if not workspace:
        return
    for path in _SERVER_INFO:
        answer = send(address, "GET", path)
        if answer.status_code != 404:
            break
    if answer.status_code == 404 or not checked_json(answer, path).get("workspaces_enabled"):
        raise RestError(
            f"Active workspace '{workspace}' cannot be used because the remote server does not "
            "support workspaces. Restart the server with --enable-workspaces or unset the active "
            "workspace."
        )


def _check_file(answer: "Response") -> None:
    """Raise HTTPError with the server's text if the answer is an error."""
    from requests import HTTPError

    try:
        answer.raise_for_status()
    except HTTPError as error:
        raise HTTPError(
            f"{error}. Response text: {answer.text}", request=error.request, response=answer
        ) from None
