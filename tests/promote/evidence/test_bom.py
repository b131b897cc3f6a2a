"""The bill of materials of versions in a real registry, and of a running endpoint."""

import hashlib
import json
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.statedir.models import (
    LoadedVariant,
    WantedEndpoint,
    WantedVariant,
    WorkerState,
)
from mlflow_deploy_plugin.promote.evidence.bom import endpoint_bom
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from tests.support.commands import done, onnxserve, said
from tests.support.refusals import mentions


@pytest.fixture(scope="module")
def check_schema():
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_6)

    def check(text):
        assert validator.validate_str(text) is None

    return check


@pytest.fixture
def bom_of(registry, check_schema):
    """Return a function that runs the command, compares its document with the schema
    and returns it.
    """

    def document_of(*arguments):
        printed = done("audit bom", *arguments)
        check_schema(printed)
        return json.loads(printed)

    return document_of


def properties_of(document):
    """Return the properties of the subject of the document."""
    subject = document["metadata"]["component"]
    return {entry["name"]: entry["value"] for entry in subject["properties"]}


def test_bom_of_version(registry, bom_of):
    registry.set_registered_model_tag("toy", "license", "MIT")
    registry.set_model_version_tag("toy", "1", "license", "Apache-2.0")
    document = bom_of("models:/toy/1")
    model = document["metadata"]["component"]
    named = {"type": "machine-learning-model", "name": "toy", "version": "1"}
    assert named.items() <= model.items()
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    hashes = {file["name"]: file["hashes"][0]["content"] for file in model["components"]}
    files = [path for path in Path("1").iterdir() if path.is_file()]
    assert hashes == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    facts = properties_of(document)
    assert facts["onnxserve:parity"] == "proven"
    assert facts["onnxserve:git_commit"] == "c0ffee1"
    assert facts["mlflow:tag:onnxserve.gate"] == "passed without an evaluation"
    assert facts["mlflow:tag:team"] == "blue"
    assert {part["bom-ref"]: part.get("scope") for part in document["components"]} == {
        "dataset:flights@digest1": None,
        "pkg:pypi/mlflow-onnxserve@0.1.0": "required",
        "pkg:pypi/onnxruntime@1.31.1": "required",
        "pkg:pypi/numpy@2.0": "excluded",
        "pkg:pypi/scikit-learn@1.1": "excluded",
    }
    (depends,) = [entry["dependsOn"] for entry in document["dependencies"] if "dependsOn" in entry]
    assert len(depends) == len(document["components"])
    parameters = model["modelCard"]["modelParameters"]
    assert parameters["datasets"] == [{"ref": "dataset:flights@digest1"}]
    assert [json.loads(side["format"])["name"] for side in parameters["inputs"]] == ["a", "b"]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "accuracy", "value": "0.91"} in metrics


@pytest.mark.parametrize("licence", ["our own", "MIT OR Apache-2.0"])
def test_bom_without_records(registry, bom_of, licence):
    registry.set_registered_model_tag("toy", "license", licence)
    registry.set_model_version_tag("toy", "3", "page", "https://ada:secret@example.com")
    document = bom_of("models:/toy/3")
    (entry,) = document["metadata"]["component"]["licenses"]
    assert licence in (entry.get("expression"), entry.get("license", {}).get("name"))
    assert {"onnxserve:missing:graph", "onnxserve:missing:run"} <= properties_of(document).keys()
    assert "secret" not in json.dumps(document)


def test_bom_ignores_requirements_that_are_no_packages(bom_of):
    lines = "--extra-index-url https://ada:secret@example.com\nPy_Arrow >= 3\nnumpy==2.0 ; os_name"
    Path("1/requirements.txt").write_text(lines)
    document = bom_of("models:/toy/1")
    packages = {part["purl"]: part["scope"] for part in document["components"] if "purl" in part}
    assert packages == {
        "pkg:pypi/py-arrow": "required",
        "pkg:pypi/numpy@2.0": "required",
        "pkg:pypi/scikit-learn@1.1": "excluded",
    }


def test_bom_of_endpoint_lists_loaded_versions(registry, store, check_schema):
    spec = new_endpoint("flights", "models:/toy@champion")
    wanted = {
        name: WantedVariant(model_uri=uri, model="toy", version="2", folder=Path("any"))
        for name, uri in (("flights", "models:/toy@champion"), ("other", "models:/toy/2"))
    }
    worker = WorkerState(
        pid=1,
        generation=1,
        endpoints={
            "flights": {
                "flights": LoadedVariant(version="1"),
                "other": LoadedVariant(version="m-9"),
            }
        },
    )
    endpoint = store.add_endpoint("onnxserve", spec)
    running = Observation("running", wanted=WantedEndpoint(variants=wanted), workers=(worker,))
    document = endpoint_bom(ObservedEndpoint(endpoint, running))
    check_schema(json.dumps(document))
    assert properties_of(document)["onnxserve:state"] == "running"
    models = {
        part["bom-ref"]: "modelCard" in part
        for part in document["components"]
        if part["type"] == "machine-learning-model"
    }
    assert models == {"models:/toy/1": True, "toy/m-9": False}
    stopped = endpoint_bom(ObservedEndpoint(endpoint, Observation("stopped")))
    check_schema(json.dumps(stopped))
    assert "components" not in stopped


def test_invalid_bom_arguments_are_refused(registry, tmp_path):
    def refusal(*arguments):
        return said(onnxserve("audit bom", *arguments))

    assert mentions(refusal("--endpoint", "flights"), "flights")
    assert mentions(refusal("models:/toy/1", "-o", str(tmp_path)), str(tmp_path))
    for arguments in ((), ("models:/toy/1", "--endpoint", "flights")):
        result = onnxserve("audit bom", *arguments)
        assert (result.exit_code, mentions(result.stderr, "--endpoint")) == (2, True)
