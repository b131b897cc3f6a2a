"""Models of libraries that are often used with scikit-learn, if these libraries are
installed.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.covering.estimators import numbers, target
from benchmarks.covering.judge import Case

_NUMBERS = ["smooth", "tenths", "whole", "small", "large"]
_CITIES = ["rome", "oslo", "lima", "São Paulo", "Łódź", "ulm"]


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Return the names with functions that make the case; a function raises
    `LookupError` if the library is not installed.
    """
    for name, (make, kind) in _CASES.items():
        yield f"library {name}", partial(_case, name.partition(":")[0], make, kind)
    for name, options in _TRANSFORMERS.items():
        yield f"library transformers: net {name}", partial(_transformer, name, options)


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
    lengths = random.integers(3, 10, (2, 6, 1))
    tables = [
        {
            "input_ids": random.integers(1, 50, (6, 10)),
            "attention_mask": (np.arange(10) < some).astype(np.int64),
        }
        for some in lengths
    ]
    return Case(net, *tables)


def _case(library: str, make: Callable[[Any], Any], kind: str) -> Case:
    try:
        package = import_module(library)
    except ImportError as error:
        raise LookupError(f"{library} is not installed ({error})") from None
    tables: list[Any] = [_table(seed) for seed in (31, 32)]
    wanted: Any = (
        target(tables[0][_NUMBERS].to_numpy()) + 3.0 * (tables[0].city == "oslo").to_numpy()
    )
    if "gaps" in kind:
        tables = [one.mask(np.random.default_rng(33).random(one.shape) < 0.1) for one in tables]
    if "numbers" in kind:
        tables = [one[_NUMBERS] for one in tables]
    if "matrix" in kind:
        tables = [one[_NUMBERS].to_numpy(np.float32) for one in tables]
    if "labels" in kind:
        wanted = np.where(wanted > np.median(wanted), "yes", "no")
    elif "classes" in kind:
        wanted = np.digitize(wanted, np.quantile(wanted, [0.3, 0.7]))
    elif "column" in kind:
        wanted = wanted[:, None].astype(np.float32)
    return Case(make(package).fit(tables[0], wanted), *tables)


def _table(seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    table = pd.DataFrame(numbers(seed, 260), columns=_NUMBERS)
    chances = [0.3, 0.25, 0.2, 0.15, 0.08, 0.02]
    return table.assign(
        city=random.choice(_CITIES, 260, p=chances),
        sex=random.choice(["m", "f"], 260),
    )


def _part(library: Any, path: str, *arguments: Any, **options: Any) -> Any:
    module, _, name = path.rpartition(".")
    found = import_module(f"{library.__name__}.{module}") if module else library
    return getattr(found, name)(*arguments, **options)


def _columns() -> Any:
    numeric = make_pipeline(SimpleImputer(), StandardScaler())
    return make_column_transformer(
        (numeric, _NUMBERS),
        (OneHotEncoder(handle_unknown="ignore"), ["city", "sex"]),
    )


def _resampled(library: Any) -> Any:
    sampler = _part(library, "over_sampling.SMOTE", random_state=0)
    return _part(library, "pipeline.make_pipeline", _columns(), sampler, LogisticRegression())


def _torch_net(library: Any, name: str, outputs: int, **options: Any) -> Any:
    import torch  # imported only for networks

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, outputs))
    model = getattr(library, name)(net, max_epochs=5, verbose=0, train_split=None, **options)
    return make_pipeline(StandardScaler(), model)


def _skorch_classifier(library: Any) -> Any:
    import torch  # imported only for networks

    return _torch_net(library, "NeuralNetClassifier", 3, criterion=torch.nn.CrossEntropyLoss)


_CASES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "imblearn: a sampler in a pipeline": (_resampled, "gaps labels"),
    "imblearn: EasyEnsembleClassifier": (
        lambda library: _part(
            library,
            "ensemble.EasyEnsembleClassifier",
            n_estimators=3,
            random_state=0,
        ),
        "numbers classes",
    ),
    "skrub: TableVectorizer": (
        lambda library: make_pipeline(library.TableVectorizer(), Ridge()),
        "",
    ),
    "skrub: tabular_pipeline": (
        lambda library: library.tabular_pipeline("classifier"),
        "gaps labels",
    ),
    "ngboost: NGBRegressor": (
        lambda library: library.NGBRegressor(n_estimators=20, verbose=False),
        "numbers",
    ),
    "ngboost: NGBClassifier": (
        lambda library: library.NGBClassifier(
            n_estimators=20,
            verbose=False,
            Dist=_part(library, "distns.k_categorical", 3),
        ),
        "numbers classes",
    ),
    "quantile_forest: RandomForestQuantileRegressor": (
        lambda library: library.RandomForestQuantileRegressor(20, random_state=0),
        "numbers",
    ),
    "skorch: NeuralNetClassifier": (_skorch_classifier, "matrix classes"),
    "skorch: NeuralNetRegressor": (
        lambda library: _torch_net(library, "NeuralNetRegressor", 1),
        "matrix column",
    ),
    "pytorch_tabnet: TabNetRegressor": (
        lambda library: _Fitted(
            _part(library, "tab_model.TabNetRegressor", verbose=0, device_name="cpu"),
        ),
        "matrix column",
    ),
    "skglm: Lasso": (
        lambda library: make_pipeline(StandardScaler(), library.Lasso(0.1)),
        "numbers",
    ),
    "sklego: ColumnSelector": (
        lambda library: make_pipeline(
            _part(library, "preprocessing.ColumnSelector", ["smooth", "large"]),
            Ridge(),
        ),
        "numbers",
    ),
    "umap: UMAP before a forest": (
        lambda library: make_pipeline(
            StandardScaler(),
            library.UMAP(n_components=2, random_state=0),
            RandomForestClassifier(10, random_state=0),
        ),
        "numbers classes",
    ),
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
    "GPT2ForSequenceClassification": {
        "vocab_size": 50,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "pad_token_id": 0,
        "use_cache": False,
    },
    "ViTForImageClassification": {"image_size": 16, "patch_size": 8, **_SMALL},
}
"""Return the classes with the options of their configurations."""


class _Fitted:
    def __init__(self, model: Any) -> None:
        self.model = model

    def fit(self, rows: Any, wanted: Any) -> Any:
        self.model.fit(rows, wanted, max_epochs=2)
        return self.model
