"""A registered model `toy`. Version 1 has a run and a gate report, 2 has other weights,
and 3 has no ONNX form.
"""

import json

import pytest
import yaml
from mlflow.entities import Dataset, DatasetInput

from mlflow_deploy_plugin.promote.gate.run import run_gate
from tests.support.classifiers import write_classifier
from tests.support.registry_folder import RegistryFolder

EXAMPLE = {
    "dataframe_split": {"columns": ["a", "b"], "data": [[1.0, 0.0], [0.0, 1.0], [0.5, 0.75]]}
}
PACKAGES = "mlflow-onnxserve[cpu]==0.1.0\nonnxruntime==1.31.1\n"


@pytest.fixture(scope="session")
def registry_folder(tmp_path_factory, new_database):
    prepared = RegistryFolder(tmp_path_factory.mktemp("registry"), new_database)
    with prepared.entered() as client:
        client.create_registered_model(
            "toy", {"onnxserve.gate.policy": "skip: [robustness, budget]"}
        )
        runs = {number: log_run(client, number) for number in (1, 2)}
        for number, weights in ((1, (2.0, -1.0)), (2, (1.0, 2.0))):
            folder = write_classifier(prepared.folder / str(number), weights)
            (folder / "serving_input_example.json").write_text(json.dumps(EXAMPLE))
            (folder / "requirements.txt").write_text(PACKAGES)
            (folder / "requirements.lock").write_text(
                f"# the training\nscikit_learn==1.{number}\nnumpy==2.0\n"
            )
            client.create_model_version("toy", folder.as_uri(), runs[number], tags={"team": "blue"})
        python = {
            "flavors": {"python_function": {"loader_module": "toy"}},
            "signature": signature_of(folder),
        }
        third = prepared.folder / "3"
        third.mkdir()
        (third / "MLmodel").write_text(yaml.safe_dump(python))
        client.create_model_version("toy", third.as_uri())
        client.set_registered_model_alias("toy", "champion", "1")
        run_gate("toy", "1")
    prepared.keep()
    return prepared


def log_run(client, number):
    """Log a run with a parameter, a metric and a dataset."""
    run_id = str(
        client.create_run("0", tags={"mlflow.source.git.commit": f"c0ffee{number}"}).info.run_id
    )
    client.log_param(run_id, "C", number)
    client.log_metric(run_id, "accuracy", 0.9 + number / 100)
    client.log_inputs(run_id, [DatasetInput(Dataset("flights", f"digest{number}", "local", "{}"))])
    return run_id


def signature_of(folder):
    return yaml.safe_load((folder / "MLmodel").read_text())["signature"]
