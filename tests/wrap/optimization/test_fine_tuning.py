"""Pruning a torch module and training the remaining weights."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("torch")

import torch

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.evaluation.agreement import compare_with_base
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx, load_version
from mlflow_deploy_plugin.wrap.optimization import forms
from mlflow_deploy_plugin.wrap.optimization.fine_tuning import pruned_and_tuned
from mlflow_deploy_plugin.wrap.optimization.saved_form import save_model
from tests.support.random_rows import normal_rows

ROWS = normal_rows(600, 12).astype(np.float32)
DIGITS = (ROWS @ normal_rows(12, 4, seed=1)).argmax(axis=1).astype(np.int64)


def layers(widths: tuple[int, ...] = (12, 64, 4)) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(*widths[:2]),
        torch.nn.ReLU(),
        torch.nn.Linear(*widths[1:]),
    )


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    module = layers()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(
            module(torch.from_numpy(ROWS)),
            torch.from_numpy(DIGITS),
        ).backward()
        optimizer.step()
    return module.eval()


@pytest.fixture(scope="module")
def base(module: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> LoadedOnnx:
    folder = tmp_path_factory.mktemp("base") / "model"
    onnxserve.save_model(module, folder, input_example=ROWS)
    loaded = load_version(folder)
    assert isinstance(loaded, LoadedOnnx)
    return loaded


@pytest.mark.long
@pytest.mark.parametrize(
    "truth",
    [DIGITS[:400], None],
    ids=["labels", "the answers of the base"],
)
def test_a_tuned_form_is_as_sparse_and_loses_less(
    module: torch.nn.Module,
    base: LoadedOnnx,
    tmp_path: Path,
    truth: np.ndarray | None,
) -> None:
    rows = {"input": ROWS[:400]}
    held_out = {"input": ROWS[400:]}
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tuned = pruned_and_tuned(module, base, 0.8, rows, truth, epochs=60, seed=0)
    plain = forms.pruned(onnx.load(str(base.artifact.onnx_file)), 0.8)

    loss = {}
    for name, graph in (("tuned", tuned), ("plain", plain)):
        matrices = [
            numpy_helper.to_array(tensor)
            for tensor in graph.graph.initializer
            if len(tensor.dims) == 2
        ]
        assert [(matrix == 0).mean() for matrix in matrices] == pytest.approx([0.8, 0.8], abs=0.02)
        save_model(tmp_path / name, base=base.artifact.folder, graph=graph)
        form = load_version(tmp_path / name)
        assert isinstance(form, LoadedOnnx)
        loss[name] = compare_with_base(base, form, held_out, DIGITS[400:]).loss
    assert loss["tuned"] < loss["plain"] - 0.02
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.long
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (object(), "the original is a object, not a torch module"),
        (torch.nn.ReLU(), "ReLU has no linear or convolutional layer"),
        (layers((5, 8, 4)), "Sequential cannot be trained on these rows: "),
    ],
)
def test_an_original_that_cannot_be_pruned_is_refused_with_a_reason(
    base: LoadedOnnx, source: object, message: str
) -> None:
    with pytest.raises(ConversionError) as refused:
        pruned_and_tuned(
            source,
            base,
            0.5,
            {"input": ROWS[:100]},
            DIGITS[:100],
            epochs=1,
            seed=0,
        )
    assert refused.value.message.startswith(message)
