"""Compare a server with a bare session that runs the same batches, for images and
tokens: V2's binary form over HTTP, gRPC, Arrow and, as the contrast, JSON.

    python benchmarks/gpu_wire.py
    python benchmarks/gpu_wire.py --only "resnet fp32" --forms V2,JSON --callers 16

The nets have random weights: a ResNet18 for images of 3 × 224 × 224, an encoder like
BERT for 128 tokens, and `pixels`, which only reads an image, so that its rate is the
rate of the wire. CUDAExecutionProvider computes them where onnxruntime-gpu finds a
device. Otherwise narrower nets run on the CPU provider, and the server and its callers
each have one core.

A request has one row. The server joins waiting requests in batches of up to 32 rows,
and does not capture them. The bare session runs batches of the server's mean size.
Server and session take turns, and a line has the medians of the turns. The ratios are
those of the rows per second, and of the CPU time per row, which other programs of the
machine disturb less. FastAPI and LitServe with torch are measured if this Python has
them.
"""

import argparse
import asyncio
import importlib.util
import os
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
import numpy as np
import orjson
import pyarrow as pa
import torch
from torch import nn

from benchmarks.serving import servers
from benchmarks.serving.load import Measured, Target, closed_loop, measured, post
from benchmarks.serving.peers import HERE
from mlflow_deploy_plugin.core.errors import DeviceUnavailable
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve.client.client import Client
from mlflow_deploy_plugin.serve.client.rows import encode_tensors
from mlflow_deploy_plugin.serve.device import require_device
from mlflow_deploy_plugin.serve.grpc import inference_pb2 as messages
from mlflow_deploy_plugin.serve.protocols.v2_tensors import array_datatype
from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime
from projects.image_resnet18.network import resnet18

ort = import_onnxruntime()
ON_GPU = "CUDAExecutionProvider" in ort.get_available_providers()
if ON_GPU:
    try:
        require_device(ServerSpec(device="cuda"))
        ort.preload_dlls()
    except DeviceUnavailable as error:
        print(error.message, file=sys.stderr)
        ON_GPU = False
DEVICE = "cuda" if ON_GPU else "cpu"
PROVIDER = "CUDAExecutionProvider" if ON_GPU else "CPUExecutionProvider"
CALLERS = (1, 16, 128)
BATCH = 32
TOKENS = 128
WORDS = 2000
IMAGE = (3, 224, 224)
FORMS = ("V2", "gRPC", "Arrow", "JSON")
PEERS = {"fastapi": ["fastapi"], "litserve": ["litserve", "python_multipart"]}
"""The packages of the other servers."""
MLMODEL = "flavors:\n  onnx:\n    data: model.onnx\n    onnx_version: '1'\n"
V2_PATH = "/v2/models/net/infer"
GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
TURNS = 3


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

    @cached_property
    def session(self) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        return ort.InferenceSession(str(self.folder / "model.onnx"), options, [PROVIDER])


def save(name: str, dtype: str, folder: Path) -> Net:
    torch.manual_seed(0)
    net = NETS[name]().eval()
    random = np.random.default_rng(0)
    row: np.ndarray
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
    if form == "fastapi":
        return post("/predict", row.tobytes(), "application/octet-stream")
    if form == "litserve":
        head = b'--line\r\nContent-Disposition: form-data; name="row"; filename="row"\r\n\r\n'
        body = head + row.tobytes() + b"\r\n--line--\r\n"
        return post("/predict", body, "multipart/form-data; boundary=line")
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
        cells = pa.FixedSizeListArray.from_arrays(pa.array(row.reshape(-1)), row.size)
        table = pa.table({"x": cells})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        stream = "application/vnd.apache.arrow.stream"
        return post("/invocations", sink.getvalue().to_pybytes(), stream, Accept=stream)
    message = messages.ModelInferRequest(model_name="net", raw_input_contents=[row.tobytes()])
    message.inputs.add(name="x", datatype=array_datatype(row), shape=row.shape)
    return message.SerializeToString()


