"""The converters that others use, in the form that their documentation shows first:
skl2onnx and onnxmltools, CatBoost's own, `torch.onnx.export`, and Keras's export.

A choice that the documentation leaves open is made for the converter: of the typings of
the rows, the first with which ONNX Runtime answers the example is used, and the batch
of a net has any size.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from projects.converters.converted import Converted, ConvertedModel, within
from projects.environments import environment

REQUIREMENTS = ("onnxmltools==1.16.0", "skl2onnx==1.20.0")
"""The newest on PyPI on 2026-11-30."""
_OLDER_OPSET = {"": 15, "ai.onnx.ml": 3}
"""Some converters ask for it in their error."""
_SECONDS = 120
"""The CPU time of a conversion, which never ends for some trees in 64 bits."""


def convert(model: Any, example: Any, narrow: bool = False) -> Converted:
    """Return the ONNX form of a fitted model, with the converter's own errors; with
    skl2onnx for rows of 32-bit numbers if `narrow`.
    """
    library = type(model).__module__.partition(".")[0]
    if library == "keras":
        model.predict(example[:1], verbose=0)  # it exports only a model that was called
        return _exported(lambda path: model.export(path, format="onnx", verbose=False))
    if library == "catboost":
        return _exported(lambda path: model.save_model(path, format="onnx"))
    if library in ("xgboost", "lightgbm"):
        return _booster(library, model, example)
    if not hasattr(model, "get_params"):
        return _torch(model, example)
    _register_boosters()
    return _sklearn(model, example, narrow)


in_32_bits = partial(convert, narrow=True)


def _exported(export: Callable[[str], Any]) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(str(path))
        return path.read_bytes()


def _torch(model: Any, example: np.ndarray) -> Converted:
    """See https://docs.pytorch.org/docs/stable/onnx.html; a TorchScript program needs
    `dynamo=False`.
    """
    import torch

    rows = (torch.from_numpy(example),)
    if isinstance(model, torch.jit.ScriptModule):
        axes = {"dynamo": False, "input_names": ["x"], "dynamic_axes": {"x": [0]}}
        return _exported(lambda path: torch.onnx.export(model, rows, path, **axes))
    free = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(model, rows, dynamic_shapes=free, verbose=False)
    assert program is not None  # without a path
    return program.model_proto


def _booster(library: str, model: Any, example: Any) -> Converted:
    onnxmltools = _lent("onnxmltools")
    types = _lent("onnxmltools.convert.common.data_types")
    given = [("X", types.FloatTensorType([None, example.shape[1]]))]
    if library == "xgboost":
        # The converter asks for these names in its error.
        model.get_booster().feature_names = [f"f{at}" for at in range(example.shape[1])]
    return getattr(onnxmltools, f"convert_{library}")(model, initial_types=given)


def _lent(module: str) -> Any:
    """Import a module of onnxmltools from an environment of its own. The packages of
    this environment have precedence.
    """
    programs = environment(REQUIREMENTS, installs=True)
    site = str(next(programs.parent.glob("lib/python*/site-packages")))
    if site not in sys.path:
        sys.path.append(site)
    return import_module(module)


@cache
def _register_boosters() -> None:
    """Let skl2onnx call onnxmltools for boosters in pipelines, see
    https://onnx.ai/sklearn-onnx/tutorial_1-5_external.html.
    """
    from skl2onnx import update_registered_converter
    from skl2onnx.common import shape_calculator as shapes

    classes = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    kinds = {
        "Classifier": (shapes.calculate_linear_classifier_output_shapes, classes),
        "Regressor": (shapes.calculate_linear_regressor_output_shapes, {"split": None}),
    }
    for name, prefix in (("LightGbm", "LGBM"), ("XGBoost", "XGB")):
        library = name.lower()
        module = _lent(f"onnxmltools.convert.{library}.operator_converters.{name}")
        converter = getattr(module, f"convert_{library}")
        for kind, (shape, options) in kinds.items():
            model = getattr(import_module(library), prefix + kind)
            alias = f"{name}{prefix}{kind}"
            update_registered_converter(model, alias, shape, converter, options=options)


def _sklearn(model: Any, example: Any, narrow: bool) -> Converted:
    """See https://onnx.ai/sklearn-onnx/auto_tutorial/plot_gbegin_dataframe.html."""
    from skl2onnx import to_onnx

    converted = []
    errors: list[Exception] = []
    typings = list(_typings(example))
    if narrow:
        typings = typings[1:] + typings[:1]
    for types, opset in product(typings, (None, _OLDER_OPSET)):
        if errors and isinstance(errors[-1], TimeoutError) and opset:
            continue
        try:
            with within(_SECONDS):
                converted.append(to_onnx(model, initial_types=types, target_opset=opset))
            ConvertedModel(converted[-1]).answers(None, example[:5], {})
        except Exception as error:  # noqa: BLE001 - another typing may succeed
            errors.append(error)
        else:
            return converted[-1]
    if converted:
        return converted[0]
    raise errors[0]


def _typings(example: Any) -> Iterator[list[tuple[str, Any]]]:
    """Return the types of the rows for skl2onnx: as `to_onnx(model, X[:1])` guesses
    them; with 32-bit numbers, as in its tutorials; as one matrix if a table has only
    numbers.
    """
    from skl2onnx.algebra.type_helper import guess_initial_types
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType

    if isinstance(example, list):
        yield [("X", StringTensorType([None, 1]))]
        return
    if isinstance(example, np.ndarray):
        yield guess_initial_types(example)
        yield guess_initial_types(example.astype(np.float32))
        return
    texts = example.select_dtypes(exclude="number").columns
    table = example.astype(dict.fromkeys(texts, object))  # pandas' own texts are not known
    yield guess_initial_types(table)
    wide = table.select_dtypes("float64").columns
    yield guess_initial_types(table.astype(dict.fromkeys(wide, np.float32)))
    if not len(texts):
        yield [("X", DoubleTensorType([None, table.shape[1]]))]
        yield [("X", FloatTensorType([None, table.shape[1]]))]
