"""Prove the additive form of a model, and add it to the model's files.

A form is saved only if its predictions are those of the graph, and if each feature is
made from a single column, so that a column's contribution is the sum of the
contributions of its features. Other models are explained by permutations.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.serve.runtime.additive import (
    ADDITIVE_FILE,
    FEATURES_FILE,
    TOLERANCE,
    FeatureReader,
    read_additive,
)
from mlflow_deploy_plugin.serve.runtime.explained import (
    ExplainedFeature,
    explained_features,
    explained_numbers,
)
from mlflow_deploy_plugin.serve.runtime.feeds import (
    Array,
    Feeds,
    row_count,
    sample_positions,
    slice_feeds,
)
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import open_session
from mlflow_deploy_plugin.wrap.convert.batch import Batch
from mlflow_deploy_plugin.wrap.convert.converted import Category, ConvertedModel

_logger = logging.getLogger("mlflow_deploy_plugin.wrap")

_ROWS = 1_000


def with_additive_files(
    converted: ConvertedModel, runnable: OnnxModel, rows: Batch | None
) -> ConvertedModel:
    """Return the model with the files of its additive form, or without them if the form
    is not proven.

    Args:
        converted: the model.
        runnable: the loaded model.
        rows: the rows of the reference; a form is not proven without rows.
    """
    if converted.additive is None or rows is None:
        return converted
    try:
        parts = converted.additive()
        if parts is None:
            return converted
        files = {}
        session = None
        if parts.features is not None:
            files[FEATURES_FILE] = parts.features.SerializeToString()
            draft = runnable.artifact.folder / FEATURES_FILE
            draft.write_bytes(files[FEATURES_FILE])
            session = open_session(draft)
        feeds = rows.take(sample_positions(len(rows), _ROWS, 0)).feeds(runnable.schema)
        reader = FeatureReader(parts.form, runnable.artifact.inputs, session)
        form = replace(
            parts.form,
            columns=_columns_of_features(
                reader, runnable, feeds, converted.boundary_values.categories
            ),
        )
        if form.is_linear:
            read_positions = np.flatnonzero(form.slopes.any(axis=1))
        else:
            read_positions = np.unique(form.feature[form.left >= 0])
        is_proven = bool((form.columns[read_positions] >= 0).all())
        if is_proven:
            # The form must predict the numbers that the graph predicts.
            numbers = explained_numbers(runnable, feeds)[1]
            predicted = form.predictions(form.sums(reader.read(feeds)))
            is_proven = predicted.shape == numbers.shape and np.allclose(
                predicted, numbers, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
            )
        if not is_proven:
            files = {}
        else:
            files[ADDITIVE_FILE] = form.to_bytes()
            (runnable.artifact.folder / ADDITIVE_FILE).write_bytes(files[ADDITIVE_FILE])
            read_additive(runnable.artifact.folder)
    except Exception as error:  # noqa: BLE001 - the model is served without it
        reason = error.message if isinstance(error, OnnxserveError) else one_line(error)
        _logger.warning("explanations of this model will use permutations: %s", reason)
        return converted
    return replace(converted, files={**converted.files, **files})


def _columns_of_features(
    reader: FeatureReader,
    model: OnnxModel,
    feeds: Feeds,
    categories: Mapping[str, tuple[Category, ...]],
) -> Array:
    """Return the position of the column that changes each feature, [F] int64; -1 if no
    column or several columns change it.

    A column is changed to its values in other rows, to three numbers, because few rows
    may have the same number, and to each category from training.
    """
    features = explained_features(model.artifact, feeds)
    width = reader.read(slice_feeds(feeds, slice(1))).shape[1]
    owners = np.full(width, -1)
    if not reader.has_steps:
        # The features are the positions of the graph's inputs in the order in which the
        # inputs are stacked.
        stacked = 0
        for entry in model.artifact.inputs:
            for position in range(len(entry.columns) or entry.shape[-1]):
                place = (entry.name, position)
                owners[stacked] = next(
                    index for index, feature in enumerate(features) if place in feature.places
                )
                stacked += 1
        return owners
    has_several = np.zeros(width, bool)
    for index, feature in enumerate(features):
        is_changed = np.zeros(width, bool)
        for before, after in _changes(feeds, feature, categories.get(feature.name, ())):
            old = reader.read(before)
            new = reader.read(after)
            is_same = (old == new) | (np.isnan(old) & np.isnan(new))
            is_changed |= ~is_same.all(axis=0)
        has_several |= is_changed & (owners >= 0)
        owners[is_changed] = index
    owners[has_several] = -1
    return owners


def _changes(
    feeds: Feeds, feature: ExplainedFeature, categories: tuple[Category, ...]
) -> Iterator[tuple[Feeds, Feeds]]:
    """Yield rows, and the same rows with other values of the feature."""
    order = np.random.default_rng(0).permutation(row_count(feeds))
    values = feature.values(feeds)
    yield feeds, _with_values(feeds, feature, values[order])
    if values.dtype.kind in "fiub":
        for number in (-1e6, 0.0, 1e6):
            yield feeds, _with_values(feeds, feature, np.full(len(order), number))
    present = [category for category in categories if not pd.isna(category)]
    if present:
        repeated = {name: array[:1].repeat(len(present), axis=0) for name, array in feeds.items()}
        yield repeated, _with_values(repeated, feature, np.array(present, dtype=values.dtype))


def _with_values(feeds: Feeds, feature: ExplainedFeature, values: Array) -> Feeds:
    """Return the feeds with other values of the feature, [N]."""
    changed = dict(feeds)
    for name, position in feature.places:
        array = feeds[name].copy()
        array.reshape(len(array), -1)[:, position] = values
        changed[name] = array
    return changed
