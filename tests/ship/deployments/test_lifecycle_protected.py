"""Tests of holds and requirements of endpoints, which MLflow's server with accounts
protects.
"""

import pytest

from tests.support.accounts import people
from tests.support.commands import onnxserve
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("protected")
    with people(folder, new_database, "alice", "bob") as server, server.logged_in("alice"):
        server.register("alice", "skip: []")  # The server signs the event.
        run("endpoint create flights -C require=gate=passed,signature=/a.pub")
        yield server


def run(line):
    """Run a command, and return the line of its error; empty after a success."""
    result = onnxserve(line)
    assert (result.exit_code == 0) is (result.stderr == ""), result.output
    return result.stderr.strip()


def test_hold_is_released_by_holder_or_administrator(server):
    hold = "endpoint hold flights --why case"
    for user in ("alice", "admin"):
        with server.logged_in("alice"):
            assert run(hold) == ""
        with server.logged_in("bob"):
            refused = run(f"{hold} --release")
        assert mentions(refused, "only an administrator or alice", "release endpoint flights")
        with server.logged_in(user):
            assert run(f"{hold} --release") == ""


def test_requirement_is_removed_only_by_an_administrator(server, new_database, tmp_path):
    update = "endpoint update flights -C require="
    removals = (update, f"{update}gate=passed", f"{update}gate=passed,signature=/b.pub")
    for removal in removals:
        assert mentions(run(removal), "only an administrator", "requirement of flights")
    assert run(f"{update}gate=passed,name=true,signature=/a.pub") == ""
    with tracking_at(new_database(tmp_path)):
        assert mentions(run(update), "only an administrator", "MLFLOW_TRACKING_URI")
    with server.logged_in("admin"):
        assert run(update) == ""
