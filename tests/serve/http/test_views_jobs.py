"""Batch jobs over HTTP, with a real server and its jobs process."""

import signal

import pytest
import requests

from tests.support.refusals import mentions
from tests.support.servers import single_model
from tests.support.waiting import EXPLAINER_SECONDS, wait_until

CSV = {"Content-Type": "text/csv"}
ROWS = "a,b,c\n" + "1,2,3\n" * 300 + "1,2,x\n"
OPTIONS = ("-n", "e", "-C", "server.max_body_bytes=1024", "-C", "server.jobs.max_upload_bytes=4096")


@pytest.fixture
def start(serve, tmp_path):
    model = single_model(tmp_path / "model", bias=0.5)
    return lambda: serve(str(model), *OPTIONS).wait_ready()


def post(served, data=ROWS, headers=CSV, query=""):
    return requests.post(
        f"{served.url}/endpoints/e/jobs{query}", data=data, headers=headers, timeout=30
    )


def state_of(job):
    return requests.get(job, timeout=30).json()["state"]


@pytest.mark.long
@pytest.mark.timeout(3 * EXPLAINER_SECONDS)  # A job has a low priority.
def test_uploads_are_predicted_refused_or_cancelled(start):
    served = start()
    accepted = post(
        served, query="?keep=a&on_error=skip-row"
    )  # is larger than server.max_body_bytes
    assert accepted.status_code == 202
    assert accepted.json()["state"] == "queued"
    job = served.url + accepted.headers["Location"]
    cancelled = served.url + post(served, "a,b,c\n").headers["Location"]
    for _ in range(2):
        assert requests.delete(cancelled, timeout=30).json()["state"] == "cancelled"
    wait_until(lambda: state_of(job) == "succeeded", EXPLAINER_SECONDS, "the job")
    assert requests.get(job, timeout=30).json()["rows"] == 300
    result = requests.get(f"{job}/result", timeout=30)
    assert result.headers["Content-Type"] == "text/csv"
    assert result.text.splitlines()[:2] == ['"a","prediction"', '"1",6.5']
    assert '"row":300' in requests.get(f"{job}/result?rejected=true", timeout=30).text
    assert requests.head(f"{job}/result", timeout=30).ok
    failed = served.url + post(served).headers["Location"]
    wait_until(lambda: state_of(failed) == "failed", EXPLAINER_SECONDS, "the job")
    assert mentions(requests.get(f"{failed}/result", timeout=30).json()["message"], "'x'", "300")
    for status, response in [
        (404, requests.get(f"{cancelled}/result", timeout=30)),
        (404, requests.get(f"{job[:-1]}x", timeout=30)),
        (404, requests.get(job.replace("/e/", "/f/"), timeout=30)),
        (405, requests.put(job, timeout=30)),
        (413, post(served, ROWS * 3)),
        (415, post(served, "a", headers={})),
        (400, post(served, query="?page=1")),
    ]:
        assert response.status_code == status, response.text


@pytest.mark.long
def test_job_continues_after_restart(start):
    served = start()
    path = post(served, query="?on_error=skip-row").headers["Location"]
    served.end(signal.SIGKILL)
    served = start()
    wait_until(lambda: state_of(served.url + path) == "succeeded", EXPLAINER_SECONDS, "the job")
