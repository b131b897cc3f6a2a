"""Nets of torch as cases."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.covering.judge import Case


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    yield from ((f"torch {name}", partial(_case, name)) for name in _SHAPES)


_SHAPES: dict[str, tuple[int, ...]] = {
    "mlp": (6,),
    "batch norm": (6,),
    "layer norm": (6,),
    "cnn": (1, 12, 12),
    "lstm": (7, 4),
    "gru": (7, 4),
    "transformer": (5, 8),
    "attention": (5, 8),
    "embedding": (6,),
    "softmax": (6,),
    "two outputs": (6,),
    "where": (6,),
}


def _case(name: str) -> Case:
    import torch  # heavy, and of no use to the other cases

    torch.manual_seed(0)
    torch.set_num_threads(1)
    random = np.random.default_rng(3)

    def drawn(rows: int) -> np.ndarray:
        if name == "embedding":
            return random.integers(0, 30, (rows, *_SHAPES[name]))
        return random.normal(size=(rows, *_SHAPES[name])).astype(np.float32)

    fresh = np.concatenate([drawn(60), drawn(20) * 30, drawn(10) * 1000, np.zeros_like(drawn(2))])
    return Case(_net(torch, name).eval(), drawn(40), drawn(80) if name == "embedding" else fresh.astype(drawn(1).dtype))


def _net(torch: Any, name: str) -> Any:
    nn = torch.nn

    class Recurrent(nn.Module):
        def __init__(self, kind: Any) -> None:
            super().__init__()
            self.body, self.head = kind(4, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.body(x)[0][:, -1])

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.body(x, x, x, need_weights=False)[0].mean(1)

    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Embedding(30, 5), nn.Linear(5, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.body(x).mean(1))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(6, 2), nn.Linear(6, 1)

        def forward(self, x: Any) -> Any:
            return self.left(x), self.right(x)

    class Where(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.where(x > 0.5, x * 2, -x).sum(1)

    made: dict[str, Callable[[], Any]] = {
        "mlp": lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)),
        "batch norm": lambda: nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 2)),
        "layer norm": lambda: nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 2)),
        "cnn": lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(100, 3)
        ),
        "lstm": lambda: Recurrent(nn.LSTM),
        "gru": lambda: Recurrent(nn.GRU),
        "transformer": lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten()),
        "attention": Attention,
        "embedding": Embedded,
        "softmax": lambda: nn.Sequential(nn.Linear(6, 4), nn.Softmax(1)),
        "two outputs": Two,
        "where": Where,
    }
    return made[name]()
