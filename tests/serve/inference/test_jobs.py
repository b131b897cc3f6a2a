"""The limits of batch jobs, and their folders in the state folder."""

import os
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import BodyTooLarge, InvalidRequest, NotFound, TooManyRequests
from mlflow_deploy_plugin.core.spec.parts import JobsSpec
from mlflow_deploy_plugin.serve.inference.jobs import (
    STATE,
    accept_job,
    delete_old_jobs,
    find_job,
    has_work,
    read_jobs,
    read_request,
)
from tests.support.refusals import refused

SPEC = JobsSpec(max_jobs=2, max_upload_bytes=1024, uris=("s3://lake/in/", "s3://lake/out/"))
JOB = {
    "endpoint": "e",
    "variant": {"model_uri": "models:/m/1", "model": "m", "version": "1", "folder": Path("/m")},
    "input": "s3://lake/in/rows.csv",
    "output": "s3://lake/out/1",
}


REQUEST = read_request(SPEC, JOB, is_upload=False)


def end(job):
    (job.folder / STATE).write_text('{"state": "succeeded"}')


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input", "file:///etc/passwd"),
        ("input", "/etc/passwd"),
        ("input", "s3://lake/in/../secret/rows.csv"),
        ("input", ["s3://lake/in/rows.csv"]),
        ("output", "s3://lake/other"),
        ("output", ""),
        ("callback", "file:///etc/passwd"),
        ("callback", "https://example.com/"),  # The server has no secret.
        ("on_error", "skip-part"),
        ("pages", 1),
    ],
)
def test_option_is_refused(name, value):
    with refused(InvalidRequest, name):
        read_request(SPEC, {**JOB, name: value}, is_upload=False)


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/",
        "https://127.0.0.1:8443/",
        "https://2130706433/",
        "https://0177.0.0.1/",
        "https://0.0.0.0/",
        "https://10.0.0.1/",
        "https://100.64.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1]/",
        "https://[fd00:ec2::254]/",
        "https://[fec0::1]/",
        "https://[::127.0.0.1]/",
        "https://[64:ff9b::127.0.0.1]/",
        "https://[64:ff9b:1::127.0.0.1]/",
        "https://[2002:7f00:1::]/",
        "https://224.0.0.1/",
        "https://[ff0e::1]/",
        "https://[::1/",
        "https://no.such.host.invalid/",
    ],
)
def test_callback_to_private_address_is_refused(monkeypatch, url):
    monkeypatch.setenv("ONNXSERVE_CALLBACK_SECRET", "secret")
    monkeypatch.delenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", raising=False)
    request = {**JOB, "callback": url}
    with refused(InvalidRequest, "callback"):
        read_request(SPEC, request, is_upload=False)
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    assert read_request(SPEC, request, is_upload=False).callback == url


@pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700::1111]", "[64:ff9b::8.8.8.8]"])
def test_callback_to_public_address_is_accepted(monkeypatch, host):
    monkeypatch.setenv("ONNXSERVE_CALLBACK_SECRET", "secret")
    url = f"https://{host}/x"
    assert read_request(SPEC, {**JOB, "callback": url}, is_upload=False).callback == url


def test_caller_has_a_share_of_the_jobs(tmp_path):
    spec = SPEC.model_copy(update={"max_jobs": 4})
    requests = {caller: REQUEST.model_copy(update={"caller": caller}) for caller in ("a", "b", "")}
    for caller in "aabb":
        accept_job(tmp_path, spec, requests[caller])
    spec = SPEC.model_copy(update={"max_jobs": 8, "key_share": 0.25})
    with refused(TooManyRequests, "25%"):
        accept_job(tmp_path, spec, requests["a"])
    for _ in range(4):  # A server without authentication has no callers.
        accept_job(tmp_path, spec, requests[""])


def test_empty_upload_is_refused(tmp_path):
    with refused(InvalidRequest, "empty"):
        accept_job(tmp_path, SPEC, REQUEST.model_copy(update={"input": "input.csv"}), [b""])
    assert read_jobs(tmp_path) == []


def test_jobs_are_bounded_until_they_end(tmp_path):
    first, second = (accept_job(tmp_path, SPEC, REQUEST) for _ in range(2))
    with pytest.raises(TooManyRequests) as refusal:
        accept_job(tmp_path, SPEC, REQUEST)
    assert refusal.value.retry_after
    with pytest.raises(BodyTooLarge):
        accept_job(tmp_path, SPEC, REQUEST.model_copy(update={"input": "a"}), [b"0" * 1025])
    second.cancel_mark.touch()
    with pytest.raises(TooManyRequests):  # Otherwise cancelled uploads would fill the disk.
        accept_job(tmp_path, SPEC, REQUEST)
    assert [job.document["state"] for job in read_jobs(tmp_path)] == ["queued", "cancelled"]
    end(first)
    accept_job(tmp_path, SPEC, REQUEST)


@pytest.mark.parametrize("name", ["", ".", "../jobs/{}", "{}/", "{}\0", "a" * 300, "\udcff" * 32])
def test_job_has_no_other_name(tmp_path, name):
    job = accept_job(tmp_path, SPEC, REQUEST).folder.name
    assert find_job(tmp_path, "e", job).request == REQUEST
    for endpoint, unknown in (("f", job), ("e", name.format(job))):
        with pytest.raises(NotFound):
            find_job(tmp_path, endpoint, unknown)


def test_ended_jobs_are_kept_by_age_and_size(tmp_path):
    old, large, small = (
        accept_job(tmp_path, SPEC.model_copy(update={"max_jobs": 3}), REQUEST) for _ in range(3)
    )
    for job in (old, large, small):
        end(job)
    assert not has_work(tmp_path, SPEC)
    (large.folder / "output").write_bytes(b"0" * 2**20)
    os.utime(old.folder, (0, 0))
    assert has_work(tmp_path, SPEC)
    delete_old_jobs(tmp_path, SPEC)
    assert [job.folder for job in read_jobs(tmp_path)] == [large.folder, small.folder]
    delete_old_jobs(tmp_path, SPEC.model_copy(update={"max_kept_bytes": 2**20}))
    assert [job.folder for job in read_jobs(tmp_path)] == [small.folder]


def test_quick_jobs_leave_results_of_others(tmp_path, monkeypatch):
    spec = SPEC.model_copy(update={"max_jobs": 100})
    for caller in "abbbbbb":
        end(accept_job(tmp_path, spec, REQUEST.model_copy(update={"caller": caller})))
    oldest, *_, newest = read_jobs(tmp_path)
    (newest.folder / "output").write_bytes(b"0" * 2**20)
    monkeypatch.setattr("mlflow_deploy_plugin.serve.inference.jobs._MOST_KEPT", 3)
    delete_old_jobs(tmp_path, spec)
    assert [job.request.caller for job in read_jobs(tmp_path)] == ["a", "b", "b"]
    delete_old_jobs(tmp_path, spec.model_copy(update={"max_kept_bytes": 2**20}))
    assert [job.folder for job in read_jobs(tmp_path)] == [oldest.folder]


def test_interrupted_deletion_leaves_no_job(tmp_path, monkeypatch):
    job = accept_job(tmp_path, SPEC, REQUEST)
    end(job)
    os.utime(job.folder, (0, 0))
    monkeypatch.setattr("shutil.rmtree", lambda folder: (folder / STATE).unlink())
    delete_old_jobs(tmp_path, SPEC)
    assert read_jobs(tmp_path) == []
