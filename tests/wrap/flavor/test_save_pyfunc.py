import os
import subprocess
import sys
from collections.abc import Callable
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

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.flavor.save import _load_pyfunc
from tests.support.waiting import answers, wait_until


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


@pytest.mark.parametrize("change", FRAMES.values(), ids=FRAMES.keys())
def test_table_is_answered_by_the_labels_of_the_original(change, classifier):
    model, folder, table = classifier
    table = change(table)

    predictions = mlflow.pyfunc.load_model(str(folder)).predict(table)

    assert isinstance(predictions, np.ndarray)
    assert predictions.tolist() == model.predict(table).tolist()


def test_mapping_and_records_are_answered_alike(classifier):
    model, folder, table = classifier
    loaded = mlflow.pyfunc.load_model(str(folder))

    assert loaded.predict(table.to_dict("list")).tolist() == model.predict(table).tolist()
    assert loaded.predict(table.to_dict("records")).tolist() == model.predict(table).tolist()


def test_missing_column_is_named(classifier):
    _, folder, table = classifier

    with pytest.raises(Exception, match="city"):
        mlflow.pyfunc.load_model(str(folder)).predict(table.drop(columns="city"))


@pytest.mark.parametrize(
    "change", [lambda rows: rows, pd.DataFrame], ids=["array", "table without names"]
)
def test_several_targets_keep_their_shape(change, regressor):
    model, folder, rows = regressor

    predictions = mlflow.pyfunc.load_model(str(folder)).predict(change(rows))

    assert predictions.shape == (3, 2)
    np.testing.assert_allclose(predictions, model.predict(rows), rtol=1e-4, atol=1e-4)


def test_inputs_that_mlflow_does_not_convert_are_predicted_without_its_checks(
    classifier, regressor
):
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
    with pytest.raises(InvalidConfig, match="model_config: device: 'tpu'"):
        mlflow.pyfunc.load_model(str(folder), model_config={"device": "tpu"})


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_torch_answers_arrays_for_arrays_and_tables_for_tables(tmp_path):
    torch: Any = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 1)
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}, index=[7, 9])
    onnxserve.save_model(module, tmp_path / "table", input_example=table)
    onnxserve.save_model(module, tmp_path / "array", input_example=table.to_numpy(np.float32))

    of_table = mlflow.pyfunc.load_model(str(tmp_path / "table")).predict(table)
    of_array = mlflow.pyfunc.load_model(str(tmp_path / "array")).predict(table.to_numpy(np.float32))

    assert of_table.index.tolist() == [7, 9]
    assert isinstance(of_array, np.ndarray)
    np.testing.assert_allclose(of_table.to_numpy(), of_array, atol=1e-6)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_several_outputs_are_a_mapping_of_arrays(tmp_path):
    torch: Any = pytest.importorskip("torch")

    class Two(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> dict[str, Any]:
            return {"all": x * 2, "sum": x.sum(1)}

    onnxserve.save_model(Two(), tmp_path / "model", input_example=np.ones((4, 3), np.float32))

    outputs = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(np.ones((2, 3), np.float32))
    assert {name: array.shape for name, array in outputs.items()} == {"all": (2, 3), "sum": (2,)}


TEXTS = ["good day", "bad day", "good night", "bad night"]
FORMS: dict[str, Callable[[list[str]], Any]] = {
    "an array": np.array,
    "an array of objects": lambda texts: np.array(texts, dtype=object),
    "a list": list,
    "a Series": pd.Series,
    "a table": lambda texts: pd.DataFrame({"text": texts}),
}


@pytest.mark.long
@pytest.mark.parametrize("example", FORMS.values(), ids=FORMS.keys())
def test_texts_are_answered_in_the_form_in_which_the_model_was_wrapped(example, tmp_path):
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS * 5, [1, 0, 1, 0] * 5)
    onnxserve.save_model(model, tmp_path / "model", input_example=example(TEXTS * 5))

    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))

    assert loaded.predict(example(TEXTS)).tolist() == [1, 0, 1, 0]
    assert loaded.predict(pd.DataFrame({"text": TEXTS})).tolist() == [1, 0, 1, 0]
    assert OnnxModel.load(tmp_path / "model").schema.names == ("text",)


@pytest.mark.long
@pytest.mark.parametrize("form", ["an array", "an array of objects"])
def test_texts_without_a_name_are_wrapped_with_mlflows_own_signature_of_them(form, tmp_path):
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS * 5, [1, 0, 1, 0] * 5)
    texts = FORMS[form](TEXTS * 5)
    signature = infer_signature(texts, model.predict(texts))

    onnxserve.save_model(model, tmp_path / "model", input_example=texts, signature=signature)

    assert signature.inputs.is_tensor_spec()
    assert mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(
        FORMS[form](TEXTS)
    ).tolist() == [1, 0, 1, 0]


@pytest.mark.long
def test_mlflow_models_serve_answers(classifier, free_port, tmp_path):
    model, folder, table = classifier
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        str(folder),
        "-p",
        str(free_port),
    ]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local", "--workers", "1"],
            stdout=log,
            stderr=log,
            env=os.environ
            | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        )
    try:
        url = f"http://127.0.0.1:{free_port}"
        wait_until(
            lambda: answers(f"{url}/ping") or server.poll() is not None,
            120,
            "MLflow's scoring server answers",
        )
        assert server.poll() is None, (tmp_path / "log").read_text()
        answer = requests.post(
            f"{url}/invocations",
            json={"dataframe_split": table.to_dict("split", index=False)},
            timeout=30,
        )
        assert answer.json() == {"predictions": model.predict(table).tolist()}
    finally:
        server.terminate()
        server.wait(30)
