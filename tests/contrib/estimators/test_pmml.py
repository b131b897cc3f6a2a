"""A PMML file becomes a pyfunc, which gives the same answers as jpmml_evaluator."""

import re
import sys

import mlflow
import pandas as pd
import pytest

import onnxserve
from mlflow_deploy_plugin.contrib.estimators.pmml import read_pmml, require_java
from mlflow_deploy_plugin.core.errors import InvalidArtifact, InvalidConfig, NotInstalled
from mlflow_deploy_plugin.core.registry.model_files import download
from tests.support.pmml import DELAY, needs_java, write_pmml
from tests.support.refusals import refused
from tests.support.servers import gunicorn, one_endpoint

ROWS = pd.DataFrame({"carrier": ["UA", "AA"], "distance": [100, 300], "delay": [9, 9]})
DELAYS = [2 + 1 + 5, 2 + 3]
CLUSTERS = """<PMML xmlns="http://www.dmg.org/PMML-4_4" version="4.4"><Header/>
<DataDictionary><DataField name="a" optype="continuous" dataType="double"/></DataDictionary>
<ClusteringModel functionName="clustering" modelClass="centerBased" numberOfClusters="1">
<MiningSchema><MiningField name="a"/></MiningSchema>
<ComparisonMeasure kind="distance"><squaredEuclidean/></ComparisonMeasure>\
<ClusteringField field="a"/>
<Cluster id="x"><Array type="real" n="1">0</Array></Cluster></ClusteringModel></PMML>"""
INTEGER_DISTANCE = re.sub("<Output>.*</Output>", "", DELAY, flags=re.DOTALL).replace(
    'name="distance" optype="continuous" dataType="double"',
    'name="distance" optype="continuous" dataType="integer"',
)


@pytest.mark.long
@needs_java
def test_registered_file_answers_over_http(tracking, tmp_path):
    # MLflow reads paths as URIs.
    path = write_pmml(tmp_path).rename(tmp_path / "delay #1 %20.pmml")
    made = onnxserve.wrap_model(str(path), register="delay", data=ROWS)

    assert (made.name, made.version, made.report.state) == ("delay", "1", "no-original")
    assert [(entry.name, entry.dtype) for entry in made.inputs] == [
        ("carrier", "str"),
        ("distance", "float64"),
    ]
    assert made.prediction == ("delay", "minutes", "hours")
    rows = ROWS[["carrier", "distance"]]
    answers = mlflow.pyfunc.load_model("models:/delay/1").predict(rows.astype({"distance": float}))
    assert answers.to_dict("list") == {
        "delay": DELAYS,
        "minutes": DELAYS,
        "hours": [delay / 60 for delay in DELAYS],
    }
    folder = download("models:/delay/1", tmp_path / "served")
    assert "jpmml-evaluator==" in (folder / "requirements.txt").read_text()
    assert not list(folder.rglob("*.pkl"))
    with gunicorn(tmp_path / "state", one_endpoint(folder)) as running:
        served = running.post(json={"dataframe_records": rows.to_dict("records")})
        assert served.json()["predictions"] == answers.to_dict("records")
        unknown = rows.assign(carrier=["UA", "ZZ"])
        refusal = running.post(json={"dataframe_records": unknown.to_dict("records")})
        assert refusal.status_code == 400
        assert "row 1" in refusal.text


@pytest.mark.long
@needs_java
@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        (DELAY, "", ["Premature end of file"]),
        (DELAY, "hello", ["prolog"]),
        ("</PMML>", "", ["XML document"]),
        (DELAY, "<html/>", ["unexpected element", "html"]),
        ("RegressionModel", "Extension", ["Model"]),
        ('dataType="string"', 'dataType="words"', ["dataType"]),
        (DELAY, CLUSTERS, ["Output"]),
        ("<PMML", '<!DOCTYPE PMML [<!ENTITY file SYSTEM "file:///etc/passwd">]><PMML', ["DOCTYPE"]),
        (
            "<PMML",
            '<!DOCTYPE PMML [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><PMML',
            ["DOCTYPE"],
        ),
    ],
    ids=[
        "empty",
        "not-xml",
        "cut",
        "not-pmml",
        "no-model",
        "unknown-type",
        "no-output",
        "external-entity",
        "entity-expansion",
    ],
)
def test_invalid_file_is_refused(old, new, names, tmp_path):
    path = write_pmml(tmp_path, DELAY.replace(old, new))
    with refused(InvalidArtifact, str(path), *names) as refusal:
        read_pmml(path, None)
    assert "\n" not in str(refusal.value)


@pytest.mark.long
@needs_java
@pytest.mark.parametrize("name", ["distance", "None"])
def test_integers_may_be_missing(name, tmp_path):
    path = write_pmml(tmp_path, INTEGER_DISTANCE.replace('"distance"', f'"{name}"'))
    rows = ROWS.rename(columns={"distance": name})
    rows[name] = [100, None]
    kind, options = read_pmml(path, rows)
    assert kind == "Regression in PMML"
    assert options["signature"].inputs.input_names() == ["carrier", name]
    assert options["input_example"][name].isna().tolist() == [False, True]
    rows[name] = [100, 0.5]
    with refused(InvalidArtifact, "row 1", name, "0.5"):
        read_pmml(path, rows)


@pytest.mark.long
@needs_java
def test_refused_rows_are_named(tmp_path):
    path = write_pmml(tmp_path)
    with refused(InvalidArtifact, str(path), "row 1", "carrier", "ZZ"):
        read_pmml(path, ROWS.assign(carrier=["UA", "ZZ"]))
    with refused(InvalidConfig, "distance"):
        read_pmml(path, ROWS.drop(columns="distance"))


def test_missing_java_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused(NotInstalled, "Java", "default-jre-headless"):
        onnxserve.wrap_model(str(write_pmml(tmp_path)), register="delay", data=ROWS)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(sys, "path", [])  # No package is installed.
    for name in [name for name in sys.modules if name.startswith("jpmml_evaluator")]:
        monkeypatch.delitem(sys.modules, name)
    with refused(NotInstalled, "jpmml-evaluator", "mlflow-onnxserve[pmml]"):
        require_java()
