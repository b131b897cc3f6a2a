"""A registry with small models, and an inference log of requests that these models have
answered, as a server logs.
"""

import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.promote.replay.prediction import find_request, replay_prediction
from mlflow_deploy_plugin.promote.replay.traffic import Traffic
from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.pyfunc.scorer import load_scorer
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import pyfunc_schema
from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel, exclude_columns
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support.registry_folder import RegistryFolder


@dataclass(frozen=True)
class Answering:
    """A registry and the log of a server, in a folder of the test."""

    client: MlflowClient
    folder: Path

    @property
    def log(self):
        return open_log(str(self.folder / "log"))

    def register(self, model, name="toy"):
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        self.client.create_model_version(name, model.as_uri())
        return model

    def answer(
        self,
        model,
        rows,
        *,
        name="toy",
        version="1",
        endpoint="toys",
        drop=(),
        mask=(),
        change=lambda outputs: None,
    ):
        """Answer a request of columns or tensors, log it, and return its id. `change`
        changes the logged outputs.
        """
        artifact = read_served_artifact(model)
        if artifact.flavor == PYTHON_FUNCTION:
            schema = pyfunc_schema(artifact)
            names = None
            scorer = load_scorer(model)
            if artifact.tensors:
                feeds = schema.from_columns(rows)
                outputs = dict(scorer.predict(feeds).arrays["outputs"])
            else:
                records = [
                    dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)
                ]
                arrays = scorer.invoke(JSON, orjson.dumps({"dataframe_records": records})).arrays
                feeds = dict(arrays["feeds"])
                outputs = dict(arrays.get("outputs") or arrays["texts"])
        else:
            onnx = OnnxModel.load(model)
            schema = onnx.schema
            artifact = onnx.artifact
            names = tuple(output.name for output in artifact.outputs)
            feeds = schema.from_columns(rows)
            outputs = onnx.run(feeds)
        change(outputs)
        captured = exclude_columns(
            CapturedModel(name, version, schema, artifact.prediction or tuple(outputs), names),
            drop,
            mask,
        )
        return self.capture(captured, feeds, outputs, endpoint)

    def capture(
        self,
        model,
        feeds,
        outputs,
        endpoint,
    ):
        now = int(time.time() * 1e6)
        identity = uuid.uuid4().hex
        writer = CaptureWriter(self.folder / "spool")
        record = RequestRecord(endpoint, endpoint, "", identity, now, now)
        assert writer.write(record, model, feeds, outputs, 1000)[-1]
        writer.close()
        assert Shipper(self.folder / "spool", str(self.folder / "log")).round()
        return identity

    def replay(self, prediction_id, capture=None, **options):
        """Replay a request to an endpoint, which captures by `capture` now."""
        endpoint, table = find_request(self.log, prediction_id)
        return replay_prediction(
            Traffic(self.log, endpoint, capture or CaptureSpec()), table, **options
        )

    def replayed(
        self,
        model,
        rows,
        *,
        change=lambda outputs: None,
        **options,
    ):
        """Replay a request that a new version 1 of the model toy has answered."""
        return self.replay(self.answer(self.register(model), rows, change=change), **options)


@pytest.fixture(scope="session")
def empty_folder(tmp_path_factory, new_database):
    prepared = RegistryFolder(tmp_path_factory.mktemp("registry"), new_database)
    prepared.keep()
    return prepared


@pytest.fixture
def answering(empty_folder, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_LOG_URI", str(empty_folder.folder / "log"))
    with empty_folder.restored() as client:
        yield Answering(client, empty_folder.folder)
