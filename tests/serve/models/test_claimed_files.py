"""Model files with a claim in a random field (columns, leaves, classes, shapes, sizes):
the process that converts or loads one allocates at most its limit. The variable
HOSTILE_MODELS is the number of files per format.
"""

import faulthandler
import os
import re
import shutil
import signal
import zipfile
from collections import Counter
from contextlib import suppress
from io import BytesIO

import mlflow
import numpy as np
import onnx
import psutil
import pytest
from mlflow.models import infer_signature
from sklearn.tree import DecisionTreeClassifier

from mlflow_deploy_plugin.core.mlmodel import MLMODEL, folder_bytes
from mlflow_deploy_plugin.core.processes import memory
from mlflow_deploy_plugin.serve.models.loading import load_warm
from mlflow_deploy_plugin.serve.runtime.session import ON_CPU
from mlflow_deploy_plugin.wrap.flavor.load_conversion import convert_folder
from tests.support.models import write_model
from tests.support.random_rows import normal_rows

lightgbm = pytest.importorskip("lightgbm")
xgboost = pytest.importorskip("xgboost")

COUNT = int(os.environ.get("HOSTILE_MODELS", "200"))
SEED = int(os.environ.get("HOSTILE_SEED", "0"))
CLAIMS = [20_000, 1_000_000, 40_000_000, 700_000_000, 2**31 - 1, 2**40, 2**62]
TOLERATED = 100 * 2**20
SECONDS = 10
"""The time after which a process is ended: it has reached its memory long before."""
ROWS = normal_rows(200, 3)
CLASSES = (ROWS[:, 0] > 0).astype(int) + (ROWS[:, 1] > 0)
NUMBER = re.compile(rb"\d+")
GRAPH = """claims (float[N,3] x) => (float[N,3] y)
  <int64[2] s = {9, 9}, float v = {1}, int64 d = {7}, int64 i = {3}, float[2] o = {0, 1},
   int64[4] p = {0, 0, 2, 2}, int64[2] r = {4, 5}, int64 zero = {0}, int64 one = {1}> {
  a = ConstantOfShape(s)
  b = Expand(v, s)
  c = Tile(a, r)
  e = Pad(a, p)
  f = Range(zero, i, one)
  g = OneHot(f, d, o)
  h = ReduceSum<keepdims = 0>(c)
  j = ReduceSum<keepdims = 0>(e)
  k = ReduceSum<keepdims = 0>(g)
  l = ReduceSum<keepdims = 0>(b)
  m = Sum(h, j, k, l)
  y = Add(x, m)
}"""


def save_trained(kind, folder):
    """Save an honest model of a format, and return the file that receives claims."""
    more = {"signature": infer_signature(ROWS, CLASSES), "pip_requirements": []}
    if kind == "onnx":
        write_model(folder, GRAPH)
    elif kind == "xgboost":
        model = xgboost.XGBClassifier(n_estimators=2, max_depth=2, n_jobs=1).fit(ROWS, CLASSES)
        mlflow.xgboost.save_model(model, folder, model_format="json", **more)
    elif kind == "catboost":
        catboost = pytest.importorskip("catboost")
        model = catboost.CatBoostClassifier(3, depth=2, thread_count=1, allow_writing_files=False)
        mlflow.catboost.save_model(model.fit(ROWS, CLASSES, verbose=False), folder, **more)
    elif kind == "skops":
        model = DecisionTreeClassifier(max_depth=3).fit(ROWS, CLASSES)
        more["skops_trusted_types"] = ["sklearn.tree._tree.Tree"]
        mlflow.sklearn.save_model(model, folder, serialization_format="skops", **more)
    else:
        model = lightgbm.LGBMClassifier(n_estimators=2, num_leaves=4, n_jobs=1, verbose=-1)
        mlflow.lightgbm.save_model(model.fit(ROWS, CLASSES).booster_, folder, **more)
    if kind == "signature":
        return folder / MLMODEL
    return next(file for file in folder.iterdir() if file.stem == "model")


