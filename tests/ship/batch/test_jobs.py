"""The jobs process: the ends of jobs, buckets, and signed callbacks."""

import base64
import hashlib
import hmac
import json
import signal
import subprocess
import sys

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.core.spec.parts import JobsSpec, ServerSpec
from mlflow_deploy_plugin.serve.inference.jobs import STATE, accept_job, find_job, read_request
from mlflow_deploy_plugin.ship.batch.jobs import run_jobs
from tests.support.models import write_pyfunc
from tests.support.refusals import mentions
from tests.support.servers import variant, write_spec
from tests.support.services.listener import answering

from .conftest import flights, write

SPEC = JobsSpec(uris=("s3://lake/",))


@pytest.fixture
def accept(tmp_path, model):
    """Accepts a job of a file, or of URIs."""
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    write_spec(state_dir, "e", ServerSpec(jobs=SPEC))
    job = {"endpoint": "e", "variant": variant(model), "input": "input.csv", "output": ""}

    def accept(content=None, **options):
        request = read_request(SPEC, {**job, **options}, is_upload=bool(content))
        return accept_job(state_dir, SPEC, request, [content] if content else None)

    return accept


def ran(job, **limits):
    """Run the jobs, and return how the job ended."""
    run_jobs(job.folder.parents[1], SPEC.model_copy(update=limits))
    return find_job(job.folder.parents[1], "e", job.folder.name).state


def ran_apart(job, **limits):
    """Run the jobs in a process as a server does. Return its status, and how the job
    ended.
    """
    state_dir = job.folder.parents[1]
    write_spec(state_dir, "e", ServerSpec(jobs=SPEC.model_copy(update=limits)))
    command = [sys.executable, "-m", "mlflow_deploy_plugin.ship.batch.jobs", str(state_dir)]
    status = subprocess.run(command, check=False).returncode
    return status, find_job(state_dir, "e", job.folder.name).state


@pytest.fixture
def callbacks(monkeypatch):
    """Allow callbacks to this machine, and repeat them at once."""
    monkeypatch.setenv("ONNXSERVE_CALLBACK_SECRET", "secret")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    monkeypatch.setattr("mlflow_deploy_plugin.ship.batch.jobs._PAUSE_SECONDS", 0)


@pytest.fixture
def rows(tmp_path):
    return write(flights(3), tmp_path / "rows.csv").read_bytes()


@pytest.mark.long
def test_failed_jobs_have_reasons_without_folders(accept, rows):
    jobs = {
        "input.csv": accept(rows),
        "nix": accept(rows, keep=["nix"]),
        "row 3": accept(rows + b"x"),
        "input.parquet": accept(rows, input="input.parquet"),
        "model's files": accept(rows, variant=variant("/gone")),
        "files": accept(rows, variant=variant("/gone", digest="0")),
    }
    (jobs["input.csv"].folder / "input.csv").unlink()
    for words, job in jobs.items():
        state = ran(job)
        assert state.state == "failed"
        assert mentions(state.error, words)
        assert "/" not in state.error
    skipping = ran(accept(rows + b"x", on_error="skip-row"))
    assert (skipping.state, skipping.rows, skipping.rejected) == ("succeeded", 3, 1)


@pytest.mark.long
def test_cancelled_and_running_jobs_with_callbacks(accept, rows, callbacks, monkeypatch):
    calls = []

    def answer(request, body):
        calls.append((request.headers, body))
        return 200, "text/plain", ""

    with answering(answer) as url:
        cancelled = accept(rows, callback=url)
        cancelled.cancel_mark.touch()
        assert ran(cancelled).state == "cancelled"
        assert ran(accept(rows, callback=url)).state == "succeeded"
        refused = accept(rows, callback=url)
        monkeypatch.delenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS")
        assert ran(refused).calls_left == 0
    states = []
    for headers, body in calls:
        signed = f"{headers['X-MLflow-Delivery-Id']}.{headers['X-MLflow-Timestamp']}.".encode()
        digest = hmac.digest(b"secret", signed + body, hashlib.sha256)
        assert headers["X-MLflow-Signature"] == f"v1,{base64.b64encode(digest).decode()}"
        states.append(json.loads(body)["data"]["state"])
    assert states == ["cancelled", "succeeded"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("limits", "rows", "name"),
    [
        ({"max_rows": 2}, b"", "max_rows"),
        ({"max_rows": 3}, b"x\n", "max_rows"),
        ({"timeout": "0s"}, b"", "timeout"),
    ],
)
def test_job_ends_at_its_limit(accept, tmp_path, limits, rows, name):
    valid = write(flights(3), tmp_path / "rows.csv").read_bytes()
    state = ran(accept(valid + rows, on_error="skip-row"), **limits)
    assert state.state == "failed"
    assert mentions(state.error, f"server.jobs.{name}")


