"""Tests of reading the state that the agent and the workers have written, in comparison
with a spec.
"""

import os

import pytest

from mlflow_deploy_plugin.core.errors import DeploymentFailed
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import add_variant, apply_config, new_endpoint
from mlflow_deploy_plugin.core.statedir import files
from mlflow_deploy_plugin.core.statedir.files import WANTED, worker_file, write_state
from mlflow_deploy_plugin.core.statedir.models import (
    LoadedVariant,
    ServerState,
    Wanted,
    WantedEndpoint,
    WantedVariant,
    WorkerState,
)
from mlflow_deploy_plugin.ship.deployments.backends.served_state import (
    MachineBackend,
    compare_applied,
    read_served_state,
    wait_while_pending,
)
from tests.support.refusals import mentions, refused

SPEC = add_variant(new_endpoint("e", "one", variant="a"), "b", "two")
LOADED = dict.fromkeys("ab", LoadedVariant(version="1"))


@pytest.fixture
def say(tmp_path):
    """Write the state of agent and worker. Generation 2 is wanted, and by default the
    worker has applied it.
    """

    def write(spec=SPEC, generation=2, pid=None, **loaded):
        variants = {
            name: WantedVariant(
                model_uri=v.model, model="m", version="1", folder=tmp_path, weight=v.weight
            )
            for name, v in spec.variants.items()
        }
        wanted = Wanted(
            generation=2, endpoints={"e": WantedEndpoint(variants=variants, capture=spec.capture)}
        )
        write_state(tmp_path / WANTED, wanted)
        pid = os.getpid() if pid is None else pid
        write_state(
            worker_file(tmp_path, pid),
            WorkerState(pid=pid, generation=generation, endpoints={"e": loaded}),
        )

    return write


def test_fully_loaded_endpoint_has_no_pending_work(tmp_path, say):
    say(**LOADED)

    report = compare_applied(SPEC, read_served_state(tmp_path))

    assert (report.is_resolved, report.pending, report.errors, report.missing) == (True, "", {}, ())
    assert [worker.pid for worker in read_served_state(tmp_path).workers] == [os.getpid()]


def test_empty_folder_waits_for_models(tmp_path):
    assert compare_applied(SPEC, read_served_state(tmp_path)).pending == "fetching one, two"


def test_server_is_observed_without_reading_its_spec(tmp_path, say):
    say(**LOADED)
    (tmp_path / files.SPEC).write_bytes(b"\xff")
    server = ServerState(
        pid=os.getpid(), host="127.0.0.1", port=8080, started_at=0.0, phase="serving"
    )
    spec = apply_config(SPEC, {"server.port": 8080})

    assert (
        MachineBackend(Settings()).observe_server(spec, tmp_path, server, log="").state == "running"
    )


@pytest.mark.parametrize(
    ("wanted", "pending"),
    [
        ({"variants.b.model": "three"}, "fetching three"),
        ({"variants.b.weight": 5}, "applying the changed spec"),
        ({"capture.fraction": 0.5}, "applying the changed spec"),
        ({"server.workers": 2}, "loading the model, 1 of 2 workers have it"),
    ],
)
def test_changed_spec_is_pending(tmp_path, say, wanted, pending):
    say(**LOADED)

    assert (
        compare_applied(apply_config(SPEC, wanted), read_served_state(tmp_path)).pending == pending
    )


def test_dead_or_outdated_worker_does_not_count(tmp_path, say):
    say(generation=1, a=LoadedVariant(version="1"))
    # The id is above the kernel's largest process id.
    say(pid=2**22 + 1, a=LoadedVariant(version="1"))

    report = compare_applied(SPEC, read_served_state(tmp_path))

    assert mentions(report.pending, "loading", "0 of 1 workers")
    assert [worker.pid for worker in read_served_state(tmp_path).workers] == [os.getpid()]


def test_change_without_new_model_is_not_loading(tmp_path, say):
    say(generation=1, **LOADED)

    pending = compare_applied(SPEC, read_served_state(tmp_path)).pending
    assert mentions(pending, "the change", "0 of 1 workers")
    assert "loading" not in pending


def test_only_failed_variants_with_traffic_are_missing(tmp_path, say):
    say(a=LoadedVariant(error="broken"), b=LoadedVariant(error="too"))

    report = compare_applied(SPEC, read_served_state(tmp_path))

    assert report.errors == {"a": "broken", "b": "too"}
    assert report.missing == ("a",)


def test_pending_work_is_reported_and_times_out():
    steps = iter(["one", "one", "two", ""])
    messages = list[str]()
    wait_while_pending("e", lambda: next(steps), 60, messages.append, poll_seconds=0)
    assert messages == ["e: one", "e: two"]

    with refused(DeploymentFailed, "e", "0 s", "one", "pod p", "ONNXSERVE_READY_TIMEOUT_SECONDS"):
        wait_while_pending(
            "e", lambda: "one", 0, messages.append, poll_seconds=0, last_words=lambda: ": pod p"
        )
