"""Tests of complete batches: folders, kills, other models,
other inputs, buckets, runs.
"""

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import boto3
import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from mlflow_deploy_plugin.core.errors import AlreadyExists, OnnxserveError
from mlflow_deploy_plugin.core.tabular.row_files import unfinished_stem
from mlflow_deploy_plugin.ship.batch import manifest
from mlflow_deploy_plugin.ship.batch.part import BatchPlan
from mlflow_deploy_plugin.ship.batch.run import run_batch
from tests.support.models import mixed_model
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at
from tests.support.waiting import free_port

from .conftest import flights, labels, plan_of, write

COMMAND = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "batch"]


def files(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def fill(folder, parts, rows=500):
    for part in range(parts):
        write(flights(rows, part), folder / f"day={part % 3}" / f"{part}.parquet")
    return folder


@pytest.mark.long
def test_folder_layout_is_kept_and_marked_complete(model, tmp_path):
    source = fill(tmp_path / "in", 4)
    (source / "_SUCCESS").touch()
    (source / ".part.crc").touch()
    progress = []

    result = run_batch(
        plan_of(model, source, tmp_path / "out", keep=("id",), workers=2), progress.append
    )

    assert files(tmp_path / "out") == [
        "_SUCCESS",
        "_batch.json",
        *(f"day={part % 3}/{part}.parquet" for part in (0, 3, 1, 2)),
    ]
    for part in range(4):
        made = pq.ParquetFile(tmp_path / "out" / f"day={part % 3}" / f"{part}.parquet").read()
        assert made["id"].to_pylist() == flights(500, part)["id"].to_pylist()
        assert made["prediction"].to_pylist() == labels(flights(500, part))
    assert result.progress.rows == 2000
    assert result.progress.parts_done == 4
    assert result.progress.rejected == 0
    assert result.failed == {}
    assert progress[-1].rows == 2000
    assert progress[-1].seconds_left == 0
    assert json.loads((tmp_path / "out" / "_SUCCESS").read_text())["parts"] == 4


KILLED = """
import os, signal, sys
from mlflow_deploy_plugin.ship.batch.part import BatchPlan
from mlflow_deploy_plugin.ship.batch.run import run_batch

def kill(progress):
    if progress.parts_done >= 3:
        os.killpg(0, signal.SIGKILL)

run_batch(BatchPlan(*sys.argv[1:], ("id",), workers=2), kill)
"""


@pytest.mark.long
def test_killed_batch_continues(model, tmp_path):
    source = fill(tmp_path / "in", 40, rows=4000)
    out = tmp_path / "out"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    begin = [sys.executable, "-c", KILLED, str(model), str(source), str(out)]
    # The call also waits for the workers, because they keep its stderr open.
    killed = subprocess.run(
        begin,
        start_new_session=True,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert killed.stderr == ""
    assert not (out / "_SUCCESS").exists()
    (out / "day=1" / ".4.parquet.unfinished").write_bytes(b"half of a file")
    first = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*.parquet")
        if not path.name.startswith(".")
    }
    assert 3 <= len(first) < 40
    for path in first:
        pq.read_metadata(path)  # This raises if the file is incomplete.
    assert list(temporary.glob("onnxserve-batch-*"))

    command = f"{model} -i {source} --folder {out} --workers 2 --keep id".split()
    again = subprocess.run(
        [*COMMAND, *command], capture_output=True, text=True, check=False, env=environment
    )

    assert again.returncode == 0, again.stderr
    assert f"{len(first)} finished earlier" in again.stdout
    assert sorted(set(files(out)) - {"_SUCCESS", "_batch.json"}) == files(source)
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    assert pq.read_table(out).num_rows == 40 * 4000
    assert list(temporary.glob("onnxserve-*")) == []


@pytest.mark.long
def test_changed_model_or_input_needs_a_restart(model, tmp_path):
    source = fill(tmp_path / "in", 1)
    out = tmp_path / "out"
    plan = plan_of(model, source, out)
    run_batch(plan)
    assert run_batch(plan).progress.finished_before == 1
    other = mixed_model(tmp_path / "other")
    (other / "note.txt").write_text("of another training")

    def refusal(**options):
        with pytest.raises(AlreadyExists) as refused:
            run_batch(BatchPlan(**{**vars(plan), **options}))
        assert "--restart" in refused.value.message
        return refused.value.message

    assert mentions(refusal(model_uri=str(other)), f"output {out}", "mixed", str(other))
    assert mentions(refusal(keep=("id",)), "keep []", "['id']")
    write(flights(20), source / "day=0" / "0.parquet")
    assert mentions(refusal(), str(source), "day=0/0.parquet has changed")
    write(flights(20), source / "new.parquet")
    (source / "day=0" / "0.parquet").unlink()
    assert "day=0/0.parquet is gone" in refusal()

    assert run_batch(BatchPlan(**{**vars(plan), "restart": True})).progress.rows == 20
    assert files(out) == ["_SUCCESS", "_batch.json", "new.parquet"]


@pytest.mark.long
def test_batch_without_output_may_change_its_options(model, tmp_path):
    source = fill(tmp_path / "in", 1)
    out = tmp_path / "out"
    with pytest.raises(OnnxserveError, match="--keep nothing: "):
        run_batch(plan_of(model, source, out, keep=("nothing",)))

    run_batch(plan_of(model, source, out, keep=("id",)))

    assert files(out) == ["_SUCCESS", "_batch.json", "day=0/0.parquet"]


@pytest.mark.long
def test_hive_partitions_are_columns(model, tmp_path):
    rows = flights(6)
    late = rows.set_column(rows.schema.get_field_index("hour"), "hour", pa.array([7] * 6))
    folder = (
        tmp_path
        / "in"
        / "hour=7"
        / "day=2026-01-01"
        / "city=S%C3%A3o Paulo"
        / "zone=__HIVE_DEFAULT_PARTITION__"
    )
    names = {"csv": "a", "jsonl": "b", "parquet": "c"}
    for suffix, name in names.items():
        write(late.drop_columns("hour"), folder / f"{name}.{suffix}")
    out = tmp_path / "out"

    run_batch(
        plan_of(model, tmp_path / "in", out, keep=("day", "city", "zone"), output_format="parquet")
    )

    for name in names.values():
        written = (
            pq.ParquetFile(out / folder.relative_to(tmp_path / "in") / f"{name}.parquet")
            .read()
            .to_pydict()
        )
        assert written["prediction"] == labels(late)
        assert [written[column][0] for column in ("day", "city", "zone")] == [
            "2026-01-01",
            "São Paulo",
            None,
        ]


@pytest.mark.long
def test_compressed_files_are_read(model, tmp_path):
    source = tmp_path / "in"
    out = tmp_path / "out"
    for number, (suffix, codec) in enumerate(
        [("csv.gz", "gzip"), ("jsonl.zst", "zstd"), ("csv.bz2", "bz2"), ("parquet.gz", "gzip")]
    ):
        plain = write(flights(50, seed=number), tmp_path / f"rows.{suffix.partition('.')[0]}")
        source.mkdir(exist_ok=True)
        with pa.CompressedOutputStream(str(source / f"{number}.{suffix}"), codec) as file:
            file.write(plain.read_bytes())

    result = run_batch(plan_of(model, source, out, keep=("id",), output_format="parquet"))

    assert result.progress.rows == 200
    assert result.progress.bytes_done == result.progress.bytes
    for number in range(4):
        rows = flights(50, seed=number)
        written = pq.read_table(out / f"{number}.parquet").to_pydict()
        assert [int(cell) for cell in written["id"]] == rows["id"].to_pylist()
        assert written["prediction"] == labels(rows)


@pytest.mark.long
def test_truncated_gzip_leaves_no_output(model, tmp_path):
    source = tmp_path / "in"
    out = tmp_path / "out"
    source.mkdir()
    whole = gzip.compress(write(flights(500), tmp_path / "rows.csv").read_bytes())
    (source / "rows.csv.gz").write_bytes(whole[:-20])

    with pytest.raises(OnnxserveError, match=r"^rows\.csv\.gz: .* decompressed"):
        run_batch(plan_of(model, source, out))

    assert files(out) == ["_batch.json"]


@pytest.mark.long
def test_bad_file_is_left_out_until_it_is_mended(model, tmp_path):
    source = fill(tmp_path / "in", 3)
    out = tmp_path / "skipped"
    bad = write(flights(10).drop_columns("late"), source / "bad.parquet")
    with pytest.raises(OnnxserveError, match=r"^bad\.parquet: column 'late'"):
        run_batch(plan_of(model, source, tmp_path / "out"))
    assert not (tmp_path / "out" / "_SUCCESS").exists()

    plan = plan_of(model, source, out, on_error="skip-part")
    assert list(run_batch(plan).failed) == ["bad.parquet"]
    assert files(out) == ["_batch.json", "day=0/0.parquet", "day=1/1.parquet", "day=2/2.parquet"]

    write(flights(10), bad)
    write(flights(20), source / "later.parquet")
    result = run_batch(plan)
    assert result.progress.finished_before == 3
    assert result.progress.rows == 30
    assert result.failed == {}


@pytest.mark.parametrize(
    ("input", "output", "message"),
    [
        ("double", "out", "input .*double: a.csv and a.jsonl would both become a.parquet"),
        ("loop", "out", "input .*loop: loop/again is a link to one of its parent folders"),
        ("pair", "out", "input .*pair: (a/b/a|b/a/b) is a link to one of its parent folders"),
        ("in", "in/below", "overlap: specify another folder"),
        ("in", "out.parquet", "output .*out.parquet is a file name"),
        ("s3://bucket/x", "out", "input s3://bucket/x cannot be reached: .*127.0.0.1"),
        ("ftp://host/x", "out", "input: 'ftp://host/x'"),
        ("gone", "out", "input .*gone: .* does not exist"),
        ("empty", "out", "input .*empty: .* no files"),
        ("other/rows", "out", "input .*other/rows: .*--input-format"),
        ("in", "other/rows", "output .*other/rows cannot be written"),
        ("in", "other", "output .*other contains rows, "),
    ],
)
def test_invalid_input_or_output_is_refused(model, tmp_path, monkeypatch, input, output, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    fill(tmp_path / "in", 1)
    for name in ("double", "empty", "other"):
        (tmp_path / name).mkdir()
    Path("other/rows").touch()
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / "double" / name).touch()
    Path("loop/loop").mkdir(parents=True)
    Path("loop/loop/again").symlink_to(tmp_path / "loop")
    for name, other in (("a", "b"), ("b", "a")):
        Path("pair", name).mkdir(parents=True)
        Path("pair", name, other).symlink_to(tmp_path / "pair" / other)

    with pytest.raises(OnnxserveError, match=message):
        run_batch(BatchPlan(str(model), input, output, output_format="parquet"))


def test_input_changed_during_a_batch_ends_it(model, tmp_path):
    source = fill(tmp_path / "in", 2, rows=50_000)
    changed = source / "day=1" / "1.parquet"

    def change(progress):
        if changed.stat().st_mtime > 1:
            write(flights(10), tmp_path / "new.parquet").replace(changed)
            os.utime(changed, (1, 1))

    with pytest.raises(OnnxserveError, match=r"^day=1/1\.parquet:.*has changed"):
        run_batch(plan_of(model, source, tmp_path / "out"), change)

    assert "day=1/1.parquet" not in files(tmp_path / "out")


@pytest.mark.long
def test_unfinished_files_are_deleted(model, tmp_path):
    source = tmp_path / "in"
    out = tmp_path / "out"
    name = "rows.csv"
    source.mkdir()
    (source / name).write_text("carrier,distance,hour,late\nAA,1.0,1,true\nAA,far,1,true\n")
    plan = plan_of(model, source, out, on_error="skip-row")

    run_batch(plan)

    # A killed process leaves such a file.
    (out / name).rename(out / f"{unfinished_stem(name)}.0123abcd")
    run_batch(plan)
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        name,
        "_batch.json",
        "_SUCCESS",
    }


