"""Tests of `onnxserve serve` with a real MLflow server: following, failures of MLflow,
ending, errors.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pyarrow.parquet as pq
import pytest
import requests
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.statedir.files import AGENT, read_state, read_workers
from mlflow_deploy_plugin.core.statedir.models import AgentState
from tests.support.disk import files_of_at_most
from tests.support.refusals import mentions
from tests.support.services.proxy import proxy_to
from tests.support.waiting import wait_until


@pytest.mark.long
def test_a_promotion_is_served_within_five_seconds_and_no_request_fails(
    serve, register, record_property
):
    model = register("+1", "+2")
    model.promote(1)
    served = serve(f"models:/{model.name}/Production", "-w", "2", "--name", "e").wait_ready()
    url = served.url
    stop = threading.Event()
    seen: list[tuple[float, int, str, float]] = []

    def ask():
        session = requests.Session()
        while not stop.wait(0.005):
            answer = session.post(f"{url}/invocations", json={"inputs": [[1.0]]}, timeout=30)
            value = answer.json()["predictions"]["y"][0][0] if answer.ok else float("nan")
            seen.append(
                (time.monotonic(), answer.status_code, answer.headers["X-Model-Version"], value)
            )

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    wait_until(lambda: len(seen) >= 100, 60, "a hundred answers")

    def promote(version):
        """Return the seconds until the last answer of another version."""
        model.promote(version)
        promoted = time.monotonic()
        wait_until(
            lambda: {served for *_, served, _ in seen[-50:]} == {str(version)},
            60,
            f"version {version}",
        )
        return max(at for at, _, served, _ in seen if served != str(version)) - promoted

    seconds = 5.0
    for version in (
        2,
        1,
        2,
    ):  # On a busy machine, the first promotion may have waited for a core for seconds.
        if seconds >= 5:
            seconds = promote(version)
    stop.set()
    for client in clients:
        client.join()

    record_property("seconds until the last answer of the version before", seconds)
    assert {status for _, status, *_ in seen} == {200}
    assert {(version, value) for *_, version, value in seen} == {("1", 2.0), ("2", 3.0)}
    assert seconds < 5


@pytest.mark.long
def test_with_the_registry_killed_serving_goes_on_also_after_a_restart(
    serve, register, mlflow_server, monkeypatch
):
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "0.2")
    model = register("+1")
    model.client.set_registered_model_alias(model.name, "live", "1")
    with proxy_to(mlflow_server.host, mlflow_server.port) as registry:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.url)
        served = serve(f"models:/{model.name}@live").wait_ready()
        registry.turn("refuse")  # All connections are closed, and new connections are refused.
    error = wait_until(
        lambda: (read_state(served.state_dir / AGENT, AgentState) or AgentState(pid=0)).error,
        what="an error",
    )
    assert registry.url in error
    assert served.predict(1).json() == {"predictions": {"y": [[2.0]]}}
    assert served.end() == 0

    again = serve(f"models:/{model.name}@live").wait_ready()
    assert again.predict(1).json() == {"predictions": {"y": [[2.0]]}}
    assert again.version() == "1"


@pytest.mark.long
def test_sigterm_finishes_a_request_in_flight_and_ships_it(serve, register, tmp_path):
    served = serve(f"models:/{register('slow').name}/1").wait_ready()
    with ThreadPoolExecutor(1) as pool:
        url = served.url
        steps = 200_000
        before = _computed(served)
        assert requests.post(f"{url}/invocations", json={"inputs": [steps]}, timeout=60).ok
        steps = int(steps / (_computed(served) - before) * 1.5)
        before = _computed(served)
        answer = pool.submit(
            requests.post, f"{url}/invocations", json={"inputs": [steps]}, timeout=60
        )
        wait_until(lambda: _computed(served) > before + 0.5, 30, "the request is being computed")
        assert served.end() == 0
        assert answer.result().json() == {"predictions": {"y": [steps]}}
    assert "Traceback" not in served.log.read_text()
    assert not list((served.state_dir / "spool").glob("*.seg"))
    shipped = (tmp_path / "home" / "inference_log").rglob("*.parquet")
    assert sum(pq.ParquetFile(file).metadata.num_rows for file in shipped) == 2


def _computed(served):
    """Seconds of processor time that the server's worker has used up to now."""
    (worker,) = read_workers(served.state_dir)
    return sum(psutil.Process(worker.pid).cpu_times()[:2])


@pytest.mark.long
def test_a_version_that_does_not_load_leaves_the_old_one_serving_and_is_tagged(
    serve, register, monkeypatch
):
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "0.2")
    model = register("+1", "broken", "+3")
    model.promote(1)
    served = serve(f"models:/{model.name}/Production").wait_ready()

    model.promote(2)
    tags = lambda: model.client.get_model_version(model.name, "2").tags  # noqa: E731
    wait_until(lambda: "onnxserve.error" in tags(), what="version 2 is tagged")
    error = lambda: (read_state(served.state_dir / AGENT, AgentState) or AgentState(pid=0)).error  # noqa: E731
    wait_until(lambda: mentions(error(), "version 2", "cannot be loaded"), what="the agent says so")
    assert served.version() == "1"
    assert served.end() == 0

    again = serve(f"models:/{model.name}/Production").wait_ready()
    assert again.version() == "1"
    model.promote(3)
    wait_until(lambda: again.version() == "3", what="version 3 is served")
    wait_until(lambda: error() == "", what="no error any more")


@pytest.mark.long
def test_no_follow_keeps_serving_the_version_resolved_at_start(serve, register, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "0.1")
    model = register("+1", "+2")
    model.promote(1)
    served = serve(f"models:/{model.name}/production", "--no-follow").wait_ready()
    model.promote(2)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        assert served.version() == "1"
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kinds", "arguments", "names"),
    [
        (("+1",), ["models:/{name}@live"], ["alias live", "versions: 1"]),
        (("broken",), ["models:/{name}/1"], ["ONNX Runtime", "model.onnx"]),
        (("+1",), ["models:/{name}/1", "--device", "cuda"], ["--device cuda"]),
        (("+1",), ["models:/{name}/1", "-p", "{used}"], ["port {used}", "in use"]),
        ((), ["/no/such/folder"], ["folder /no/such/folder"]),
    ],
)
def test_unservable_model_is_a_one_line_error_and_leaves_no_process(
    serve, register, taken_port, kinds, arguments, names
):
    name = register(*kinds).name if kinds else ""
    fill = {"{name}": name, "{used}": str(taken_port)}
    for placeholder, value in fill.items():
        arguments = [argument.replace(placeholder, value) for argument in arguments]
        names = [text.replace(placeholder, value) for text in names]

    served = serve(*arguments)

    assert served.process.wait(timeout=60) in (1, 2)
    assert served.end() in (1, 2)
    lines = [line for line in served.log.read_text().splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, served.log.read_text()
    assert mentions(lines[0], *names)
    assert "Traceback" not in served.log.read_text()
    assert not (served.state_dir / "server.json").exists()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["models:/x/1", "-C", "server.prot=1"], ["'server.port'"]),
        (["models:/x/1", "-w", "many"], ["'many'"]),
        ([], ["MODEL", "--spec FILE"]),
        (["--spec", "none.yaml"], ["spec none.yaml"]),
    ],
)
def test_a_mistake_is_refused_in_one_line_before_a_process_is_started(arguments, names, tmp_path):
    result = CliRunner().invoke(main, ["serve", *arguments, "--state-dir", str(tmp_path / "state")])

    assert result.exit_code in (1, 2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert mentions(line, *names)
    assert not (tmp_path / "state" / "server.json").exists()


def test_a_current_folder_that_was_deleted_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    result = CliRunner().invoke(
        main, ["serve", "models:/x/1", "--state-dir", str(tmp_path / "state")]
    )

    assert result.exit_code == 1
    assert mentions(result.stderr, "Error", "the current folder", "deleted")
    assert not (tmp_path / "state").exists()


@pytest.mark.long
def test_registry_that_is_down_at_first_start_is_reported_within_a_minute(serve, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    started = time.monotonic()
    served = serve("models:/x/Production")
    assert served.process.wait(timeout=120) == 1
    text = served.log.read_text()
    assert "Error: " in text
    assert "http://127.0.0.1:9 " in text
    assert "secret" not in text
    assert time.monotonic() - started < 60  # MLflow's default retries take four minutes.


@pytest.mark.long
def test_a_changed_spec_file_is_served_without_a_restart_but_for_its_server_part(
    serve, register, tmp_path
):
    model = register("+1", "+2").name
    data = [tmp_path / "first", tmp_path / "second"]
    mounted = tmp_path / "spec.yaml"
    for folder, version, threads in zip(data, (1, 2), (3, 5), strict=True):
        folder.mkdir()
        spec = (
            "name: e\n"
            f"variants: {{e: {{model: 'models:/{model}/{version}'}}}}\n"
            f"server: {{threads: {threads}}}\n"
        )
        (folder / "spec.yaml").write_text(spec)
    link = tmp_path / "..data"
    link.symlink_to(data[0])
    # kubelet mounts a ConfigMap with such a link and replaces ..data.
    mounted.symlink_to("..data/spec.yaml")
    served = serve("--spec", str(mounted)).wait_ready()
    assert served.predict(1).json() == {"predictions": {"y": [[2.0]]}}

    (tmp_path / "new").symlink_to(data[1])
    (tmp_path / "new").rename(link)
    wait_until(
        lambda: served.predict(1).json() == {"predictions": {"y": [[3.0]]}}, what="the other model"
    )
    assert mentions(served.log.read_text(), "`server`", "next start")

    (data[1] / "spec.yaml").write_text("name: e\nvariants: {}\n")
    refused = (
        f"the change of {mounted} is not served: variants: endpoint 'e' needs at least one variant"
    )
    wait_until(lambda: refused in served.log.read_text(), what="the refusal")
    assert served.predict(1).json() == {"predictions": {"y": [[3.0]]}}


def test_a_changed_spec_that_the_disk_does_not_take_is_served_once_it_does(tmp_path, monkeypatch):
    spec = tmp_path / "spec.yaml"
    served = tmp_path / "state" / "spec.yaml"
    spec.write_text("name: e\nvariants: {e: {model: models:/m/1}}\n")

    def supervised(folder, follow, announce, refresh):
        spec.write_text("name: e\nvariants: {e: {model: models:/m/2}}\n")
        with files_of_at_most(1):
            refresh()
        assert "models:/m/1" in served.read_text()
        refresh()
        assert "models:/m/2" in served.read_text()

    monkeypatch.setattr("mlflow_deploy_plugin.cli.serve.supervise", supervised)
    monkeypatch.setattr("mlflow_deploy_plugin.cli.serve.configure_logging", lambda *_: None)
    ended = CliRunner().invoke(
        main, ["serve", "--spec", str(spec), "--state-dir", str(tmp_path / "state")]
    )
    assert ended.exit_code == 0, ended.output
