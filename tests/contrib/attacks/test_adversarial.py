"""Attacks with the gradients of a torch original. Attacks with estimated gradients are
in test_curves.py.
"""

import shutil
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import numpy as np
import onnx
import pytest

import onnxserve
from mlflow_deploy_plugin.contrib.attacks.adversarial import fgsm, pgd, torch_gradient
from mlflow_deploy_plugin.core.errors import InvalidConfig, Refused
from mlflow_deploy_plugin.core.model_code import MODEL_CODE
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.promote.gate.run import run_gate
from mlflow_deploy_plugin.wrap.evaluation.disturbances import DisturbedVersion
from mlflow_deploy_plugin.wrap.evaluation.model import load_version
from tests.support.models import parse_graph
from tests.support.refusals import mentions, refused

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 300)
PICTURES = np.clip(
    RNG.normal(0.5, 0.2, (300, 4, 4)) + 0.1 * (LABELS[:, None, None] - 0.5), 0, 1
).astype(np.float32)
STRENGTHS = {"fgsm": [0.05, 0.2], "pgd": [0.05, 0.2], "noise": [0.2]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`original` has MLflow's own flavor; `onnx` is its ONNX form; `naming` names the
    original; `of_other` names a model that is not a torch module.
    """
    folder = tmp_path_factory.mktemp("net")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    with torch.no_grad():  # The brighter picture is in the second class.
        net[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16))
        net[1].bias.copy_(torch.tensor([8.0, -8.0]))
    paths = {name: folder / name for name in ("original", "onnx", "naming", "of_other")}
    mlflow.pytorch.save_model(
        net, paths["original"], pip_requirements=[], serialization_format="pickle"
    )
    graph = parse_graph(
        """net (float[N,4,4] picture) => (float[N,2] scores) <float[2] bias = {8, -8}> {
          pixels = Flatten (picture)
          scores = Gemm <transB = 1> (pixels, weight, bias)
        }"""
    )
    weight = net[1].weight.detach().numpy()
    graph.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    onnxserve.save_model(graph, paths["onnx"], input_example=PICTURES[:20])
    for name, original in (("naming", "original"), ("of_other", "naming")):
        shutil.copytree(paths["onnx"], paths[name])
        model = mlflow.models.Model.load(paths[name])
        model.metadata = {"onnxserve.wrapped_from": str(paths[original])}
        model.save(str(paths[name] / "MLmodel"))
    return paths


def measured(model, **options):
    data = {"picture": PICTURES, "label": LABELS}
    return onnxserve.robustness(str(model), data, "label", **{"strengths": STRENGTHS, **options})


def gradient_of(folders, rows, may_run_code=True):
    folder = folders["onnx"]
    return torch_gradient(
        DisturbedVersion(
            {"": rows},
            LABELS,
            load_version(folder),
            resolve(str(folder)),
            folders["original"],
            has_consent=may_run_code,
        )
    )


@pytest.mark.long
def test_named_original_gives_gradients(folders):
    report = measured(folders["naming"])
    losses = {(point.disturbance, point.strength): point.loss for point in report.points}
    assert report.clean > 0.7
    assert losses["fgsm", 0.2] > losses["fgsm", 0.05] > 0.2 > losses["noise", 0.2]
    # For a linear model one step is as good as ten.
    assert losses["pgd", 0.2] >= losses["fgsm", 0.2]
    assert measured(folders["onnx"], original=str(folders["original"])).points == report.points


@pytest.mark.long
@pytest.mark.usefixtures("new_mlflow")
def test_optimized_version_has_gradients(folders, tmp_path):
    new_tracking = mlflow.MlflowClient()
    new_tracking.create_registered_model("net")
    for name in ("original", "onnx"):
        new_tracking.create_model_version("net", folders[name].as_uri())
    new_tracking.set_model_version_tag("net", "2", "onnxserve.wrapped_from", "models:/net/1")
    data = str(tmp_path / "rows.npz")
    np.savez(data, picture=PICTURES, label=LABELS)
    options: Any = {"data": data, "target": "label", "max_loss": 1}
    assert onnxserve.optimize("models:/net/2", fp16=True, **options).version == "3"
    report = measured("models:/net/3", strengths={"fgsm": [0.2], "pgd": [0.2]})
    assert report.cannot == {}
    assert min(point.loss or 0.0 for point in report.points) > 0.2

    policy = (
        f"{{robustness: {{disturbances: {{fgsm: 0.2}}, max_drop: 1, dataset: {data}, target: "
        "label}, skip: [budget]}"
    )
    new_tracking.set_registered_model_tag("net", "onnxserve.gate.policy", policy)
    checks = {check.name: check for check in run_gate("net", "3").verdict.checks}
    assert checks["disturbances"].state == "passed", checks["disturbances"].reason


class Trap(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A torch module whose pickle writes a file when it is loaded."""

    made: ClassVar[Path]

    def __reduce__(self):
        return Path.touch, (self.made,)


@pytest.mark.long
def test_original_code_runs_by_request(folders, tmp_path):
    Trap.made = tmp_path / "made"
    trap = tmp_path / "trap"
    naming = tmp_path / "naming"
    mlflow.pytorch.save_model(Trap(), trap, pip_requirements=[], serialization_format="pickle")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    onnxserve.save_model(
        net, naming, input_example=PICTURES[:20], metadata={"onnxserve.wrapped_from": str(trap)}
    )
    cannot = measured(naming, strengths=None).cannot
    assert not Trap.made.exists()
    assert cannot["pgd"] == cannot["fgsm"]
    assert mentions(cannot["pgd"], str(trap), "code")
    with refused(InvalidConfig, "no disturbance"):
        measured(naming, strengths={"fgsm": []})
    assert Trap.made.exists()


def test_original_itself_is_attacked_as_pyfunc(folders):
    report = measured(folders["original"])
    losses = {(point.disturbance, point.strength): point.loss for point in report.points}
    assert report.cannot == {}
    assert (losses["fgsm", 0.2] or 0.0) > 0.2


def test_unfit_original_is_a_reason(folders, tmp_path):
    none = measured(folders["onnx"]).cannot
    assert none["fgsm"] == none["pgd"]
    assert mentions(none["pgd"], "no torch original", "--original")
    assert "/gone" in measured(folders["onnx"], original="/gone").cannot["pgd"]
    for unfit in (  # without consent to run code, and with it
        measured(folders["of_other"]),
        measured(folders["onnx"], original=str(folders["naming"])),
    ):
        assert mentions(
            unfit.cannot["pgd"], str(folders["naming"]), "onnx", "onnxserve", "python_function"
        )
    broken = tmp_path / "broken"
    shutil.copytree(folders["original"], broken)
    (broken / "data" / "model.pth").write_bytes(b"")
    assert mentions(measured(folders["onnx"], original=str(broken)).cannot["pgd"], "loaded")


def test_original_code_may_be_forbidden(folders, monkeypatch):
    monkeypatch.setenv(MODEL_CODE, "false")
    original = str(folders["original"])
    assert mentions(measured(folders["onnx"], original=original).cannot["pgd"], original, "code")


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_values_move_within_their_range(attack, folders):
    gradient = gradient_of(folders, PICTURES)
    attacked = attack({"": PICTURES}, 0.1, gradient, np.random.default_rng(0))[""]
    assert np.abs(attacked - PICTURES).max() == pytest.approx(0.1 * np.ptp(PICTURES), rel=1e-5)
    assert attacked.min() == PICTURES.min()
    assert attacked.max() == PICTURES.max()
    assert attacked.dtype == np.float32


def test_unfit_rows_are_a_reason(folders):
    unfit = gradient_of(folders, PICTURES[:, :2])
    assert mentions(unfit.reason, "mat1 and mat2 shapes")
    whole = gradient_of(folders, np.ones((3, 2), dtype=int), may_run_code=False)
    assert whole == Refused("the model has no floating-point inputs")
