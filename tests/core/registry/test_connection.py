import builtins
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Event, Thread, current_thread

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import NoCredentialsError
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST
from requests import HTTPError

from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    NotFound,
    NotInstalled,
    RegistryRefused,
    RegistryUnavailable,
)
from mlflow_deploy_plugin.core.registry import connection
from mlflow_deploy_plugin.core.registry.connection import (
    find_login,
    no_request_timeout,
    redact_addresses,
    redact_credentials,
    registry_client,
    registry_errors,
    set_service_timeouts,
    store_failure,
)
from mlflow_deploy_plugin.core.registry.model_files import fetch
from mlflow_deploy_plugin.core.store.audit import Login
from tests.support.refusals import mentions, refused
from tests.support.tracking import tracking_at

LARGE = 33_000_000
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
FAILED = "API request to endpoint /api/2.0/mlflow/registered-models/get failed with error code"


@pytest.fixture
def clean(monkeypatch):
    """Remove the variables during the test."""
    for name in ("HTTP_REQUEST_MAX_RETRIES", "HTTP_REQUEST_BACKOFF_FACTOR", "HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_{name}", "")
        del os.environ[f"MLFLOW_{name}"]
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return monkeypatch


@pytest.fixture
def own_process(monkeypatch):
    """Let this process be a process of onnxserve during the test. The functions of
    MLflow's client stay replaced.
    """
    monkeypatch.setattr(connection._process, "is_own", True)


def test_user_timeout_is_kept(clean):
    clean.setenv(TIMEOUT, "77")
    set_service_timeouts()
    with no_request_timeout:
        assert os.environ[TIMEOUT] == "77"


def test_credentials_are_redacted_from_uris():
    text = "https://{}host/x failed, postgresql+psycopg://{}db/y too, a@b.c stays, http://{}h:1/z@a"
    secrets = ("user:p%40ss@", "u@", "u:p@ss@")
    assert redact_credentials(text.format(*secrets)) == text.format("", "", "")


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (
            "no model x; the registered models are a, b, in MLflow at sqlite:////srv/x.db",
            "no model x; the registered models are a, b",
        ),
        ("the registry is empty, in MLflow at http://u:5000", "the registry is empty"),
        (
            "model x: MLflow at http://10.0.0.1:5000 does not answer correctly: connection refused",
            "model x: MLflow does not answer correctly: connection refused",
        ),
        (
            "the files of models:/x/3: s3://bucket does not answer correctly: no",
            "the files of models:/x/3: … does not answer correctly: no",
        ),
        ("models:/x/3: version 3 cannot be loaded", "models:/x/3: version 3 cannot be loaded"),
    ],
)
def test_mlflow_addresses_are_redacted_for_callers(text, public):
    assert redact_addresses(text) == public


@contextmanager
def http_server():
    """A server that answers 404: its host with its port, and the Authorization header
    of each request.
    """
    sent = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            sent.append(self.headers["Authorization"])
            self.send_error(404)

        def log_message(self, *_):
            pass

    with serving(Handler) as address:
        yield address, sent


