"""Tests that Spark predicts parts of a batch and DataFrames as this machine does."""

from dataclasses import replace

import pytest

from mlflow_deploy_plugin.contrib.spark.batch import predict_frame
from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.ship.batch.run import run_batch
from tests.ship.batch.conftest import flights, labels, plan_of, write
from tests.support.models import tensor_model
from tests.support.refusals import refused


def test_spark_connect_is_refused(model, tmp_path, monkeypatch):
    write(flights(10), tmp_path / "in" / "a.parquet")
    monkeypatch.setenv("SPARK_REMOTE", "sc://spark:15002")

    with pytest.raises(InvalidConfig, match=r"Spark Connect: .*spark://host:7077"):
        run_batch(plan_of(model, tmp_path / "in", tmp_path / "out", engine="spark"))


def test_unknown_engine_is_refused(model, tmp_path):
    write(flights(10), tmp_path / "in" / "a.parquet")
    with refused(InvalidConfig, "'sparc'", "'spark'"):
        run_batch(plan_of(model, tmp_path / "in", tmp_path / "out", engine="sparc"))


@pytest.mark.long
def test_spark_batch_equals_the_local_batch(session, model, tmp_path):
    for number, name in enumerate(("a.csv", "day=1/b.parquet", "day=2/c.jsonl", "day=2/d.parquet")):
        write(flights(3000, number), tmp_path / "in" / name)
    plan = plan_of(model, tmp_path / "in", tmp_path / "local", keep=("id",))
    on_spark = replace(plan, output=str(tmp_path / "spark"))
    progress = []

    spread = run_batch(
        replace(on_spark, engine="spark"), lambda at: progress.append((at.parts_done, at.rows))
    )
    run_batch(plan)

    assert spread.progress.rows == 12_000
    assert progress[-1] == (4, 12_000)
    for path in (tmp_path / "local").rglob("*.*"):
        if path.name != "_batch.json":
            assert (
                path.read_bytes()
                == (tmp_path / "spark" / path.relative_to(tmp_path / "local")).read_bytes()
            )
    again = run_batch(on_spark)
    assert again.progress.parts == 0
    assert again.progress.finished_before == 4


@pytest.mark.long
def test_bad_row_is_named(session, model, tmp_path):
    write(flights(10), tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "b.csv").write_text("id,carrier,distance,hour,late\n0,AA,far,1,true\n")

    with pytest.raises(OnnxserveError, match=r"^b\.csv: row 0.*'distance'.*'far'"):
        run_batch(plan_of(model, tmp_path / "in", tmp_path / "out", engine="spark"))


@pytest.mark.long
def test_frame_gets_predictions(session, model, tmp_path):
    rows = flights(5000)
    frame = session.read.parquet(str(write(rows, tmp_path / "a.parquet"))).repartition(4)

    made = predict_frame(frame, str(model), keep=["id"])

    assert made.columns == ["id", "prediction"]
    predictions = {row["id"]: row["prediction"] for row in made.collect()}
    assert [predictions[number] for number in rows["id"].to_pylist()] == labels(rows)
    assert predict_frame(frame, str(model)).columns == [*rows.column_names, "prediction"]


@pytest.mark.long
def test_frame_outputs_may_be_arrays(session, tmp_path):
    frame = session.createDataFrame([(1, [1.0, 2.0, 3.0, 4.0])], "id long, image array<float>")

    (row,) = predict_frame(frame, str(tensor_model(tmp_path / "tensor")), keep=["id"]).collect()

    assert row.asDict() == {"id": 1, "doubled": [[2.0, 4.0], [6.0, 8.0]], "total": 10.0}


@pytest.mark.long
def test_unsuitable_frame_is_refused(session, model):
    frame = session.createDataFrame([(1, "AA")], "id long, carrier string")

    with pytest.raises(InvalidConfig, match="'distance', 'hour', 'late'"):
        predict_frame(frame, str(model))
    with pytest.raises(InvalidConfig, match=r"keep: .*'day'"):
        predict_frame(frame, str(model), keep=["day"])
