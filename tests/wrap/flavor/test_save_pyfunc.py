import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.models import infer_signature
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import onnxserve
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.flavor.save import _load_pyfunc
from tests.support.models import parse_graph
from tests.support.refusals import refused
from tests.support.waiting import answers, wait_until
from tests.wrap.conftest import cases


@pytest.fixture(scope="module")
def classifier(weather, tmp_path_factory):
    """Return the original, its folder, and rows."""
    table, labels = weather
    table = table.drop(columns="temperature")
    columns = make_column_transformer(
        (StandardScaler(), ["humidity", "hour"]),
        (OneHotEncoder(handle_unknown="ignore"), ["city", "weekend", "code"]),
    )
    model = make_pipeline(columns, LogisticRegression()).fit(table, labels)
    folder = tmp_path_factory.mktemp("pyfunc") / "classifier"
    onnxserve.save_model(model, folder, input_example=table)
    return model, folder, table.head(20)


@pytest.fixture(scope="module")
def regressor(matrix, tmp_path_factory):
    """A model with two targets, trained on an array."""
    rows, target = matrix
    model = LinearRegression().fit(rows, np.column_stack([target, -target]))
    folder = tmp_path_factory.mktemp("pyfunc") / "regressor"
    onnxserve.save_model(model, folder, input_example=rows)
    return model, folder, rows[:3]


FRAMES = {
    "as trained": lambda table: table,
    "reordered": lambda table: table[table.columns[::-1]],
    "with a column too many": lambda table: table.assign(extra=1),
    "integers for floats": lambda table: table.assign(humidity=table.humidity.astype(np.int32)),
    "objects": lambda table: table.astype({"city": object}),
    "nullable": lambda table: table.astype(
        {"city": "string", "hour": "Int64", "weekend": "boolean"}
    ),
    "arrow": lambda table: table.astype({"city": "string[pyarrow]"}),
}


@pytest.mark.parametrize("change", cases(FRAMES))
def test_table_is_answered_by_labels(change, classifier):
    model, folder, table = classifier
    table = change(table)

    predictions = mlflow.pyfunc.load_model(str(folder)).predict(table)

    assert isinstance(predictions, np.ndarray)
    assert predictions.tolist() == model.predict(table).tolist()


def test_mapping_and_records_are_answered(classifier):
    model, folder, table = classifier
    loaded = mlflow.pyfunc.load_model(str(folder))

    for form in ("list", "records"):
        assert loaded.predict(table.to_dict(form)).tolist() == model.predict(table).tolist()
    with refused(Exception, "city"):
        loaded.predict(table.drop(columns="city"))


@pytest.mark.parametrize(
    "change", [lambda rows: rows, pd.DataFrame], ids=["array", "table without names"]
)
def test_several_targets_keep_their_shape(change, regressor):
    model, folder, rows = regressor

    predictions = mlflow.pyfunc.load_model(str(folder)).predict(change(rows))

    assert predictions.shape == (3, 2)
    np.testing.assert_allclose(predictions, model.predict(rows), rtol=1e-4, atol=1e-4)


def test_unchecked_inputs_are_converted(classifier, regressor):
    """Check inputs that MLflow does not convert to tensors: lists, 64-bit integers and
    categories.
    """
    model, folder, table = classifier
    other = table.assign(humidity=table.humidity.astype(int)).astype({"city": "category"})

    assert _load_pyfunc(str(folder)).predict(other).tolist() == model.predict(other).tolist()
    assert _load_pyfunc(str(regressor[1])).predict(regressor[2].tolist()).shape == (3, 2)


def test_model_config_sets_threads_and_device(regressor):
    _, folder, rows = regressor

    loaded = mlflow.pyfunc.load_model(
        str(folder), model_config={"intra_op_num_threads": 1, "device": "cpu"}
    )
    assert loaded.predict(rows).shape == (3, 2)
    with refused(InvalidConfig, "model_config: device: 'tpu'"):
        mlflow.pyfunc.load_model(str(folder), model_config={"device": "tpu"})


def test_answers_have_the_example_form(tmp_path):
    graph = parse_graph("g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }")
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}, index=[7, 9])
    rows = table.to_numpy(np.float32)
    onnxserve.save_model(graph, tmp_path / "table", input_example=table)
    onnxserve.save_model(graph, tmp_path / "array", input_example=rows)

    of_table = mlflow.pyfunc.load_model(str(tmp_path / "table")).predict(table)
    of_array = mlflow.pyfunc.load_model(str(tmp_path / "array")).predict(rows)

    assert of_table.index.tolist() == [7, 9]
    assert isinstance(of_array, np.ndarray)
    np.testing.assert_array_equal(of_table, of_array)


def test_several_outputs_are_a_mapping(tmp_path):
    graph = parse_graph(
        "g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Neg(x) z = Abs(x) }"
    )
    rows = np.ones((2, 3), np.float32)
    onnxserve.save_model(graph, tmp_path / "model", input_example=rows)

    outputs = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(rows)
    assert {name: array.shape for name, array in outputs.items()} == {"y": (2, 3), "z": (2, 3)}


TEXTS = ["good day", "bad day", "good night", "bad night"]
FORMS: dict[str, Any] = {
    "an array": np.array,
    "an array of objects": lambda texts: np.array(texts, dtype=object),
    "texts of any width": lambda texts: np.array(texts, dtype=np.dtypes.StringDType()),
    "a list": list,
    "a tuple": tuple,
    "an index": pd.Index,
    "a Series": pd.Series,
    "a table": lambda texts: pd.DataFrame({"text": texts}),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("form", "has_signature"),
    [*((form, False) for form in FORMS), ("an array", True), ("an array of objects", True)],
)
def test_texts_are_answered_in_every_form(form, has_signature, tmp_path):
    example = FORMS[form]
    texts = example(TEXTS * 5)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS * 5, [1, 0, 1, 0] * 5)
    signature = infer_signature(texts, model.predict(TEXTS * 5)) if has_signature else None

    onnxserve.save_model(
        model,
        tmp_path / "model",
        input_example=texts,
        parity_data=texts,
        reference_data=texts,
        signature=signature,
    )

    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    sent = TEXTS if isinstance(texts, tuple | pd.Index) else example(TEXTS)
    assert loaded.predict(sent).tolist() == [1, 0, 1, 0]
    if signature is None:
        assert loaded.predict(pd.DataFrame({"text": TEXTS})).tolist() == [1, 0, 1, 0]
        assert OnnxModel.load(tmp_path / "model").schema.names == ("text",)


@pytest.mark.long
def test_mlflow_models_serve_answers(classifier, free_port, tmp_path):
    model, folder, table = classifier
    command = [sys.executable, "-m", "mlflow", "models", "serve"]
    place = ["-m", str(folder), "-p", str(free_port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, *place, "--env-manager", "local", "--workers", "1"],
            stdout=log,
            stderr=log,
            env=os.environ | {"PATH": path},
        )
    try:
        url = f"http://127.0.0.1:{free_port}"
        wait_until(
            lambda: answers(f"{url}/ping") or server.poll() is not None,
            120,
            "MLflow's scoring server answers",
        )
        assert server.poll() is None, (tmp_path / "log").read_text()
        body = {"dataframe_split": table.to_dict("split", index=False)}
        answer = requests.post(f"{url}/invocations", json=body, timeout=30)
        assert answer.json() == {"predictions": model.predict(table).tolist()}
    finally:
        server.terminate()
        server.wait(30)
