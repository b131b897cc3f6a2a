from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from mlflow_deploy_plugin.core.errors import (
    ConversionError,
    InferenceError,
    InvalidConfig,
    ParityError,
)
from mlflow_deploy_plugin.wrap.convert.converters import load_file
from mlflow_deploy_plugin.wrap.flavor.save import load_model, save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import WrapOptions, wrap
from tests.support.random_rows import normal_rows
from tests.wrap.conftest import is_proven

pytestmark = pytest.mark.filterwarnings("ignore")  # The exporter warns about future changes.


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = torch.nn.LSTM(4, 8, batch_first=True)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
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


class Attention(torch.nn.Module):
    """A transformer layer with four heads under a boolean mask, and a `reshape` that
    may or may not copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.projections = torch.nn.Linear(8, 24)

    def forward(self, states: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            self.projections(states).view(*states.shape[:2], 3, 4, 2).permute(2, 0, 3, 1, 4)
        )
        mask = allowed[:, None, None, :].to(torch.bool)
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
        return attended.transpose(1, 2).reshape(*states.shape[:2], -1)


@dataclass
class Estimate:
    mean: torch.Tensor
    spread: torch.Tensor


class Estimating(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Estimate:
        return Estimate(x.mean(1), x.std(1))


class NoBatch(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x.mean()


class Branching(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


def _mlp():
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.Linear(8, 2),
    )


def _cnn():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(36, 10),
    )


SHAPES = {"mlp": (_mlp, (4,)), "cnn": (_cnn, (1, 8, 8)), "lstm": (Recurrent, (5, 4))}


@pytest.mark.long
def test_a_compiled_module_is_not_compiled_for_the_proof():
    def refuse(graph, inputs):
        raise AssertionError("compiled")

    net: Any = torch.compile(torch.nn.Linear(2, 1), backend=refuse)

    assert is_proven(net, normal_rows(9, 2).astype(np.float32))


@pytest.mark.long
@pytest.mark.parametrize(("make", "shape"), SHAPES.values(), ids=SHAPES.keys())
def test_module_answers_every_batch_size_after_an_example_of_one_row(make, shape, tmp_path):
    torch.manual_seed(0)
    module = make()
    random = np.random.default_rng(0)

    save_model(
        module, tmp_path / "model", input_example=random.normal(size=(1, *shape)).astype(np.float32)
    )

    model = load_model(str(tmp_path / "model"))
    assert model.artifact.parity_state == "proven"
    module.eval()
    for batch in (1, 2, 7):
        rows = random.normal(size=(batch, *shape)).astype(np.float32)
        with torch.no_grad():
            wanted = module(torch.from_numpy(rows)).numpy()
        predictions = model.prediction(model.run(model.schema.from_array(rows)))
        np.testing.assert_allclose(np.asarray(predictions), wanted, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    "example",
    [
        (torch.arange(8) % 10, torch.ones(8, 3)),
        {"dense": np.ones((8, 3), np.float32), "ids": np.arange(8) % 10},
    ],
    ids=["a tuple in forward's order", "a mapping in any order"],
)
def test_several_inputs_and_outputs_keep_names_and_shapes(example):
    wrapped = wrap(TwoInputs(), example)

    assert wrapped.report.state == "proven"
    assert [entry.name for entry in wrapped.converted.inputs] == ["ids", "dense"]
    assert {output.name: output.shape for output in wrapped.converted.outputs} == {
        "scores": (-1, 2),
        "norm": (-1,),
    }


@pytest.mark.long
def test_nested_outputs_are_named_by_their_way():
    wrapped = wrap(Nested(), torch.randn(4, 3))

    assert wrapped.converted.prediction == ("output_0", "output_1_0", "output_1_1.inner")
    assert wrapped.report.state == "proven"


class Located(NamedTuple):
    mean: torch.Tensor
    spread: torch.Tensor


@pytest.mark.long
def test_the_fields_of_a_named_tuple_are_outputs():
    class Locating(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Located:
            return Located(x.mean(1), x.std(1))

    wrapped = wrap(Locating(), torch.randn(6, 4))

    assert wrapped.converted.prediction == ("mean", "spread")
    assert wrapped.report.state == "proven"


@pytest.mark.long
def test_the_fields_of_a_dataclass_are_outputs():
    wrapped = wrap(Estimating(), torch.randn(4, 3))

    assert wrapped.converted.prediction == ("mean", "spread")
    assert wrapped.report.state == "proven"


@pytest.mark.long
def test_a_size_that_the_forward_fixes_is_named():
    class Steps(torch.nn.Module):
        def forward(self, steps: torch.Tensor) -> torch.Tensor:
            return torch.stack([steps[:, step] * step for step in range(steps.shape[1])]).sum(0)

    with pytest.raises(ConversionError, match=r"\(5 of .*shape\[1\]\)"):
        wrap(
            Steps(),
            np.ones((4, 5), np.float32),
            WrapOptions(parity_data=np.ones((4, 7), np.float32)),
        )


@pytest.mark.long
def test_attention_answers_rows_of_any_mask_and_length(tmp_path):
    def drawn(rows, length):
        random = np.random.default_rng(length)
        return {
            "states": random.normal(size=(rows, length, 8)).astype(np.float32),
            "allowed": random.integers(0, 2, (rows, length)),
        }

    save_model(Attention(), tmp_path / "model", input_example=drawn(6, 5), parity_data=drawn(6, 9))

    model = load_model(str(tmp_path / "model"))
    nothing_allowed: dict[str, Any] = {
        "states": np.ones((1, 4, 8), np.float32),
        "allowed": np.zeros((1, 4), np.int64),
    }
    assert model.artifact.parity_state == "proven"
    assert not model.run(nothing_allowed)["output"].any()


@pytest.mark.long
def test_attention_of_an_exported_program_answers_rows_of_any_mask():
    batch = {
        "states": np.ones((6, 5, 8), np.float32),
        "allowed": np.tril(np.ones((6, 5), np.int64), -1),
    }
    rows = ({0: torch.export.Dim("batch")},) * 2
    program = torch.export.export(
        Attention(), tuple(map(torch.tensor, batch.values())), dynamic_shapes=rows
    )

    assert is_proven(program, batch)


@pytest.mark.long
def test_table_becomes_one_input():
    table = pd.DataFrame(normal_rows(20, 4), columns=list("abcd"))

    wrapped = wrap(_mlp(), table)

    assert wrapped.converted.inputs[0].columns == tuple("abcd")
    assert wrapped.report.state == "proven"


@pytest.mark.long
def test_a_graph_that_mlflow_has_traced_is_converted_as_it_is(tmp_path):
    """Check MLflow's default format `pt2`: the loaded model has no `eval` and keeps the
    mode in which it was traced.
    """
    rows = torch.randn(20, 4)
    module = _mlp().eval()
    mlflow.pytorch.save_model(
        *(module, tmp_path / "logged"),
        input_example=rows[:5].numpy(),
        serialization_format="pt2",
        pip_requirements=[],
    )
    traced = mlflow.pytorch.load_model(tmp_path / "logged")

    save_model(traced, tmp_path / "model", input_example=rows.numpy())

    model = load_model(str(tmp_path / "model"))
    assert model.artifact.parity_state == "proven"
    with torch.no_grad():
        wanted = module(rows).numpy()
    predictions = model.prediction(model.run(model.schema.from_array(rows.numpy())))
    np.testing.assert_allclose(np.asarray(predictions), wanted, atol=1e-5)


@pytest.mark.long
def test_answer_without_a_batch_is_refused():
    with pytest.raises(ConversionError, match="first dimension"):
        wrap(NoBatch(), torch.randn(4, 3))


@pytest.mark.long
def test_a_module_that_drops_the_row_axis_of_one_row_is_refused():
    class Squeezed(torch.nn.Linear):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return super().forward(rows).squeeze()

    with pytest.raises(ParityError, match=r"'output' .*\[\] .*1"):
        wrap(Squeezed(4, 1), np.ones((8, 4), np.float32))


def test_bfloat16_is_refused_with_the_way_to_float32():
    net = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten()).bfloat16()

    with pytest.raises(ConversionError, match=r"returns bfloat16.*model\.float\(\)"):
        wrap(net, np.ones((8, 3), np.int64))
    with pytest.raises(InvalidConfig, match=r"input_example: .*bfloat16.*model\.float\(\)"):
        wrap(torch.nn.Linear(2, 1).bfloat16(), torch.ones(8, 2, dtype=torch.bfloat16))


def test_a_forward_that_decides_by_values_is_pointed_to_torch_where():
    with pytest.raises(ConversionError, match=r"Branching .*torch\.where"):
        wrap(Branching(), torch.randn(4, 3))


@pytest.mark.long
def test_an_output_has_the_name_of_a_step_and_none_of_an_input():
    class Named(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {
                "mean": (x - x.mean(1, keepdim=True)).amax(1),
                "var": x.var(1),
                "floor": x.floor(),
                self.name: 2 * x,
            }

    rows = normal_rows(9, 4).astype(np.float32)

    assert is_proven(Named("twice"), rows)
    with pytest.raises(ConversionError, match=r"Named .*'x'.* input"):
        wrap(Named("x"), rows)


def test_unknown_input_is_named():
    with pytest.raises(InvalidConfig, match=r"'image'.* ids, dense"):
        wrap(TwoInputs(), {"image": np.ones((2, 3), np.float32)})


def test_an_output_without_an_onnx_type_is_refused_with_a_workaround():
    class DynamicCache:
        pass

    class Decoder(torch.nn.Linear):
        def forward(self, rows: Any) -> Any:
            return {"logits": super().forward(rows), "past_key_values": DynamicCache()}

    with pytest.raises(ConversionError, match=r"DynamicCache.*model\.config\.use_cache = False"):
        wrap(Decoder(3, 2), torch.randn(4, 3))


@pytest.mark.parametrize(
    ("example", "named"),
    [
        ({"left": np.ones((3, 2), np.float32), "right": np.float32(2)}, "the tensor 'right'"),
        (np.float32(2), "the array"),
    ],
)
def test_a_tensor_without_dimensions_is_named(example, named):
    class Scaled(torch.nn.Module):  # type: ignore[misc]
        def forward(self, left: Any, right: Any = 1) -> Any:
            return left * right

    with pytest.raises(
        InvalidConfig, match=f"^input_example: {named} is a single number without a dimension"
    ):
        wrap(Scaled(), example)


def test_a_message_has_the_class_name_of_the_model_that_a_module_stands_for():
    class Inner(torch.nn.Module):  # type: ignore[misc]
        stands_for = "TextClassificationPipeline"

        def forward(self, x: Any) -> Any:
            return {"x": x}

    with pytest.raises(ConversionError, match=r"^TextClassificationPipeline returns 'x'"):
        wrap(Inner(), np.ones((3, 2), np.float32))


def test_an_example_of_the_wrong_shape_is_a_config_error():
    with pytest.raises(InvalidConfig, match=r"input_example: .*RuntimeError"):
        wrap(_mlp(), torch.randn(4, 5))


@pytest.mark.long
def test_mode_of_every_layer_is_left_as_it_was():
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).train()
    module[1].eval()  # The layer is frozen, as in fine-tuning.

    wrap(module, np.ones((5, 4), dtype=np.float32))

    assert [layer.training for layer in (module, *module)] == [True, True, False]


class Tokens(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(30, 8)
        self.cells = torch.nn.GRU(8, 6, batch_first=True)

    def forward(self, ids: Any, mask: Any) -> Any:
        states, _ = self.cells(self.embedding(ids) * mask.unsqueeze(-1))
        return {"tokens": states, "text": states.mean(1)}


def _texts(rows, length):
    random = np.random.default_rng(length)
    return {
        "ids": random.integers(0, 30, (rows, length)),
        "mask": np.ones((rows, length), np.float32),
    }


@pytest.mark.long
def test_sizes_that_differ_between_the_data_are_free(tmp_path):
    module = Tokens().eval()

    save_model(module, tmp_path / "model", input_example=_texts(20, 7), parity_data=_texts(9, 12))

    model = load_model(str(tmp_path / "model"))
    assert [tensor.shape for tensor in model.artifact.tensors] == [(-1, -1), (-1, -1)]
    assert [tensor.dtype for tensor in model.artifact.tensors] == ["int64", "float32"]
    assert {output.name: output.shape for output in model.artifact.outputs} == {
        "tokens": (-1, -1, 6),
        "text": (-1, 6),
    }
    for length in (1, 5, 31):
        rows = _texts(4, length)
        with torch.no_grad():
            wanted = module(*map(torch.from_numpy, rows.values()))
        outputs = model.run(model.schema.from_columns(rows))
        np.testing.assert_allclose(outputs["tokens"], wanted["tokens"].numpy(), atol=1e-5)


class Fields(torch.nn.Module):
    """A model with categorical fields in one table, each at an offset, like in
    recommenders.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(30, 8)
        self.register_buffer("offsets", torch.tensor([0, 10, 20]))

    def forward(self, fields: Any) -> Any:
        return self.embedding(fields + self.offsets).sum(1)