async def grpc_loop(
    port: int, message: bytes, callers: int, seconds: float, warm_up: float
) -> Measured:
    """Send the next call of every caller after its response."""
    latencies: list[float] = []
    begin = time.perf_counter() + warm_up
    end = begin + seconds

    async def call(method: Any) -> None:
        while (begun := time.perf_counter()) < end:
            await method(message)
            if begun >= begin:
                latencies.append(time.perf_counter() - begun)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary(GRPC_METHOD)
        await asyncio.gather(*(call(method) for _ in range(callers)))
    seconds = time.perf_counter() - begin
    return measured(latencies, 0, seconds)


@contextmanager
def serving(form: str, net: Net, work: Path) -> Iterator[tuple[servers.Server, int]]:
    """Yield a running server, and its port for gRPC. `form` is the name of another
    server, or one of `FORMS` for ours.
    """
    port = servers.free_port()
    grpc_port = servers.free_port()
    shape = ",".join(map(str, net.row.shape[1:]))
    variables = {"NET": str(net.folder / "net.pt"), "DEVICE": DEVICE, "SHAPE": shape}
    variables |= {"DTYPE": net.row.dtype.name, "ONNXSERVE_HOME": str(work / "home")}
    path = "/v2/health/ready"
    words = f"-m mlflow_deploy_plugin.cli serve {net.folder} -p {port} --name net --device {DEVICE}"
    words += f" --state-dir {work}/state -C capture.fraction=0 -C server.grpc_port={grpc_port}"
    words += f" -C server.max_batch_size={BATCH}"
    if form == "fastapi":
        path = "/ping"
        words = f"-m uvicorn --app-dir {HERE} --port {port} --log-level warning fastapi_torch:app"
    elif form == "litserve":
        path = "/health"
        words = f"{HERE}/litserve_torch.py {port}"
    ready = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    core = None if ON_GPU else servers.SERVER_CORE
    command = [sys.executable, *words.split()]
    with servers.running(form, command, port, work / form, variables, ready, core) as server:
        yield server, grpc_port


def cpu_seconds(server: servers.Server) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in server.processes())


