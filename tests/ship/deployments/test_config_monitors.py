"""Tests that misspelled monitors are refused immediately with the correct name."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import onnxserve
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
from tests.support.refusals import refused
from tests.support.tracking import tracking_at

ROWS = pd.DataFrame(
    np.random.default_rng(0).normal(size=(60, 3)), columns=["temp", "wind", "visib"]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "late"
    onnxserve.save_model(LogisticRegression().fit(ROWS, ROWS.temp > 0), folder, input_example=ROWS)
    return folder


@pytest.fixture
def said():
    return []


@pytest.fixture
def deployments(new_home, said):
    with open_deployments(said.append) as opened:
        yield opened


@pytest.fixture
def flights(deployments, model):
    """Return deployments with the endpoint `flights`,
    whose server was never started.
    """
    deployments.store.add_endpoint("onnxserve", new_endpoint("flights", str(model)))
    return deployments


def add(deployments, **fields):
    deployments.update_endpoint(
        "flights", {f"monitors.m.{name}": value for name, value in fields.items()}
    )
    return deployments.store.require_endpoint("flights").spec.monitor("m")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"columns": "temp,winds"}, ["monitors.m.columns", "'winds'", "'wind'"]),
        (
            {"segment_by": "airport"},
            ["monitors.m.segment_by", "'airport'", "wind, visib, prediction, output.probabilities"],
        ),
        ({"require": "missing(nope)<=0.1"}, ["monitors.m.require", "missing(nope)<=0.1", "'nope'"]),
        (
            {"kind": "shadow", "require": "disagreement(flight)<=0.1"},
            ["monitors.m.require", "'flight'", "'flights'"],
        ),
        (
            {"reference": "dataset:/nowhere/calm.csv"},
            ["monitors.m.reference", "dataset /nowhere/calm.csv"],
        ),
        (
            {
                "retrain.project": "git@x:y",
                "retrain.mode": "incremental",
                "retrain.sample.recent": "9d",
            }
            | {"retrain.sample.stratify": "winds"},
            ["monitors.m.retrain.sample.stratify", "'winds'", "'wind'"],
        ),
        ({"reference": "rolling:36h"}, ["monitors.m", "rolling:36h", "1d", "a multiple"]),
        (
            {"reference": "rolling:30m", "every": "1h"},
            ["monitors.m", "rolling:30m", "shorter than the window", "1h"],
        ),
    ],
)
def test_impossible_monitor_is_refused(flights, fields, names):
    with refused(InvalidConfig, *names):
        add(flights, **fields)

    assert not flights.store.require_endpoint("flights").spec.monitors


@pytest.mark.parametrize(
    "fields",
    [
        {"columns": "temp,prediction,output.probabilities.1"},
        {"require": "missing(wind)<=0.1"},
        {"segment_by": "visib"},
        {"reference": "rolling:2d"},
    ],
)
def test_monitors_accept_columns_of_the_model(flights, fields):
    add(flights, **fields)


def test_dataset_without_predictions_is_refused(flights, tmp_path):
    ROWS.to_csv(tmp_path / "calm.csv", index=False)

    with refused(InvalidConfig, "columns=temp,wind,visib"):
        add(flights, reference=f"dataset:{tmp_path}/calm.csv")
    with refused(InvalidConfig, "no column prediction", "temp, wind, visib"):
        add(flights, columns="prediction", reference=f"dataset:{tmp_path}/calm.csv")

    add(flights, reference=f"dataset:{tmp_path}/calm.csv", columns="temp,wind,visib")


def test_dataset_path_becomes_absolute(flights, tmp_path, monkeypatch):
    ROWS.to_parquet(tmp_path / "calm.parquet")
    monkeypatch.chdir(tmp_path)

    written = add(flights, reference="dataset:calm.parquet", columns="temp")

    assert written.reference == f"dataset:{tmp_path}/calm.parquet"


def test_columns_are_unchecked_while_mlflow_is_down(deployments, free_port, said):
    deployments.store.add_endpoint("onnxserve", new_endpoint("flights", "models:/late/1"))

    with tracking_at(f"http://127.0.0.1:{free_port}"):
        add(deployments, columns="nobody,knows")

    assert [line for line in said if line.startswith("the columns of the monitors are not checked")]
