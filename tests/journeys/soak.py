"""Ten minutes of traffic with ten faults:
`python -m tests.journeys.soak [SECONDS] [SEED]`.

Real processes: an MLflow server, PostgreSQL as the store, the S3 of AWS_ENDPOINT_URL as
the inference log, and `onnxserve serve` with two workers that follows an alias. Four
clients (JSON, V2 with binary tensors, gRPC, Arrow) check each answer, and label every
twentieth row. The state folder is a small tmpfs, so this needs the right to mount.

It prints a line per fault and a line of results. It fails unless each answered row is
in the log once with its answer and its label, or is counted as dropped.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import grpc
import mlflow
import numpy as np
import psutil
import requests

from mlflow_deploy_plugin.core.statedir.files import AGENT, read_state, read_workers
from mlflow_deploy_plugin.core.statedir.models import AgentState
from mlflow_deploy_plugin.serve.client.client import Client, RetryPolicy
from mlflow_deploy_plugin.serve.grpc import inference_pb2
from mlflow_deploy_plugin.serve.inference_log.log_reader import View, open_log
from mlflow_deploy_plugin.serve.inference_log.query import Query, run_query
from mlflow_deploy_plugin.serve.inference_log.stats import log_stats
from tests.support.servers import single_model
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.postgresql import running_postgresql
from tests.support.tracking import create_database
from tests.support.waiting import free_port, wait_until

MODEL = "soak"
PATIENCE = 180.0
LABELLED = 20


class Relay:
    """A server that forwards TCP connections to a port. Each block waits for `pause`
    seconds. While `is_up` is false, connections end.
    """

    def __init__(self, port: int) -> None:
        self.pause = 0.0
        self.is_up = True
        self._target = port
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            ours, _ = self._listener.accept()
            try:
                if not self.is_up:
                    raise OSError
                theirs = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                ours.close()
                continue
            self._open += [ours, theirs]
            for ends in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while block := source.recv(65536):
                time.sleep(self.pause)
                target.sendall(block)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self.is_up = False
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()


@dataclass
class Answer:
    """The answer to a row, from any client."""

    value: float
    version: str
    prediction_id: str


@dataclass
class Load:
    """The clients of the server, and what they received.

    Attributes:
        answered: by column `a`, which differs in each request.
        labelled: the accepted labels, by prediction id.
    """

    port: int
    grpc_port: int
    answered: dict[float, Answer] = field(default_factory=dict)
    labelled: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, number: int, protocol: str, call: Callable[[float], Answer]) -> None:
        row = float(number)
        while not self.ended.wait(0.03):
            row += 4
            try:
                answer = call(row)
            except Exception as error:  # noqa: BLE001 - each client has its own error classes
                self.counts[f"{protocol}: {type(error).__name__}"] += 1
                self.ended.wait(0.2)
                continue
            self.counts[protocol] += 1
            self.answered[row] = answer
            if answer.value != row + 1 + float(answer.version):
                self.wrong.append(f"{protocol} {row} {answer}")
            if (row // 4) % LABELLED == 0 and answer.prediction_id:
                body = {"prediction_id": answer.prediction_id, "row": 0, "label": row}
                with suppress(requests.RequestException):
                    posted = requests.post(f"{self.url}/feedback", json=body, timeout=10)
                    if posted.status_code == 202:
                        self.labelled[answer.prediction_id] = row

    def calls(self) -> dict[str, Callable[[float], Answer]]:
        session = requests.Session()
        client = Client(self.url, MODEL, retries=RetryPolicy(tries=1), timeout_seconds=20)
        channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}")
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            inference_pb2.ModelInferRequest.SerializeToString,
            inference_pb2.ModelInferResponse.FromString,
        )

        def json_rows(row: float) -> Answer:
            body = {"inputs": [[row, 1.0, 0.0]]}
            answer = session.post(f"{self.url}/invocations", json=body, timeout=20)
            answer.raise_for_status()
            (value,) = np.ravel(answer.json()["predictions"]).tolist()
            headers = answer.headers
            return Answer(value, headers["X-Model-Version"], headers["X-Prediction-Id"])

        def v2_binary(row: float) -> Answer:
            got = client.infer({"X": np.array([[row, 1, 0]], np.float32)})
            return Answer(float(np.ravel(got.values["y"])[0]), got.version, got.id)

        def over_grpc(row: float) -> Answer:
            tensor = inference_pb2.ModelInferRequest.InferInputTensor(
                name="X", datatype="FP32", shape=[1, 3]
            )
            tensor.contents.fp32_contents.extend([row, 1, 0])
            asked = inference_pb2.ModelInferRequest(model_name=MODEL, inputs=[tensor])
            got = infer(asked, timeout=20)
            (value,) = got.outputs[0].contents.fp32_contents
            return Answer(value, got.model_version, got.id)

        def arrow(row: float) -> Answer:
            got = client.predict(
                {name: np.array([v]) for name, v in zip("abc", (row, 1.0, 0.0), strict=True)}
            )
            return Answer(float(np.ravel(np.asarray(got))[0]), got.version, got.id)

        return {"json": json_rows, "v2": v2_binary, "grpc": over_grpc, "arrow": arrow}


class Soak:
    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.root = root
        self.state = root / "state"
        self.state.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self.state)]
        subprocess.run(mount, check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", str(self.state)], check=True)
        (root / "mlflow").mkdir()
        create_database(root / "mlflow" / "mlflow.db")
        self.mlflow = MlflowServer(root / "mlflow", variables={"MLFLOW_SERVER_ALLOWED_HOSTS": "*"})
        self.mlflow.start()
        stack.callback(self.mlflow.kill)
        self.database = stack.enter_context(running_postgresql())
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        self.storage = Relay(int(endpoint.rpartition(":")[2]))
        self.registry = Relay(self.mlflow.port)
        self.bucket = root.name.lower().replace("_", "-")
        boto3.client("s3").create_bucket(Bucket=self.bucket)
        self.log = f"s3://{self.bucket}/log"
        mlflow.set_tracking_uri(self.mlflow.url)
        self.client = mlflow.MlflowClient()
        self.client.create_registered_model(MODEL)
        for number in (1, 2, 3):
            with mlflow.start_run() as run:
                folder = single_model(root / f"m{number}", float(number))
                mlflow.log_artifacts(str(folder), "model")
                source = f"{run.info.artifact_uri}/model"
            self.client.create_model_version(MODEL, source, run.info.run_id)
        self.client.set_registered_model_alias(MODEL, "live", "1")
        for graph in (root / "mlflow").glob("artifacts/**/model.onnx"):
            if graph.read_bytes() == (root / "m3" / "model.onnx").read_bytes():
                graph.write_bytes(graph.read_bytes()[:-9])  # The download of version 3 is corrupt.
        self.load = Load(free_port(), free_port())
        self.server: subprocess.Popen[bytes] | None = None
        stack.callback(self.kill)
        self.start()

    def start(self) -> None:
        environment = {
            **os.environ,
            "ONNXSERVE_HOME": str(self.root / "home"),
            "ONNXSERVE_LOG_URI": self.log,
            "ONNXSERVE_STORE_URI": self.database.url,
            "ONNXSERVE_POLL_SECONDS": "1",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.registry.port}",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.storage.port}",
        }
        command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve"]
        command += [f"models:/{MODEL}@live", "-n", MODEL, "-w", "2", "-p", str(self.load.port)]
        command += ["-C", f"server.grpc_port={self.load.grpc_port}"]
        command += ["--state-dir", str(self.state)]
        with (self.root / "server.log").open("ab") as output:
            self.server = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(self.is_ready, PATIENCE, "the server is ready")

    def is_ready(self) -> bool:
        with suppress(requests.RequestException):
            return requests.get(f"{self.load.url}/health", timeout=5).status_code == 200
        return False

    def members(self) -> list[psutil.Process]:
        assert self.server is not None
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == self.server.pid:
                    found.append(process)
        return found

    def kill(self) -> None:
        for process in self.members() if self.server is not None else ():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def worker(self) -> psutil.Process:
        alive = [state.pid for state in read_workers(self.state) if psutil.pid_exists(state.pid)]
        return psutil.Process(random.choice(alive))

    # The faults, in the order of FAULTS.

    def kill_worker(self) -> None:
        self.worker().kill()

    def kill_agent(self) -> None:
        agent = read_state(self.state / AGENT, AgentState)
        assert agent is not None
        psutil.Process(agent.pid).kill()

    def kill_supervisor(self) -> None:
        assert self.server is not None
        self.server.kill()
        self.server.wait()
        wait_until(lambda: not self.members(), PATIENCE, "the server's processes have ended")
        self.start()

    def stop_mlflow(self) -> None:
        self.mlflow.kill()
        time.sleep(30)
        self.mlflow.start()

    def stop_storage(self) -> None:
        self.storage.cut()
        time.sleep(20)
        self.storage.is_up = True

    def restart_database(self) -> None:
        self.database.restart("immediate", 5)

    def move_alias(self) -> None:
        for version in ("2", "1", "2"):
            self.client.set_registered_model_alias(MODEL, "live", version)
            wait_until(lambda wanted=version: self.served() == wanted, PATIENCE, f"v{version}")

    def served(self) -> str:
        with suppress(requests.RequestException):
            body = {"inputs": [[-1.0, 0.0, 0.0]]}
            answer = requests.post(f"{self.load.url}/invocations", json=body, timeout=10)
            return answer.headers.get("X-Model-Version", "")
        return ""

    def fill_disk(self) -> None:
        with suppress(OSError), (self.state / "ballast").open("wb") as file:
            while True:
                file.write(bytes(65536))
        time.sleep(15)
        (self.state / "ballast").unlink()

    def freeze_worker(self) -> None:
        worker = self.worker()
        worker.suspend()
        time.sleep(10)
        with suppress(psutil.NoSuchProcess):  # gunicorn may have replaced it.
            worker.resume()

    def corrupt_download(self) -> None:
        self.registry.pause = 0.3
        self.client.set_registered_model_alias(MODEL, "live", "3")
        time.sleep(15)
        assert self.served() != "3"
        self.client.set_registered_model_alias(MODEL, "live", "1")
        self.registry.pause = 0.0
        wait_until(lambda: self.served() == "1", PATIENCE, "version 1 answers again")

    def results(self) -> bool:
        """Wait until the rows are in the log, print the results, and return True if no
        row is lost, doubled or wrong.
        """
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{self.storage.port}"
        log = open_log(self.log)

        def waiting() -> int:
            account = log_stats(log, MODEL).account
            return account.captured - account.shipped - account.dropped if account else 1

        with suppress(AssertionError, TimeoutError):
            wait_until(lambda: waiting() == 0, PATIENCE, "the rows are shipped")
        assert self.server is not None
        self.server.send_signal(signal.SIGTERM)
        status = self.server.wait(60)
        account = log_stats(log, MODEL).account
        dropped = account.dropped if account else 0
        rows = Counter[float]()
        labels = {}
        differs = 0
        select = 'a, "output.y", _version, _prediction_id, _label_number'
        with run_query(log, Query(View(MODEL), select=select, limit=None)) as answer:
            for batch in answer.batches:
                for a, value, version, prediction_id, label in zip(
                    *batch.to_pydict().values(), strict=True
                ):
                    rows[a] += 1
                    labels[prediction_id] = label
                    differs += a > 0 and np.ravel(value).tolist() != [a + 1 + float(version)]
        load = self.load
        lost = [row for row in load.answered if not rows[row]]
        doubled = [row for row, count in rows.items() if row > 0 and count > 1]
        unlabelled = [
            id_ for id_, label in load.labelled.items() if id_ in labels and labels[id_] != label
        ]
        print(
            f"status {status}, requests {dict(load.counts)}, answered {len(load.answered)}, "
            f"rows in the log {sum(rows.values())}, lost {len(lost)}, dropped {dropped}, "
            f"doubled {len(doubled)}, wrong answers {len(load.wrong)}, wrong rows {differs}, "
            f"labels {len(load.labelled)}, wrong or lost labels {len(unlabelled)}",
            *load.wrong[:5],
            flush=True,
        )
        return (
            len(lost) <= dropped
            and not doubled
            and not load.wrong
            and not differs
            and not unlabelled
        )


FAULTS = (
    Soak.kill_worker,
    Soak.kill_agent,
    Soak.kill_supervisor,
    Soak.stop_mlflow,
    Soak.stop_storage,
    Soak.restart_database,
    Soak.move_alias,
    Soak.fill_disk,
    Soak.freeze_worker,
    Soak.corrupt_download,
)


def main() -> None:
    seconds, seed = (float(text) for text in (*sys.argv[1:], "600", "1")[:2])
    random.seed(seed)
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    with ExitStack() as stack:
        soak = Soak(root, stack)
        load = soak.load
        threads = [
            threading.Thread(target=load.ask, args=(number, *call), daemon=True)
            for number, call in enumerate(load.calls().items())
        ]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        faults = random.sample(FAULTS, len(FAULTS))
        for number, fault in enumerate(faults):
            at = began + seconds * (number + random.random()) / len(faults)
            time.sleep(max(0.0, at - time.monotonic()))
            print(f"{time.monotonic() - began:.0f} s: {fault.__name__}", flush=True)
            try:
                fault(soak)
            except (AssertionError, psutil.Error) as error:
                load.wrong.append(f"{fault.__name__}: {error}")
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        load.ended.set()
        for thread in threads:
            thread.join(60)
        passed = soak.results()
    if passed:
        shutil.rmtree(root)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
