"""`python -m mlflow_deploy_plugin.pyfunc.explain DESCRIPTOR`: explains predictions (`pyfunc/process.py`).

numba would compile shap's helpers at their first call, which takes longer than thousands of explanations save: they run
as plain Python (measured: 20 s and 120 MB before the first answer with numba, 10 ms without). shap imports matplotlib
if it finds it, which takes 30 MB and half a second: it finds none.
"""

import os
import sys

from mlflow_deploy_plugin.pyfunc.process import Answer, CannotStart, answer_all
from mlflow_deploy_plugin.server import READY_MESSAGE, SideMessage

_NICENESS = 10
"""Predictions go first."""


def main() -> None:
    answer_all(int(sys.argv[1]), "explainer", _start)


def _start() -> tuple[SideMessage, Answer]:
    os.nice(_NICENESS)
    os.environ["NUMBA_DISABLE_JIT"] = "1"
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # this makes its import fail
    try:
        from mlflow_deploy_plugin.pyfunc.explainer import ShapExplainer  # what it imports may be missing
    except ImportError as error:
        raise CannotStart(f"shap cannot be imported here: {error}") from None
    return SideMessage(READY_MESSAGE), ShapExplainer().answer


if __name__ == "__main__":
    main()