def claim_in(random, content, claim):
    """Return the content with a claim instead of one of its numbers."""
    numbers = [*NUMBER.finditer(content)]
    found = numbers[random.integers(len(numbers))]
    return content[: found.start()] + b"%d" % claim + content[found.end() :]


def add_claim(random, file):
    """Write a claim into a file, and in half of the cases also into its signature."""
    claim = int(random.choice(CLAIMS))
    content = file.read_bytes()
    if file.suffix == ".onnx":
        with suppress(onnx.parser.ParseError):
            write_model(file.parent, claim_in(random, GRAPH.encode(), claim).decode())
        return
    if file.suffix == ".cb":
        place = random.integers(len(content) - 4)
        content = content[:place] + (claim % 2**31).to_bytes(4, "little") + content[place + 4 :]
    elif file.suffix == ".skops":
        members = zipfile.ZipFile(file)
        changed = random.choice(members.namelist())
        written = BytesIO()
        with zipfile.ZipFile(written, "w") as archive:
            for name in members.namelist():
                part = members.read(name)
                if name == changed:
                    part = claim_in(random, part, claim)
                archive.writestr(name, part)
        content = written.getvalue()
    else:
        content = claim_in(random, content, claim)
    file.write_bytes(content)
    if random.random() < 0.5:
        mlmodel = file.with_name(MLMODEL)
        mlmodel.write_text(mlmodel.read_text().replace("[-1, 3]", f"[-1, {claim}]"))


def excess_of(folder, target):
    """Return the bytes by which a process that loads or converts a model exceeds its
    limit, and its result: "converted", or the class of its error ("" if it has ended).
    """
    size = folder_bytes(folder)
    limit = 2 * 2**30 + 64 * size
    reading, writing = os.pipe()
    if not (child := os.fork()):
        faulthandler.disable()  # LightGBM ends the process without memory.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # Python's handler would wait for a library.
        signal.alarm(SECONDS)
        result = "converted"
        try:
            memory.limit_conversion(size)
            if (folder / "model.onnx").exists():
                load_warm(folder, ON_CPU, 1)
            else:
                convert_folder(folder, target, "m", makes_rows=True)
        except BaseException as error:  # noqa: BLE001 - libraries raise many classes
            result = type(error).__name__
        finally:
            os.write(writing, result.encode())
            os._exit(0)
    own = psutil.Process().memory_info().rss
    os.close(writing)
    with open(reading) as results:
        result = results.read()
    return os.wait4(child, 0)[2].ru_maxrss * 1024 - own - limit, result


@pytest.mark.long
@pytest.mark.timeout(60 + SECONDS * COUNT)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["xgboost", "lightgbm", "skops", "catboost", "signature", "onnx"])
def test_claimed_bytes_of_files_stay_within_limits(kind, tmp_path):
    honest = save_trained(kind, tmp_path / "honest")
    excess, result = excess_of(honest.parent, tmp_path / "converted")
    assert (result, excess < 0) == ("converted", True)
    faults = []
    results = Counter()
    for seed in range(SEED, SEED + COUNT):
        folder = shutil.copytree(honest.parent, tmp_path / str(seed) / "m")
        add_claim(np.random.default_rng(seed), folder / honest.name)
        excess, result = excess_of(folder, folder.with_name("converted"))
        results[result] += 1
        if excess > TOLERATED:
            faults.append((seed, excess))
        shutil.rmtree(folder.parent)
    assert faults == []
    assert results[""] < COUNT


@pytest.mark.long
def test_claimed_bytes_of_a_graph_fail_at_the_limit(tmp_path):
    write_model(tmp_path / "m", GRAPH.replace("{9, 9}", "{40000, 20000}"))
    excess, result = excess_of(tmp_path / "m", tmp_path / "converted")
    assert excess <= TOLERATED
    assert result == "DeviceMemoryFull"
