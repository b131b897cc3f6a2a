"""A complete batch: resolve the model to one version, predict the missing parts, and
write `_SUCCESS`.

Processes on this machine or Spark predict the parts. A part is always a file, so a
batch can continue on either engine.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.extensions import BATCH, find_entry
from mlflow_deploy_plugin.core.mlmodel import hash_folder
from mlflow_deploy_plugin.core.processes.worker import ProcessCrashed, Worker, WorkerPool
from mlflow_deploy_plugin.core.registry.model_files import download
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, resolve
from mlflow_deploy_plugin.core.registry.runs import LoggedRun, get_or_create_experiment, log_run
from mlflow_deploy_plugin.core.settings import absolute_path
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.serve.runtime.session import available_cores
from mlflow_deploy_plugin.ship.batch.manifest import MANIFEST, BatchOutput, Manifest, list_parts
from mlflow_deploy_plugin.ship.batch.part import (
    BatchPlan,
    Ended,
    Part,
    PartJob,
    PartResult,
    predict_part,
    write_progress,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LONGEST_PART_SECONDS = 20 * 86400.0  # poll(2) accepts at most 24 days.
_LOOK_SECONDS = 0.2
_DATASET_NAME_CHARACTERS = 250
_DATASET_DIGEST_CHARACTERS = 32


@dataclass(frozen=True)
class BatchProgress:
    """The progress of one call of `run_batch`.

    Attributes:
        parts: the number of parts to predict, without the parts of earlier calls.
        finished_before: the number of parts that earlier calls have finished.
        bytes: the size of all parts to predict.
    """

    rows: int
    rejected: int
    parts_done: int
    parts: int
    finished_before: int
    bytes_done: int
    bytes: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        return self.rows / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """The remaining seconds at the average speed; None if the speed is unknown."""
        if not self.bytes_done:
            return None
        return self.seconds * max(0, self.bytes - self.bytes_done) / self.bytes_done


@dataclass(frozen=True)
class BatchResult:
    """A batch that has ended. `failed` has the reason for each omitted part, by
    name.
    """

    model: ResolvedModel
    progress: BatchProgress
    failed: dict[str, str]
    run: LoggedRun | None = None


Report = Callable[[BatchProgress], None]


def run_batch(
    plan: BatchPlan,
    report: Report = lambda progress: None,
    served: ResolvedModel | None = None,
) -> BatchResult:
    """Predict every part of the input that has no output file yet.

    Args:
        plan: the model, the input, the output and the options of the batch.
        report: a function that receives the progress several times per second.
        served: the version of `plan.model_uri` with the folder of its files on this
            machine as the source; None to resolve and download the version.

    Raises InvalidConfig, NotFound, RegistryUnavailable, AlreadyExists if the output
    belongs to another batch, and OnnxserveError with the file and the row if a part
    failed. The same call then continues the batch.
    """
    plan = replace(plan, input=_absolute(plan.input), output=_absolute(plan.output))
    output = BatchOutput(plan.output)
    parts = list_parts(plan.input, plan.input_format, plan.output_format)
    output.refuse_overlap(plan.input)
    resolved = served or resolve(plan.model_uri)
    with output.claimed(), temporary_folder("onnxserve-batch-") as temporary:
        model = download(resolved.source, temporary)
        states = "".join(f"{part.name} {part.state}\n" for part in parts)
        manifest: Manifest = {
            "model": {
                "uri": resolved.model_uri,
                "name": resolved.name,
                "version": resolved.version,
                "source": resolved.model_uri if served else resolved.source,
                "digest": f"sha256:{hash_folder(model)}",
            },
            "input": plan.input,
            "input_digest": f"sha256:{hashlib.sha256(states.encode()).hexdigest()}",
            "keep": plan.keep,
            "on_error": plan.on_error,
            "format": plan.output_format,
            "input_format": plan.input_format,
            "parts": {part.name: {"output": part.output, "state": part.state} for part in parts},
        }
        finished = output.begin(manifest, plan.restart)
        tally = _Tally(plan, parts, finished, temporary / "progress", report)
        predict = predict_locally
        if plan.engine != "local":
            predict = find_entry(BATCH, plan.engine, "engine", ["local"])
        with predict(tally.jobs(model), plan.workers) as running:
            tally.follow(*running)
        result = BatchResult(resolved, tally.progress(), tally.failed)
        if not result.failed:
            output.finish(
                {
                    "model": manifest["model"],
                    "input_digest": manifest["input_digest"],
                    "parts": len(manifest["parts"]),
                    "last_call": {
                        "parts": result.progress.parts,
                        "rows": result.progress.rows,
                        "rejected": result.progress.rejected,
                    },
                }
            )
        if plan.experiment:
            return replace(result, run=_log_batch(plan, result, manifest))
        return result


@contextmanager
def predict_locally(
    jobs: Sequence[PartJob], workers: int | None
) -> Iterator[tuple[list[Future[None]], Ended]]:
    """Predict the parts in worker processes, which end when the calling process
    ends.
    """
    cores = workers or available_cores()
    count = max(1, min(cores, len(jobs)))
    threads = max(1, cores // count)
    pool = WorkerPool([Worker(partial(_prepare, threads)) for _ in range(count)])
    ended: list[tuple[int, PartResult | OnnxserveError]] = []

    def predict(job: PartJob) -> None:
        job = replace(job, threads=threads)
        result: PartResult | OnnxserveError
        try:
            result = pool.call(predict_part, job, seconds=_LONGEST_PART_SECONDS)
        except ProcessCrashed as error:
            result = OnnxserveError(f"{job.part.name}: {error.message}")
        except OnnxserveError as error:
            result = error
        ended.append((job.number, result))

    executor = ThreadPoolExecutor(count)
    try:
        yield [executor.submit(predict, job) for job in jobs], lambda: ended
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        pool.end()
        executor.shutdown()


def _prepare(threads: int) -> None:
    """Limit the threads of libraries of pyfuncs (torch, boosters), and hide the
    tracebacks of refused rows.
    """
    if threads < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    logging.getLogger("mlflow_deploy_plugin.serve.pyfunc.scorer").setLevel(logging.CRITICAL)


class _Tally:
    """The results of the parts that have no output file yet."""

    def __init__(
        self,
        plan: BatchPlan,
        parts: Sequence[Part],
        finished: set[str],
        slots: Path,
        report: Report,
    ) -> None:
        waiting = [part for part in parts if part.output not in finished]
        # Large parts are first, so that all cores are busy until the end.
        self._parts = sorted(waiting, key=lambda part: -part.size)
        self._finished_before = len(parts) - len(waiting)
        self._plan = plan
        self._slots = str(slots)
        np.zeros((len(waiting), 3), np.int64).tofile(slots)
        self._report = report
        self._begun = time.monotonic()
        self._done = 0
        self.failed: dict[str, str] = {}

    def jobs(self, model: Path) -> list[PartJob]:
        return [
            PartJob(self._plan, part, model, progress=self._slots, number=number)
            for number, part in enumerate(self._parts)
        ]

    def follow(self, running: Collection[Future[None]], ended: Ended) -> None:
        """Wait until each part has ended. Raises the error of a failed part, and
        OnnxserveError if a part has no result.
        """
        while running:
            over, running = wait(running, _LOOK_SECONDS)
            for future in over:
                future.result()
            for number, result in ended()[self._done :]:
                part = self._parts[number]
                self._done += 1
                if isinstance(result, OnnxserveError):
                    if self._plan.on_error != "skip-part":
                        raise result
                    self.failed[part.name] = result.message
                    result = PartResult(0, 0)
                write_progress(self._slots, number, result.rows, result.rejected, part.size)
            self._report(self.progress())
        if self._done < len(self._parts):
            raise OnnxserveError(
                f"the engine {self._plan.engine} has predicted {self._done} of "
                f"{len(self._parts)} parts"
            )

    def progress(self) -> BatchProgress:
        slots = np.fromfile(self._slots, np.int64).reshape(-1, 3)
        rows, rejected, position = slots.sum(axis=0).tolist()
        return BatchProgress(
            rows=rows,
            rejected=rejected,
            parts_done=self._done,
            parts=len(self._parts),
            finished_before=self._finished_before,
            bytes_done=position,
            bytes=sum(part.size for part in self._parts),
            seconds=time.monotonic() - self._begun,
        )


def _absolute(uri: str) -> str:
    if "://" in uri or uri.startswith("file:"):
        return uri
    return str(absolute_path(uri))


def _log_batch(plan: BatchPlan, result: BatchResult, manifest: Manifest) -> LoggedRun:
    """Record a batch in a run of MLflow: its parameters and figures, the input and the
    model, and the manifest without the parts.
    """
    from mlflow import entities  # This takes 1 s.

    model = result.model

    def log_content(client: "MlflowClient", run_id: str) -> None:
        progress = result.progress
        params = {
            "model": model.source,
            "input": plan.input,
            "output": plan.output,
            "on_error": plan.on_error,
        }
        figures = {
            "rows": progress.rows,
            "rejected_rows": progress.rejected,
            "parts": progress.parts,
            "failed_parts": len(result.failed),
            "seconds": progress.seconds,
            "rows_per_second": progress.rows_per_second,
        }
        now_ms = int(time.time() * 1000)
        client.log_batch(
            run_id,
            [entities.Metric(name, float(value), now_ms, 0) for name, value in figures.items()],
            [entities.Param(name, value) for name, value in params.items()],
        )
        dataset = entities.Dataset(
            name=Path(plan.input).name[:_DATASET_NAME_CHARACTERS],
            digest=manifest["input_digest"].removeprefix("sha256:")[:_DATASET_DIGEST_CHARACTERS],
            source_type="s3" if plan.input.startswith("s3:") else "local",
            source=json.dumps({"uri": plan.input}),
        )
        models = None
        if model.aspects.get("model_id"):
            models = [entities.LoggedModelInput(model.aspects["model_id"])]
        context = entities.InputTag("mlflow.data.context", "batch")
        inputs = [entities.DatasetInput(dataset, [context])]
        client.log_inputs(run_id, inputs, models)
        described = {key: value for key, value in manifest.items() if key != "parts"}
        client.log_dict(run_id, described, MANIFEST)

    tags = {"onnxserve.batch.model": model.name, "onnxserve.batch.version": model.version}
    return log_run(
        "the run of the batch",
        f"batch {model.name} {model.version}".strip(),
        tags,
        lambda client: get_or_create_experiment(client, plan.experiment),
        log_content,
    )
