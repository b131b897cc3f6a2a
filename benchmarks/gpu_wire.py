"""Compare a server with a bare session that runs the same batches, for images and tokens
over the wire: V2's binary form over HTTP, gRPC, Arrow and, as the contrast, JSON.

    python benchmarks/gpu_wire.py
    python benchmarks/gpu_wire.py --only resnet --seconds 5
    python benchmarks/gpu_wire.py --only "pixels fp32"

The nets have random weights: a ResNet18 for images of 3 × 224 × 224, an encoder like BERT
for 128 tokens, and `pixels`, which only reads an image, so that its rate is that of the
wire. CUDAExecutionProvider computes them where onnxruntime-gpu finds a device. Otherwise,
narrower nets run on the CPU provider, and the server and its clients each have one core.

A request has one row. The server joins waiting requests in batches of up to 32 rows, and
does not capture them. The bare session runs batches of the server's mean size. Server and
session take turns, and the medians of the ratios are shown: of rows per second, and of
CPU time per row, which other programs of the machine disturb less. FastAPI and LitServe
with torch are measured if this Python has them.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import orjson
import psutil
import torch
from torch import nn

from benchmarks.serving import servers
from benchmarks.serving.load import Measured, Target, closed_loop, measured, post
from benchmarks.serving.peers import HERE
from mlflow_deploy_plugin.serve.client.rows import encode_tensors
from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime
from projects.image_resnet18.network import resnet18

ort = import_onnxruntime()
ON_GPU = "CUDAExecutionProvider" in ort.get_available_providers() and torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
PROVIDER = "CUDAExecutionProvider" if ON_GPU else "CPUExecutionProvider"
CALLERS = (1, 16, 128)
BATCH = 32
TOKENS = 128
WORDS = 2000
IMAGE = (3, 224, 224)
FORMS = ("V2", "gRPC", "Arrow", "JSON")
MLMODEL = "flavors:\n  onnx:\n    data: model.onnx\n    onnx_version: '1'\n"
V2_PATH = "/v2/models/net/infer"
GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
NOTHING = b""


class Encoder(nn.Module):
    """An encoder with BERT's architecture, from ids [N, 128] to one vector per text."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.places = nn.Parameter(torch.zeros(1, TOKENS, width))
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layers(self.words(ids) + self.places).mean(1)


