"""Models without an ONNX form, as MLflow saves them. They are served from a side
process.

`predict` has no annotations, because MLflow would infer a signature from them.
"""

import os
import re
import sys
import time
import warnings

import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

HANG_SECONDS = 3600


class Days(PythonModel):
    """A model of dates and texts that returns a table; it has a param."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        print("the model speaks on stdout")  # noqa: T201 - Models print to stdout.
        days = model_input["when"].dt.dayofyear.astype("int64") + (params or {}).get("plus", 0)
        return pd.DataFrame({"day": days, "name": model_input["name"].str.upper()})


class Gaps(PythonModel):
    """A model of texts and dates that returns their Python representation."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        return pd.DataFrame(
            {
                "text": list(map(repr, model_input["text"])),
                "when": list(map(str, model_input["when"])),
            }
        )


class Troubled(PythonModel):
    """A model that does what its input specifies."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        what = model_input["do"].iloc[0]
        if what == "hang":
            sys.stderr.write("the model hangs\n")
            sys.stderr.flush()
            time.sleep(HANG_SECONDS)
        if what == "spin":
            # This match takes years, and does not release the GIL.
            re.match("(a+)+$", "a" * 60 + "b")
        if what == "exit":
            os._exit(7)
        if what == "leave":
            sys.exit("the model has had enough")
        if what == "panic":
            raise type("Panic", (BaseException,), {})("a regular expression failed")
        if what == "raise":
            raise KeyError("no such thing\nin /usr/lib/python3/thing.py")
        if what == "count":
            return [{"n": 2**70}]
        if what == "point":
            return [{"n": self}]
        if what == "pid":
            return np.array([os.getpid()] * len(model_input))
        return model_input["do"]


class Anything(PythonModel):
    """A model without a signature that returns its input, and values that JSON cannot
    represent as numbers.
    """

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        if isinstance(model_input, pd.DataFrame):
            return model_input.assign(gap=np.nan, none=None)
        return model_input


class Nested(PythonModel):
    """A model of objects and arrays that returns a list of mappings."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        return [
            {"sum": sum(row.points), "name": row.place["name"], "tags": list(row.tags)}
            for row in model_input.itertuples()
        ]


class Bytes(PythonModel):
    """A model of bytes that returns numbers; it has an optional column and an optional
    param.
    """

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        return [len(blob) for blob in model_input["blob"]]


class Tensors(PythonModel):
    """A model with two named input tensors and two output tensors."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        return {
            "sum": model_input["a"].sum(axis=1) + model_input["b"],
            "twice": model_input["a"] * 2,
        }


def save_pyfuncs(root, only=()):
    """Save each model, or only the models of `only` that are a PythonModel, and return
    the folders by name.
    """
    import cloudpickle
    import mlflow
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    from sklearn.tree import DecisionTreeClassifier

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a", "b", "c"])
    labels = np.where(table.a > 0, "up", "down")
    dates = pd.DataFrame({"when": pd.to_datetime(["2013-07-01", "2013-07-02"]), "name": ["a", "b"]})
    points = pd.DataFrame(
        {"points": [[1.0, 2.0]], "place": [{"name": "x", "height": 2}], "tags": [["u", "v"]]}
    )
    models = {
        "days": (Days(), infer_signature(dates, Days().predict(None, dates), {"plus": 1})),
        "gaps": (Gaps(), infer_signature(pd.DataFrame({"text": ["a"], "when": dates["when"][:1]}))),
        "troubled": (Troubled(), infer_signature(pd.DataFrame({"do": ["x"]}), np.array(["x"]))),
        "anything": (Anything(), None),
        "nested": (Nested(), infer_signature(points)),
        "bytes": (
            Bytes(),
            ModelSignature(
                Schema([ColSpec("binary", "blob"), ColSpec("double", "extra", required=False)]),
                params=ParamSchema([ParamSpec("scale", "double", 1.0)]),
            ),
        ),
        "tensors": (
            Tensors(),
            ModelSignature(
                Schema(
                    [
                        TensorSpec(np.dtype("float32"), (-1, 2), "a"),
                        TensorSpec(np.dtype("int64"), (-1,), "b"),
                    ]
                ),
                Schema(
                    [
                        TensorSpec(np.dtype("float32"), (-1,), "sum"),
                        TensorSpec(np.dtype("float32"), (-1, 2), "twice"),
                    ]
                ),
            ),
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if only:
            models = {name: models[name] for name in only}
        for name, (model, signature) in models.items():
            mlflow.pyfunc.save_model(
                root / name, python_model=model, signature=signature, pip_requirements=[]
            )
        if only:
            return {name: root / name for name in only}
        # pandas 3 converts None to NaN.
        cities = pd.DataFrame({"city": ["Bern", "Bern", "Rom", None, None]})
        lands = make_pipeline(OneHotEncoder(handle_unknown="ignore"), DecisionTreeClassifier())
        mlflow.sklearn.save_model(
            lands.fit(cities, ["north", "north", "south", "none", "none"]),
            root / "cities",
            signature=infer_signature(cities, np.array(["south"])),
            serialization_format="cloudpickle",
            pip_requirements=[],
        )
        knn = KNeighborsClassifier(3).fit(table, labels)
        mlflow.sklearn.save_model(
            knn,
            root / "knn",
            signature=infer_signature(table, labels),
            input_example=table.head(2),
            serialization_format="cloudpickle",
            pip_requirements=[],
        )
    return {name: root / name for name in [*models, "cities", "knn"]}