@pytest.mark.long
@pytest.mark.parametrize("program", ["module", "exported", "traced"])
@pytest.mark.parametrize("unknown", [30, -1, -30])
def test_ids_that_an_embedding_does_not_have_are_refused_with_their_row(program, unknown, tmp_path):
    module: Any = torch.nn.Sequential(torch.nn.Embedding(30, 8), torch.nn.Flatten())
    ids = np.random.default_rng(0).integers(0, 30, (20, 7))
    if program == "exported":
        sizes = ({0: torch.export.Dim("rows")},)
        module = torch.export.export(module, (torch.from_numpy(ids),), dynamic_shapes=sizes)
    elif program == "traced":
        module = torch.jit.trace(module, torch.from_numpy(ids))
    save_model(module, tmp_path / "model", input_example=ids)
    model = load_model(str(tmp_path / "model"))
    ids[2, 3] = unknown

    with pytest.raises(InferenceError, match=r"row 2: 'input'.*29"):
        model.run(model.schema.from_array(ids))


@pytest.mark.long
@pytest.mark.parametrize("padding", [None, 0])
def test_ids_that_a_bag_of_embeddings_does_not_have_are_refused_with_their_row(padding, tmp_path):
    bag = torch.nn.EmbeddingBag(30, 8, mode="sum", padding_idx=padding)
    ids = np.random.default_rng(0).integers(0, 30, (20, 7))
    save_model(bag, tmp_path / "model", input_example=ids)
    model = load_model(str(tmp_path / "model"))
    ids[2, 3] = -1

    with pytest.raises(InferenceError, match=r"row 2: 'input'.*29"):
        model.run(model.schema.from_array(ids))


