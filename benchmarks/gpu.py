"""Compare a GPU's inference: onnxserve's sessions, bare ONNX Runtime, torch eager and
torch.compile.

    # on a machine with an NVIDIA GPU, extra gpu and a CUDA build of torch
    python benchmarks/gpu.py
    # a dry run, whose figures are meaningless
    python benchmarks/gpu.py --device cpu --rounds 1 --models digits

The models are ResNet18 (3 × 224 × 224, float32 and float16) and the digits CNN with 1,
8, 32 and 128 rows. Every way receives and returns numpy arrays of the host, so copies
are included. All ways alternate in each round, and the medians are compared. The script
prints the table for RESULTS.md: milliseconds per run, and the speed relative to bare
ONNX Runtime.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

sys.path.append(str(Path(__file__).parent.parent))

from mlflow_deploy_plugin.core.spec.parts import Device, ProviderOptions, ServerSpec
from mlflow_deploy_plugin.serve.device import require_device
from mlflow_deploy_plugin.serve.runtime.binding import GraphSession
from mlflow_deploy_plugin.serve.runtime.session import Placement, open_session
from projects.digits_cnn.fitting import DigitsCNN
from projects.image_resnet18.network import resnet18

ROWS = (1, 8, 32, 128)
WARM_RUNS = 10
LEAST_RUNS = 5
SECONDS = 0.3
TOLERANCE = {np.dtype("float32"): 1e-2, np.dtype("float16"): 5e-2}
"""Tolerance relative to the largest output, because TF32 and float16 round coarsely."""

Run = Callable[[np.ndarray], np.ndarray]
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], torch.dtype]] = {
    "resnet18 fp32": (resnet18, (3, 224, 224), torch.float32),
    "resnet18 fp16": (resnet18, (3, 224, 224), torch.float16),
    "digits cnn": (DigitsCNN, (1, 8, 8), torch.float32),
}


def export(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, file: Path) -> Path:
    torch.onnx.export(
        module,
        (torch.zeros((2, *shape), dtype=dtype),),
        str(file),
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["x"],
        output_names=["y"],
        verbose=False,
    )
    return file


def ways(module: nn.Module, file: Path, device: Device) -> dict[str, Run]:
    """The functions that compute the module, by name; the first is the base of the
    ratios.
    """
    provider = Placement(device).providers[0][0]
    bare = onnxruntime.InferenceSession(str(file), providers=[provider])
    plain = open_session(file, Placement(device))
    placement = Placement(device, options=ProviderOptions(enable_cuda_graph=True))
    graphs = GraphSession(open_session(file, placement), placement)
    placed = module.to("cpu" if device == "cpu" else "cuda")
    compiled = torch.compile(placed)
    return {
        "ONNX Runtime": lambda x: bare.run(["y"], {"x": x})[0],
        "onnxserve": lambda x: plain.run(["y"], {"x": x})[0],
        "onnxserve, CUDA graphs": lambda x: graphs.run(["y"], {"x": x})[0],
        "torch eager": lambda x: in_torch(placed, x),
        "torch.compile": lambda x: in_torch(compiled, x),
    }


def in_torch(module: Any, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        where = next(module.parameters()).device
        return module(torch.from_numpy(x).to(where)).cpu().numpy()


def seconds_per_run(run: Run, x: np.ndarray) -> float:
    runs = 0
    began = time.perf_counter()
    while runs < LEAST_RUNS or time.perf_counter() - began < SECONDS:
        run(x)
        runs += 1
    return (time.perf_counter() - began) / runs


def measure(name: str, device: Device, rounds: int) -> list[str]:
    """Return the rows of the table of one model."""
    build, shape, dtype = MODELS[name]
    torch.manual_seed(0)
    module = build().eval().to(dtype)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = export(module, shape, dtype, Path(folder) / "model.onnx")
        runs = ways(module, file, device)
    lines = []
    for rows in ROWS:
        x = random.random((rows, *shape), dtype=np.float32).astype(
            torch.zeros(1, dtype=dtype).numpy().dtype,
        )
        require_equal_outputs(runs, x)
        medians = median_seconds(runs, x, rounds)
        base = medians["ONNX Runtime"]
        cells = [f"{1e3 * median:.2f} ms, {base / median:.2f}×" for median in medians.values()]
        lines.append(f"| {name}, {rows} rows | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def require_equal_outputs(runs: dict[str, Run], x: np.ndarray) -> None:
    expected = runs["torch eager"](x).astype(np.float64)
    for way, run in runs.items():
        for _ in range(WARM_RUNS):
            computed = run(x)
        error = np.abs(computed - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE[x.dtype], f"{way} gives different outputs: {error:.1e}"


def median_seconds(runs: dict[str, Run], x: np.ndarray, rounds: int) -> dict[str, float]:
    """Return the median of each way in alternating rounds."""
    taken: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(rounds):
        for way, run in runs.items():
            taken[way].append(seconds_per_run(run, x))
    return {way: statistics.median(values) for way, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a dry run")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which all ways alternate")
    parser.add_argument("--models", default="", help="only models whose names begin with this")
    options = parser.parse_args()
    require_device(ServerSpec(device=options.device))
    if options.device == "cuda":
        where = torch.cuda.get_device_name(0)
    else:
        where = f"{platform.processor() or 'a CPU'}: a dry run"
    print(
        f"{where}; onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, "
        f"{options.rounds} rounds\n",
    )
    names = ["ONNX Runtime", "onnxserve", "CUDA graphs", "torch eager", "torch.compile"]
    print("| | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for name in MODELS:
        if name.startswith(options.models):
            measure(name, options.device, options.rounds)


if __name__ == "__main__":
    main()
