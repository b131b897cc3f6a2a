"""Mutated graphs, and mutated arrays of explanations: each model is loaded, answers
batches and is explained in a process with little memory and time.

`make test-graphs-hostile` runs 20,000 models.
"""

import json
import os
import resource
import shutil
import signal
from contextlib import suppress

import numpy as np
import onnx
import pytest
import yaml
from google.protobuf.message import Message
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mlflow_deploy_plugin
from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.models import explainer
from mlflow_deploy_plugin.serve.models.loading import load_warm
from mlflow_deploy_plugin.serve.runtime.additive import ADDITIVE_FILE
from mlflow_deploy_plugin.serve.runtime.agreement import Tolerance, compare
from mlflow_deploy_plugin.serve.runtime.explained import explained_numbers
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import ON_CPU, import_onnxruntime
from tests.support.random_rows import normal_rows

lightgbm = pytest.importorskip("lightgbm")

COUNT = int(os.environ.get("HOSTILE_MODELS", "200"))
SEED = int(os.environ.get("HOSTILE_SEED", "0"))
ROWS = normal_rows(200, 3)
NUMBERS = [0, 1, -1, 7, 2**15, 4 * 10**7, -(2**31), 2**62, np.nan, np.inf, 5e-324, 1e308]
TEXTS = [b"", "é\0".encode(), b"../x", b"LEAF", b"Loop", b"a" * 5000]
VALUES = [*NUMBERS, *map(bytes.decode, TEXTS), None, True, [], {}, [[1, "x"]] * 9]
TOLERANCE = Tolerance(1e-3, 1e-3)
MODELS = [
    make_pipeline(StandardScaler(), RandomForestRegressor(3, max_depth=3)),
    LinearRegression(),
    lightgbm.LGBMRegressor(n_estimators=3, linear_tree=True, verbose=-1),
    HistGradientBoostingRegressor(max_iter=3, categorical_features=[2]),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folders of the models, whose digests are not checked."""
    root = tmp_path_factory.mktemp("honest")
    kinds = np.c_[ROWS[:, :2], ROWS[:, 2:].round() % 5]
    for number, model in enumerate(MODELS):
        model.fit(kinds, kinds @ [1.0, 2.0, 3.0])
        mlflow_deploy_plugin.save_model(
            model, root / str(number), input_example=kinds, pip_requirements=[]
        )
        mlmodel = root / str(number) / "MLmodel"
        document = yaml.safe_load(mlmodel.read_text())
        del document["flavors"]["onnxserve"]["digests"]
        mlmodel.write_text(yaml.safe_dump(document))
    return sorted(root.iterdir())


def mutate_message(random, message):
    """Change a random field of a random part of a protobuf message."""
    parts = [message]
    for part in parts:
        for field, value in part.ListFields():
            if field.message_type:
                parts += [value] if isinstance(value, Message) else value
    part = parts[random.integers(len(parts))]
    fields = part.ListFields()
    if not fields:
        return
    field, value = fields[random.integers(len(fields))]
    part.ClearField(field.name)
    if hasattr(value, "append"):
        places = random.integers(len(value), size=random.integers(2 * len(value) + 1))
        getattr(part, field.name).extend([value[place] for place in np.sort(places)])
        return
    number = random.choice(NUMBERS)
    text = random.choice([*TEXTS, str(value).encode()[:20]])
    for hostile in (number, int(np.nan_to_num(number, posinf=9)), text, text.decode()):
        with suppress(AttributeError, TypeError, ValueError):
            setattr(part, field.name, hostile)


def mutate_array(random, array):
    """Return an array with other values, or of another type or shape."""
    numbers = random.choice(NUMBERS, array.shape)
    if array.dtype.kind == "i":
        numbers = np.nan_to_num(numbers).clip(-100, 2**30)
    is_other = random.random(array.shape) < random.choice([0.02, 1])
    choices = [array[..., np.newaxis], np.repeat(array, 1000), array.ravel()[:7]]
    with suppress(ValueError):
        choices.append(np.where(is_other, numbers, array).astype(array.dtype))
        choices.append(array.astype(random.choice(["int8", "complex64", "float64", "U9"])))
    return choices[random.integers(len(choices))]


def mutate_document(random, part):
    """Change a random entry of nested lists and mappings."""
    while part:
        keys = [*part] if isinstance(part, dict) else range(len(part))
        key = keys[random.integers(len(keys))]
        if not isinstance(part[key], dict | list) or random.random() < 0.2:
            part[key] = VALUES[random.integers(len(VALUES))]
            return
        part = part[key]


def mutate(random, folder):
    """Change a graph, a document, or an array of the explanations, of the model in a
    folder.
    """
    files = [folder / "MLmodel", *folder.glob("*.onnx"), *folder.glob("*.json")]
    files += folder.glob(ADDITIVE_FILE)
    file = files[random.integers(len(files))]
    if file.suffix in ("", ".json"):
        document = yaml.safe_load(file.read_text())
        mutate_document(random, document)
        file.write_text((json.dumps if file.suffix else yaml.safe_dump)(document))
        return
    if file.suffix == ".onnx":
        proto = onnx.ModelProto.FromString(file.read_bytes())
        mutate_message(random, proto)
        file.write_bytes(proto.SerializeToString())
        return
    with np.load(file) as archive:
        arrays = dict(archive)
    name = random.choice([*arrays])
    np.savez_compressed(file, **arrays | {name: mutate_array(random, arrays[name])})


def use(folder, random):
    """Compare answers with those of ONNX Runtime, and contributions with answers.
    Raises OnnxserveError if the model is refused.
    """
    model = load_warm(folder, ON_CPU, 1).predictor
    assert isinstance(model, OnnxModel)
    session = import_onnxruntime().InferenceSession(str(model.artifact.onnx_file))
    hostile = ROWS.copy()
    hostile[random.random(ROWS.shape) < 0.1] = random.choice(NUMBERS[-4:])
    wrong = (ROWS[:, :2], ROWS[0], ROWS[None], ROWS.astype("int8"), ROWS.astype("U9"), ROWS + 1j)
    for rows in (ROWS[:0], hostile, *wrong):
        with suppress(OnnxserveError):
            feeds = model.schema.from_array(rows)
            outputs = model.run(feeds)
            for array, plain in zip(outputs.values(), session.run([*outputs], feeds), strict=True):
                assert compare(plain, array, TOLERANCE).is_same
    feeds = model.schema.from_array(ROWS[:2])
    explanation = explainer.answer(folder, feeds, 50, 0, 10.0)
    sums = explanation.values.sum(axis=1) + explanation.base_values
    scale = 1e-3 * (1 + np.abs(explanation.values).sum())
    numbers = explained_numbers(model, feeds)[1]
    assert compare(numbers, sums, Tolerance(scale, 1e-3)).is_same or not np.isfinite(numbers).all()


def outcome_of(folder, random):
    """Return the name of the refusal of a model, `answered`, or a fault."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))
        signal.alarm(30)
        outcome = "answered"
        try:
            use(folder, random)
        except OnnxserveError:
            outcome = "refused"
        except BaseException as error:  # noqa: BLE001 - any other error is a fault
            outcome = f"{type(error).__name__} {error}"
        os.write(writing, outcome[:500].encode(errors="replace"))
        os._exit(0)
    os.close(writing)
    with open(reading) as told:
        outcome = told.read()
    return outcome or f"the process ended with {os.waitpid(child, 0)[1]}"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_hostile_model_is_refused_or_answered(folders, tmp_path):
    faults = []
    for seed in range(SEED, SEED + COUNT):
        random = np.random.default_rng(seed)
        folder = shutil.copytree(folders[seed % len(folders)], tmp_path / str(seed))
        mutate(random, folder)
        outcome = outcome_of(folder, random)
        if outcome not in ("answered", "refused"):
            faults.append((seed, outcome))
        shutil.rmtree(folder)
    assert faults == []
