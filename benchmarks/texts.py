"""Compare a wrapped text model with its original in torch: texts per second, and the
memory of a process.

    .venv/bin/python benchmarks/texts.py [--device cuda]

The net has the size of all-MiniLM-L6-v2 (6 layers, 384 dimensions, 512 tokens) and
random weights, as an encoder of sentence-transformers and as a classifier of
transformers. The texts are sentences of the guides. Each model runs in its own process
with one thread. The processes take turns, and the figures are the medians of three
turns. The tokenizer is included in all figures. On a GPU, ONNX Runtime's CPU provider
computes the shapes.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent

_ROUNDS = 3
_SECONDS = 3.0
_SIZES = (1, 32, 256)
_NET = {
    "vocab_size": 2000,
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


def sentences() -> list[str]:
    text = " ".join(
        (ROOT / "docs" / name).read_text() for name in ("wrap.md", "serve.md", "monitor.md")
    )
    parts = [part.strip() for part in text.replace("\n", " ").split(". ") if 20 < len(part) < 400]
    np.random.default_rng(0).shuffle(parts)
    return parts


def save_nets(folder: Path) -> None:
    """Save the two nets and their wrapped forms."""
    import sentence_transformers
    import transformers
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer

    import mlflow_deploy_plugin as onnxserve
    from tests.support.texts import tokenizer_json

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json("WordPiece", 2000)),
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=512,
    )
    config = transformers.BertConfig(**_NET, num_hidden_layers=6, pad_token_id=2)
    for name, net in (
        ("encoder", transformers.BertModel),
        ("classifier", transformers.BertForSequenceClassification),
    ):
        net(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    modules = [Transformer(str(folder / "encoder")), Pooling(384)]
    encoder = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    encoder.save(str(folder / "sentence-transformers"))
    onnxserve.save_model(encoder, folder / "wrapped-encoder", input_example=sentences()[:5])
    pipeline = transformers.pipeline(
        "text-classification",
        str(folder / "classifier"),
        truncation=True,
    )
    onnxserve.save_model(pipeline, folder / "wrapped-classifier", input_example=sentences()[:5])


def load(kind: str, folder: Path, device: str) -> Callable[[list[str]], Any]:
    if kind.startswith("wrapped"):
        from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
        from mlflow_deploy_plugin.serve.runtime.session import ON_CPU, Placement

        on_gpu = Placement(listed=[{"CUDAExecutionProvider": {}}, {"CPUExecutionProvider": {}}])
        model = OnnxModel.load(folder / kind, on_gpu if device == "cuda" else ON_CPU)
        return lambda texts: model.run(model.schema.from_columns({"text": texts}))
    import torch

    torch.set_num_threads(1)
    if kind == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(folder / kind), device=device)
        return lambda texts: encoder.encode(texts, show_progress_bar=False)
    import transformers

    pipeline = transformers.pipeline(
        "text-classification",
        str(folder / "classifier"),
        truncation=True,
        device=device,
    )
    return lambda texts: pipeline(texts, batch_size=32)


def measure(kind: str, folder: Path, device: str) -> Iterator[float]:
    """Yield the texts per second of each batch size, and the memory of the process in
    MB.
    """
    predict = load(kind, folder, device)
    texts = sentences()
    predict(texts[:32])
    for size in _SIZES:
        done = 0
        began = time.perf_counter()
        while time.perf_counter() - began < _SECONDS:
            predict([texts[(done + index) % len(texts)] for index in range(size)])
            done += size
        yield done / (time.perf_counter() - began)
    yield psutil.Process().memory_info().rss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--one",
        nargs=2,
        metavar=("KIND", "FOLDER"),
        help="measure a single saved model",
    )
    options = parser.parse_args()
    if options.one:
        print(*measure(options.one[0], Path(options.one[1]), options.device))
        return
    kinds = ("sentence-transformers", "wrapped-encoder", "transformers", "wrapped-classifier")
    figures: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    with TemporaryDirectory() as folder:
        save_nets(Path(folder))
        for kind in kinds * _ROUNDS:
            command = [sys.executable, __file__, "--device", options.device, "--one", kind, folder]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            figures[kind].append([float(number) for number in out.splitlines()[-1].split()])
    print(f"{'texts per call':24}" + "".join(f"{size:10}" for size in _SIZES) + f"{'MB':>10}")
    for kind, rounds in figures.items():
        medians = (median(numbers) for numbers in zip(*rounds, strict=True))
        print(f"{kind:24}" + "".join(f"{figure:10.0f}" for figure in medians))


if __name__ == "__main__":
    main()
