"""Test an image before it ships: run it with minimal rights and no network, and compare its answers with the version's.

The rights are those of docker/README.md. A container without a network publishes no port, so the image's own Python
sends the request in the container (`docker exec`), in the protocol V2, which returns all outputs with exact numbers.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from mlflow_deploy_plugin.client import response_error
from mlflow_deploy_plugin.client.rows import decode_tensors, encode_tensors
from mlflow_deploy_plugin.errors import BuildFailed, InferenceError, InvalidConfig, SchemaMismatch
from mlflow_deploy_plugin.evaluation import known_rows, require_equal_outputs
from mlflow_deploy_plugin.images.engine import docker
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.runtime import INPUT_EXAMPLE, OnnxModel

TOLERANCE = 1e-4
"""The absolute and relative tolerance, because other processors and GPUs round differently."""
READY_SECONDS = 120.0
"""The time limit for the start of the server, and for its answer."""
_RIGHTS = ("--user", "10001", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--init")
_PLACES = ("--network", "none", "--tmpfs", "/tmp", "--tmpfs", "/var/lib/onnxserve")
_ASK = """
import http.client, json, os, sys, time
from mlflow_deploy_plugin.server.cloud import is_healthy

def ask(path, body="{}", headers={}):
    server = http.client.HTTPConnection("127.0.0.1", os.environ.get("ONNXSERVE_PORT", 8080), timeout=seconds)
    server.request("POST", path, body.encode("latin-1"), headers)
    answer = server.getresponse()
    return answer.status, answer.read().decode("latin-1"), dict(answer.getheaders())

seconds, body, length = json.load(sys.stdin)
started = time.monotonic()
while not is_healthy():
    time.sleep(0.02)
    if time.monotonic() - started > seconds:
        sys.exit(f"its server is not ready within {seconds:g} s")
ready = time.monotonic()
name = json.loads(ask("/v2/repository/index")[1])[0]["name"]
answer = ask(f"/v2/models/{name}/infer", body, {"Inference-Header-Content-Length": length})
print(json.dumps([*answer, time.monotonic() - ready]))
"""


@dataclass(frozen=True)
class ImageTrial:
    """A passed test on `rows`, such as "5 example rows". Times are counted from `docker run`; `memory` is the text of
    `docker stats`, such as "144MiB"."""

    rows: str
    max_difference: float
    ready_seconds: float
    answer_seconds: float
    memory: str


def try_image(image: str, folder: Path, gpu: bool) -> ImageTrial:
    """Run an image, and compare its answers with those of the version in `folder`, an MLmodel folder, on this machine.

    The rows are the input example, otherwise rows of the reference or random rows. The container is always removed.
    Raises BuildFailed, with the last line of the server's log, if the image does not answer, InvalidConfig if the
    version cannot predict the rows, and ParityError if an output differs by more than TOLERANCE.
    """
    model = OnnxModel.load(folder)
    source = "example" if (folder / INPUT_EXAMPLE).is_file() else "reference" if model.artifact.reference else "random"
    try:
        feeds = model.schema.from_columns(known_rows(model, most=10))
        expected = model.run(feeds)
    except (SchemaMismatch, InferenceError) as error:
        hint = "log it with an input_example that it accepts"
        raise InvalidConfig(f"--test: the version cannot predict {source} rows: {error.message}; {hint}") from None
    expected = {output.name: expected[output.name] for output in model.artifact.outputs if output.dtype != "map"}
    head, tensors = encode_tensors(feeds, list(expected))
    request = json.dumps([READY_SECONDS, (head + tensors).decode("latin-1"), str(len(head))])
    failure, name = f"the image {image} failed its test", f"onnxserve-test-{uuid4().hex[:12]}"
    began = time.monotonic()
    try:
        device = ("--gpus", "all") if gpu else ()
        docker("run", "-d", "--name", name, *_RIGHTS, *_PLACES, *device, image, what=failure)
        try:
            text = docker("exec", "-i", name, "python", "-c", _ASK, text=request, what=failure)
        except BuildFailed as error:
            log = docker("logs", "--tail", "1", name, what=error.message, report=lambda line: None)
            raise BuildFailed(f"{error.message}; its log ends with: {one_line(log, 500)}") from None
        answer_seconds = time.monotonic() - began
        memory = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", name, what=failure).split()[0]
    finally:
        with suppress(BuildFailed):
            docker("rm", "-f", "-v", name, what=failure)
    status, content, headers, used = json.loads(text)
    content = content.encode("latin-1")
    if status != 200:
        raise BuildFailed(f"{failure}: {response_error(status, content, headers).message}")
    outputs = decode_tensors(content, int(headers["Inference-Header-Content-Length"]))
    largest = require_equal_outputs(expected, outputs, TOLERANCE, failure)
    rows = f"{model.schema.count_rows(feeds)} {source} rows"
    return ImageTrial(rows, largest, answer_seconds - used, answer_seconds, memory)
