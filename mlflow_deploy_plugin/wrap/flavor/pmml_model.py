"""A PMML file as an MLflow Python model. MLflow saves this module as the model's code,
so it does not need onnxserve.

The exporter checks an exported PMML file with the same class.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt
import pandas as pd
from jpmml_evaluator import make_evaluator
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

_NUMBERS = {"float": "float32", "double": "float64", "integer": "Int64"}


class PmmlModel(PythonModel):  # type: ignore[misc]
    """A model of columns by the names of the file's input fields. It returns the target
    fields and output fields.
    """

    def __init__(self, path: str = "", threads: int = 1) -> None:
        self.evaluator: Any = make_evaluator(path) if path else None

    def load_context(self, context: Any) -> None:
        self.evaluator = make_evaluator(context.artifacts["pmml"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> Any:
        """Return the fields of each row as a DataFrame. Raises ValueError with the
        first row that the file refuses.
        """
        # PMML has missing values, but not NaN.
        rows = model_input.astype(object).where(model_input.notna(), None).reset_index(drop=True)
        answers, errors = self.evaluator.evaluateAll(rows, nan_as_missing=False, error_col=None)
        if errors is not None and errors.notna().any():
            row = int(errors.notna().to_numpy().argmax())
            reason = str(errors.iloc[row]).rpartition("Exception: ")[2]
            raise ValueError(f"row {row}: {reason}")
        _, output_types = self.fields()
        types = {name: kind for name, kind in output_types.items() if name in answers}
        return answers[[*types]].astype(
            {name: _NUMBERS[kind] for name, kind in types.items() if kind in _NUMBERS}
        )

    def fields(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the types of the input fields, and the types of the target fields and
        output fields, by name.

        The target of a clustering has no name, and is left out.
        """
        model = self.evaluator.javaEvaluator
        # jpmml_evaluator fails for output fields without optype, which is optional.
        outputs = [*model.getTargetFields(), *model.getOutputFields()]
        return _types(model.getInputFields()), _types(outputs)

    def outputs(self, rows: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the fields [N] by name for columns [N] by name, or for a tensor [N, F]
        with the fields x1, x2, ….

        Raises ValueError for a row without an answer, which a PMML file may give to
        missing values.
        """
        if len(rows) == 1:
            [array] = rows.values()
            if array.ndim == 2:
                rows = {f"x{index}": column for index, column in enumerate(array.T, 1)}
        # LightGBM replaces the spaces in the names of its features.
        columns = {name.replace(" ", "_"): array for name, array in rows.items()} | dict(rows)
        inputs, _ = self.fields()
        answers = self.predict(None, pd.DataFrame({name: columns[name] for name in inputs}))
        is_missing = answers.isna().any(axis=1).to_numpy()
        if is_missing.any():
            raise ValueError(f"row {is_missing.argmax()} has no answer")
        return {str(name): answers[name].to_numpy() for name in answers}


def _types(fields: Iterable[Any]) -> dict[str, str]:
    return {
        str(field.getName()): str(field.getDataType().value())
        for field in fields
        if field.getName() is not None
    }


Model = PmmlModel  # The check of an export (wrap/exporter/exporting.py) uses this name.
set_model(PmmlModel())