@pytest.mark.long
def test_marker_is_absent_while_a_part_is_missing(model, tmp_path):
    source = fill(tmp_path / "in", 2)
    out = tmp_path / "out"
    plan = plan_of(model, source, out)
    run_batch(plan)
    (out / "day=1" / "1.parquet").unlink()
    seen = []

    run_batch(plan, lambda progress: seen.append((out / "_SUCCESS").exists()))

    assert seen[:-1] == [False] * (len(seen) - 1)
    assert (out / "_SUCCESS").exists()


@pytest.mark.parametrize(
    "content", ["", "null", "[]", "{}", '{"parts": [], "model": {}}', '{"parts": {"x": 1}}']
)
@pytest.mark.parametrize("restart", [False, True])
def test_damaged_manifest_is_refused(model, tmp_path, content, restart):
    source = fill(tmp_path / "in", 1)
    out = tmp_path / "out"
    out.mkdir()
    (out / "_batch.json").write_text(content)

    with pytest.raises(OnnxserveError, match=r"_batch\.json is damaged"):
        run_batch(plan_of(model, source, out, restart=restart))


@pytest.mark.long
def test_folder_names_may_have_any_character(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(flights(10), Path("at 10:00 #1/t=10:00?/a%20b ü\n.parquet"))

    run_batch(BatchPlan(str(model), "at 10:00 #1", "out:%41", workers=1))

    assert "t=10:00?/a%20b ü\n.parquet" in files(Path("out:%41"))


def test_concurrent_batch_in_one_folder_is_refused(model, tmp_path):
    source = fill(tmp_path / "in", 2)
    plan = plan_of(model, source, tmp_path / "out")
    refused = []

    def again(progress):
        if not refused:
            with pytest.raises(AlreadyExists, match="is writing to") as error:
                run_batch(plan)
            refused.append(error.value.message)

    run_batch(plan, again)

    assert len(refused) == 1
    assert files(tmp_path / "out")[:2] == ["_SUCCESS", "_batch.json"]


@pytest.mark.long
def test_batch_from_bucket_to_bucket(model, tmp_path, bucket):
    source = fill(tmp_path / "in", 3)
    client = boto3.session.Session().client("s3")
    for name in files(source):
        client.upload_file(str(source / name), "lake", f"in/{name}")
    plan = BatchPlan(
        str(model), "s3://lake/in", "s3://lake/out", ("id",), output_format="csv", workers=2
    )

    assert run_batch(plan).progress.rows == 1500
    del bucket.objects["lake/out/day=1/1.csv"]
    assert run_batch(plan).progress.rows == 500

    # Arrow leaves an empty object for a folder in which it has deleted files.
    made = {name for name in bucket.objects if name.startswith("lake/out/") and name[-1] != "/"}
    assert made == {
        f"lake/out/{name}"
        for name in ("_SUCCESS", "_batch.json", "day=0/0.csv", "day=1/1.csv", "day=2/2.csv")
    }
    assert bucket.objects["lake/out/day=2/2.csv"].splitlines()[0] == b'"id","prediction"'


@pytest.mark.long
def test_simultaneous_batch_in_one_bucket_is_refused(model, tmp_path, bucket, monkeypatch):
    source = fill(tmp_path / "in", 1)
    seen = Barrier(2)
    look = manifest._list_files

    def look_together(location):
        files = look(location)
        if not location.is_local:  # Only the output is in the bucket.
            # Both processes have seen an empty location; later calls do not wait.
            with suppress(BrokenBarrierError):
                seen.wait(20)
            seen.abort()
        return files

    monkeypatch.setattr(manifest, "_list_files", look_together)
    with ThreadPoolExecutor(2) as pool:
        plans = [
            BatchPlan(str(model), str(source), "s3://lake/out", (column,), workers=1)
            for column in ("id", "ts")
        ]
        futures = [pool.submit(run_batch, plan) for plan in plans]
        outcomes = [future.exception() for future in futures]

    (refused,) = (outcome for outcome in outcomes if outcome)
    assert isinstance(refused, AlreadyExists)


@pytest.mark.long
def test_batch_of_a_pyfunc_is_recorded_as_run(new_database, tmp_path):
    source = tmp_path / "rows.csv"
    source.write_text("id,when,name\n1,2026-02-01,a\n2,2026-01-02T03:04:05,b\n")
    folder = save_pyfuncs(tmp_path, ["days"])["days"]
    with tracking_at(new_database(tmp_path)):
        client = MlflowClient()
        client.create_registered_model("days")
        client.create_model_version("days", folder.as_uri())
        out = str(tmp_path / "out")
        result = run_batch(
            BatchPlan(
                "models:/days/1",
                str(source),
                out,
                ("id",),
                output_format="jsonl",
                experiment="batches",
            )
        )
        assert result.run is not None
        run = client.get_run(result.run.run_id)
    lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [
        {"id": "1", "day": 33, "name": "A"},
        {"id": "2", "day": 3, "name": "B"},
    ]
    assert run.data.metrics["rows"] == 2
    assert run.data.params["model"] == "models:/days/1"
    assert run.data.tags["onnxserve.batch.version"] == "1"
    assert run.inputs.dataset_inputs[0].dataset.source == json.dumps({"uri": str(source)})


class Threads(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        return model_input.assign(threads=os.environ.get("OMP_NUM_THREADS", "all"))[["threads"]]


@pytest.mark.long
def test_pyfunc_processes_use_one_thread_each(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    signature = ModelSignature(
        Schema([ColSpec("long", "id")]), Schema([ColSpec("string", "threads")])
    )
    mlflow.pyfunc.save_model(
        tmp_path / "m", python_model=Threads(), signature=signature, pip_requirements=[]
    )
    for part in range(2):
        write(pa.table({"id": [part]}), tmp_path / "in" / f"{part}.csv")
    run_batch(plan_of(tmp_path / "m", tmp_path / "in", tmp_path / "out", workers=2))
    assert [(tmp_path / "out" / f"{part}.csv").read_text().split() for part in range(2)] == [
        ['"threads"', '"1"']
    ] * 2


@pytest.mark.long
def test_file_larger_than_memory_is_predicted(model, tmp_path):
    limit = 700 * 2**20
    rows = write(flights(100_000), tmp_path / "block.csv").read_bytes()
    header, _, content = rows.partition(b"\n")
    path = tmp_path / "rows.csv"
    with path.open("wb") as file:
        file.write(header + b"\n")
        while file.tell() < limit * 1.2:
            file.write(content)
    settings = {
        "MALLOC_ARENA_MAX": "2",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "OMP_NUM_THREADS": "1",
    }

    done = subprocess.run(
        [*COMMAND, *f"{model} -i {path} --folder {tmp_path}/out --workers 2".split()],
        env=os.environ | settings,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert path.stat().st_size > limit
    assert (tmp_path / "out" / "rows.csv").read_bytes().count(b"\n") > 10_000_000
