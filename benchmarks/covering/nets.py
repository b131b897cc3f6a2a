"""Networks of torch, TorchScript, `torch.export`, Keras and transformers as cases, each
written as the expression that makes it.
"""

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.covering.judge import Case

os.environ.setdefault("KERAS_BACKEND", "torch")  # always installed

Shape = tuple[int, ...]
_TOKENS = 30
_TORCH: dict[str, Shape | dict[str, Shape]] = {
    "nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))": (6,),
    "nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 2))": (6,),
    "nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 2))": (6,),
    "nn.Sequential(nn.Linear(6, 4), nn.Softmax(1))": (6,),
    "nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())": (1, 12, 12),
    "nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.PReLU(), nn.ConvTranspose2d(4, 1, 3, 2, 1, 1))": (
        *(1, 12, 12),
    ),
    "nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Upsample(scale_factor=2))": (2, 6, 6),
    "nn.Sequential(nn.Conv1d(4, 8, 3, dilation=2), nn.LeakyReLU(), nn.AdaptiveMaxPool1d(1))": (
        *(4, 16),
    ),
    "nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)": (5, 8),
    "Recurrent(nn.LSTM)": (7, 4),
    "Recurrent(nn.GRU)": (7, 4),
    "Recurrent(nn.LSTM, both=True)": (7, 4),
    "Residual()": (4, 8, 8),
    "Tokens()": {"tokens": (6,), "mask": (6,)},
    "TwoInputs()": {"left": (6,), "right": (3,)},
    "Loop()": (6,),
}
_PROGRAMS = (
    "nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())",
    "Recurrent(nn.LSTM)",
    "Residual()",
    "TwoInputs()",
)
_KERAS: dict[str, Shape] = {
    'chain((6,), Dense(16, "relu"), Dense(3, "softmax"))': (6,),
    "chain((12, 12, 1), Conv2D(4, 3), MaxPooling2D(), Flatten(), Dense(3))": (12, 12, 1),
    'chain((12, 12, 1), Conv2D(4, 3, 2, "same"), Conv2DTranspose(1, 3, 2, "same"))': (12, 12, 1),
    "chain((7, 4), LSTM(6), Dense(2))": (7, 4),
    "chain((7, 4), Bidirectional(GRU(6)), Dense(2))": (7, 4),
    "chain((6,), Dense(8), BatchNormalization(), ReLU(), Dropout(0.5), Dense(2))": (6,),
    'chain((6,), Embedding(30, 4), GlobalAveragePooling1D(), Dense(2), dtype="int64")': (6,),
    'chain((6,), Embedding(30, 4, mask_zero=True), LSTM(5), Dense(2), dtype="int64")': (6,),
}
_SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
}
_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": {"vocab_size": 50, **_SMALL},
    "DistilBertModel": {"vocab_size": 50, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
    "ViTForImageClassification": {"image_size": 16, "patch_size": 8, **_SMALL},
}
"""The options of their configurations."""


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for expression, shape in _TORCH.items():
        yield f"torch net {expression}", partial(_torch, "torch", expression, shape)
    for library in ("torchscript", "torch.export"):
        for expression in _PROGRAMS:
            shape = _TORCH[expression]
            yield f"{library} net {expression}", partial(_torch, library, expression, shape)
    for expression, size in _KERAS.items():
        yield f"keras net {expression}", partial(_keras, expression, size)
    for name, options in _TRANSFORMERS.items():
        yield f"transformers net {name}", partial(_transformer, name, options)


def _drawn(random: np.random.Generator, rows: int, kind: str, size: Shape) -> np.ndarray:
    if kind == "tokens" or "Embedding" in kind:
        return random.integers(0, _TOKENS, (rows, *size))
    if kind == "mask":
        return np.sort(random.integers(0, 2, (rows, *size)), axis=1)[:, ::-1].astype(np.float32)
    return random.normal(size=(rows, *size)).astype(np.float32)


def _fresh(random: np.random.Generator, kind: str, size: Shape) -> np.ndarray:
    """Return 80 rows; the numbers of some of them are far from those of the example."""
    near = _drawn(random, 80, kind, size)
    if near.dtype.kind != "f" or kind == "mask":
        return near
    far = _drawn(random, 10, kind, size) * 1000
    return np.concatenate([near[:48], near[48:68] * 30, far, near[:2] * 0])


