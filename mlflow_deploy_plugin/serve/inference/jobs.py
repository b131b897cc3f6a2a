"""Batch jobs of callers, as folders `jobs/ID/` of the state folder.

A worker writes the upload, the request and the mark of a cancelled job. The process of
`ship/batch/jobs.py` writes the state and the predictions, and deletes old jobs.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from socket import getaddrinfo
from typing import Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, ValidationError

from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    InvalidRequest,
    NotFound,
    NotReady,
    TooManyRequests,
)
from mlflow_deploy_plugin.core.mlmodel import folder_bytes
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import field_problem
from mlflow_deploy_plugin.core.spec.parts import JobsSpec
from mlflow_deploy_plugin.core.spec.types import HTTP_URL, ListOf, duration_seconds
from mlflow_deploy_plugin.core.statedir.files import locked, read_state, write_state
from mlflow_deploy_plugin.core.statedir.models import State, WantedVariant

STATE = "state.json"
_REQUEST = "request.json"
_RETRY_SECONDS = 30
_UPLOAD_SECONDS = 86400.0
_MOST_KEPT = 200
_NAME_LENGTH = 32
_NAT64 = IPv6Network("64:ff9b::/96")
_UNICAST = IPv6Network("2000::/3")
"""The only addresses of IPv6 that are assigned to hosts of the Internet."""


class JobRequest(State):
    """A job that a worker has accepted. The options are those of `BatchPlan`.

    Attributes:
        variant: the version that was served then.
        input: a URI, or the name of the upload in the job's folder.
        output: a URI; empty for an upload.
        callback: the URL that is called at the end.
        caller: the name of the caller's key; empty without authentication.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str
    variant: WantedVariant
    input: str = ""
    output: str = ""
    keep: ListOf[str] = ()
    format: Literal["csv", "jsonl", "parquet"] | None = None
    on_error: Literal["fail", "skip-row"] = "fail"
    callback: str | None = Field(default=None, pattern=HTTP_URL)
    caller: str = ""


class JobState(State):
    """The state of a job. `rows` may be too low after a restart, `error` is the reason
    of a failure, `calls_left` the attempts for the callback, and `attempts` how often
    the job was started.
    """

    state: Literal["queued", "running", "succeeded", "failed", "cancelled"] = "queued"
    rows: int = 0
    rejected: int = 0
    parts: int = 0
    parts_done: int = 0
    error: str = ""
    calls_left: int = 5
    attempts: int = 0


@dataclass(frozen=True)
class Job:
    folder: Path
    request: JobRequest
    state: JobState

    @property
    def is_ended(self) -> bool:
        return self.state.state not in ("queued", "running")

    @property
    def is_due(self) -> bool:
        """True if the job must run, or its callback must be sent."""
        return not self.is_ended or bool(self.request.callback and self.state.calls_left)

    def is_old(self, spec: JobsSpec) -> bool:
        return time.time() - self.folder.stat().st_mtime > duration_seconds(spec.keep)

    @property
    def cancel_mark(self) -> Path:
        """The file that a worker creates to cancel the job."""
        return self.folder / "cancel"

    @property
    def document(self) -> dict[str, object]:
        """The job for its caller. A cancelled job has ended for the caller before the
        process of the jobs has written its state.
        """
        document = self.state.model_dump(exclude={"calls_left", "attempts"})
        if not self.is_ended and self.cancel_mark.exists():
            document["state"] = "cancelled"
        version = self.request.variant.version
        return {"id": self.folder.name, **document, "version": version}


def read_jobs(state_dir: Path) -> list[Job]:
    """Return the accepted jobs, oldest first."""
    return [*filter(None, map(_read_job, sorted(state_dir.glob("jobs/[!.]*"))))]


def _read_job(folder: Path) -> Job | None:
    request = read_state(folder / _REQUEST, JobRequest)
    if request is None:
        return None
    return Job(folder, request, read_state(folder / STATE, JobState) or JobState())


def find_job(state_dir: Path, endpoint: str, name: str) -> Job:
    """Return a job of the endpoint. Raises NotFound."""
    if len(name) == _NAME_LENGTH and name.isalnum():  # A path is refused.
        job = _read_job(state_dir / "jobs" / name)
        if job is not None and job.request.endpoint == endpoint:
            return job
    raise NotFound(f"endpoint {endpoint[:100]!r} has no job {name[:100]!r}; old jobs are deleted")


def has_work(state_dir: Path, spec: JobsSpec) -> bool:
    """Return True if a job is due, or an old job must be deleted."""
    return any(job.is_due or job.is_old(spec) for job in read_jobs(state_dir))


