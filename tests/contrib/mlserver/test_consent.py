import pytest

from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.core.model_code import MODEL_CODE
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.serve.agent.resolver import PyfuncPolicy
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import proof_rows, runs_code

ALIAS = "models:/churn@champion"
FOLDER = "/models/churn"
XGBOOST = {
    "python_function": {"loader_module": "mlflow.xgboost", "data": "model.ubj"},
    "xgboost": {"data": "model.ubj", "model_class": "xgboost.core.Booster"},
}


def is_permitted(uri, *, allow_pickle=False, allow_pyfunc=False, **version):
    config = {"variants.churn.allow_pyfunc": allow_pyfunc}
    policy = PyfuncPolicy([new_endpoint("churn", uri, config)], allow_pickle)
    try:
        policy.check(uri, is_followed="@" in uri, **version)
    except InvalidArtifact:
        return False
    return True


@pytest.mark.parametrize(
    ("uri", "version", "permitted"),
    [
        (FOLDER, {}, {"none", "pickle", "pyfunc"}),
        (FOLDER, {"is_plain": True, "is_file": True}, {"pickle", "pyfunc"}),
        (ALIAS, {"is_plain": True}, {"pickle", "pyfunc"}),
        (ALIAS, {}, {"pyfunc"}),
    ],
)
def test_consent_that_each_kind_of_version_needs(uri, version, permitted, monkeypatch):
    given = {
        "none": is_permitted(uri, **version),
        "pickle": is_permitted(uri, allow_pickle=True, **version),
        "pyfunc": is_permitted(uri, allow_pyfunc=True, **version),
    }
    assert {name for name, is_given in given.items() if is_given} == permitted
    monkeypatch.setenv(MODEL_CODE, "false")
    assert not is_permitted(uri, allow_pickle=True, allow_pyfunc=True, **version)


def test_model_loaded_over_http_gains_no_consent():
    policy = PyfuncPolicy([new_endpoint("churn", ALIAS)], allow_pickle=True)
    with pytest.raises(InvalidArtifact):
        policy.check("models:/other/1", is_followed=False, is_plain=True)


@pytest.mark.parametrize(
    ("pyfunc", "xgboost", "expected"),
    [
        ({}, {}, False),
        ({"code": "code"}, {}, True),
        ({}, {"code": "code"}, True),
        ({"model_code_path": "model.py"}, {}, True),
        ({"loader_module": "evil"}, {}, True),
        ({"loader_module": "mlflow.sklearn"}, {}, True),
        ({"loader_module": ["mlflow.xgboost"]}, {}, True),
        ({"data": "../model.ubj"}, {}, True),
        ({"data": {"a": "model.ubj"}}, {}, True),
        ({}, {"data": "/tmp/model.ubj"}, True),
        ({}, {"model_class": "os.system"}, True),
        ({}, {"model_class": ["xgboost.core.Booster"]}, True),
        ({}, {"model_class": None}, True),
    ],
)
def test_only_plain_files_of_data_run_no_code(pyfunc, xgboost, expected):
    flavors = {
        "python_function": XGBOOST["python_function"] | pyfunc,
        "xgboost": XGBOOST["xgboost"] | xgboost,
    }
    assert runs_code({"flavors": flavors}) is expected


@pytest.mark.parametrize(
    ("document", "rows"),
    [
        ({"flavors": XGBOOST}, "made"),
        ({"flavors": XGBOOST, "saved_input_example_info": {"type": "dataframe"}}, "example"),
        ({"flavors": XGBOOST | {"onnx": {}}}, ""),
        ({"flavors": {"python_function": {"loader_module": "mlflow.pyfunc.model"}}}, ""),
        ({"flavors": {"python_function": {"loader_module": "mine"}, "sklearn": {}}}, ""),
        ({}, ""),
    ],
)
def test_rows_on_which_a_version_could_be_converted(document, rows):
    assert proof_rows(document) == rows
