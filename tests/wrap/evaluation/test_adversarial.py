"""Attacks with the gradients of a torch original. Attacks with estimated gradients are
in test_curves.py.
"""

import shutil
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import numpy as np
import pytest

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import InvalidConfig, Refused
from mlflow_deploy_plugin.core.model_code import MODEL_CODE
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.promote.gate.run import run_gate
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.wrap.evaluation.adversarial import fgsm, pgd, torch_gradient
from tests.support.refusals import mentions

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
    onnxserve.save_model(net, paths["onnx"], input_example=PICTURES[:20])
    for name, original in (("naming", "original"), ("of_other", "naming")):
        metadata = {"onnxserve.wrapped_from": str(paths[original])}
        onnxserve.save_model(net, paths[name], input_example=PICTURES[:20], metadata=metadata)
    return paths


def measured(model, **options):
    data = {"picture": PICTURES, "label": LABELS}
    return onnxserve.robustness(str(model), data, "label", strengths=STRENGTHS, **options)


@pytest.mark.long
def test_a_version_that_names_its_original_is_attacked_by_its_gradients(folders):
    report = measured(folders["naming"])
    losses = {(point.disturbance, point.strength): point.loss for point in report.points}
    assert report.clean > 0.7
    assert losses["fgsm", 0.2] > losses["fgsm", 0.05] > 0.2 > losses["noise", 0.2]
    # For a linear model one step is as good as ten.
    assert losses["pgd", 0.2] >= losses["fgsm", 0.2]
    assert measured(folders["onnx"], original=str(folders["original"])).points == report.points


@pytest.mark.long
def test_a_wrapped_version_is_attacked_with_the_gradients_of_its_original(folders, new_tracking):
    new_tracking.create_registered_model("net")
    new_tracking.create_model_version("net", folders["onnx"].as_uri())
    new_tracking.set_model_version_tag(
        "net", "1", "onnxserve.wrapped_from", str(folders["original"])
    )
    report = onnxserve.robustness(
        "models:/net/1", {"picture": PICTURES, "label": LABELS}, "label", strengths={"fgsm": [0.2]}
    )
    assert report.cannot == {}


@pytest.mark.long
def test_an_optimized_version_is_attacked_by_the_original_of_its_base(
    folders, new_tracking, tmp_path
):
    new_tracking.create_registered_model("net")
    for name in ("original", "onnx"):
        new_tracking.create_model_version("net", folders[name].as_uri())
    new_tracking.set_model_version_tag("net", "2", "onnxserve.wrapped_from", "models:/net/1")
    np.savez(tmp_path / "rows.npz", picture=PICTURES, label=LABELS)
    data = str(tmp_path / "rows.npz")
    assert (
        onnxserve.optimize(
            "models:/net/2", fp16=True, data=data, target="label", max_loss=1
        ).version
        == "3"
    )
    report = onnxserve.robustness(
        "models:/net/3", data, "label", strengths={"fgsm": [0.2], "pgd": [0.2]}
    )
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

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.made,)


@pytest.mark.long
def test_the_code_of_an_original_is_not_run_unless_it_or_an_attack_is_named(folders, tmp_path):
    Trap.made = tmp_path / "made"
    trap = tmp_path / "trap"
    naming = tmp_path / "naming"
    mlflow.pytorch.save_model(Trap(), trap, pip_requirements=[], serialization_format="pickle")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    onnxserve.save_model(
        net, naming, input_example=PICTURES[:20], metadata={"onnxserve.wrapped_from": str(trap)}
    )
    data = {"picture": PICTURES[:50], "label": LABELS[:50]}
    cannot = onnxserve.robustness(str(naming), data, "label").cannot
    assert not Trap.made.exists()
    assert cannot["pgd"] == cannot["fgsm"]
    assert cannot["pgd"].startswith(f"loading the torch original {trap} runs its own code")
    with pytest.raises(InvalidConfig, match="no disturbance can be"):
        onnxserve.robustness(str(naming), data, "label", strengths={"fgsm": []})
    assert Trap.made.exists()


def test_a_version_that_is_its_own_original_is_attacked_as_pyfunc(folders):
    report = measured(folders["original"])
    losses = {(point.disturbance, point.strength): point.loss for point in report.points}
    assert report.cannot == {}
    assert (losses["fgsm", 0.2] or 0.0) > 0.2


def test_an_original_that_is_missing_or_unfit_is_a_reason_and_no_error(folders):
    none = measured(folders["onnx"]).cannot
    assert none["fgsm"] == none["pgd"]
    assert none["pgd"].startswith(
        "the version has no torch original, which is needed for gradients; set --original"
    )
    gone = measured(folders["onnx"], original="/gone").cannot["pgd"]
    assert gone.startswith("the torch original /gone: ")
    for unfit in (  # without consent to run code, and with it
        measured(folders["of_other"]),
        measured(folders["onnx"], original=str(folders["naming"])),
    ):
        assert mentions(
            unfit.cannot["pgd"], str(folders["naming"]), "onnx", "onnxserve", "python_function"
        )


def test_an_original_that_cannot_be_loaded_is_a_reason_and_no_error(folders, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folders["original"], broken)
    (broken / "data" / "model.pth").write_bytes(b"")
    cannot = measured(folders["onnx"], original=str(broken)).cannot["pgd"]
    assert cannot.startswith("the torch original cannot be loaded: ")


def test_code_execution_is_refused_to_an_original(folders, monkeypatch):
    monkeypatch.setenv(MODEL_CODE, "false")
    original = str(folders["original"])
    cannot = measured(folders["onnx"], original=original).cannot["pgd"]
    assert cannot.startswith(f"the torch original {original} runs its own code")


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_no_value_moves_by_more_than_the_strength_or_leaves_the_range(attack, folders):
    rows = {"": PICTURES}
    artifact = read_served_artifact(folders["onnx"])
    gradient = torch_gradient(
        resolve(str(folders["onnx"])), folders["original"], artifact, "", rows, LABELS, True
    )
    assert not isinstance(gradient, Refused)
    attacked = attack(rows, 0.1, gradient, np.random.default_rng(0))[""]
    assert np.abs(attacked - PICTURES).max() == pytest.approx(0.1 * np.ptp(PICTURES), rel=1e-5)
    assert attacked.min() == PICTURES.min()
    assert attacked.max() == PICTURES.max()
    assert attacked.dtype == np.float32


def test_rows_that_the_original_cannot_take_are_a_reason(folders):
    artifact = read_served_artifact(folders["onnx"])
    refused = torch_gradient(
        resolve(str(folders["onnx"])),
        folders["original"],
        artifact,
        "",
        {"": PICTURES[:, :2]},
        LABELS,
        True,
    )
    assert isinstance(refused, Refused)
    assert refused.reason.startswith(
        "the torch original cannot compute these rows: mat1 and mat2 shapes"
    )
    whole = torch_gradient(
        resolve(str(folders["onnx"])),
        folders["original"],
        artifact,
        "",
        {"": np.ones((3, 2), dtype=int)},
        LABELS,
    )
    assert whole == Refused("the model has no floating-point inputs")
