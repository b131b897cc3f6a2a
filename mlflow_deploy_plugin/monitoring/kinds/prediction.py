"""Prediction drift: the verdict of data drift on what was answered alone."""

from mlflow_deploy_plugin.monitoring.kinds.comparison import compare_window
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.result import Judged
from mlflow_deploy_plugin.runtime import OUTPUT_PREFIX, PREDICTION


def judge(request: WindowRequest) -> Judged:
    """Judges the columns of answers: `prediction` and `output.…`, or those of them that the spec names.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    compared = compare_window(request)
    if isinstance(compared, Judged):
        return compared
    chosen = request.spec.columns
    columns = tuple(name for name in compared.names if is_answer(name) and (not chosen or name in chosen))
    if not columns:
        among = f"; columns names {', '.join(chosen)}" if chosen else ""
        return request.not_judged(
            f"neither the window nor the reference has a column of answers (prediction, output.…){among}",
            model=compared.version[0],
            version=compared.version[1],
            rows=compared.profile.rows,
            notes=compared.notes,
        )
    verdict = compared.judge(columns)
    return compared.judged(verdict.state, verdict.reason, verdict, verdict.findings)


def is_answer(name: str) -> bool:
    return name.partition(".")[0] == PREDICTION or name.startswith(OUTPUT_PREFIX)