@pytest.mark.long
@pytest.mark.parametrize("program", ["module", "traced"])
def test_ids_are_checked_where_the_embedding_reads_them(program, tmp_path):
    fields = np.random.default_rng(0).integers(0, 10, (20, 3))
    module = (
        Fields() if program == "module" else torch.jit.trace(Fields(), torch.from_numpy(fields))
    )
    save_model(module, tmp_path / "model", input_example=fields)
    model = load_model(str(tmp_path / "model"))

    assert model.run(model.schema.from_array(np.array([[0, -10, 9]])))["output"].shape == (1, 8)
    with pytest.raises(InferenceError, match=r"row 1:.*embedding.*29"):
        model.run(model.schema.from_array(np.array([[0, 0, 0], [-1, 0, 0]])))


@pytest.mark.long
def test_free_sizes_do_not_depend_on_earlier_wraps():
    wrap(Tokens().eval(), _texts(20, 7))

    wrapped = wrap(Tokens().eval(), _texts(20, 7), WrapOptions(parity_data=_texts(9, 12)))

    assert [entry.shape for entry in wrapped.converted.inputs] == [(-1, -1), (-1, -1)]


@pytest.mark.long
def test_a_signature_declares_free_sizes():
    images = normal_rows(4, 3, 12, 10).astype(np.float32)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    declared = Schema([TensorSpec(np.dtype(np.float32), (-1, 3, -1, -1))])

    wrapped = wrap(module, images, WrapOptions(signature=ModelSignature(inputs=declared)))

    assert wrapped.converted.inputs[0].shape == (-1, 3, -1, -1)
    assert wrapped.report.sources["other sizes"] > 0


