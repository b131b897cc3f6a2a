"""Networks of torch, TorchScript, `torch.export` and Keras as cases."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.covering.judge import Case

os.environ.setdefault("KERAS_BACKEND", "torch")  # always installed

Shape = tuple[int, ...]


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for library, shapes in (
        ("torch", _TORCH),
        ("torchscript", _PROGRAMS),
        ("torch.export", _PROGRAMS),
    ):
        yield from (
            (f"{library} net {name}", partial(_case, library, name, shape))
            for name, shape in shapes.items()
        )
    yield from (
        (f"keras net {name}", partial(_case, "keras", name, shape))
        for name, shape in _KERAS.items()
    )


_TOKENS = 30
_TORCH: dict[str, Shape | dict[str, Shape]] = {
    "mlp": (6,),
    "batch norm": (6,),
    "layer norm": (6,),
    "cnn": (1, 12, 12),
    "residual block": (4, 8, 8),
    "autoencoder": (1, 12, 12),
    "upsampling": (2, 6, 6),
    "temporal convolution": (4, 16),
    "lstm": (7, 4),
    "gru": (7, 4),
    "bidirectional": (7, 4),
    "transformer": (5, 8),
    "attention": (5, 8),
    "tokens": (6,),
    "tokens and mask": {"tokens": (6,), "mask": (6,)},
    "softmax": (6,),
    "two inputs": {"left": (6,), "right": (3,)},
    "two outputs": (6,),
    "where": (6,),
    "loop on data": (6,),
}
_PROGRAMS: dict[str, Shape | dict[str, Shape]] = {
    "cnn": (1, 12, 12),
    "residual block": (4, 8, 8),
    "lstm": (7, 4),
    "two inputs": {"left": (6,), "right": (3,)},
}
_KERAS: dict[str, Shape | dict[str, Shape]] = {
    "mlp": (6,),
    "cnn": (12, 12, 1),
    "residual graph": (8, 8, 3),
    "autoencoder": (12, 12, 1),
    "lstm": (7, 4),
    "bidirectional gru": (7, 4),
    "attention of any length": (5, 8),
    "tokens": (6,),
    "masked tokens": (6,),
    "normalization": (6,),
    "batch norm and dropout": (6,),
    "subclassed": (6,),
    "subclassed, two inputs": {"left": (6,), "right": (3,)},
    "subclassed, two outputs": (6,),
    "text vectorization": (1,),
    "singular values": (6,),
}


def _case(library: str, name: str, shape: Shape | dict[str, Shape]) -> Case:
    import torch  # heavy, and not needed for other cases

    torch.manual_seed(0)
    torch.set_num_threads(1)
    random = np.random.default_rng(3)

    def drawn(rows: int, kind: str, size: Shape) -> np.ndarray:
        if "tokens" in kind:
            return random.integers(0, _TOKENS, (rows, *size))
        if kind == "mask":
            return np.sort(random.integers(0, 2, (rows, *size)), axis=1)[:, ::-1].astype(np.float32)
        if kind == "text vectorization":
            return random.choice(["fine day", "rain", "a fine rain"], (rows, *size)).astype(object)
        return random.normal(size=(rows, *size)).astype(np.float32)

    def fresh(kind: str, size: Shape) -> np.ndarray:
        near = drawn(80, kind, size)
        if near.dtype.kind != "f" or kind == "mask":
            return near
        return np.concatenate(
            [near[:60], near[60:] * 30, drawn(10, kind, size) * 1000, near[:2] * 0],
        )

    if isinstance(shape, dict):
        example: Any = {kind: drawn(40, kind, size) for kind, size in shape.items()}
        asked: Any = {kind: fresh(kind, size)[:80] for kind, size in shape.items()}
    else:
        example = drawn(40, name, shape)
        asked = fresh(name, (shape[0] + 4, *shape[1:]) if "any length" in name else shape)
    if library == "keras":
        net = _keras(name)
        net(**example) if isinstance(example, dict) else net(example)  # creates the weights
        return Case(net, example, asked)
    return Case(_program(torch, library, _net(torch, name).eval(), example), example, asked)


def _program(torch: Any, library: str, module: Any, example: Any) -> Any:
    tensors = tuple(
        map(torch.from_numpy, example.values() if isinstance(example, dict) else [example]),
    )
    if library == "torchscript":
        return torch.jit.trace(module, tensors)
    if library == "torch.export":
        rows = torch.export.Dim("rows")
        program = torch.export.export(
            module,
            tensors,
            dynamic_shapes=tuple({0: rows} for _ in tensors),
        )
        program.eval = program.module  # the judge calls it like a module
        return program
    return module


def _net(torch: Any, name: str) -> Any:  # noqa: C901 - a list of classes; torch is imported late
    nn: Any = torch.nn

    class Recurrent(nn.Module):
        def __init__(self, kind: Any, both: bool = False) -> None:
            super().__init__()
            self.body = kind(4, 8, batch_first=True, bidirectional=both)
            self.head = nn.Linear(16 if both else 8, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.body(x)[0][:, -1])

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.body(x, x, x, need_weights=False)[0].mean(1)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(4, 8, 3, 2, 1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
            )
            self.more = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
            self.short = nn.Conv2d(4, 8, 1, 2, bias=False)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.more(self.body(x)) + self.short(x)).mean((2, 3))

    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Embedding(_TOKENS, 5)
            self.head = nn.Linear(5, 3)

    class Tokens(Embedded):
        def forward(self, tokens: Any) -> Any:
            return self.head(self.body(tokens).mean(1))

    class Masked(Embedded):
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

    class TwoOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Linear(6, 2)
            self.right = nn.Linear(6, 1)

        def forward(self, x: Any) -> Any:
            return self.left(x), self.right(x)

    class Where(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.where(x > 0.5, x * 2, -x).sum(1)

    class Loop(nn.Module):
        def forward(self, x: Any) -> Any:
            rows = [row * (2 if float(row.sum()) > 0 else -1) for row in x]
            return torch.stack(rows)

    made: dict[str, Callable[[], Any]] = {
        "mlp": lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)),
        "batch norm": lambda: nn.Sequential(
            nn.Linear(6, 16),
            nn.BatchNorm1d(16),
            nn.GELU(),
            nn.Linear(16, 2),
        ),
        "layer norm": lambda: nn.Sequential(
            nn.Linear(6, 16),
            nn.LayerNorm(16),
            nn.SiLU(),
            nn.Linear(16, 2),
        ),
        "cnn": lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(100, 3),
        ),
        "residual block": Residual,
        "autoencoder": lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1),
            nn.PReLU(),
            nn.ConvTranspose2d(4, 1, 3, 2, 1, 1),
            nn.Sigmoid(),
        ),
        "upsampling": lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding="same"),
            nn.GroupNorm(2, 4),
            nn.Upsample(scale_factor=2, mode="bilinear"),
        ),
        "temporal convolution": lambda: nn.Sequential(
            nn.Conv1d(4, 8, 3, dilation=2, padding=4),
            nn.LeakyReLU(),
            nn.AdaptiveMaxPool1d(1),
            nn.Flatten(),
        ),
        "lstm": lambda: Recurrent(nn.LSTM),
        "gru": lambda: Recurrent(nn.GRU),
        "bidirectional": lambda: Recurrent(nn.LSTM, both=True),
        "transformer": lambda: nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            nn.Flatten(),
        ),
        "attention": Attention,
        "tokens": Tokens,
        "tokens and mask": Masked,
        "softmax": lambda: nn.Sequential(nn.Linear(6, 4), nn.Softmax(1)),
        "two inputs": TwoInputs,
        "two outputs": TwoOutputs,
        "where": Where,
        "loop on data": Loop,
    }
    return made[name]()


def _keras(name: str) -> Any:
    try:
        import keras  # heavy, like torch
    except ImportError as error:
        raise LookupError(f"needs {error.name}") from None
    keras.utils.set_random_seed(0)
    layers = keras.layers

    def chain(size: tuple[int | None, ...], *parts: Any, dtype: str = "float32") -> Any:
        return keras.Sequential([keras.Input(size, dtype=dtype), *parts])

    def residual() -> Any:
        given = keras.Input((8, 8, 3))
        inner = layers.BatchNormalization()(
            layers.Conv2D(3, 3, padding="same", activation="relu")(given),
        )
        pooled = layers.GlobalAveragePooling2D()(layers.Add()([given, inner]))
        return keras.Model(given, layers.Dense(2)(pooled))

    def attention() -> Any:
        given = keras.Input((None, 8))
        attended = layers.MultiHeadAttention(2, 4)(given, given)
        return keras.Model(given, layers.LayerNormalization()(layers.Add()([given, attended])))

    def normalization() -> Any:
        scaled = layers.Normalization()
        scaled.adapt(np.random.default_rng(0).normal(size=(50, 6)) * 5 + 2)
        return chain((6,), scaled, layers.Dense(2, activation="gelu"))

    def vectorization() -> Any:
        try:
            words = layers.TextVectorization(max_tokens=10, output_sequence_length=4)
            words.adapt(["a fine day", "rain"])
        except ImportError as error:
            raise LookupError(f"needs {error.name or 'TensorFlow'}") from None
        return chain(
            (1,),
            words,
            layers.Embedding(10, 3),
            layers.Flatten(),
            layers.Dense(2),
            dtype="string",
        )

    def values() -> Any:
        given = keras.Input((6,))
        return keras.Model(given, keras.ops.svd(layers.Reshape((2, 3))(given), compute_uv=False))

    class Hidden(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = layers.Dense(8, "relu")
            self.drop = layers.Dropout(0.5)
            self.head = layers.Dense(2)

    class Subclassed(Hidden):
        def call(self, rows: Any, training: bool = False) -> Any:
            return self.head(self.drop(self.hidden(rows), training=training))

    class TwoInputs(Hidden):
        def call(self, left: Any, right: Any, training: bool = False) -> Any:
            return self.head(keras.ops.concatenate([self.hidden(left), right], -1))

    class TwoOutputs(Hidden):
        def call(self, rows: Any, training: bool = False) -> Any:
            return self.head(rows), keras.ops.mean(rows, -1)

    made: dict[str, Callable[[], Any]] = {
        "mlp": lambda: chain((6,), layers.Dense(16, "relu"), layers.Dense(3, "softmax")),
        "cnn": lambda: chain(
            (12, 12, 1),
            layers.Conv2D(4, 3),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(3),
        ),
        "residual graph": residual,
        "autoencoder": lambda: chain(
            (12, 12, 1),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(1, 3, strides=2, padding="same", activation="sigmoid"),
        ),
        "lstm": lambda: chain((7, 4), layers.LSTM(6), layers.Dense(2)),
        "bidirectional gru": lambda: chain(
            (7, 4),
            layers.Bidirectional(layers.GRU(6)),
            layers.Dense(2),
        ),
        "attention of any length": attention,
        "tokens": lambda: chain(
            (6,),
            layers.Embedding(_TOKENS, 4),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2),
            dtype="int64",
        ),
        "masked tokens": lambda: chain(
            (6,),
            layers.Embedding(_TOKENS, 4, mask_zero=True),
            layers.LSTM(5),
            layers.Dense(2),
            dtype="int64",
        ),
        "normalization": normalization,
        "batch norm and dropout": lambda: chain(
            (6,),
            layers.Dense(8),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Dense(2),
        ),
        "subclassed": Subclassed,
        "subclassed, two inputs": TwoInputs,
        "subclassed, two outputs": TwoOutputs,
        "text vectorization": vectorization,
        "singular values": values,
    }
    return made[name]()