class Pixels(nn.Module):
    """The mean of each channel of an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: resnet18(width=64 if ON_GPU else 8),
    "bert": lambda: Encoder(768, 12) if ON_GPU else Encoder(128, 2),
    "pixels": Pixels,
}


@dataclass(frozen=True)
class Net:
    """A saved net: its folder (an MLmodel, and `net.pt` for torch) and one row."""

    name: str
    folder: Path
    row: np.ndarray

    @property
    def session(self) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        return ort.InferenceSession(str(self.folder / "model.onnx"), options, [PROVIDER])


@dataclass(frozen=True)
class Line:
    """A line of the table: a form of the requests, and a number of callers.

    Attributes:
        rows_per_second, p50_ms, p99_ms: of the server, as the medians of the rounds.
        batch: the mean rows per batch.
        of_bare: the server's rows per second ÷ those of the bare session.
        of_bare_cpu: the CPU time per row of the bare session ÷ that of the server.
    """

    net: str
    form: str
    callers: int
    rows_per_second: float
    p50_ms: float
    p99_ms: float
    batch: float
    of_bare: float
    of_bare_cpu: float


def save(name: str, dtype: str, folder: Path) -> Net:
    torch.manual_seed(0)
    net = NETS[name]().eval()
    random = np.random.default_rng(0)
    if name == "bert":
        row = random.integers(0, WORDS, (1, TOKENS))
    else:
        row = random.random((1, *IMAGE), dtype=np.float32)
    if dtype == "fp16":
        net = net.half()
        row = row.astype(np.float16) if row.dtype.kind == "f" else row
    folder.mkdir(parents=True)
    x = torch.from_numpy(np.concatenate([row, row]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, x, check_trace=False).save(str(folder / "net.pt"))
        torch.onnx.export(
            net,
            (x,),
            str(folder / "model.onnx"),
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )
    (folder / "MLmodel").write_text(MLMODEL)
    return Net(f"{name} {dtype}", folder, row)


def request_of(form: str, row: np.ndarray) -> bytes:
    """Return a request: over HTTP its head and body, over gRPC its message."""
    if form == "V2":
        head, content = encode_tensors({"x": row}, None)
        octets = "application/octet-stream"
        length = str(len(head))
        return post(V2_PATH, head + content, octets, Inference_Header_Content_Length=length)
    if form == "JSON":
        return post(
            "/invocations", orjson.dumps({"inputs": row}, option=orjson.OPT_SERIALIZE_NUMPY)
        )
    if form == "Arrow":
        import pyarrow as pa

        cells = pa.FixedSizeListArray.from_arrays(pa.array(row.reshape(-1)), row.size)
        table = pa.table({"x": cells})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        stream = "application/vnd.apache.arrow.stream"
        return post("/invocations", sink.getvalue().to_pybytes(), stream, Accept=stream)
    from mlflow_deploy_plugin.serve.grpc import inference_pb2 as messages
    from mlflow_deploy_plugin.serve.protocols.v2_tensors import array_datatype

    message = messages.ModelInferRequest(model_name="net", raw_input_contents=[row.tobytes()])
    message.inputs.add(name="x", datatype=array_datatype(row), shape=row.shape)
    return message.SerializeToString()


async def grpc_loop(port: int, message: bytes, callers: int, seconds: float) -> Measured:
    """Send the next call of every caller after its response, over one channel per 16
    callers.
    """
    import grpc

    latencies: list[float] = []
    begin = time.perf_counter() + 0.3
    end = begin + seconds

    async def call(method: Any) -> None:
        while (begun := time.perf_counter()) < end:
            await method(message)
            if begun >= begin:
                latencies.append(time.perf_counter() - begun)

    options = [("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{port}"
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(-(-callers // 16))]
    methods = [channel.unary_unary(GRPC_METHOD) for channel in channels]
    await asyncio.gather(*(call(methods[index // 16]) for index in range(callers)))
    seconds = time.perf_counter() - begin
    for channel in channels:
        await channel.close()
    return measured(latencies, 0, seconds)


@contextmanager
def ours(net: Net, work: Path) -> Iterator[tuple[servers.Server, int]]:
    """Yield our server and its port for gRPC."""
    port = servers.free_port()
    grpc_port = servers.free_port()
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve", str(net.folder)]
    command += ["-p", str(port), "--name", "net", "--state-dir", str(work / "state")]
    command += ["--device", DEVICE, "-C", "capture.fraction=0"]
    command += ["-C", f"server.max_batch_size={BATCH}", "-C", f"server.grpc_port={grpc_port}"]
    home = {"ONNXSERVE_HOME": str(work / "home")}
    ready = urllib.request.Request(f"http://127.0.0.1:{port}/v2/health/ready")
    core = None if ON_GPU else servers.SERVER_CORE
    with servers.running("onnxserve", command, port, work / "log", home, ready, core) as server:
        yield server, grpc_port


@contextmanager
def peer(name: str, net: Net, work: Path) -> Iterator[servers.Server]:
    """Yield FastAPI's or LitServe's server."""
    port = servers.free_port()
    command = [sys.executable, str(HERE / "litserve_torch.py"), str(port)]
    if name == "fastapi":
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "--port", str(port)]
        command += ["--log-level", "warning", "fastapi_torch:app"]
    shape = ",".join(map(str, net.row.shape[1:]))
    variables = {"NET": str(net.folder / "net.pt"), "DEVICE": DEVICE, "SHAPE": shape}
    variables["DTYPE"] = net.row.dtype.name
    path = "ping" if name == "fastapi" else "health"
    ready = urllib.request.Request(f"http://127.0.0.1:{port}/{path}")
    core = None if ON_GPU else servers.SERVER_CORE
    with servers.running(name, command, port, work / name, variables, ready, core) as server:
        yield server


def peer_request(name: str, row: np.ndarray) -> bytes:
    content = row.tobytes()
    if name == "fastapi":
        return post("/predict", content, "application/octet-stream")
    head = b'--line\r\nContent-Disposition: form-data; name="row"; filename="row"\r\n\r\n'
    return post(
        "/predict", head + content + b"\r\n--line--\r\n", "multipart/form-data; boundary=line"
    )


def cpu_seconds(server: servers.Server) -> float:
    times = [process.cpu_times() for process in server.processes()]
    return sum(taken.user + taken.system for taken in times)


def batches_of(server: servers.Server) -> tuple[float, float]:
    """Return the number of rows that the server has computed, and of their batches."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    totals = []
    for name in ("onnxserve_batch_rows_sum", "onnxserve_batch_rows_count"):
        totals.append(sum(float(line.split()[-1]) for line in lines if line.startswith(name)))
    return totals[0], totals[1]


def bare(session: Any, row: np.ndarray, rows: int, seconds: float) -> tuple[float, float]:
    """Return the rows per second of batches of `rows` rows, and the CPU time per row."""
    x = np.concatenate([row] * rows)
    session.run(None, {"x": x})
    runs = 0
    began = time.perf_counter()
    cpu = time.thread_time()
    while runs < 2 or time.perf_counter() - began < seconds:
        session.run(None, {"x": x})
        runs += 1
    computed = runs * rows
    return computed / (time.perf_counter() - began), (time.thread_time() - cpu) / computed


