"""A PMML file as an MLflow Python model. MLflow saves this module as the model's code,
so it does not need onnxserve.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from jpmml_evaluator import make_evaluator
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

_NUMBERS = {"float": "float32", "double": "float64", "integer": "Int64"}


class PmmlModel(PythonModel):  # type: ignore[misc]
    """A model of columns by the names of the file's input fields. It returns the target
    fields and output fields.
    """

    def __init__(self, path: str = "") -> None:
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


def _types(fields: Iterable[Any]) -> dict[str, str]:
    return {
        str(field.getName()): str(field.getDataType().value())
        for field in fields
        if field.getName() is not None
    }


set_model(PmmlModel())