def delete_old_jobs(state_dir: Path, spec: JobsSpec) -> None:
    """Delete the jobs that ended too long ago, then the oldest jobs of the callers who
    have the most above the limits, and the uploads of killed workers.
    """
    ended = [job for job in read_jobs(state_dir) if not job.is_due]
    deleted = [job for job in ended if job.is_old(spec)]
    kept = [job for job in ended if job not in deleted]
    totals = Counter[str]()
    sizes = {}
    for job in kept:
        # So that at most `_MOST_KEPT` small jobs are kept.
        sizes[job.folder] = max(folder_bytes(job.folder), spec.max_kept_bytes // _MOST_KEPT)
        totals[job.request.caller] += sizes[job.folder]
    while totals.total() > spec.max_kept_bytes:
        ((caller, _),) = totals.most_common(1)
        oldest = next(job for job in kept if job.request.caller == caller)
        kept.remove(oldest)
        deleted.append(oldest)
        totals[caller] -= sizes[oldest.folder]
    for job in deleted:
        # A job whose state was deleted first would run again after a crash.
        shutil.rmtree(job.folder.rename(job.folder.with_name(f".{job.folder.name}")))
    for left in state_dir.glob("jobs/.*/"):
        if time.time() - left.stat().st_mtime > _UPLOAD_SECONDS:
            shutil.rmtree(left)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return True for an address of a host of the Internet. Of the IPv6 addresses that
    contain an IPv4 address, only those of NAT64 are allowed.
    """
    if address in _NAT64:
        address = IPv4Address(int(address) & 0xFFFFFFFF)
    if isinstance(address, IPv6Address) and (address not in _UNICAST or address.sixtofour):
        return False
    return address.is_global and not address.is_multicast


def read_request(spec: JobsSpec, fields: Mapping[str, object], is_upload: bool) -> JobRequest:
    """Return the request with these fields. Raises InvalidRequest, also if an address
    is not allowed.
    """
    try:
        request = JobRequest.model_validate(fields)
    except ValidationError as error:
        problem = field_problem(error, JobRequest.model_fields)
        raise InvalidRequest(f"the job: {problem[:500]}") from None
    if request.callback and not load_settings().callback_secret:
        raise InvalidRequest(
            "the job's callback: this server cannot sign it, because ONNXSERVE_CALLBACK_SECRET is "
            "not set; poll the job instead"
        )
    may_be_private = os.environ.get("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "").lower()
    if request.callback and may_be_private not in ("true", "1"):
        # This check is for the caller. MLflow checks the address to which it connects.
        try:
            found = getaddrinfo(urlsplit(request.callback).hostname, None)
            are_public = all(is_public(ip_address(entry[4][0])) for entry in found)
        except (OSError, ValueError):
            are_public = False
        if not are_public:
            raise InvalidRequest(
                "the job's callback is not an https:// address whose host is public; the operator "
                "of the server can allow private hosts with MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true"
            )
    for name in () if is_upload else ("input", "output"):
        uri = getattr(request, name)
        if ".." in uri or not uri.startswith(spec.uris):
            raise InvalidRequest(
                f"the job's {name} {uri[:200]!r} is not below an address of server.jobs.uris, "
                f"which are {' and '.join(spec.uris) or 'none, so upload the file'}"
            )
    return request


def accept_job(
    state_dir: Path, spec: JobsSpec, request: JobRequest, upload: Iterable[bytes] | None = None
) -> Job:
    """Store a job, and return it. `upload` is the content of the file `input`; None for
    URIs. Raises TooManyRequests, BodyTooLarge, InvalidRequest for an empty file, and
    NotReady if the disk is full.
    """
    # The jobs are sorted by their names.
    folder = state_dir / "jobs" / f"{time.time_ns():016x}{os.urandom(8).hex()}"
    hidden = folder.with_name(f".{folder.name}")
    try:
        hidden.mkdir(parents=True)
        if upload is not None:
            with (hidden / request.input).open("wb") as file:
                for piece in upload:
                    file.write(piece)
                    if file.tell() > spec.max_upload_bytes:
                        raise BodyTooLarge(
                            "the file is larger than this server's server.jobs.max_upload_bytes, "
                            f"{spec.max_upload_bytes}"
                        )
                if not file.tell():
                    raise InvalidRequest("the body is empty: send the file with the rows")
        write_state(hidden / _REQUEST, request)
        with locked(state_dir / "jobs" / ".lock"):
            callers = [job.request.caller for job in read_jobs(state_dir) if not job.is_ended]
            # Without authentication, all callers together have the complete queue.
            of_caller = callers.count(request.caller) if request.caller else 0
            if len(callers) >= spec.max_jobs or of_caller >= max(1, spec.max_jobs * spec.key_share):
                raise TooManyRequests(
                    f"at most {spec.max_jobs} jobs of this server wait or run, of which one caller "
                    f"may have {spec.key_share:.0%}; retry later",
                    _RETRY_SECONDS,
                )
            hidden.rename(folder)
    except OSError as error:
        raise NotReady(f"the job cannot be stored: {error.strerror}", _RETRY_SECONDS) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return Job(folder, request, JobState())
