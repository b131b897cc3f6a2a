"""What is counted of an answered request, whatever transport it came by."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from mlflow_deploy_plugin.runtime import Array, Artifact
from mlflow_deploy_plugin.server.metrics import Label, Metrics
from mlflow_deploy_plugin.server.served import ServedVariant


def count_answer(
    metrics: Metrics,
    variant: ServedVariant | None,
    protocol: str,
    status: str,
    seconds: float,
    outputs: Mapping[str, Array] | None = None,
) -> None:
    """One answered request, and the labels that it predicted.

    Args:
        variant: None: none was leased. Its labels are empty then, because the endpoint is the caller's text.
        outputs: those of the graph; None: it was not run.
    """
    if variant is None:
        metrics.count_request(("", "", "", "", protocol, status), seconds)
        return
    loaded = variant.loaded
    labels = variant.endpoint, variant.name, loaded.model, loaded.version, protocol, status
    metrics.count_request(labels, seconds)
    if outputs:
        for label, rows in predicted_labels(loaded.predictor.artifact, outputs):
            metrics.count_prediction(loaded.version, label, rows)


def predicted_labels(artifact: Artifact, outputs: Mapping[str, Array]) -> list[tuple[Label, int]]:
    """Each label that was predicted, with its rows: of the label output, else the class of the highest probability.

    Empty for a model that has neither: a number that it predicts is no label.
    """
    for output in artifact.outputs:
        array = outputs.get(output.name)
        if array is None or not array.size:
            continue
        if output.role == "label":
            return _counted(array)
        if output.role == "probabilities" and array.shape[1:] == (len(artifact.classes),) and not _has_label(artifact):
            return [(artifact.classes[place], rows) for place, rows in _counted(array.argmax(axis=1))]  # type: ignore[index]
    return []


def _has_label(artifact: Artifact) -> bool:
    return any(output.role == "label" for output in artifact.outputs)


def _counted(array: Array) -> list[tuple[Label, int]]:
    if array.size == 1:
        return [(array.item(), 1)]
    if array.dtype.kind == "O":
        return list(Counter(array.ravel().tolist()).items())
    values, rows = np.unique(array, return_counts=True)
    return list(zip(values.tolist(), rows.tolist(), strict=True))
