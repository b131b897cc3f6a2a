from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import mlflow
import numpy as np
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
from mlflow_deploy_plugin.wrap.flavor.wrap import WrapOptions, wrap
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.wrap.conftest import cases, is_proven, operators_of, proven

pytestmark = pytest.mark.filterwarnings("ignore")  # The exporter warns about future changes.


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = torch.nn.LSTM(4, 8, batch_first=True)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, sequence):
        states, _ = self.cells(sequence)
        return self.head(states[:, -1])


class TwoInputs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)
        self.head = torch.nn.Linear(7, 2)

    def forward(self, ids, dense):
        together = torch.cat([self.embedding(ids), dense], 1)
        return {"scores": self.head(together), "norm": together.norm(dim=1)}


class Nested(torch.nn.Module):
    def forward(self, x):
        return x.sum(1), (x * 2, {"inner": x + 1})


class Attention(torch.nn.Module):
    """A transformer layer with four heads under a boolean mask, and a `reshape` that
    may or may not copy.
    """

    def __init__(self):
        super().__init__()
        self.projections = torch.nn.Linear(8, 24)

    def forward(self, states, allowed):
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


def _compiled():
    def refuse(graph, inputs):
        raise AssertionError("compiled")

    return torch.compile(torch.nn.Linear(6, 1), backend=refuse)


