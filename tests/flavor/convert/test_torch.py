from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.flavor.save import load_model, save_model
from mlflow_deploy_plugin.flavor.wrap import wrap

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter warns of its own future


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = torch.nn.LSTM(4, 8, batch_first=True)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, sequence: Any) -> Any:
        states, _ = self.cells(sequence)
        return self.head(states[:, -1])


class TwoInputs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)
        self.head = torch.nn.Linear(7, 2)

    def forward(self, ids: Any, dense: Any) -> dict[str, Any]:
        together = torch.cat([self.embedding(ids), dense], 1)
        return {"scores": self.head(together), "norm": together.norm(dim=1)}


class Nested(torch.nn.Module):
    def forward(self, x: Any) -> tuple[Any, ...]:
        return x.sum(1), (x * 2, {"inner": x + 1})


class NoBatch(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x.mean()


class Branching(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


def _mlp() -> Any:
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 2)
    )


def _cnn() -> Any:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(36, 10)
    )


SHAPES = {"mlp": (_mlp, (4,)), "cnn": (_cnn, (1, 8, 8)), "lstm": (Recurrent, (5, 4))}


@pytest.mark.parametrize(("make", "shape"), SHAPES.values(), ids=SHAPES.keys())
def test_module_answers_every_batch_size_after_an_example_of_one_row(make: Any, shape: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = make()
    random = np.random.default_rng(0)

    save_model(module, tmp_path / "model", input_example=random.normal(size=(1, *shape)).astype(np.float32))

    model = load_model(str(tmp_path / "model"))
    assert model.artifact.parity_state == "proven"
    module.eval()
    for batch in (1, 2, 7):
        rows = random.normal(size=(batch, *shape)).astype(np.float32)
        with torch.no_grad():
            wanted = module(torch.from_numpy(rows)).numpy()
        found = model.prediction(model.run(model.schema.from_array(rows)))
        np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "example",
    [(torch.arange(8) % 10, torch.ones(8, 3)), {"dense": np.ones((8, 3), np.float32), "ids": np.arange(8) % 10}],
    ids=["a tuple in forward's order", "a mapping in any order"],
)
def test_several_inputs_and_outputs_keep_names_and_shapes(example: tuple[Any, ...] | dict[str, Any]) -> None:
    wrapped = wrap(TwoInputs(), example)

    assert wrapped.report.state == "proven"
    assert [entry.name for entry in wrapped.converted.inputs] == ["ids", "dense"]
    assert {output.name: output.shape for output in wrapped.converted.outputs} == {"scores": (-1, 2), "norm": (-1,)}


def test_nested_outputs_are_named_by_their_way() -> None:
    wrapped = wrap(Nested(), torch.randn(4, 3))

    assert wrapped.converted.prediction == ("output_0", "output_1_0", "output_1_1.inner")
    assert wrapped.report.state == "proven"


def test_table_becomes_one_input() -> None:
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 4)), columns=list("abcd"))

    wrapped = wrap(_mlp(), table)

    assert wrapped.converted.inputs[0].columns == tuple("abcd")
    assert wrapped.report.state == "proven"


def test_a_graph_that_mlflow_has_traced_is_converted_as_it_is(tmp_path: Path) -> None:
    """MLflow's default format `pt2`: what it loads has no `eval`, it is in the mode that it was traced in."""
    rows = torch.randn(20, 4)
    module = _mlp().eval()
    mlflow.pytorch.save_model(module, tmp_path / "logged", input_example=rows[:5].numpy(), serialization_format="pt2")
    traced = mlflow.pytorch.load_model(tmp_path / "logged")

    save_model(traced, tmp_path / "model", input_example=rows.numpy())

    model = load_model(str(tmp_path / "model"))
    assert model.artifact.parity_state == "proven"
    with torch.no_grad():
        wanted = module(rows).numpy()
    found = model.prediction(model.run(model.schema.from_array(rows.numpy())))
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5)


def test_answer_without_a_batch_is_refused() -> None:
    with pytest.raises(ConversionError, match="first dimension as the batch"):
        wrap(NoBatch(), torch.randn(4, 3))


def test_a_forward_that_decides_by_values_is_pointed_to_torch_where() -> None:
    with pytest.raises(ConversionError, match=r"Branching cannot be .* decides by the values .*; torch.where does so"):
        wrap(Branching(), torch.randn(4, 3))


def test_unknown_input_is_named() -> None:
    with pytest.raises(InvalidConfig, match="forward has no parameter 'image'; it has ids, dense"):
        wrap(TwoInputs(), {"image": np.ones((2, 3), np.float32)})


def test_example_of_the_wrong_shape_is_said() -> None:
    with pytest.raises(InvalidConfig, match="input_example: the model itself refuses it: RuntimeError"):
        wrap(_mlp(), torch.randn(4, 5))


def test_mode_of_every_layer_is_left_as_it_was() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).train()
    module[1].eval()  # frozen, as in fine-tuning

    wrap(module, np.ones((5, 4), dtype=np.float32))

    assert [layer.training for layer in (module, *module)] == [True, True, False]