@contextmanager
def serving(handler):
    """Yield the host with the port of a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (
            MlflowException(f"{FAILED} 403 != 200. Response body: 'Permission denied'"),
            ("permission",),
        ),
        (RestException({"error_code": "PERMISSION_DENIED", "message": "no"}), ("permission",)),
        # The format of mlflow-kubernetes-plugins.
        (RestException({"error": {"code": "PERMISSION_DENIED", "message": "no"}}), ("permission",)),
        (
            MlflowException(f"{FAILED} 401 != 200. Response body: ''"),
            ("the credentials", "MLFLOW_TRACKING_USERNAME"),
        ),
    ],
)
def test_permission_error_is_a_refusal(error, names):
    with refused(RegistryRefused, "m", "MLflow", "refuses", *names), registry_errors("m"):
        raise error


FILES = "The following failures occurred while downloading one or more artifacts from s3://b/1:\n"
HEAD = "An error occurred ({}) when calling the HeadObject operation: {}"
KEYS = "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role)"
LISTING = MlflowException("Failed to list artifacts in s3://b/1: no", PERMISSION_DENIED)
ANSWER = "{} Client Error: No for url: http://{}/api. Response text: {}"
DENIED = '{"error_code": "PERMISSION_DENIED", "message": "Access Denied"}'


@pytest.mark.parametrize(
    ("store", "error", "kind", "names"),
    [
        (
            "s3://b",
            MlflowException(
                f"{FILES}##### File a/MLmodel #####\n{HEAD.format(403, 'no')}\n##### File b #####"
            ),
            RegistryRefused,
            ("s3://b refuses the credentials", KEYS, "a/MLmodel"),
        ),
        ("s3://b", LISTING, RegistryRefused, ("s3://b refuses the credentials", KEYS)),
        (
            "s3://b",
            MlflowException(
                f"{FILES}##### File a #####\n[Errno 28] No space left on device\n##### File b"
            ),
            RegistryUnavailable,
            ("the disk of this machine", "No space left on device"),
        ),
        (
            "",
            OSError(30, "Read-only file system"),
            RegistryUnavailable,
            ("the disk of this machine", "Read-only file system"),
        ),
        ("s3://b", NoCredentialsError(), RegistryRefused, ("s3://b refuses", KEYS)),
        (
            "gs://b",
            OSError("403 GET https://storage/b/o: sa@x does not have storage.objects.list access"),
            RegistryRefused,
            ("gs://b refuses the credentials", "403 GET"),
        ),
        (
            "s3://b",
            MlflowException(f"{FILES}##### File x #####\n{HEAD.format(404, 'Not Found')}"),
            NotFound,
            ("not found in s3://b", "x"),
        ),
        (
            "s3://b",
            MlflowException("no bucket", RESOURCE_DOES_NOT_EXIST),
            NotFound,
            ("not found in s3://b", "no bucket"),
        ),
        (
            "",
            HTTPError(ANSWER.format(403, "m", DENIED)),
            RegistryRefused,
            ("the artifact store of MLflow", "the credentials of MLflow's server", "Access Denied"),
        ),
        (
            "",
            HTTPError(ANSWER.format(401, "other:5000", DENIED)),
            RegistryRefused,
            ("http://other:5000 refuses the credentials", "~/.netrc"),
        ),
        (
            "",
            HTTPError(ANSWER.format(401, "m", "You are not authenticated.")),
            RegistryRefused,
            ("MLflow", "refuses the credentials", "MLFLOW_TRACKING_USERNAME"),
        ),
        ("", NoCredentialsError(), RegistryRefused, ("the artifact store refuses", KEYS)),
        ("", LISTING, RegistryRefused, ("the artifact store refuses the credentials",)),
        (
            "s3://b",
            OSError("Connection refused"),
            RegistryUnavailable,
            ("s3://b does not answer correctly",),
        ),
    ],
)
def test_artifact_store_failures_are_classified(store, error, kind, names):
    with tracking_at("http://m"):
        failure = store_failure("the files", store, error)
    assert type(failure) is kind
    assert all(name in failure.message for name in names), failure.message
    # The author would read this text in the version's tag.
    assert ("Access Denied" in failure.message) == ("Access Denied" in names)


def test_refused_upload_names_artifact_store():
    for error in (
        S3UploadFailedError(
            "Failed to upload a to b/c: An error occurred (AccessDenied) when …: Access Denied"
        ),
        MlflowException("Failed to list artifacts in s3://b: Access Denied", PERMISSION_DENIED),
    ):
        with (
            refused(RegistryRefused, "run r", "the artifact store", "the credentials"),
            registry_errors("run r"),
        ):
            raise error


def test_unrelated_error_is_not_translated():
    with pytest.raises(ZeroDivisionError), registry_errors("run r"):
        raise ZeroDivisionError


PAGE = f"<html><body>{'nginx ' * 50}</body></html>"
ASKED = (
    "API request to http://mlflow.ops:5000/api failed with exception "
    "HTTPConnectionPool(host='mlflow.ops', port=5000): "
)
RETRIED = f"{ASKED}Max retries exceeded with url: /api?alias=champion"
CONNECTION = "HTTPConnection(host='mlflow.ops', port=5000)"
READ_ONLY_DATABASE = {
    "error_code": "BAD_REQUEST",
    "message": (
        "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush "
        "block)\n"
        "(psycopg.errors.ReadOnlySqlTransaction) cannot execute INSERT in a read-only transaction\n"
        "[SQL: INSERT INTO runs (run_uuid) VALUES (%(run_uuid)s)]\n"
        "[parameters: {'run_uuid': 'a'}]"
    ),
}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        *(
            (
                f"{FAILED} {status} != 200. Response body: '{PAGE}'",
                (
                    f"it returned a web page with the status {status} instead of JSON, probably "
                    "from a proxy"
                ),
            )
            for status in (302, 403, 413)
        ),
        (
            f"{RETRIED} (Caused by ResponseError('too many 503 error responses'))",
            "it returns the status 503",
        ),
        (
            RestException(READ_ONLY_DATABASE),
            (
                "BAD_REQUEST: (psycopg.errors.ReadOnlySqlTransaction) cannot execute INSERT in a "
                "read-only transaction"
            ),
        ),
        (
            f"{RETRIED} (Caused by SSLError(SSLCertVerificationError(1, '[SSL: "
            "CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate "
            "(_ssl.c:1016)')))",
            (
                "self-signed certificate (set MLFLOW_TRACKING_SERVER_CERT_PATH to the certificate "
                "file of the trusted authority)"
            ),
        ),
        (
            f"{RETRIED} (Caused by SSLError(SSLCertVerificationError(1, '[SSL: "
            "CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired "
            "(_ssl.c:1016)')))",
            "certificate has expired according to the clock of this machine",
        ),
        *(
            (
                f"HTTPSConnectionPool(host='mlflow.ops', port=5000): {RETRIED} (Caused by "
                f"SSLError(SSLError(1, '{failure} (_ssl.c:1016)')))",
                "it answers without TLS: write http://mlflow.ops:5000",
            )
            for failure in (
                "[SSL: WRONG_VERSION_NUMBER] wrong version number",
                "[SSL] record layer failure",
            )
        ),
        (
            f'{RETRIED} (Caused by NameResolutionError("{CONNECTION}: Failed to resolve '
            "'mlflow.ops' ([Errno -3] Temporary failure in name resolution)))",
            "the name 'mlflow.ops' does not resolve: temporary failure in name resolution",
        ),
        (
            f'{RETRIED} (Caused by NewConnectionError("{CONNECTION}: Failed to establish a new '
            "connection: [Errno 113] "
            "No route to host))",
            "no route to host",
        ),
        (  # The transfer stopped midway.
            f"{ASKED}Read timed out.",
            "no answer in time (MLFLOW_HTTP_REQUEST_TIMEOUT, in seconds: 7)",
        ),
        (
            f"{RETRIED} (Caused by ReadTimeoutError('Read timed out. (read timeout=7)'))",
            "no answer in time (MLFLOW_HTTP_REQUEST_TIMEOUT, in seconds: 7)",
        ),
    ],
)
def test_outage_names_cause_and_remedy(clean, error, said):
    clean.setenv(TIMEOUT, "7")
    with refused(RegistryUnavailable, "m", "MLflow", said), registry_errors("m"):
        raise MlflowException(error) if isinstance(error, str) else error


def test_contradicting_tls_variables_are_refused(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/srv/ca.pem")
    with refused(InvalidConfig, "MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH"):
        registry_client()


@pytest.mark.parametrize(
    ("variable", "value"), [("MLFLOW_TRACKING_INSECURE_TLS", "yes"), (TIMEOUT, "30s")]
)
def test_unreadable_variable_is_named(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidConfig, match=f"^(?=.*{variable}).*{value}"):
        registry_client()


def test_error_names_proxy_without_password(monkeypatch):
    monkeypatch.setenv("http_proxy", "user:secret@proxy.test:3128")
    with tracking_at("http://mlflow.test:5000"):
        for no_proxy, is_asked_through_proxy in (("", True), ("mlflow.test", False)):
            monkeypatch.setenv("no_proxy", no_proxy)
            names = ("model x", "http://mlflow.test:5000", "connection refused")
            with refused(RegistryUnavailable, *names) as raised, registry_errors("model x"):
                raise ConnectionRefusedError("Connection refused")
            assert (
                mentions(raised.value.message, "proxy.test:3128", "NO_PROXY")
                is is_asked_through_proxy
            )
            assert "secret" not in raised.value.message


def test_request_timeout_returns_after_last_download(clean):
    set_service_timeouts()
    first = no_request_timeout
    second = no_request_timeout
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.environ[TIMEOUT] == "120"
    second.__exit__(None, None, None)
    assert os.environ[TIMEOUT] == "5"


def test_unsupported_uri_error_hides_password():
    pattern = r"^MLFLOW_TRACKING_URI or .*unsupported URI 'foo://somewhere'"
    with (
        tracking_at("foo://user:secret@somewhere"),
        pytest.raises(InvalidConfig, match=pattern) as raised,
    ):
        registry_client()

    assert "secret" not in raised.value.message
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("address", ["127.0.0.1:5000", "localhost:5000", "[::1]:5000/mlflow"])
def test_missing_scheme_is_suggested(address):
    remedy = re.escape(f"http://{address}")
    with tracking_at(address), pytest.raises(InvalidConfig, match=f"{remedy}$"):
        registry_client()


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize(
    ("location", "is_own"),
    [
        ("mlflow-artifacts:/x", True),
        ("http://{own}/api/2.0/mlflow-artifacts/artifacts/x", True),
        ("http://{other}/api/2.0/mlflow-artifacts/artifacts/x", False),
        ("mlflow-artifacts://{other}/x", False),
        # urllib.parse returns the configured host.
        ("http://{other}\\@{own}/api/2.0/mlflow-artifacts/artifacts/x", False),
    ],
)
def test_credentials_go_only_to_mlflow(monkeypatch, tmp_path, location, is_own):
    for name, value in {"USERNAME": "agent", "PASSWORD": "s3cret"}.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        http_server() as (server, sent_to_own),
        http_server() as (other, sent_to_other),
        tracking_at(f"http://{server}"),
        pytest.raises((NotFound, RegistryUnavailable)) as failed,
    ):
        fetch(location.format(own=server, other=other), tmp_path, "the files")

    assert bool(sent_to_own) is is_own
    assert set(sent_to_own) <= {"Basic YWdlbnQ6czNjcmV0"}
    assert bool(sent_to_other) is not is_own
    assert set(sent_to_other) <= {None}
    # The author would read this text in the version's tag.
    assert is_own or "Response text" not in failed.value.message


@pytest.mark.parametrize(
    "location",
    ["HTTP://{other}/api/2.0/mlflow-artifacts/artifacts/x", "mlflow-artifacts://{other}/x"],
)
def test_foreign_files_are_refused_with_credentials(monkeypatch, tmp_path, location):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    with (
        http_server() as (server, _),
        http_server() as (other, sent),
        tracking_at(f"http://{server}"),
    ):
        with refused(InvalidConfig, "the files", other, "credentials"):
            fetch(location.format(other=other), tmp_path, "the files")
        assert sent == []
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
        with pytest.raises(NotFound):
            fetch(location.format(other=other), tmp_path, "the files")
    assert set(sent) == {None}


@pytest.mark.usefixtures("own_process")
def test_json_is_bounded_but_files_are_not(monkeypatch, tmp_path):
    class Large(SimpleHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            if self.path.endswith("artifacts?path=files"):
                body = json.dumps(
                    {"files": [{"path": "weights", "is_dir": False, "file_size": LARGE}]}
                ).encode()
            else:
                body = b" " * LARGE
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # The client may have closed the connection.
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with serving(Large) as address, tracking_at(f"http://{address}"):
        with refused(RegistryUnavailable, "32,000,000 bytes"), registry_errors("model m"):
            registry_client().get_registered_model("m")
        copied = fetch("mlflow-artifacts:/files", tmp_path, "the files")
    assert (copied / "weights").stat().st_size == LARGE


@pytest.mark.parametrize(
    ("location", "is_azure"),
    [
        ("abfss://models@team.dfs.core.windows.net/x", True),
        ("abfss://workspace%20a@onelake.dfs.fabric.microsoft.com/x", True),
        ("abfss://models@team.elsewhere.test/x", False),
        ("abfss://models@team.dfs.core.windows.net.elsewhere.test/x", False),
        ("abfss://models@elsewhere.test\\@team.dfs.core.windows.net/x", False),
    ],
)
def test_azure_credentials_go_only_to_azure(monkeypatch, tmp_path, location, is_azure):
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sig=s3cret")
    # An import would send a request to the host.
    monkeypatch.setitem(sys.modules, "azure.storage.filedatalake", None)
    refusal = NotInstalled if is_azure else InvalidConfig
    pattern = (
        "pip install azure-storage-file-datalake"
        if is_azure
        else r"^the files: \S+ is not Azure storage "
    )
    with tracking_at(f"sqlite:///{tmp_path}/mlflow.db"), pytest.raises(refusal, match=pattern):
        fetch(location, tmp_path, "the files")


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize("address", ["databricks://profile:prefix", "postgresql://h1:1,h2:2/db"])
def test_database_registry_sends_no_credentials(monkeypatch, tmp_path, address):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    with (
        http_server() as (other, sent),
        tracking_at(address),
        refused(NotFound, "not found", f"http://{other}"),
    ):
        fetch(f"http://{other}/api/2.0/mlflow-artifacts/artifacts/x", tmp_path, "the files")
    assert set(sent) == {None}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"5.7.44-log\0mysql_native_password\r\n", "error_perm"),
        (b"530 of staff\r\n", "error_perm 530"),
    ],
)
def test_ftp_reply_is_not_quoted(tmp_path, answer, said):
    class Service(StreamRequestHandler):
        def handle(self):
            self.wfile.write(answer)

    with (
        ThreadingTCPServer(("127.0.0.1", 0), Service) as server,
        tracking_at(f"sqlite:///{tmp_path}/mlflow.db"),
    ):
        Thread(target=server.serve_forever).start()
        try:
            with refused(RegistryUnavailable, "ftp://127.0.0.1", "does not answer", said) as raised:
                fetch(f"ftp://127.0.0.1:{server.server_address[1]}/x", tmp_path, "the files")
            assert raised.value.message.endswith(said)
        finally:
            server.shutdown()


def test_threads_import_mlflow_in_turn(monkeypatch):
    """Threads that import MLflow at once get a _DeadlockError."""
    import_module = builtins.__import__
    imported = Event()
    importing = []

    def import_slowly(name, *arguments):
        is_client = current_thread().name.startswith("client")
        if is_client and name.partition(".")[0] == "mlflow" and not imported.is_set():
            importing.append(name)
            imported.wait(0.2)
            imported.set()
        return import_module(name, *arguments)

    with (
        tracking_at("http://127.0.0.1:9"),  # A client of a new database creates its tables.
        ThreadPoolExecutor(2, "client") as threads,
        monkeypatch.context() as patched,
    ):
        patched.setattr(builtins, "__import__", import_slowly)
        clients = [threads.submit(registry_client) for _ in range(2)]
        assert all(client.result() for client in clients)
    assert importing == ["mlflow.exceptions"]


@pytest.mark.parametrize(
    "address", ["http://{without_app}", "sqlite:///{folder}/mlflow.db", "http://127.0.0.1:9"]
)
def test_user_without_login_has_no_name(address, tmp_path):
    with (
        http_server() as (server, _),
        tracking_at(address.format(without_app=server, folder=tmp_path)),
    ):
        assert find_login() == Login()
