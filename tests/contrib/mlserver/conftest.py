"""The recorded models as folders of ours, and servers of them that answer like
MLServer.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from projects.mlserver.sent_requests import FIRST, FLIGHTS, LENGTHS, ROWS
from tests.support import servers

RECORDINGS = Path(__file__).parent / "recordings"
MODELS = RECORDINGS / "models"
BY_EXAMPLE = ("mlflow-columns", "mlflow-plain", "mlflow-array")
CODE = ("mlflow-table", "mlflow-texts")
ESTIMATORS = ("iris", "names", "widths", "flights")
FILES = tuple(
    f"{library}-{kind}"
    for library, kinds in {
        "xgb": ("classes", "binary", "widths"),
        "lgb": ("classes", "binary", "widths"),
        "cat": ("classes",),
    }.items()
    for kind in kinds
)
FORMS = {
    "onnx": (*ESTIMATORS, *FILES, *BY_EXAMPLE),
    "original": (*ESTIMATORS, *BY_EXAMPLE, *CODE),
}
"""The models of each form: the graph, and the original in the side process."""

ORIGINAL = """
import joblib
import mlflow


class Original(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.model = joblib.load(context.artifacts["model"])

    def predict(self, context, model_input, params=None):
        answers = {"predict": self.model.predict(model_input)}
        if hasattr(self.model, "predict_proba"):
            answers["predict_proba"] = self.model.predict_proba(model_input)
        return answers


mlflow.models.set_model(Original())
"""


def read_recordings(name):
    return json.loads((RECORDINGS / f"{name}.json").read_text())


def settings_of(name):
    """Return the settings of a model as a served folder has them."""
    settings = json.loads((MODELS / name / "model-settings.json").read_text())
    settings.get("parameters", {}).pop("uri", None)
    return settings


def example_of(name):
    import pandas as pd

    if name == "flights":
        table = pd.DataFrame(FLIGHTS)
        return pd.concat([table, table.assign(carrier="XX")])
    if name == "mlflow-columns":
        return pd.DataFrame(LENGTHS)
    return np.array(FIRST if "widths" in name or name.startswith("mlflow") else ROWS)


def load_model(name):
    """Return the model of a file, as MLServer's runtime loads it."""
    import catboost
    import joblib
    import lightgbm
    import mlflow
    import xgboost

    folder = MODELS / name
    if name.startswith("mlflow"):
        return mlflow.sklearn.load_model(str(folder / "model"))
    (file,) = folder.glob("model.*")
    if name.startswith("xgb"):
        kinds = {"xgb-widths": xgboost.XGBRegressor}
        model = kinds.get(name, xgboost.XGBClassifier)()
        model.load_model(file)
        return model
    if name.startswith("lgb"):
        return lightgbm.Booster(model_file=file)
    if name.startswith("cat"):
        return catboost.CatBoostClassifier().load_model(str(file))
    return joblib.load(file)


def make_onnx(name, folder):
    """Write the ONNX form of a model, with the settings in its metadata."""
    from mlflow_deploy_plugin import save_model

    options: dict[str, Any] = {}
    if name == "mlflow-array":
        options["pyfunc_predict_fn"] = "predict_proba"
    save_model(
        load_model(name),
        folder,
        input_example=example_of(name),
        **options,
        metadata={"mlserver": settings_of(name)},
        pip_requirements=[],
    )


def make_original(name, folder):
    """Write the folder of the original, with the settings in its metadata."""
    import mlflow

    if name.startswith("mlflow"):
        shutil.copytree(MODELS / name / "model", folder)
    else:
        code = folder.with_suffix(".py")
        code.write_text(ORIGINAL)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(code),
            artifacts={"model": str(MODELS / name / "model.joblib")},
            pip_requirements=[],
        )
    file = folder / "MLmodel"
    document = yaml.safe_load(file.read_text())
    document["metadata"] = {"mlserver": settings_of(name)}
    file.write_text(yaml.safe_dump(document))


MAKERS = {"onnx": make_onnx, "original": make_original}


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """Return a function that returns the server of a form, which it starts once."""
    from contextlib import ExitStack

    started = {}
    with ExitStack() as stack:

        def serve(form):
            if form not in started:
                root = tmp_path_factory.mktemp(form)
                endpoints = {}
                for name in FORMS[form]:
                    MAKERS[form](name, root / name)
                    endpoints[name] = {"v": servers.variant(root / name)}
                spec = ServerSpec.model_validate({"v2_names": "mlserver"})
                started[form] = stack.enter_context(servers.opened(root / "state", endpoints, spec))
            return started[form]

        yield serve
