"""Workers remember their last requests, and share them in files."""

from contextlib import closing, contextmanager

import pytest

from mlflow_deploy_plugin.core.errors import NotFound, SchemaMismatch
from mlflow_deploy_plugin.serve.observability.recent_requests import RecentRequests
from tests.support.waiting import wait_until

ANSWERED = 200, "e", "v", "1", "invocations"
FAILED = 400, "e", "v", "1", "invocations"
REFUSED = 404, "", "", "", "invocations"
KEY = "onnxserve_" + "k" * 43


@contextmanager
def opened(folder, number=0):
    with closing(RecentRequests(folder, number)) as recent:
        yield recent


@pytest.fixture
def worker(tmp_path):
    with opened(tmp_path) as recent:
        yield recent


def statuses(requests):
    return [origin[0] for origin, *_ in requests]


def test_newest_request_is_first(worker):
    # A plan appends directly.
    worker.ring(ANSWERED).append((ANSWERED, 1_000_000, 0.001, 1, "p1", "", ""))
    worker.add(FAILED, 0.25, 0, "p2", SchemaMismatch("column 'a', row 0: 'far'"))
    newest, oldest = worker.read()
    assert newest[0] == FAILED
    assert newest[2] == 0.25
    assert newest[4] == "p2"
    assert oldest == (ANSWERED, 1_000_000, 0.001, 1, "p1", "", "")


def test_flood_of_one_status_is_bounded(worker):
    worker.add(ANSWERED, 0.001, 1, "p", None)
    for _ in range(10_000):
        worker.add(REFUSED, 0.001, 0, "", None)
    seen = statuses(worker.read())
    assert seen.count(200) == 1
    assert len(seen) < 100


def test_message_before_selection_may_quote_values(worker):
    worker.add(FAILED, 0.001, 0, "", SchemaMismatch("column 'a', row 0: 'far'"))
    worker.add(REFUSED, 0.001, 0, "", NotFound(f"endpoint '{KEY}' does not exist\n" + "x" * 1000))
    (*_, code, refused), (*_, withheld) = sorted(worker.read(), reverse=True)
    assert withheld == ""
    assert code == NotFound.error_code
    assert "does not exist" in refused
    assert KEY not in refused
    assert len(refused) <= 200


def test_requests_of_other_workers_are_read(worker, tmp_path):
    worker.add(ANSWERED, 0.001, 1, "p", None)
    worker.write()
    with opened(tmp_path, 1) as other:
        assert other.read() == worker.read()
        # A file that cannot be read hides nothing else.
        (tmp_path / "requests_0.json").write_bytes(b"[[[200, ")
        other.add(ANSWERED, 0.001, 1, "q", None)
        assert [prediction_id for *_, prediction_id, _, _ in other.read()] == ["q"]


def test_replacing_worker_keeps_the_requests(tmp_path):
    with opened(tmp_path) as dead:
        for number in range(200):
            dead.add(ANSWERED, 0.001, 1, f"p{number}", None)
        dead.write()
        before = dead.read()
    with opened(tmp_path) as replacing:
        assert sorted(replacing.read()) == sorted(before)
        replacing.add(ANSWERED, 0.0, 1, "new", None)
        assert replacing.read()[0][4] == "new"
        assert len(replacing.read()) == len(before)


def test_last_requests_are_written_at_the_end(tmp_path):
    (tmp_path / "metrics").mkdir()
    with opened(tmp_path / "metrics") as ending:
        ending.add(ANSWERED, 0.001, 1, "last", None)
    with opened(tmp_path / "metrics", 1) as other:
        assert [prediction_id for *_, prediction_id, _, _ in other.read()] == ["last"]


def test_file_is_bounded_and_written_on_change(worker, tmp_path):
    for endpoint in range(200):
        for _ in range(50):
            worker.add((200, f"e{endpoint}", "v", "1", "invocations"), 0.001, 1, "p" * 32, None)
    worker.write()
    file = tmp_path / "requests_0.json"
    assert file.stat().st_size < 300_000
    file.unlink()
    worker.write()
    assert not file.exists()


def test_requests_to_deleted_endpoints_are_forgotten(worker):
    for endpoint in ("e", "f", ""):
        worker.add((200, endpoint, "v", "1", "invocations"), 0.001, 1, "p", None)
    worker.follow(["e"])  # Endpoints are loaded one after the other: f was never served.
    worker.follow(["e", "f"])
    assert len(worker.read()) == 3
    worker.follow(["f"])
    assert sorted(origin[1] for origin, *_ in worker.read()) == ["", "f"]


def test_removed_folder_is_not_recreated(tmp_path):
    with opened(tmp_path / "removed") as worker:
        worker.add(ANSWERED, 0.001, 1, "p", None)
        worker.write()
    assert not (tmp_path / "removed").exists()


def test_thread_writes_requests(worker, tmp_path):
    worker.add(ANSWERED, 0.001, 1, "p", None)
    with opened(tmp_path, 1) as other:
        wait_until(lambda: other.read() == worker.read(), what="the file of the first worker")