def _torch(library: str, expression: str, shape: Shape | dict[str, Shape]) -> Case:
    import torch  # heavy, and not needed for other cases

    torch.manual_seed(0)
    torch.set_num_threads(1)
    random = np.random.default_rng(3)
    example: Any
    fresh: Any
    if isinstance(shape, dict):
        example = {kind: _drawn(random, 40, kind, size) for kind, size in shape.items()}
        fresh = {kind: _fresh(random, kind, size) for kind, size in shape.items()}
    else:
        example = _drawn(random, 40, expression, shape)
        fresh = _fresh(random, expression, shape)
    net = eval(expression, {"nn": torch.nn, **_modules()}).eval()
    values = example.values() if isinstance(example, dict) else [example]
    tensors = tuple(map(torch.from_numpy, values))
    if library == "torchscript":
        return Case(torch.jit.trace(net, tensors), example, fresh)
    if library == "torch.export":
        rows = tuple({0: torch.export.Dim("rows")} for _ in tensors)
        program = torch.export.export(net, tensors, dynamic_shapes=rows)
        program.eval = program.module  # The judge calls it like a module.
        return Case(program, example, fresh)
    return Case(net, example, fresh)


@cache
def _modules() -> dict[str, Any]:
    """Return the networks that are not a sequence of layers, by name."""
    import torch
    from torch import nn

    class Recurrent(nn.Module):
        def __init__(self, kind: Any, both: bool = False) -> None:
            super().__init__()
            self.body = kind(4, 8, batch_first=True, bidirectional=both)
            self.head = nn.Linear(16 if both else 8, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.body(x)[0][:, -1])

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
            self.short = nn.Conv2d(4, 8, 1, 2, bias=False)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.body(x) + self.short(x)).mean((2, 3))

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Embedding(_TOKENS, 5)
            self.head = nn.Linear(5, 3)

        def forward(self, tokens: Any, mask: Any) -> Any:
            weights = mask.unsqueeze(-1)
            return self.head((self.body(tokens) * weights).sum(1) / weights.sum(1).clamp(min=1))

    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Linear(6, 4)
            self.right = nn.Linear(7, 2)

        def forward(self, left: Any, right: Any) -> Any:
            return self.right(torch.cat([torch.tanh(self.left(left)), right], 1))

    class Loop(nn.Module):
        """A network whose graph depends on its rows."""

        def forward(self, x: Any) -> Any:
            return torch.stack([row * (2 if float(row.sum()) > 0 else -1) for row in x])

    return {kind.__name__: kind for kind in (Recurrent, Residual, Tokens, TwoInputs, Loop)}


def _keras(expression: str, size: Shape) -> Case:
    try:
        import keras  # heavy, like torch
    except ImportError as error:
        raise LookupError(f"needs {error.name}") from None
    keras.utils.set_random_seed(0)

    def chain(given: Shape, *parts: Any, dtype: str = "float32") -> Any:
        return keras.Sequential([keras.Input(given, dtype=dtype), *parts])

    random = np.random.default_rng(3)
    example = _drawn(random, 40, expression, size)
    net = eval(expression, {**vars(keras.layers), "chain": chain})
    return Case(net, example, _fresh(random, expression, size))


def _transformer(name: str, options: dict[str, Any]) -> Case:
    """Return a network of transformers with random weights, because downloads are not
    possible.
    """
    try:
        import torch

        transformers = import_module("transformers")
    except ImportError as error:
        raise LookupError(f"transformers is not installed ({error})") from None
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    net = kind(kind.config_class(**options)).eval()
    random = np.random.default_rng(34)
    if "image_size" in options:
        images = [random.normal(size=(6, 3, 16, 16)).astype(np.float32) for _ in range(2)]
        return Case(net, *({"pixel_values": one} for one in images))
    tables = [
        {
            "input_ids": random.integers(1, 50, (6, 10)),
            "attention_mask": (np.arange(10) < random.integers(3, 10, (6, 1))).astype(np.int64),
        }
        for _ in range(2)
    ]
    return Case(net, *tables)