FLOATS = normal_rows(9, 6)
NETS = {
    "compiled": (_compiled, FLOATS.astype(np.float32)),
    "16 bits": (
        lambda: torch.nn.Sequential(
            torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)
        ).half(),
        FLOATS.astype(np.float16),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize(("make", "rows"), cases(NETS))
def test_net_is_proven(make, rows):
    """A compiled module is not compiled for the proof."""
    assert is_proven(make(), rows)


@pytest.mark.long
@pytest.mark.parametrize(("make", "shape"), cases(SHAPES))
def test_module_answers_every_batch_size(make, shape, saved):
    module = make()
    random = np.random.default_rng(0)

    model = saved(module, random.normal(size=(1, *shape)).astype(np.float32))

    assert model.artifact.parity_state == "proven"
    module.eval()
    for batch in (1, 2, 7):
        rows = random.normal(size=(batch, *shape)).astype(np.float32)
        predictions = model.prediction(model.run(model.schema.from_array(rows)))
        np.testing.assert_allclose(np.asarray(predictions), _answer(module, rows), atol=1e-5)


def _answer(module, rows):
    with torch.no_grad():
        return module(torch.from_numpy(rows)).numpy()


@pytest.mark.long
@pytest.mark.parametrize(
    "example",
    [
        (torch.arange(8) % 10, torch.ones(8, 3)),
        {"dense": np.ones((8, 3), np.float32), "ids": np.arange(8) % 10},
    ],
    ids=["a tuple in forward's order", "a mapping in any order"],
)
def test_names_and_shapes_are_kept(example):
    converted = proven(TwoInputs(), example).converted

    assert [entry.name for entry in converted.inputs] == ["ids", "dense"]
    assert {output.name: output.shape for output in converted.outputs} == {
        "scores": (-1, 2),
        "norm": (-1,),
    }


class Located(NamedTuple):
    mean: torch.Tensor
    spread: torch.Tensor


@pytest.mark.long
def test_attention_answers_any_mask_and_length(saved):
    def drawn(rows, length):
        random = np.random.default_rng(length)
        return {
            "states": random.normal(size=(rows, length, 8)).astype(np.float32),
            "allowed": random.integers(0, 2, (rows, length)),
        }

    model = saved(Attention(), drawn(6, 5), parity_data=drawn(6, 9))

    nothing_allowed = {
        "states": np.ones((1, 4, 8), np.float32),
        "allowed": np.zeros((1, 4), np.int64),
    }
    assert model.artifact.parity_state == "proven"
    assert not model.run(nothing_allowed)["output"].any()


@pytest.mark.long
def test_exported_attention_is_proven():
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
def test_program_traced_by_mlflow_is_converted(saved, tmp_path):
    """Check MLflow's default format `pt2`: the loaded model has no `eval` and keeps the
    mode in which it was traced.
    """
    rows = normal_rows(20, 4).astype(np.float32)
    module = _mlp().eval()
    mlflow.pytorch.save_model(
        *(module, tmp_path / "logged"),
        input_example=rows[:5],
        serialization_format="pt2",
        pip_requirements=[],
    )

    model = saved(mlflow.pytorch.load_model(tmp_path / "logged"), rows)

    assert model.artifact.parity_state == "proven"
    predictions = model.prediction(model.run(model.schema.from_array(rows)))
    np.testing.assert_allclose(np.asarray(predictions), _answer(module, rows), atol=1e-5)


class Renamed(torch.nn.Module):
    """A module with outputs that are called as steps, and an output of any name."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x):
        return {
            "mean": (x - x.mean(1, keepdim=True)).amax(1),
            "var": x.var(1),
            "floor": x.floor(),
            self.name: 2 * x,
        }


@pytest.mark.long
def test_outputs_may_be_named_as_steps():
    assert is_proven(Renamed("twice"), normal_rows(9, 4).astype(np.float32))


class Squeezed(torch.nn.Linear):
    """A layer that drops the row axis of a single row."""

    def forward(self, rows):
        return super().forward(rows).squeeze()


class Cache:
    pass


class Decoder(torch.nn.Linear):
    """A layer with a cache, which is not a tensor, in its answer."""

    def forward(self, rows):
        return {"logits": super().forward(rows), "past_key_values": Cache()}


class Scaled(torch.nn.Module):
    def forward(self, left, right=1):
        return left * right


class Given(torch.nn.Module):
    """A module with the given forward, which stands for another model."""

    stands_for = "TextClassificationPipeline"

    def __init__(self, forward):
        super().__init__()
        self.given = forward

    def forward(self, x):
        return self.given(x)


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "names"),
    [
        (Nested(), ("output_0", "output_1_0", "output_1_1.inner")),
        (Given(lambda x: Located(x.mean(1), x.std(1))), ("mean", "spread")),
        (Given(lambda x: Estimate(x.mean(1), x.std(1))), ("mean", "spread")),
    ],
    ids=["nested", "named tuple", "dataclass"],
)
def test_outputs_are_named_by_their_place(module, names):
    assert proven(module, torch.randn(6, 4)).converted.prediction == names


def _over_steps(x):
    return torch.stack([x[:, step] * step for step in range(x.shape[1])]).sum(0)


def _texts(rows, length):
    random = np.random.default_rng(length)
    return {
        "ids": random.integers(0, 30, (rows, length)),
        "mask": np.ones((rows, length), np.float32),
    }


ONES = np.ones((8, 4), np.float32)
NUMBER = np.float32(2)
BFLOAT16 = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten()).bfloat16()
REFUSED = {
    "a fixed size": (Given(_over_steps), ONES, ConversionError, ("4", "shape[1]")),
    "no rows": (Given(torch.mean), ONES, ConversionError, ("first dimension",)),
    "a dropped axis": (Squeezed(4, 1), ONES, ParityError, ("'output'",)),
    "bfloat16": (BFLOAT16, np.ones((8, 3), np.int64), ConversionError, ("model.float()",)),
    "bfloat16 rows": (
        torch.nn.Linear(2, 1).bfloat16(),
        torch.ones(8, 2, dtype=torch.bfloat16),
        InvalidConfig,
        ("input_example", "model.float()"),
    ),
    "a branch": (
        Given(lambda x: x if x.sum() > 0 else -x),
        ONES,
        ConversionError,
        ("TextClassificationPipeline", "torch.where"),
    ),
    "an input's name": (Renamed("x"), ONES, ConversionError, ("Renamed", "'x'")),
    "an unknown input": (
        TwoInputs(),
        {"image": ONES},
        InvalidConfig,
        ("'image'", "ids, dense"),
    ),
    "a cache": (
        Decoder(4, 2),
        ONES,
        ConversionError,
        ("Cache", "model.config.use_cache = False"),
    ),
    "a number": (
        Scaled(),
        {"left": ONES, "right": NUMBER},
        InvalidConfig,
        ("input_example", "'right'", "dimension"),
    ),
    "another shape": (_mlp(), np.ones((4, 5), np.float32), InvalidConfig, ("RuntimeError",)),
    "random answers": (
        Given(lambda x: torch.nn.functional.dropout(x, 0.5, training=True)),
        ONES,
        ConversionError,
        ("random",),
    ),
    "answers of other rows": (
        Given(lambda x: x - x.mean(0, keepdim=True)),
        normal_rows(9, 4).astype(np.float32),
        ParityError,
        ("does not match the original",),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize(("module", "rows", "error", "words"), cases(REFUSED))
def test_unsupported_module_is_refused(module, rows, error, words):
    options = {"parity_data": rows[:, [0, 1, 2]]} if "shape[1]" in words else {}
    with refused(error, *words):
        wrap(module, rows, WrapOptions(**options))


@pytest.mark.long
def test_other_sizes_are_refused():
    other = {"ids": np.arange(9), "mask": np.ones(9)}
    with refused(InvalidConfig, "ids", "[9]", "[20, 7]"):
        wrap(Tokens(), _texts(20, 7), WrapOptions(parity_data=other))
    rows = torch.randn(4, 5, 4)
    program = torch.export.export(Recurrent().eval(), (rows,))
    with refused(ConversionError, "[4, 5, 4]", "first dimension"):
        wrap(program, rows.numpy())


@pytest.mark.long
def test_mode_of_every_layer_is_kept():
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).train()
    module[1].eval()  # The layer is frozen, as in fine-tuning.

    wrap(module, np.ones((5, 4), dtype=np.float32))

    assert [layer.training for layer in (module, *module)] == [True, True, False]


class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(30, 8)
        self.cells = torch.nn.GRU(8, 6, batch_first=True)

    def forward(self, ids, mask):
        states, _ = self.cells(self.embedding(ids) * mask.unsqueeze(-1))
        return {"tokens": states, "text": states.mean(1)}


@pytest.mark.long
def test_sizes_that_differ_are_free(saved):
    module = Tokens().eval()
    wrap(module, _texts(20, 7))  # An earlier wrap does not fix a size.

    model = saved(module, _texts(20, 7), parity_data=_texts(9, 12))

    assert [(tensor.dtype, tensor.shape) for tensor in model.artifact.tensors] == [
        ("int64", (-1, -1)),
        ("float32", (-1, -1)),
    ]
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

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(30, 8)
        self.register_buffer("offsets", torch.tensor([0, 10, 20]))

    def forward(self, fields):
        return self.embedding(fields + self.offsets).sum(1)


IDS = np.random.default_rng(0).integers(0, 30, (20, 7))


def _program(module, rows, form):
    """Return a module as a traced, scripted or exported program, or as it is."""
    example = torch.from_numpy(rows)
    match form:
        case "traced":
            return torch.jit.trace(module, example)
        case "scripted":
            return torch.jit.script(module)
        case "exported":
            sizes = ({0: torch.export.Dim("rows")},)
            return torch.export.export(module, (example,), dynamic_shapes=sizes)
    return module


@pytest.mark.long
@pytest.mark.parametrize("unknown", [30, -1, -30])
@pytest.mark.parametrize(
    ("module", "form"),
    [
        *(
            (torch.nn.Sequential(torch.nn.Embedding(30, 8), torch.nn.Flatten()), form)
            for form in ("module", "exported", "traced")
        ),
        (torch.nn.EmbeddingBag(30, 8, mode="sum"), "module"),
        (torch.nn.EmbeddingBag(30, 8, mode="sum", padding_idx=0), "module"),
    ],
)
def test_unknown_ids_are_refused(module, form, unknown, saved):
    model = saved(_program(module, IDS, form), IDS)
    ids = IDS.copy()
    ids[2, 3] = unknown

    with refused(InferenceError, "row 2", "'input'", "29"):
        model.run(model.schema.from_array(ids))


@pytest.mark.long
@pytest.mark.parametrize("form", ["module", "traced"])
def test_ids_are_checked_where_read(form, saved):
    fields = IDS[:, :3] % 10
    model = saved(_program(Fields(), fields, form), fields)

    assert model.run(model.schema.from_array(np.array([[0, -10, 9]])))["output"].shape == (1, 8)
    with refused(InferenceError, "row 1", "embedding", "29"):
        model.run(model.schema.from_array(np.array([[0, 0, 0], [-1, 0, 0]])))


@pytest.mark.long
def test_signature_declares_free_sizes():
    images = normal_rows(4, 3, 12, 10).astype(np.float32)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    declared = Schema([TensorSpec(np.dtype(np.float32), (-1, 3, -1, -1))])

    wrapped = wrap(module, images, WrapOptions(signature=ModelSignature(inputs=declared)))

    assert wrapped.converted.inputs[0].shape == (-1, 3, -1, -1)
    assert wrapped.report.sources["other sizes"] > 0


class Steps(torch.nn.Module):
    def forward(self, x):
        state = torch.zeros_like(x[:, 0])
        for step in range(x.size(1)):
            state = torch.tanh(state + x[:, step])
        return state


@pytest.mark.long
@pytest.mark.parametrize(
    ("form", "is_file"),
    [("traced", False), ("traced", True), ("scripted", True), ("exported", True)],
)
def test_program_of_any_origin_is_converted(form, is_file, tmp_path):
    """Check all origins of a program, except for the scripted and exported programs
    that other tests wrap directly.
    """
    rows = normal_rows(20, 5, 4).astype(np.float32)
    program = _program(Recurrent().eval(), rows, form)
    if is_file:
        path = tmp_path / ("net.pt2" if form == "exported" else "net.pt")
        (torch.export if form == "exported" else torch.jit).save(program, str(path))
        program = load_file(path)

    assert proven(program, rows).converted.inputs[0].shape == (-1, 5, 4)


def test_scripted_control_flow_is_kept():
    rows = normal_rows(20, 6, 3).astype(np.float32)

    wrapped = proven(torch.jit.script(Steps()), rows, parity_data=rows[:, :4])

    assert "Loop" in operators_of(wrapped)


def test_file_without_a_program_is_refused(tmp_path):
    torch.save(Recurrent().state_dict(), tmp_path / "weights.pt")

    with refused(ConversionError, "weights.pt"):
        load_file(tmp_path / "weights.pt")


class Chosen(torch.nn.Module):
    def forward(self, states, kind, length):
        last = states.gather(1, (length - 1).unsqueeze(1))
        return {"last": last, "kinds": torch.nn.functional.one_hot(kind, 4).float()}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("kind", 4, "row 1: 'kind' accepts the ids 0 to 3"), ("length", 0, "Out of range value")],
)
def test_invalid_positions_and_classes_are_refused(name, value, said, saved):
    example = {
        "states": normal_rows(8, 5),
        "kind": np.arange(8) % 4,
        "length": np.arange(8) % 5 + 1,
    }
    model = saved(Chosen(), example)
    answers = model.run(model.schema.from_columns(example))
    wanted = Chosen()(**{key: torch.from_numpy(array) for key, array in example.items()})

    example[name][1] = value

    for output, array in wanted.items():
        np.testing.assert_array_equal(answers[output], array)
    with refused(InferenceError, said):
        model.run(model.schema.from_columns(example))


@pytest.mark.long
def test_far_tensors_are_proven(saved):
    class Overflowing(torch.nn.Module):
        def forward(self, x):
            if torch.onnx.is_in_onnx_export():
                return torch.log(torch.exp(x))
            return x

    rows = normal_rows(9, 3, 3).astype(np.float32)
    with refused(ParityError, "far together"):
        wrap(Overflowing(), rows)
    model = saved(torch.nn.LogSigmoid(), rows)
    outputs = model.run(model.schema.from_array(np.full((1, 3, 3), -300, np.float32)))
    assert np.all(outputs["output"] == -300)


@pytest.mark.long
@pytest.mark.parametrize("number", range(4))
def test_cancelling_32_bit_sums_are_proven(number):
    torch.manual_seed(number)
    net = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.ReLU(), torch.nn.Linear(8, 20))
    weights = [parameter.clone() for parameter in net.parameters()]

    assert is_proven(net, normal_rows(100, 20, seed=number).astype(np.float32))
    assert all(torch.equal(*pair) for pair in zip(net.parameters(), weights, strict=True))


@pytest.mark.long
def test_unsupported_operation_is_named_without_output(capfd):
    class Values(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    for module in (Values(), torch.jit.script(Values())):
        with pytest.raises(ConversionError, match=r"aten\W+_?linalg_svd"):
            wrap(module, normal_rows(6, 3, 3).astype(np.float32))

    assert capfd.readouterr().out == ""


class Optional(torch.nn.Module):
    def forward(self, x, scale=None, shift=None):
        x = x if scale is None else x * scale
        return x if shift is None else x + shift


@pytest.mark.long
def test_omitted_parameter_keeps_its_default():
    rows = torch.randn(20, 3)

    wrapped = proven(Optional(), {"x": rows, "shift": rows * 2})

    assert operators_of(wrapped) == ["Add"]
    assert [entry.name for entry in wrapped.converted.inputs] == ["x", "shift"]


class Named(torch.nn.Module):
    def forward(self, *, x, shift=0):
        return x + shift


@pytest.mark.long
@pytest.mark.parametrize(
    ("names", "inputs"), [(["x"], ["x"]), (["shift", "x"], ["x", "shift"]), ([], ["x"])]
)
def test_keyword_parameter_is_an_input(names, inputs):
    rows = torch.randn(20, 3)

    wrapped = proven(Named(), dict.fromkeys(names, rows) if names else rows)

    assert [entry.name for entry in wrapped.converted.inputs] == inputs
