"""The jobs process: the ends of jobs, buckets, and signed callbacks."""

import base64
import hashlib
import hmac
import json

import boto3
import pytest

from mlflow_deploy_plugin.core.spec.parts import JobsSpec, ServerSpec
from mlflow_deploy_plugin.serve.inference.jobs import accept_job, find_job, read_request
from mlflow_deploy_plugin.ship.batch.jobs import run_jobs
from tests.support.refusals import mentions
from tests.support.servers import variant, write_spec
from tests.support.services.listener import answering
from tests.support.services.s3 import s3_server

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


def ran(job):
    """Run the jobs, and return how the job ended."""
    run_jobs(job.folder.parents[1])
    return find_job(job.folder.parents[1], "e", job.folder.name).state


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
        "signature": accept(rows, variant=variant("/gone", digest="0")),
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
def test_cancelled_and_running_jobs_with_callbacks(accept, rows, monkeypatch):
    calls = []

    def answer(request, body):
        calls.append((request.headers, body))
        return 200, "text/plain", ""

    monkeypatch.setenv("ONNXSERVE_CALLBACK_SECRET", "secret")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http")
    with answering(answer) as url:
        monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
        cancelled = accept(rows, callback=url)
        cancelled.cancel_mark.touch()
        assert ran(cancelled).state == "cancelled"
        assert ran(accept(rows, callback=url)).state == "succeeded"
        monkeypatch.delenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS")
        monkeypatch.setattr("mlflow_deploy_plugin.ship.batch.jobs._PAUSE_SECONDS", 0)
        assert ran(accept(rows, callback=url)).calls_left == 0
    states = []
    for headers, body in calls:
        signed = f"{headers['X-MLflow-Delivery-Id']}.{headers['X-MLflow-Timestamp']}.".encode()
        digest = hmac.digest(b"secret", signed + body, hashlib.sha256)
        assert headers["X-MLflow-Signature"] == f"v1,{base64.b64encode(digest).decode()}"
        states.append(json.loads(body)["data"]["state"])
    assert states == ["cancelled", "succeeded"]


@pytest.mark.long
def test_job_reads_and_writes_buckets(accept, rows, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    with s3_server() as bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
        client = boto3.session.Session().client("s3")
        for part in "ab":
            client.put_object(Bucket="lake", Key=f"in/{part}.csv", Body=rows)
        state = ran(accept(input="s3://lake/in", output="s3://lake/out", format="jsonl"))
        assert (state.state, state.rows, state.parts_done, state.parts) == ("succeeded", 6, 2, 2)
        assert bucket.objects["lake/out/b.jsonl"].count(b"\n") == 3
        assert (
            json.loads(bucket.objects["lake/out/_batch.json"])["model"]["source"] == "models:/m/1"
        )
        gone = ran(accept(input="s3://lake/nix.csv", output="s3://lake/nix"))
        assert (gone.state, mentions(gone.error, "s3://lake/nix.csv")) == ("failed", True)