@pytest.mark.long
@pytest.mark.parametrize(
    ("count", "limit"),
    [(1000, {"max_file_bytes": 2**20}), (2**16, {"max_memory": "512MiB"})],
)
def test_files_and_memory_of_a_job_are_bounded(accept, tmp_path, count, limit):
    row = {"carrier": "AA", "distance": 1.0, "hour": 1, "late": True, "id": "x" * 10_000}
    table = pa.table({name: pa.repeat(pa.scalar(value), count) for name, value in row.items()})
    pq.write_table(table, tmp_path / "bomb.parquet", compression="zstd")
    bomb = (tmp_path / "bomb.parquet").read_bytes()
    assert len(bomb) < 100_000
    job = accept(bomb, input="input.parquet", keep=["id"], format="csv")
    status, state = ran_apart(job, **limit)
    assert (status, state.state) == (0, "failed")
    assert mentions(state.error, *limit)
    assert not [*(job.folder / "output").glob("*input*")]


@pytest.mark.long
def test_job_that_kills_its_process_ends(accept, rows, tmp_path):
    code = "import os\n\ndef _load_pyfunc(path):\n    os.kill(os.getppid(), 9)\n"
    model = write_pyfunc(tmp_path / "killer", "killer", code)
    job = accept(rows, variant=variant(model))
    for attempt in (1, 2):
        status, state = ran_apart(job)
        assert (status, state.attempts) == (-signal.SIGKILL, attempt)
    (job.folder / STATE).write_text(state.model_copy(update={"attempts": 5}).model_dump_json())
    state = ran(job)
    assert state.state == "failed"
    assert mentions(state.error, "5 times")


@pytest.mark.long
def test_server_restart_uses_no_attempt(accept, rows, tmp_path):
    code = "import os\n\ndef _load_pyfunc(path):\n    os.kill(os.getppid(), 15)\n"
    model = write_pyfunc(tmp_path / "ended", "ended", code)
    status, state = ran_apart(accept(rows, variant=variant(model)))
    assert (status, state.state, state.attempts) == (0, "queued", 0)


@pytest.mark.long
def test_callback_is_not_redirected(accept, rows, callbacks):
    paths = []

    def answer(request, body):
        paths.append(request.path)
        return 307, "text/plain", "", ("Location", "/else")

    with answering(answer) as url:
        assert ran(accept(rows, callback=f"{url}/to")).calls_left == 0
    assert set(paths) == {"/to"}


@pytest.mark.long
def test_job_reads_and_writes_buckets(accept, rows, bucket):
    client = boto3.session.Session().client("s3")
    for part in "ab":
        client.put_object(Bucket="lake", Key=f"in/{part}.csv", Body=rows)
    state = ran(accept(input="s3://lake/in", output="s3://lake/out", format="jsonl"))
    assert (state.state, state.rows, state.parts_done, state.parts) == ("succeeded", 6, 2, 2)
    assert bucket.objects["lake/out/b.jsonl"].count(b"\n") == 3
    assert json.loads(bucket.objects["lake/out/_batch.json"])["model"]["source"] == "models:/m/1"
    gone = ran(accept(input="s3://lake/nix.csv", output="s3://lake/nix"))
    assert (gone.state, mentions(gone.error, "s3://lake/nix.csv")) == ("failed", True)
