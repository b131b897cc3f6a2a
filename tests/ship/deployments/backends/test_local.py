"""Tests of the choice of ports: free, taken and reserved ports."""

import psutil
import pytest

from mlflow_deploy_plugin.core.errors import DeploymentFailed, InvalidConfig
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.statedir.files import LOG, METRICS, claim_state_dir
from mlflow_deploy_plugin.ship.deployments.backends import local
from mlflow_deploy_plugin.ship.deployments.backends.local import (
    LocalBackend,
    check_port,
    choose_port,
    is_port_free,
)
from tests.support.refusals import refused


def test_port_is_free_until_somebody_listens(free_port, taken_port):
    assert is_port_free("127.0.0.1", free_port)
    assert not is_port_free("127.0.0.1", taken_port)
    with refused(InvalidConfig, f"port {taken_port}", "127.0.0.1", "in use"):
        check_port("127.0.0.1", taken_port)


def test_first_free_unreserved_port_is_chosen(free_port, monkeypatch):
    assert local.FIRST_PORT == 8080
    monkeypatch.setattr(local, "FIRST_PORT", free_port)

    assert choose_port("127.0.0.1", []) == free_port
    assert choose_port("127.0.0.1", [free_port]) > free_port
    with refused(DeploymentFailed, f"no port from {free_port}", "-C server.port="):
        choose_port("127.0.0.1", range(free_port, 65536))


def test_address_of_another_machine_is_refused(free_port):
    with refused(InvalidConfig, f"192.0.2.1:{free_port}"):
        is_port_free("192.0.2.1", free_port)


def test_container_fields_are_refused(tmp_path):
    with refused(InvalidConfig, "container.…", "-t onnxserve:/docker"):
        LocalBackend(Settings(home=tmp_path)).apply(
            apply_config(new_endpoint("e", "one"), {"container.cpus": "2"}), print
        )


def test_server_without_process_id_is_starting(tmp_path, monkeypatch):
    """Listing all processes once per endpoint would take minutes for thousands of
    endpoints.
    """
    monkeypatch.setattr(psutil, "process_iter", lambda: pytest.fail("every process was looked at"))
    settings = Settings(home=tmp_path)
    backend = LocalBackend(settings)
    spec = new_endpoint("e", "one")

    with claim_state_dir(settings.state_dir("e")):
        starting = backend.observe(spec)
    gone = backend.observe(spec)

    assert starting.state == "starting"
    assert gone.state == "failed"


def test_metrics_of_a_removed_server_are_deleted(tmp_path):
    settings = Settings(home=tmp_path / "home")
    in_shared_memory = tmp_path / "metrics"
    in_shared_memory.mkdir()
    settings.state_dir("e").mkdir(parents=True)
    (settings.state_dir("e") / METRICS).symlink_to(in_shared_memory)

    LocalBackend(settings).remove("e")

    assert not in_shared_memory.exists()


def test_truncated_log_is_followed_from_its_start(tmp_path, monkeypatch):
    settings = Settings(home=tmp_path)
    log = settings.state_dir("e") / LOG
    log.parent.mkdir(parents=True)
    log.write_text("the first of three lines\n")

    def is_running(*_):
        """During the first read of the log, the server writes into it. Then the log is
        truncated.
        """
        if "second" in log.read_text():
            log.write_text("the third\n")
            return False
        log.open("a").write("the second\n")
        return True

    monkeypatch.setattr(LocalBackend, "is_running", is_running)

    assert [line.split()[1] for line in LocalBackend(settings).logs("e", 1, follow=True)] == [
        "first",
        "second",
        "third",
    ]
