"""Counts the labels of judged windows, to see whether more of them are in by now."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log.label_join import LABEL, LABEL_NUMBER, EndpointLabels, join_labels
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.spec import REGRESSION, MonitorSpec


def count_labels(questions: Sequence[Question]) -> list[int]:
    """By window the rows that have a label which a judgement can use, of those that it looks at; the labels are read
    once for all.

    Args:
        questions: of one monitor.

    Raises:
        OnnxserveError: the log is down.
    """
    log = questions[0].log
    labels = EndpointLabels(log.location, questions[0].endpoint, log.unreadable)
    return [_count(question, labels) for question in questions]


def _count(question: Question, labels: EndpointLabels) -> int:
    # here: the controller itself judges nothing, and does without what judgements are made with
    from mlflow_deploy_plugin.monitoring.kinds.performance import affordable_rows

    rows = question.log.read(question.endpoint, question.window, affordable_rows(question))
    return 0 if rows is None else _usable(join_labels(rows.table, labels), question.spec)


def _usable(table: pa.Table, spec: MonitorSpec) -> int:
    if any(one.name in REGRESSION for one in spec.requirements):  # a label that is no number tells a regressor nothing
        return int(np.isfinite(table.column(LABEL_NUMBER).to_numpy()).sum())
    return int(pc.count(table.column(LABEL)).as_py())
