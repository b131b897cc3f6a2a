"""Test an image before it ships: run it with minimal rights and no network, and compare
its answers with its version's.

The image's own Python sends the request with `docker exec`, because a container without
a network publishes no port.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from mlflow_deploy_plugin.core.errors import (
    BuildFailed,
    InferenceError,
    InvalidConfig,
    InvalidRequest,
)
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE
from mlflow_deploy_plugin.serve.client.rows import decode_tensors, encode_tensors
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds, array_bytes
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.ship.images.engine import MINIMAL_RIGHTS, docker
from mlflow_deploy_plugin.wrap.evaluation.agreement import check_outputs, rounding_tolerance
from mlflow_deploy_plugin.wrap.evaluation.dataset import known_rows

_TOLERANCE = rounding_tolerance(1e-4)
"""The tolerance for other processors, which round differently."""
_GPU_TOLERANCE = rounding_tolerance(1e-2)
"""The tolerance for a GPU, which uses TF32."""
LIMIT_SECONDS = 120.0  # For the start of the server, and for its answer.
# A server accepts bodies of 16 MiB, so only the first of larger rows is sent.
_MANY_BYTES = 8 * 2**20
_EXIT_STATUS = "{{if not .State.Running}}{{.State.ExitCode}}{{end}}"
_ASK = """
import json, os, sys, time, urllib3
from mlflow_deploy_plugin.serve.cloud import is_healthy
seconds, length, body = json.load(sys.stdin)
server = urllib3.HTTPConnectionPool("127.0.0.1", int(os.environ.get("ONNXSERVE_PORT", 8080)), timeout=seconds)
end = time.monotonic() + seconds
while not is_healthy():
    if time.monotonic() > end:
        sys.exit(f"its server is not ready within {seconds:g} s")
    time.sleep(0.02)
name = server.request("POST", "/v2/repository/index").json()[0]["name"]
headers = {"Inference-Header-Content-Length": str(length)}
answer = server.request("POST", f"/v2/models/{name}/infer", body=body.encode("latin-1"), headers=headers)
if answer.status != 200:
    sys.exit(answer.json()["error"])
print(json.dumps([int(answer.headers["Inference-Header-Content-Length"]), answer.data.decode("latin-1")]))
"""  # noqa: E501


@dataclass(frozen=True)
class ImageTrial:
    """A passed test of an image.

    Attributes:
        rows: the number and the source of the rows: "5 example rows".
        max_difference: the largest difference of a number.
        seconds: the time until the answer.
        memory: the memory of the container as in `docker stats`.
    """

    rows: str
    max_difference: float
    seconds: float
    memory: str


def try_image(
    image: str, folder: Path, gpu: bool = False, seconds: float = LIMIT_SECONDS
) -> ImageTrial:
    """Run an image, and compare its outputs with the outputs of its version, an MLmodel
    folder, on this machine.

    Raises BuildFailed if the server does not start or answer in `seconds`,
    InvalidConfig if the version refuses its `known_rows`, and ParityError if a number
    differs by more than the tolerance. The container is always removed.
    """
    model = OnnxModel.load(folder)
    question = _Question.of(model, folder)
    failure = f"the image {image} failed its test"
    rights = (*MINIMAL_RIGHTS, "--gpus", "all") if gpu else MINIMAL_RIGHTS
    tolerance = _GPU_TOLERANCE if gpu else _TOLERANCE
    reply, seconds, memory = _ask_container(image, rights, question, seconds, failure)
    length, answer = json.loads(reply)
    answered = decode_tensors(answer.encode("latin-1"), length)
    largest = check_outputs(question.expected, answered, tolerance, failure)
    return ImageTrial(
        rows=f"{question.rows} {question.source} row{'' if question.rows == 1 else 's'}",
        max_difference=largest,
        seconds=seconds,
        memory=memory,
    )


@dataclass(frozen=True, eq=False)
class _Question:
    """The rows for the image.

    Attributes:
        source: `example`, `reference` or `random`.
        rows: the number of rows.
        head: the JSON part of the request of the protocol v2.
        data: the binary tensors of the request.
        expected: the outputs of the version on this machine, by name.
    """

    source: str
    rows: int
    head: bytes
    data: bytes
    expected: Feeds

    @staticmethod
    def of(model: OnnxModel, folder: Path) -> "_Question":
        """Compute the outputs of the known rows. Raises InvalidConfig if the version
        refuses them.
        """
        source = "reference" if model.artifact.reference else "random"
        if (folder / INPUT_EXAMPLE).is_file():
            source = "example"
        try:
            rows = known_rows(model.artifact, model.schema, most=10)
            if model.schema.has_rows and array_bytes(rows) > _MANY_BYTES:
                rows |= {name: array[:1] for name, array in rows.items() if array.ndim}
            outputs = model.run(model.schema.from_columns(rows))
            head, data = encode_tensors(rows, None)
        except (InvalidRequest, InferenceError) as error:
            raise InvalidConfig(
                f"--test: {source} rows are refused: {error.message}; log a valid input_example"
            ) from None
        expected = {
            output.name: outputs[output.name]
            for output in model.artifact.outputs
            if output.dtype != "map"
        }
        return _Question(source, model.schema.count_rows(rows), head, data, expected)


def _ask_container(
    image: str, rights: Sequence[str], question: _Question, seconds: float, failure: str
) -> tuple[str, float, str]:
    """Start the image, and send the rows to its server. The container is removed.
    Return the output of the request, the seconds until it arrived, and the memory.

    Args:
        image: the name of the image.
        rights: the options of `docker run` that limit the container.
        question: the rows.
        seconds: the limit for the start of the server, and for its answer.
        failure: the beginning of error messages.

    Raises BuildFailed if the container does not start or its server does not answer.
    """
    name = f"onnxserve-trial-{uuid4().hex[:12]}"
    body = (question.head + question.data).decode("latin-1")
    task = json.dumps([seconds, len(question.head), body])
    began = time.monotonic()
    try:
        docker("run", "-d", "--name", name, *rights, image, what=failure)
        try:
            text = docker("exec", "-i", name, "python", "-c", _ASK, text=task, what=failure)
        except BuildFailed as error:
            message = error.message
            lines = docker("logs", "--tail", "1", name, what=message, report=lambda line: None)
            log = lines.strip()[:500] or "no line"
            status = docker("inspect", "-f", _EXIT_STATUS, name, what=message).strip()
            reason = f"{failure}: its server ended with status {status}" if status else message
            raise BuildFailed(f"{reason}; its log ends with: {log}") from None
        answered_seconds = time.monotonic() - began
        usage = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", name, what=failure)
        return text, answered_seconds, usage.split()[0]
    finally:
        with suppress(BuildFailed):
            docker("rm", "-f", "-v", name, what=failure)
