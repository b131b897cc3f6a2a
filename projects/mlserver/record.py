"""Record the answers of MLServer 1.7.1 and of KServe's servers 0.21.

    python -m projects.mlserver.record mlserver MLSERVER_PYTHON
    python -m projects.mlserver.record kserve KSERVE_PYTHON KSERVE_SOURCES

MLSERVER_PYTHON has `mlserver`, its runtimes and pandas 2. KSERVE_PYTHON has `kserve`,
scikit-learn, XGBoost and LightGBM, and KSERVE_SOURCES is the folder `python` of
KServe's repository. A request is a value of `sent_requests.py`; a recording has the
request and the answer, and is written for tests/contrib/mlserver.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc
import requests
from google.protobuf import json_format

from mlflow_deploy_plugin.serve.grpc import inference_pb2
from projects.mlserver.sent_requests import CALLS, KSERVE, MLSERVER, Document

RECORDINGS = Path(__file__).parents[2] / "tests/contrib/mlserver/recordings"
KEPT_HEADERS = ("content-type", "ce-")

Command = list[str | Path]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(command: Command, variables: Mapping[str, str], url: str, log: str) -> Iterator[None]:
    """Start a server, wait until the URL answers, and stop it at the end."""
    with Path(log).open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | variables, stdout=output, stderr=output, cwd=Path(log).parent
        )
    try:
        for _ in range(600):
            try:
                if requests.get(url, timeout=5).status_code == 200:
                    break
            except requests.ConnectionError:
                time.sleep(0.2)
            assert process.poll() is None, Path(log).read_text()
        yield
    finally:
        process.terminate()
        process.wait(30)


def answer_of(url: str, sent: Document) -> Document:
    """Return the recording of an HTTP request."""
    data = sent.get("body")
    if not isinstance(data, str | None):
        data = json.dumps(data)
    response = requests.request(
        sent["method"],
        url + sent["path"],
        data=data,
        headers={"Content-Type": "application/json", **sent.get("headers", {})},
        timeout=60,
    )
    headers = {
        name.lower(): value
        for name, value in response.headers.items()
        if name.lower().startswith(KEPT_HEADERS)
    }
    try:
        content = response.json()
    except ValueError:
        # The last line of a traceback, which has no path.
        content = response.text.strip().rpartition("\n")[2][:200]
    if sent["path"].endswith("dataplane.json") and "paths" in content:
        content = {"openapi": content["openapi"], "paths": sorted(content["paths"])}
    return {**sent, "answer": {"status": response.status_code, "headers": headers, "body": content}}


def answer_of_call(port: int | str, sent: Document) -> Document:
    """Return the recording of a gRPC call."""
    method = sent["method"]
    request = json_format.ParseDict(sent["message"], getattr(inference_pb2, f"{method}Request")())
    answer: Document = {"status": "OK", "metadata": {}, "message": {}, "error": ""}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(inference_pb2, f"{method}Response").FromString,
        )
        try:
            message, state = call.with_call(request, timeout=60)
            answer["message"] = json_format.MessageToDict(message, preserving_proto_field_name=True)
        except grpc.RpcError as error:
            state = error
            answer |= {"status": error.code().name, "error": error.details()}
    answer["metadata"] = {
        name: value for name, value in state.trailing_metadata() if name.startswith("ce-")
    }
    return {**sent, "answer": answer}


def record_mlserver(python: str) -> None:
    ports = [free_port() for _ in range(3)]
    names = ("MLSERVER_HTTP_PORT", "MLSERVER_GRPC_PORT", "MLSERVER_METRICS_PORT")
    variables = dict(zip(names, map(str, ports), strict=True)) | {
        "MLSERVER_PARALLEL_WORKERS": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command: Command = [Path(python).parent / "mlserver", "start", RECORDINGS / "models"]
    url = f"http://127.0.0.1:{ports[0]}"
    with tempfile.TemporaryDirectory() as folder:
        log = f"{folder}/log"
        with running(command, variables, f"{url}/v2/health/ready", log):
            write("mlserver", [answer_of(url, sent) for sent in MLSERVER])
            write("grpc", [answer_of_call(ports[1], sent) for sent in CALLS])


def record_kserve(python: str, sources: str) -> None:
    packages = ("storage", "sklearnserver", "xgbserver", "lgbserver")
    path = os.pathsep.join(str(Path(sources, package)) for package in packages)
    recorded: list[Document] = []
    for server, model, variables, sent_requests in KSERVE:
        command: Command = [python, "-m", server, "--model_name", model, "--enable_grpc", "false"]
        with kserve_server(command, model, {"PYTHONPATH": path, **variables}) as url:
            answers = [answer_of(url, sent) for sent in sent_requests]
        recorded += [{"variables": variables, **answer} for answer in answers]
    write("kserve", recorded)


@contextmanager
def kserve_server(command: Command, model: str, variables: Mapping[str, str]) -> Iterator[str]:
    """Start a server of KServe for the file of a model, and yield its URL. The servers
    refuse a folder with other files that end like a model.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "model")
        files.mkdir()
        for file in (RECORDINGS / "models" / model).glob("model.*"):
            (files / file.name).write_bytes(file.read_bytes())
        command = [*command, "--model_dir", files, "--http_port", str(port)]
        with running(command, variables, f"{url}/v1/models/{model}", f"{folder}/log"):
            yield url


def write(name: str, recorded: list[Document]) -> None:
    lines = ",\n".join(json.dumps(recording) for recording in recorded)
    (RECORDINGS / f"{name}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    if sys.argv[1] == "mlserver":
        record_mlserver(*sys.argv[2:])
    else:
        record_kserve(*sys.argv[2:])
