"""Settings and fixtures for all tests. Tests send no reports, and do not read or write
files of the user.
"""

import atexit
import contextlib
import fcntl
import gc
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import uuid

import hypothesis
import psutil
import pytest
from sqlalchemy import Engine, event

from mlflow_deploy_plugin.core.registry import connection
from tests.support.guides import ROOT
from tests.support.scheduling import ContinuedScheduling
from tests.support.services.mlflow_server import MlflowServer
from tests.support.serving import servers_below
from tests.support.tracking import create_database, tracking_at
from tests.support.waiting import free_port as find_free_port

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1", GIT_PYTHON_REFRESH="quiet")
for variable in [
    name
    for name in os.environ
    if name.startswith(("ONNXSERVE_", "MLFLOW_TRACKING_", "MLFLOW_REGISTRY_", "MLFLOW_WORKSPACE"))
]:
    del os.environ[variable]

# All processes of a run have its name, with which the run's first process finds
# remaining processes.
RUN = "PYTEST_RUN_OF_ONNXSERVE"
IS_CONTROLLER = "PYTEST_XDIST_WORKER" not in os.environ
if IS_CONTROLLER:
    os.environ[RUN] = uuid.uuid4().hex

# Four runs of pytest share two cores; OpenMP threads that wait for each other would
# waste half of the time.
os.environ["OMP_NUM_THREADS"] = "1"

os.environ["ONNXSERVE_POLL_SECONDS"] = "2"  # Most MLflow servers of the tests have no change feed.

# A call that waits for a core is not slow code.
hypothesis.settings.register_profile("shared cores", deadline=None)
hypothesis.settings.load_profile("shared cores")

# The tests start hundreds of processes, each of which would compile this package again,
# and pytest every test.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Without grpc_status, pyspark's Connect takes a worker, whose main module has no file,
# for its own doctests and ends it. MLflow handles the ImportError.
if not IS_CONTROLLER:
    sys.modules["pyspark.sql.connect"] = None  # type: ignore[assignment]

# jsonschema, which the client of Kubernetes imports, handles this ImportError too: the
# module takes two seconds to build a grammar for IRIs, and no schema here has one.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

# A script's background job ignores SIGINT and SIGHUP, and so would all processes of the
# tests.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Imported modules remain until the end of the tests. Scanning them for garbage took
# seconds per run.
gc.disable()


@event.listens_for(Engine, "connect")
def write_without_waiting(connection, _):
    """SQLite need not wait for the disk in this process, because no test turns the
    machine off.
    """
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") == "loadfile":
        return ContinuedScheduling(config, log)
    return None


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    result = yield
    gc.freeze()
    atexit.register(gc.unfreeze)  # Otherwise nanobind's modules report leaks at the end.
    # Later imports, such as torch and Evidently, are not frozen: with Python's own
    # thresholds the collector took an eighth of their time.
    gc.set_threshold(10_000, 20, 20)
    gc.enable()
    return result


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            # On a busy machine, drills of two minutes took over five.
            item.add_marker(pytest.mark.timeout(900))


def pytest_unconfigure():
    """Kill the remaining servers, because Ctrl-C stops the workers in the middle of
    their tests.
    """
    for process in psutil.process_iter() if IS_CONTROLLER else ():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(RUN) == os.environ[RUN]:
                process.kill()
    if not IS_CONTROLLER:
        atexit.register(exit_without_unloading)


def exit_without_unloading():
    """End a worker without unloading its modules, which takes Python seconds."""
    atexit.unregister(exit_without_unloading)
    atexit._run_exitfuncs()
    os._exit(0)


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory):
    """Stores, caches and logs are in a folder of this session; a test with its own
    folder sets the variables again.
    """
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(folder / "onnxserve"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield


@pytest.fixture
def new_home(tmp_path, monkeypatch):
    """Set an empty home of onnxserve in the folder of the test."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))


@pytest.fixture
def new_mlflow(tmp_path, new_database, monkeypatch):
    """Use an empty MLflow with its artifacts in the folder of the test, which becomes
    the current folder.
    """
    monkeypatch.chdir(tmp_path)
    with tracking_at(new_database(tmp_path)):
        yield


@pytest.fixture(autouse=True)
def process_of_a_user():
    """Each test begins as in a process of a user, because a command that an earlier
    test ran declares our process.
    """
    connection._process.is_own = False
    connection._process.imports_mlflow = True


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """A lock with this name between the workers of the run, and a folder that all
    workers share.
    """
    base = tmp_path_factory.getbasetemp()
    folder = base if IS_CONTROLLER else base.parent

    @contextlib.contextmanager
    def locked(name):
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder

    return locked


@pytest.fixture(scope="session")
def new_database(alone):
    """Copies an empty mlflow.db, which the first worker of a run creates, into a
    folder, and returns its URI.
    """
    with alone("database") as folder:
        template = folder / "mlflow.db"
        if not template.exists():
            create_database(template)
    return lambda folder: f"sqlite:///{shutil.copy(template, folder / 'mlflow.db')}"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory, new_database):
    """The MLflow server of this session; tests use different model names."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    new_database(server.folder)
    with server.running():
        yield server


@pytest.fixture
def serve(tmp_path, new_home):
    """Starts `onnxserve serve ARGUMENTS --state-dir …`, and ends it with the test."""
    with servers_below(tmp_path) as start:
        yield start


@pytest.fixture
def bucket(monkeypatch):
    """Yield a bucket that boto3 and Arrow use by default."""
    # The module needs boto3, which most tests do without.
    from tests.support.services.s3 import s3_server

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with s3_server() as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", made.url)  # MLflow keeps its clients.
        yield made


@pytest.fixture
def free_port():
    return find_free_port()


@pytest.fixture
def taken_port():
    """A port on which another program listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Copy the files that a clone contains."""
    folder = tmp_path_factory.mktemp("checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder
