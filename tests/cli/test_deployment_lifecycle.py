"""`onnxserve start` and `onnxserve stop` as they are typed."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli import main
from mlflow_deploy_plugin.spec import new_endpoint
from mlflow_deploy_plugin.store import open_store


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("command", ["start", "stop"])
def test_an_unknown_name_is_one_line_and_exit_status_1(home: Path, command: str) -> None:
    said = CliRunner().invoke(main, [command, "nobody"])

    assert (said.exit_code, said.stdout, said.stderr) == (
        1,
        "",
        "Error: there is no deployment 'nobody'; there is none yet\n",
    )


def test_stop_says_how_to_bring_it_back_and_writes_it_down(home: Path) -> None:
    store = open_store(f"sqlite:///{home}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("idle", "m", {"server.port": 8080}))

    said = CliRunner().invoke(main, ["stop", "idle"])

    assert (said.exit_code, said.output) == (0, "idle is stopped; `onnxserve start idle` brings it back\n")
    assert [event.action for event in store.events("idle")] == ["create", "stop"]
    store.close()


def test_start_that_fails_says_why(home: Path, free_port: int) -> None:
    store = open_store(f"sqlite:///{home}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("lost", "/nowhere", {"server.port": free_port}))
    store.close()

    said = CliRunner().invoke(main, ["start", "lost"])

    assert said.exit_code == 1
    assert said.stderr.splitlines()[-1].endswith("the folder /nowhere does not exist")
    assert not (home / "deployments" / "lost" / "server.json").exists()


def test_start_at_a_port_that_another_program_took_says_how_to_give_it_another(home: Path, taken_port: int) -> None:
    store = open_store(f"sqlite:///{home}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("moved", "m", {"server.port": taken_port}))
    store.close()

    said = CliRunner().invoke(main, ["start", "moved"])

    assert said.exit_code == 1
    assert f"port {taken_port} on 127.0.0.1 is in use" in said.stderr
    assert said.stderr.endswith("of a deployment that is there, by `onnxserve endpoint update NAME -C server.port=…`\n")