def batches_of(server: servers.Server) -> tuple[float, float]:
    """Return the number of rows that the server has computed, and of their batches."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    totals = []
    for name in ("onnxserve_batch_rows_sum", "onnxserve_batch_rows_count"):
        totals.append(sum(float(line.split()[-1]) for line in lines if line.startswith(name)))
    return totals[0], totals[1]


def bare(net: Net, rows: int, seconds: float) -> tuple[float, float]:
    """Return the rows per second in batches of `rows`, and the CPU time per row."""
    x = np.concatenate([net.row] * rows)
    net.session.run(None, {"x": x})
    runs = 0
    began = time.perf_counter()
    cpu = time.thread_time()
    while runs < 2 or time.perf_counter() - began < seconds:
        net.session.run(None, {"x": x})
        runs += 1
    computed = runs * rows
    return computed / (time.perf_counter() - began), (time.thread_time() - cpu) / computed


def compare(
    net: Net, form: str, callers: int, server: servers.Server, grpc_port: int, seconds: float
) -> dict[str, str]:
    """Measure a server and the bare session in turns. Return the cells of a line:
    `batch` is the mean of the rows, and the CPU time is that of all processes per row.
    """
    raw = request_of(form, net.row)
    # Many callers wait for half a second.
    seconds = max(seconds / TURNS, callers / CALLERS[-1])
    warm_up = seconds / 2
    turns = []
    for _ in range(TURNS):
        rows_before, batches_before = batches_of(server) if form in FORMS else (0, 0)
        cpu = cpu_seconds(server)
        if form == "gRPC":
            run = asyncio.run(grpc_loop(grpc_port, raw, callers, seconds, warm_up))
        else:
            run = closed_loop(Target(server.port, raw, b""), callers, seconds, warm_up)
        assert not run.wrong, f"{form}: {run.wrong} of {run.requests} responses are wrong"
        cpu = cpu_seconds(server) - cpu
        rows = run.requests * (run.seconds + warm_up) / run.seconds
        batch = float(min(callers, BATCH) if form == "litserve" else 1)
        if form in FORMS:
            rows_after, batches = batches_of(server)
            rows = rows_after - rows_before
            batch = rows / (batches - batches_before)
        server.pause()
        use_core(servers.SERVER_CORE)
        bare_rate, bare_cpu = bare(net, round(batch), seconds / 2)
        use_core(servers.CLIENT_CORE)
        server.go_on()
        row_cpu = cpu / rows
        ratio = run.rate / bare_rate
        latencies = (run.p50 * 1e3, run.p99 * 1e3)
        turns.append((run.rate, *latencies, batch, ratio, row_cpu * 1e3, bare_cpu / row_cpu))
    rate, p50, p99, batch, ratio, row_cpu, cpu_ratio = np.median(turns, axis=0)
    return {
        "net": net.name,
        "form": form,
        "callers": str(callers),
        "rows/s": f"{rate:,.0f}",
        "p50, p99 ms": f"{p50:.1f}, {p99:.1f}",
        "batch": f"{batch:.1f}",
        "÷ bare": f"{ratio:.2f}",
        "CPU ms": f"{row_cpu:.2f}",
        "bare ÷ CPU": f"{cpu_ratio:.2f}",
    }


def use_core(core: int) -> None:
    """Move this process to a core, unless a GPU computes."""
    if not ON_GPU:
        os.sched_setaffinity(0, {core})


def lines_of(net: Net, work: Path, options: argparse.Namespace) -> Iterator[dict[str, str]]:
    with serving(FORMS[0], net, work) as (server, grpc_port):
        computed = Client(f"http://127.0.0.1:{server.port}").infer({"x": net.row}).values["y"]
        [expected] = net.session.run(None, {"x": net.row})
        assert np.allclose(computed, expected, rtol=1e-2, atol=1e-2), "the outputs differ"
        for form, callers in product(options.forms, options.callers):
            if form != "JSON" or callers == CALLERS[1]:
                yield compare(net, form, callers, server, grpc_port, options.seconds)
    for form in options.peers:
        with serving(form, net, work) as (server, _):
            for callers in options.callers:
                yield compare(net, form, callers, server, 0, options.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of one load (1)")
    parser.add_argument("--only", default="", help="words of the nets: resnet, bert, pixels, fp16")
    parser.add_argument("--forms", default=",".join(FORMS), help="V2,gRPC,Arrow,JSON")
    parser.add_argument("--callers", default="1,16,128")
    options = parser.parse_args()
    options.forms = options.forms.split(",")
    options.callers = list(map(int, options.callers.split(",")))
    has_torch = torch.cuda.is_available() or not ON_GPU
    options.peers = [
        name
        for name, packages in PEERS.items()
        if has_torch and all(map(importlib.util.find_spec, packages))
    ]
    use_core(servers.CLIENT_CORE)
    where = "CUDA" if ON_GPU else "CPU provider on one core, no GPU lent"
    print(f"{where}; onnxruntime {ort.__version__}, torch {torch.__version__}", end="; ")
    print(f"peers: {', '.join(options.peers) or 'FastAPI and LitServe are not installed'}\n")
    has_head = False
    with tempfile.TemporaryDirectory(prefix="gpu-wire-") as folder:
        for name, dtype in product(NETS, ("fp32", "fp16")):
            if not all(word in f"{name} {dtype}" for word in options.only.split()):
                continue
            work = Path(folder) / name / dtype
            try:
                for line in lines_of(save(name, dtype, work / "net"), work, options):
                    if not has_head:
                        print("|", " | ".join(line), "|\n" + "|---" * len(line) + "|")
                    has_head = True
                    print("|", " | ".join(line.values()), "|", flush=True)
            except servers.NotStarted as error:
                print(f"| {name} {dtype} | {str(error).splitlines()[-1]} |", flush=True)


if __name__ == "__main__":
    main()
