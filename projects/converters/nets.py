"""Networks of torch, TorchScript, `torch.export` and Keras as cases, each written as
the expression that makes it.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from projects.converters.judge import Case

os.environ.setdefault("KERAS_BACKEND", "torch")  # always installed

Shape = tuple[int, ...]
_TORCH: dict[str, Shape] = {
    "Sequential(Linear(6, 16), ReLU(), Linear(16, 2))": (6,),
    "Sequential(Linear(6, 16), BatchNorm1d(16), GELU(), Linear(16, 2))": (6,),
    "Sequential(Linear(6, 16), LayerNorm(16), SiLU(), Linear(16, 2), Softmax(1))": (6,),
    "Sequential(Conv2d(1, 4, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(100, 3))": (1, 12, 12),
    "Sequential(Conv2d(1, 4, 3, 2, 1), PReLU(), ConvTranspose2d(4, 1, 3, 2, 1, 1))": (1, 12, 12),
    "Sequential(Conv2d(2, 4, 3), GroupNorm(2, 4), Upsample(scale_factor=2))": (2, 6, 6),
    "Sequential(Conv1d(4, 8, 3, dilation=2), LeakyReLU(), AdaptiveMaxPool1d(1))": (4, 16),
    "Sequential(Embedding(30, 4), Flatten(), Linear(24, 2))": (6,),
    "Sequential(LSTM(4, 8, batch_first=True), First(), Linear(8, 2))": (7, 4),
    "Sequential(GRU(4, 8, batch_first=True), First(), Linear(8, 2))": (7, 4),
    "TransformerEncoderLayer(8, 2, 16, batch_first=True)": (5, 8),
}
_KERAS: dict[str, Shape] = {
    'chain((6,), Dense(16, "relu"), Dense(3, "softmax"))': (6,),
    "chain((12, 12, 1), Conv2D(4, 3), MaxPooling2D(), Flatten(), Dense(3))": (12, 12, 1),
    'chain((12, 12, 1), Conv2D(4, 3, 2, "same"), Conv2DTranspose(1, 3, 2, "same"))': (12, 12, 1),
    "chain((7, 4), LSTM(6), Dense(2))": (7, 4),
    "chain((7, 4), Bidirectional(GRU(6)), Dense(2))": (7, 4),
    "chain((6,), Dense(8), BatchNormalization(), ReLU(), Dropout(0.5), Dense(2))": (6,),
    'chain((6,), Embedding(30, 4, mask_zero=True), LSTM(5), Dense(2), dtype="int64")': (6,),
}


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for library in ("torch", "torchscript", "torch.export"):
        for expression, size in _TORCH.items():
            if library == "torchscript" and "Transformer" in expression:
                continue  # Its traces differ.
            yield f"{library} net {expression}", partial(_torch, library, expression, size)
    for expression, size in _KERAS.items():
        yield f"keras net {expression}", partial(_keras, expression, size)


def _rows(expression: str, size: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Return 40 rows as the example, and 80 fresh rows, some of which are far from the
    example.
    """
    random = np.random.default_rng(3)
    if "Embedding" in expression:
        return random.integers(0, 30, (40, *size)), random.integers(0, 30, (80, *size))
    rows = random.normal(size=(120, *size)).astype(np.float32)
    rows[90:110] *= 30
    rows[110:118] *= 1000
    rows[118:] = 0
    return rows[:40], rows[40:]


def _torch(library: str, expression: str, size: Shape) -> Case:
    import torch  # heavy, and not needed for other cases

    torch.manual_seed(0)
    torch.set_num_threads(1)
    example, fresh = _rows(expression, size)

    class First(torch.nn.Module):
        """The outputs of a recurrent layer without its state."""

        def forward(self, answer: Any) -> Any:
            return answer[0]

    net = eval(expression, {**vars(torch.nn), "First": First}).eval()
    tensors = (torch.from_numpy(example),)
    if library == "torchscript":
        net = torch.jit.trace(net, tensors)
    if library == "torch.export":
        rows = ({0: torch.export.Dim("rows")},)
        net = torch.export.export(net, tensors, dynamic_shapes=rows)
        net.eval = net.module  # The judge calls it like a module.
    return Case(net, example, fresh)


def _keras(expression: str, size: Shape) -> Case:
    try:
        import keras  # heavy, like torch
    except ImportError as error:
        raise LookupError(f"needs {error.name}") from None
    keras.utils.set_random_seed(0)

    def chain(given: Shape, *parts: Any, dtype: str = "float32") -> Any:
        return keras.Sequential([keras.Input(given, dtype=dtype), *parts])

    net = eval(expression, {**vars(keras.layers), "chain": chain})
    return Case(net, *_rows(expression, size))