def test_data_of_another_rank_is_a_config_error():
    with pytest.raises(InvalidConfig, match=r"ids.*\[9\].*\[20, 7\]"):
        wrap(
            Tokens(),
            _texts(20, 7),
            WrapOptions(parity_data={"ids": np.arange(9), "mask": np.ones(9)}),
        )


class Steps(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros_like(x[:, 0])
        for step in range(x.size(1)):
            state = torch.tanh(state + x[:, step])
        return state


@pytest.mark.long
@pytest.mark.parametrize(
    ("form", "is_file"),
    [("traced", False), ("traced", True), ("scripted", True), ("exported", True)],
)
def test_a_program_is_converted_whatever_made_it(form, is_file, tmp_path):
    """Check all origins of a program, except for the scripted and exported programs
    that other tests wrap directly.
    """
    torch.manual_seed(0)
    module = Recurrent().eval()
    rows = torch.randn(20, 5, 4)
    if form == "exported":
        program = torch.export.export(
            module, (rows,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    else:
        program = torch.jit.script(module) if form == "scripted" else torch.jit.trace(module, rows)
    path = tmp_path / ("net.pt2" if form == "exported" else "net.pt")
    (torch.export if form == "exported" else torch.jit).save(program, str(path))

    wrapped = wrap(load_file(path) if is_file else program, rows.numpy())

    assert wrapped.report.state == "proven"
    assert wrapped.converted.inputs[0].shape == (-1, 5, 4)


def test_control_flow_of_a_scripted_module_stays():
    rows = torch.randn(20, 6, 3).numpy()

    wrapped = wrap(torch.jit.script(Steps()), rows, WrapOptions(parity_data=rows[:, :4]))

    assert "Loop" in [node.op_type for node in wrapped.converted.proto.graph.node]
    assert wrapped.report.state == "proven"


@pytest.mark.long
def test_a_program_for_one_size_of_batches_is_refused():
    rows = torch.randn(4, 5, 4)

    with pytest.raises(ConversionError, match=r"\[4, 5, 4\].*first dimension"):
        wrap(torch.export.export(Recurrent().eval(), (rows,)), rows.numpy())


def test_a_file_without_a_program_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(Recurrent().state_dict(), path)

    with pytest.raises(ConversionError, match=r"weights\.pt"):
        load_file(path)


class Dropped(torch.nn.Module):
    """A module whose dropout is not disabled by `eval`."""

    def forward(self, x: Any) -> Any:
        return torch.nn.functional.dropout(x, 0.5, training=True)


class Chosen(torch.nn.Module):
    def forward(
        self, states: torch.Tensor, kind: torch.Tensor, length: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        last = states.gather(1, (length - 1).unsqueeze(1))
        return {"last": last, "kinds": torch.nn.functional.one_hot(kind, 4).float()}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("kind", 4, "row 1: 'kind' accepts the ids 0 to 3"), ("length", 0, "Out of range value")],
)
def test_positions_and_classes_that_the_module_refuses_are_refused(name, value, said, tmp_path):
    random = np.random.default_rng(0)
    example = {
        "states": random.normal(size=(8, 5)),
        "kind": random.integers(0, 4, 8),
        "length": np.arange(8) % 5 + 1,
    }
    save_model(Chosen(), tmp_path / "model", input_example=example)
    model = load_model(str(tmp_path / "model"))
    answers = model.run(model.schema.from_columns(example))
    wanted = Chosen()(**{key: torch.from_numpy(array) for key, array in example.items()})

    example[name][1] = value

    for output, array in wanted.items():
        np.testing.assert_array_equal(answers[output], array)
    with pytest.raises(InferenceError, match=said):
        model.run(model.schema.from_columns(example))


@pytest.mark.long
def test_tensors_far_outside_are_proven_too(tmp_path):
    class Overflowing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.onnx.is_in_onnx_export():
                return torch.log(torch.exp(x))
            return x

    random = np.random.default_rng(0)
    with pytest.raises(ParityError, match="far together"):
        wrap(Overflowing(), random.normal(size=(9, 3, 3)).astype(np.float32))
    save_model(
        torch.nn.LogSigmoid(),
        tmp_path / "model",
        input_example=random.normal(size=(9, 3, 3)).astype("f4"),
    )
    model = load_model(str(tmp_path / "model"))
    outputs = model.run(model.schema.from_array(np.full((1, 3, 3), -300, np.float32)))
    assert np.all(outputs["output"] == -300)


@pytest.mark.long
@pytest.mark.parametrize("number", range(4))
def test_a_net_is_proven_where_its_own_32_bit_sums_cancel(number):
    torch.manual_seed(number)
    net = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.ReLU(), torch.nn.Linear(8, 20))
    weights = [parameter.clone() for parameter in net.parameters()]

    assert is_proven(net, normal_rows(100, 20, seed=number).astype(np.float32))
    assert all(torch.equal(*pair) for pair in zip(net.parameters(), weights, strict=True))


@pytest.mark.long
def test_a_net_of_16_bit_floats_is_proven_by_their_digits():
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)
    ).half()

    assert is_proven(net, normal_rows(9, 6).astype(np.float16))


