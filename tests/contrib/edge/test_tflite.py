"""Tests of TensorFlow Lite: refused models, its environment, and networks that answer
like the served model.
"""

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxserve
from mlflow_deploy_plugin.contrib.edge.tflite import converter_python
from mlflow_deploy_plugin.core.errors import ConversionError, ParityError
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.flavor.save import save_model
from tests.support.models import write_model
from tests.support.refusals import refused

PAGE = Path(__file__).parents[3] / "docs" / "export.md"


def test_unsupported_model_needs_no_installation(mixed, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    graph = (
        "scaled (float[N,2] x) => (float[N,2] y) "
        "{ y = ai.onnx.ml.Scaler<offset = [0.0, 0.0], scale = [1.0, 1.0]>(x) }"
    )
    scaled = write_model(tmp_path / "scaled", graph)
    for model, words in ((mixed, "'carrier' contains strings"), (scaled, "Scaler")):
        with refused(ConversionError, "tflite", words):
            onnxserve.export(str(model), "tflite", tmp_path / "m.tflite")
    assert not (tmp_path / "home" / "cache" / "environments").exists()


@pytest.mark.long
def test_offline_export_leaves_no_files(tensor, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    messages: list[str] = []
    with refused(ConversionError, "tflite", "No matching", "index") as failed:
        onnxserve.export(str(tensor), "tflite", tmp_path / "m.tflite", progress=messages.append)
    assert "\n" not in failed.value.message
    assert re.fullmatch(r"installing the tflite converter \(once, \d+ MB\) into /.*", messages[0])
    assert not list((tmp_path / "home" / "cache" / "environments").iterdir())


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Install the converter in two threads over the remains of a killed process; return
    the progress messages.
    """
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("ONNXSERVE_HOME", str(home))
        _killed_while_installing()
        messages: list[str] = []
        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(converter_python, [messages.append] * 2)
        assert first == second
        yield messages


def _killed_while_installing():
    code = (
        "from mlflow_deploy_plugin.contrib.edge.tflite import converter_python; "
        "converter_python(print)"
    )
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().split()[-1])
        while not list(folder.parent.glob("*.unfinished")):
            time.sleep(0.01)
        process.kill()
    assert not folder.exists()


@pytest.mark.install
def test_first_exports_install_one_environment(environment):
    assert len(environment) == 1
    folder = Path(environment[0].rpartition(" ")[2])
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.install
@pytest.mark.usefixtures("environment")
def test_documented_example_answers_as_served(tmp_path):
    torch = pytest.importorskip("torch")
    from projects.digits_cnn.fitting import DigitsCNN

    torch.manual_seed(0)
    rows = np.random.rand(8, 1, 8, 8).astype(np.float32)
    save_model(DigitsCNN().eval(), tmp_path / "digits", input_example=rows)
    onnxserve.export(str(tmp_path / "digits"), "tflite", tmp_path / "digits.tflite")

    (example,) = re.findall(r"```python\n(import numpy.*?)```", PAGE.read_text(), re.DOTALL)
    command: Any = [converter_python(print), "-c", f"{example}print(*scores[1].tolist())"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    zeros = np.zeros((2, 1, 8, 8), np.float32)
    want = OnnxModel.load(tmp_path / "digits").run({"image": zeros})["output"]
    np.testing.assert_allclose(np.array(ran.stdout.split(), float), want[1], atol=1e-5)


@pytest.mark.install
@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "graph",
    [
        "net (float[N,3] x, int64[N,2] ids) => (float[N,3] y, int64[N,2] z) "
        "{ y = Tanh(x)  z = Add(ids, ids) }",
        'odd (float[N,2] "a b:0", float[N,2] "/größe") => (float[N,2] "sum:0") '
        '{ "sum:0" = Add("a b:0", "/größe") }',
        "fixed (float[4,3] x) => (float[4,3] y) { y = Softmax<axis=0>(x) }",
        "scaled (float[N,3] x, float[1] by) => (float[N,3] y) { y = Mul(x, by) }",
    ],
    ids=["types", "names", "fixed rows", "a shared input"],
)
def test_graph_is_exported_as_it_is(graph, tmp_path):
    messages: list[str] = []
    model = str(write_model(tmp_path / "m", graph))
    file = tmp_path / "m.tflite"
    exported = onnxserve.export(model, "tflite", file, progress=messages.append)
    assert exported.path.is_file()
    assert not messages
    assert exported.rows > 500 or "float[N,2]" not in graph


@pytest.mark.install
@pytest.mark.usefixtures("environment")
def test_unsupported_operator_is_named(tmp_path):
    graph = (
        "words (int64[N,4] x) => (float[N,2] y) { y = TfIdfVectorizer <max_gram_length=1, "
        'max_skip_count=0, min_gram_length=1, mode="TF", ngram_counts=[0], ngram_indexes=[0, 1], '
        "pool_int64s=[1, 2]> (x) }"
    )
    model = str(write_model(tmp_path / "words", graph))
    with refused(ParityError, "discarded", "ONNX_TFIDFVECTORIZER") as failed:
        onnxserve.export(model, "tflite", tmp_path / "m.tflite")
    assert "\n" not in failed.value.message
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.install
@pytest.mark.usefixtures("environment")
def test_other_layout_is_refused(tmp_path):
    graph = (
        "conv (float[N,2,8,8] image) => (float[N,3,8,8] map) <float[3,2,1,1] w = "
        "{1,2,3,4,5,6}> {map = Conv(image, w)}"
    )
    with refused(ParityError, "'map', float32 [564, 8, 8, 3]"):
        onnxserve.export(str(write_model(tmp_path / "m", graph)), "tflite", tmp_path / "m.tflite")
