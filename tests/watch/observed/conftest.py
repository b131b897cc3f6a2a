"""An observed endpoint with a log in the folder of the test, and without a model."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import validate_spec
from mlflow_deploy_plugin.core.store.store import Endpoint
from mlflow_deploy_plugin.serve.inference_log.log_reader import View, open_log, view_tables
from mlflow_deploy_plugin.watch.observed.reading import read_source
from tests.support.services.postgresql import postgresql_server

ROLES = {"id": "rid", "time": "ts", "prediction": "score"}


class Observed:
    """The endpoint `churn` with a source."""

    def __init__(self, folder):
        self.source = folder / "source"
        self.source.mkdir()
        self.log = folder / "log"
        self.settings = Settings(home=folder / "home", log_uri=str(self.log))
        self.fields = {}
        self.capture = {}
        self.observe(source=str(self.source), **ROLES)

    def observe(self, **fields):
        self.fields = {**self.fields, **fields}

    @property
    def document(self):
        parts = {"observe": self.fields, "capture": self.capture}
        return {"name": "churn", "variants": {}, **parts}

    @property
    def endpoint(self):
        spec = validate_spec(self.document)
        created = datetime(2025, 1, 1, tzinfo=UTC)
        return Endpoint("churn", "onnxserve:/observed", spec, created, created)

    def read(self):
        return read_source(self.settings, self.endpoint)

    def logged(self, *columns):
        """Return the rows of the log as tuples, sorted."""
        log = open_log(self.settings.inference_log)
        tables = [*view_tables(log, View("churn", labels=False), columns)]
        rows = pa.concat_tables(tables, promote_options="permissive").to_pylist() if tables else []
        return sorted(tuple(row.get(column) for column in columns) for row in rows)


@pytest.fixture
def observed(tmp_path):
    return Observed(tmp_path)


@pytest.fixture(scope="session")
def postgresql_url():
    with postgresql_server() as url:
        yield url