@pytest.mark.long
def test_answers_that_depend_on_the_other_rows_do_not_count_as_rounding():
    class Centred(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows - rows.mean(0, keepdim=True)

    with pytest.raises(ParityError, match="does not match the original"):
        wrap(Centred(), normal_rows(9, 4).astype(np.float32))


@pytest.mark.long
def test_random_answers_are_named_as_such():
    with pytest.raises(ConversionError, match="predictions are random"):
        wrap(Dropped(), np.ones((5, 3), np.float32))


@pytest.mark.long
def test_an_operation_without_an_operator_is_named_and_prints_no_output(capfd):
    class Values(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(x)

    for module in (Values(), torch.jit.script(Values())):
        with pytest.raises(ConversionError, match=r"aten\W+_?linalg_svd"):
            wrap(module, torch.randn(6, 3, 3).numpy())

    assert capfd.readouterr().out == ""


class Optional(torch.nn.Module):
    def forward(self, x: Any, scale: Any = None, shift: Any = None) -> Any:
        x = x if scale is None else x * scale
        return x if shift is None else x + shift


@pytest.mark.long
def test_a_parameter_that_is_left_out_keeps_its_default():
    rows = torch.randn(20, 3)

    wrapped = wrap(Optional(), {"x": rows, "shift": rows * 2})

    assert wrapped.report.state == "proven"
    assert [node.op_type for node in wrapped.converted.proto.graph.node] == ["Add"]
    assert [entry.name for entry in wrapped.converted.inputs] == ["x", "shift"]


class Named(torch.nn.Module):
    def forward(self, *, x: Any, shift: Any = 0) -> Any:
        return x + shift


@pytest.mark.long
@pytest.mark.parametrize("names", [["x"], ["shift", "x"], []])
def test_a_parameter_that_is_given_by_its_name_alone_is_an_input(names):
    rows = torch.randn(20, 3)

    wrapped = wrap(Named(), dict.fromkeys(names, rows) if names else rows)

    assert wrapped.report.state == "proven"
    assert [entry.name for entry in wrapped.converted.inputs] == [
        name for name in ("x", "shift") if name in names
    ] or ["x"]