def compare(
    net: Net,
    form: str,
    callers: int,
    server: servers.Server,
    ask: Callable[[], Measured],
    session: Any,
    options: argparse.Namespace,
) -> Line:
    """Measure a server, of ours or of a peer, and the bare session in turns."""
    figures = []
    has_metrics = form in FORMS
    for _ in range(options.rounds):
        server.go_on()
        batch = 1.0
        if has_metrics:
            rows_before, batches_before = batches_of(server)
        cpu = cpu_seconds(server)
        run = ask()
        cpu = cpu_seconds(server) - cpu
        assert not run.wrong, f"{form}: {run.wrong} responses are wrong"
        if has_metrics:
            rows, batches = batches_of(server)
            computed = rows - rows_before
            batch = computed / (batches - batches_before)
        else:
            computed = run.requests * (run.seconds + 0.3) / run.seconds  # with the warm-up
            batch = min(callers, BATCH) if form == "litserve" else 1
        server.pause()
        if not ON_GPU:
            os.sched_setaffinity(0, {servers.SERVER_CORE})
        bare_rate, bare_cpu = bare(session, net.row, round(batch), options.seconds / 2)
        if not ON_GPU:
            os.sched_setaffinity(0, {servers.CLIENT_CORE})
        ratios = run.rate / bare_rate, bare_cpu / (cpu / computed)
        figures.append((run.rate, run.p50 * 1e3, run.p99 * 1e3, batch, *ratios))
    server.go_on()
    return Line(net.name, form, callers, *map(statistics.median, zip(*figures, strict=True)))


def check_outputs(server: servers.Server, raw: bytes, expected: np.ndarray) -> None:
    """Compare the server's answer in V2's binary form with the output of the session."""
    head, _, body = raw.partition(b"\r\n\r\n")
    fields = dict(line.split(": ") for line in head.decode().splitlines()[1:])
    url = f"http://127.0.0.1:{server.port}{V2_PATH}"
    with urllib.request.urlopen(urllib.request.Request(url, body, fields)) as answer:
        content = answer.read()
    output = np.frombuffer(content[-expected.nbytes :], expected.dtype)
    assert np.allclose(output, expected.ravel(), rtol=1e-2, atol=1e-2), "the outputs differ"


def lines_of(net: Net, work: Path, options: argparse.Namespace) -> Iterator[Line]:
    session = net.session
    with ours(net, work) as (server, grpc_port):
        check_outputs(server, request_of("V2", net.row), session.run(None, {"x": net.row})[0])
        for form, callers in product(options.forms, options.callers):
            if form == "JSON" and callers != CALLERS[1]:
                continue
            raw = request_of(form, net.row)
            target = Target(server.port, raw, NOTHING)

            def ask(form: str = form, target: Target = target, callers: int = callers) -> Measured:
                if form == "gRPC":
                    return asyncio.run(grpc_loop(grpc_port, target.raw, callers, options.seconds))
                return closed_loop(target, callers, options.seconds)

            yield compare(net, form, callers, server, ask, session, options)
    for name in options.peers:
        with peer(name, net, work) as server:
            target = Target(server.port, peer_request(name, net.row), NOTHING)
            for callers in options.callers:

                def ask_peer(target: Target = target, callers: int = callers) -> Measured:
                    return closed_loop(target, callers, options.seconds)

                yield compare(net, name, callers, server, ask_peer, session, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of one load (1)")
    parser.add_argument("--rounds", type=int, default=1, help="of server and session (1)")
    parser.add_argument("--only", default="", help="words of the nets: resnet, bert, pixels, fp16")
    parser.add_argument("--forms", default=",".join(FORMS), help="V2,gRPC,Arrow,JSON")
    parser.add_argument("--callers", default="1,16,128")
    parser.add_argument("--json", type=Path, help="also write the lines to this file")
    options = parser.parse_args()
    options.forms = options.forms.split(",")
    options.callers = list(map(int, options.callers.split(",")))
    options.peers = [name for name in ("fastapi", "litserve") if importlib.util.find_spec(name)]
    if not ON_GPU:
        os.sched_setaffinity(0, {servers.CLIENT_CORE})
    where = torch.cuda.get_device_name(0) if ON_GPU else "the CPU provider on one core, no GPU"
    print(f"{where}; onnxruntime {ort.__version__}, torch {torch.__version__}", end="; ")
    print(f"peers: {', '.join(options.peers) or 'FastAPI and LitServe are not installed'}\n")
    print("| net | form | callers | rows/s | p50, p99 ms | batch | of the bare session | its CPU |")
    print("|---|---|---|---|---|---|---|---|")
    lines = []
    with tempfile.TemporaryDirectory(prefix="gpu-wire-") as folder:
        for name, dtype in product(NETS, ("fp32", "fp16")):
            if not all(word in f"{name} {dtype}" for word in options.only.split()):
                continue
            work = Path(folder) / name / dtype
            for line in lines_of(save(name, dtype, work / "net"), work, options):
                lines.append(line)
                print(
                    f"| {line.net} | {line.form} | {line.callers} | {line.rows_per_second:,.0f} | "
                    f"{line.p50_ms:.1f}, {line.p99_ms:.1f} | {line.batch:.1f} | "
                    f"{line.of_bare:.2f} | {line.of_bare_cpu:.2f} |",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps([asdict(line) for line in lines], indent=1))


if __name__ == "__main__":
    main()
