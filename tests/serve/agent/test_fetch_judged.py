"""Tests of the agent's fetch from a server with the gate: it loads a judged version
only with the judged files, also without `require`, and believes no copied verdict.
"""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import GateRefused
from mlflow_deploy_plugin.core.registry.approved_files import changed_files
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache
from tests.support.moves import MODEL, judged_model
from tests.support.refusals import mentions
from tests.support.services.s3 import NEEDS_S3, own_bucket
from tests.support.tracking import tracking_at

pytestmark = pytest.mark.long
FILE = "code/steps.py"
"""A file that the digests in MLmodel leave out."""


@pytest.fixture(scope="module", params=["folder", "proxy", pytest.param("s3", marks=NEEDS_S3)])
def judged(request, tmp_path_factory):
    """A server with a judged model whose files are in a folder, behind the proxy, or in
    S3; and a function that replaces a file of its versions.
    """
    folder = tmp_path_factory.mktemp("judged")
    with ExitStack() as stack:
        options: tuple[str, ...] = ()
        root = folder / "artifacts"
        if request.param == "folder":
            root = folder / "mlruns"
            options = ("--no-serve-artifacts", "--default-artifact-root", str(root))
        elif request.param == "s3":
            bucket = stack.enter_context(own_bucket())
            options = ("--no-serve-artifacts", "--default-artifact-root", f"s3://{bucket.name}/a")

        def put(name, content):
            """Return the earlier content."""
            if request.param == "s3":
                (entry,) = [each for each in bucket.objects.all() if each.key.endswith(name)]
                earlier = entry.get()["Body"].read()
                entry.put(Body=content)
                return earlier
            (file,) = root.rglob(name)
            earlier = file.read_bytes()
            status = file.stat()
            file.write_bytes(content)
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
            return earlier

        yield stack.enter_context(judged_model(folder, options=options, extra=FILE)), put


def agent(folder):
    """Return the registry of an agent on a machine with an empty cache."""
    return MlflowRegistry(ModelCache(folder / "cache", folder / "state"))


def test_same_size_after_the_move_is_not_fetched(judged, tmp_path):
    model, put = judged
    assert model.move("@champion", "1") == 200
    with tracking_at(model.server.url):
        served = agent(tmp_path / "first").fetch(resolve(f"models:/{MODEL}@champion"))
        right = put(FILE, Path(served.folder, FILE).read_bytes()[::-1])
        for uri in (f"models:/{MODEL}@champion", f"models:/{MODEL}/2"):
            with pytest.raises(GateRefused) as refused:
                agent(tmp_path / "second").fetch(resolve(uri))
            assert mentions(refused.value.message, "differ", served.digest[:12], "onnxserve gate")
        found = {(entry.version, entry.place, entry.recorded) for entry in changed_files()}
        assert found == {("1", "@champion", served.digest)}
        assert model.move("@challenger", "2") == 403
        put(FILE, right)
        assert model.move("@challenger", "2") == 200
        again = agent(tmp_path / "second").fetch(resolve(f"models:/{MODEL}@champion"))
        assert (again.digest, again.unjudged) == (served.digest, "")


@pytest.fixture
def copied(judged):
    """The URI of a copy of version 1 that was made past the server, with its tags."""
    model, _ = judged
    database = f"sqlite:///{model.server.folder}/mlflow.db"
    past = MlflowClient(registry_uri=database, tracking_uri=database)
    version = past.copy_model_version(f"models:/{MODEL}/1", "copied")
    assert version.tags["onnxserve.gate"]
    return f"models:/copied/{version.version}"


def test_same_size_copy_needs_its_own_verdict(judged, copied, tmp_path):
    model, _ = judged
    with tracking_at(model.server.url):
        resolved = resolve(copied)
        fetched = agent(tmp_path).fetch(resolved)
        assert mentions(fetched.unjudged, "audit trail", f"onnxserve gate {copied}")
        assert model.run("gate", copied).returncode == 0
        resolved = resolve(copied)
        assert resolved.gate_status.passed
        assert agent(tmp_path).fetch(resolved).unjudged == ""
