import json

import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from mlflow_deploy_plugin.core.errors import ConversionError, OnnxserveError
from mlflow_deploy_plugin.core.mlmodel import read_mlmodel
from mlflow_deploy_plugin.serve.protocols.v2 import requested_outputs
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.flavor.load_conversion import convert_folder
from tests.support import mlserver

TABLE = pd.DataFrame(mlserver.ROWS, columns=["a", "b", "c", "d"])


def converted(model, tmp_path, *, rows=TABLE, makes_rows=False, **options):
    """Return the pyfunc's answer, the proof, and the converted model."""
    folder = tmp_path / "model"
    options = {"serialization_format": "cloudpickle", **options}
    mlflow.sklearn.save_model(model, folder, **options)
    proof = convert_folder(folder, tmp_path / "onnx", "toy", makes_rows)
    answer = mlflow.pyfunc.load_model(str(folder)).predict(rows)
    return answer, proof, OnnxModel.load(tmp_path / "onnx")


@pytest.mark.parametrize(
    ("model", "outputs"),
    [
        (LogisticRegression(), ["prediction", "probabilities"]),
        (LinearRegression(), ["prediction"]),
        (KMeans(2, n_init=1, random_state=0), ["prediction"]),
    ],
)
def test_converted_folder_answers_with_names_and_types(model, outputs, tmp_path):
    model = make_pipeline(StandardScaler(), model).fit(TABLE, mlserver.LABELS)
    answer, proof, loaded = converted(model, tmp_path, input_example=TABLE[:20])
    assert proof == "proven on 20 example rows"
    assert [output.name for output in loaded.artifact.outputs] == outputs
    assert loaded.artifact.prediction == ("prediction",)
    defaults = [output.name for output in requested_outputs({}, loaded.artifact)]
    assert defaults == ["prediction"]
    got = loaded.run(loaded.schema.from_columns({name: TABLE[name].to_numpy() for name in TABLE}))
    assert got["prediction"].dtype == answer.dtype
    np.testing.assert_allclose(got["prediction"], answer, rtol=1e-4)


def test_method_of_the_pyfunc_is_kept(tmp_path):
    model = LogisticRegression().fit(TABLE, mlserver.LABELS)
    options = {"input_example": TABLE[:9], "pyfunc_predict_fn": "predict_proba"}
    answer, _, loaded = converted(model, tmp_path, **options)
    defaults = [output.name for output in requested_outputs({}, loaded.artifact)]
    assert defaults == ["prediction"]
    shapes = {output.name: output.shape for output in loaded.artifact.outputs}
    assert shapes["prediction"] == (-1, answer.shape[1])


def test_text_labels_and_metadata_are_kept(tmp_path):
    labels = np.where(mlserver.LABELS, "yes", "no")
    model = DecisionTreeClassifier(max_depth=2).fit(TABLE, labels)
    metadata = {"mlserver": {"implementation": "x"}}
    answer, _, loaded = converted(model, tmp_path, input_example=TABLE[:9], metadata=metadata)
    assert read_mlmodel(tmp_path / "onnx")["metadata"] == metadata
    got = loaded.run(loaded.schema.from_columns({name: TABLE[name].to_numpy() for name in TABLE}))
    assert got["prediction"].tolist() == answer.tolist()


def test_made_rows_need_the_rule(tmp_path):
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(TABLE * 1e6 + 5e6, mlserver.LABELS)
    signature = mlflow.models.infer_signature(TABLE, mlserver.LABELS)
    mlflow.sklearn.save_model(model, tmp_path / "model", signature=signature)
    with pytest.raises(ConversionError):
        convert_folder(tmp_path / "model", tmp_path / "onnx", "toy")
    proof = convert_folder(tmp_path / "model", tmp_path / "onnx", "toy", makes_rows=True)
    assert proof == "proven on 500 made rows"
    assert read_artifact(tmp_path / "onnx").parity_state == "proven"


@pytest.mark.parametrize(
    "model",
    [
        make_pipeline(FunctionTransformer(np.sort), LinearRegression()),
        NearestNeighbors(),
    ],
)
def test_model_without_a_proven_form_is_refused(model, tmp_path):
    model.fit(TABLE, mlserver.LABELS)
    with pytest.raises(OnnxserveError) as caught:
        converted(model, tmp_path, input_example=TABLE[:9])
    assert "\n" not in caught.value.message
    assert not (tmp_path / "onnx").exists()


def test_joblib_file_answers_by_two_names(tmp_path):
    folder = tmp_path / "adopted"
    mlserver.save_joblib(folder)
    inputs = [{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 4]}}]
    loader = "mlflow_deploy_plugin.contrib.mlserver.original"
    document = {
        "flavors": {
            "python_function": {"loader_module": loader, "data": "model.joblib"},
            "sklearn": {"pickled_model": "model.joblib", "serialization_format": "joblib"},
        },
        "signature": {"inputs": json.dumps(inputs)},
    }
    (folder / "MLmodel").write_text(json.dumps(document))
    convert_folder(folder, tmp_path / "onnx", "toy", makes_rows=True)
    artifact = read_artifact(tmp_path / "onnx")
    assert artifact.prediction == artifact.default_outputs == ("predict", "predict_proba")
    assert [output.role for output in artifact.outputs] == ["label", "probabilities"]
