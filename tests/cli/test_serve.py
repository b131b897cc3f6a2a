"""Tests of `onnxserve serve`: following, changed specs, the end, and errors."""

import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.core.spec.document import load_stored_specs
from tests.support.commands import done, onnxserve, said
from tests.support.disk import files_of_at_most
from tests.support.refusals import mentions


@pytest.mark.long
def test_ended_server_has_shipped_its_rows(serve, registered, mlflow_server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    served = serve(f"models:/{registered}/1").wait_ready()
    assert served.predict(1).json() == {"predictions": {"y": [[2.0]]}}

    assert served.end() == 0

    assert "Traceback" not in served.log.read_text()
    assert not list((served.state_dir / "spool").glob("*.seg"))
    (shipped,) = (tmp_path / "home" / "inference_log").rglob("*.parquet")
    assert pq.ParquetFile(shipped).metadata.num_rows == 1


def log_of_refusal(served, *names):
    """Check that the server ends with an error of these names; return its log."""
    assert served.process.wait(timeout=60) in (1, 2)  # MLflow's retries would take four minutes.
    assert served.end() in (1, 2)
    text = served.log.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert mentions(line, *names)
    assert "Traceback" not in text
    assert not (served.state_dir / "server.json").exists()
    return text


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("models:/{name}@live", ["alias live", "versions: 1"]),
        ("{broken}", ["ONNX Runtime", "model.onnx"]),
        ("models:/{name}/1 --device cuda", ["--device cuda"]),
        ("models:/{name}/1 -p {used}", ["port {used}", "in use"]),
        ("/no/such/folder", ["folder /no/such/folder"]),
    ],
)
def test_unservable_model_is_refused(
    serve, registered, mlflow_server, models, taken_port, monkeypatch, arguments, names
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)

    def fill(text):
        return text.format(name=registered, broken=models.broken, used=taken_port)

    served = serve(*fill(arguments).split())

    log_of_refusal(served, *map(fill, names))


@pytest.mark.long
def test_silent_mlflow_is_refused_without_its_password(serve, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    served = serve("models:/x/Production")
    assert "secret" not in log_of_refusal(served, "http://127.0.0.1:9")


def test_deleted_current_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    refused = onnxserve(f"serve models:/x/1 --state-dir {tmp_path}/state")

    assert mentions(said(refused), "the current folder", "deleted")
    assert not (tmp_path / "state").exists()


@pytest.fixture
def supervised(tmp_path, monkeypatch):
    """A function that serves a spec file, and calls a function instead of a server."""
    monkeypatch.setattr("mlflow_deploy_plugin.cli.serve.configure_logging", lambda *_: None)

    def serve(run, spec, option=""):
        monkeypatch.setattr("mlflow_deploy_plugin.cli.serve.supervise", run)
        done(f"serve --spec {spec} --state-dir {tmp_path}/state {option}")

    return serve


def spec_of(version, threads=3):
    variants = f"{{e: {{model: models:/m/{version}}}}}"
    return f"name: e\nvariants: {variants}\nserver: {{threads: {threads}}}\n"


@pytest.mark.parametrize(("option", "follows"), [("", True), ("--no-follow", False)])
def test_changed_spec_survives_a_full_disk(supervised, tmp_path, option, follows):
    spec = tmp_path / "spec.yaml"
    served = tmp_path / "state" / "spec.yaml"
    spec.write_text(spec_of(1))

    def run(folder, follow, announce, refresh, jobs):
        assert follow is follows
        spec.write_text(spec_of(2))
        with files_of_at_most(1):
            refresh()
        assert "models:/m/1" in served.read_text()
        refresh()
        assert "models:/m/2" in served.read_text()

    supervised(run, spec, option)


def test_changed_steps_are_served(supervised, tmp_path, caplog):
    spec = tmp_path / "spec.yaml"
    steps = tmp_path / "steps.py"
    spec.write_text(f"{spec_of(1)}serve: {{steps: steps.py}}\n")
    source = "def before(request):\n    return {}\n"
    steps.write_text(source.format(1))

    def run(folder, follow, announce, refresh, jobs):
        def served(content):
            steps.write_text(content)
            refresh()
            return load_stored_specs((folder / "spec.yaml").read_text())[0].serve.steps

        assert served(source.format(2)) == source.format(2)
        assert served("def before(:\n") == source.format(2)
        assert mentions(caplog.text, "steps.py line 1")
        assert served(source.format(3)) == source.format(3)

    supervised(run, spec)
    supervised(run, spec, f"--steps {steps}")


def test_changed_server_part_needs_a_restart(supervised, tmp_path, caplog):
    data = [tmp_path / "first", tmp_path / "second"]
    for folder, version, threads in zip(data, (1, 2), (3, 5), strict=True):
        folder.mkdir()
        (folder / "spec.yaml").write_text(spec_of(version, threads))
    # kubelet mounts a ConfigMap with such a link and replaces ..data.
    link = tmp_path / "..data"
    link.symlink_to(data[0])
    spec = tmp_path / "spec.yaml"
    spec.symlink_to("..data/spec.yaml")

    def run(folder, follow, announce, refresh, jobs):
        (tmp_path / "new").symlink_to(data[1])
        (tmp_path / "new").rename(link)
        refresh()
        changed = (folder / "spec.yaml").read_text()
        assert "models:/m/2" in changed
        assert "threads: 3" in changed
        assert mentions(caplog.text, "`server`", "next start")
        (data[1] / "spec.yaml").write_text("name: e\nvariants: {}\n")
        refresh()
        assert (folder / "spec.yaml").read_text() == changed
        assert mentions(caplog.text, f"{spec} is not served", "endpoint 'e'")

    supervised(run, spec)
