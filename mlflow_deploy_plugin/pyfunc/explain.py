"""`python -m mlflow_deploy_plugin.pyfunc.explain DESCRIPTOR`: explains predictions (`pyfunc/process.py`).

shap's helpers are compiled by numba at their first call, which takes longer than thousands of explanations save, and
100 MB: they run as the Python that they are (measured: 20 s and 120 MB before the first answer, 10 ms without). And
shap draws where it finds matplotlib, which takes 30 MB and half a second: it finds none.
"""

import os
import sys

from mlflow_deploy_plugin.pyfunc.process import Answer, CannotStart, answer_all
from mlflow_deploy_plugin.server.models.side_messages import SideMessage
from mlflow_deploy_plugin.server.models.side_process import READY

_NICENESS = 10
"""Predictions go first."""


def main() -> None:
    answer_all(int(sys.argv[1]), "explainer", _start)


def _start() -> tuple[SideMessage, Answer]:
    os.nice(_NICENESS)
    os.environ["NUMBA_DISABLE_JIT"] = "1"
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # Python's own word for what cannot be imported
    try:
        from mlflow_deploy_plugin.pyfunc.explainer import Explainer  # what it imports may be missing
    except ImportError as error:
        raise CannotStart(f"shap cannot be imported here: {error}") from None
    return SideMessage(READY), Explainer().answer


if __name__ == "__main__":
    main()
