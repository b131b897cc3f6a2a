"""The additive form of a model: trees, or a linear sum, whose sums give the prediction
through a link. Exact Shapley values need this structure, which the graph hides.

The form is saved as arrays (`additive.npz`) when a model is wrapped. A pipeline's
earlier steps are saved as a second graph (`features.onnx`), which computes the features
that the sums read.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.serve.runtime.artifact import Input, read_artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.session import open_session

if TYPE_CHECKING:
    import onnxruntime as ort

ADDITIVE_FILE = "additive.npz"
FEATURES_FILE = "features.onnx"
TOLERANCE = 1e-4
"""The largest difference between the sums and 32-bit predictions, absolute and
relative.
"""
_BYTES_PER_GRAPH_BYTE = 64
"""The maximum bytes of a form per byte of the graph, which counts as at least 1 MiB.
Most forms have 1 to 4 bytes per byte of the graph; those with a few large trees
among many small ones had 53.
"""
_MOST_LEVELS = 256
_MOST_CONDITIONS = 10_000_000
"""The maximum number of conditions on the paths to all nodes; `LeafTables` takes about
100 bytes for each. A test of categories counts as a condition per 32 codes.
"""
_MOST_FEATURES = 100_000
LINK_SCALES = {"identity": "", "logit": " (log-odds)", "log": " (logarithm)"}
"""The scale of the explained numbers by link, as an addition to their name; empty for
predictions.
"""


@dataclass(frozen=True, eq=False)
class AdditiveForm:
    """T trees with at most M nodes, or F slopes, for K sums. Node 0 is the root of a
    tree.

    Attributes:
        feature: the feature that a node compares, [T, M] int32.
        threshold: a row goes left if its feature is not above this number, [T, M]
            float64; NaN for a node that compares a category.
        membership: the position in `members` of the categories that go left, [T, M]
            int32; -1 for a node with a threshold.
        members: True for the codes of categories, [tests + 1, codes + 1] bool. The last
            row and the last column are False.
        left: the left child, [T, M] int32; -1 for a leaf.
        right: the right child, [T, M] int32.
        missing_left: True if a missing value goes left, [T, M] bool.
        value: the summands of a leaf, [T, M, K] float64; with slopes of leaves, [T, M,
            (1 + S) * K], in which the slopes follow the constants.
        slopes: the weights of a linear sum, [F, K] float64; without rows for trees.
        base: the sums without trees or features, [K] float64.
        columns: the position in the signature of the column that each feature is made
            from, [F] int64; -1 for a feature that the sums do not read.
        link: the function from predictions to sums, in the words of shap: `identity`,
            `logit` or `log`. The sums of several classes (softmax) have `logit`, too.
        is_single: True if the sums read features of 32 bits.
        missing: a number that is treated as missing, like NaN.
        slope_features: the feature that each of the slopes of a leaf multiplies, [S]
            int64; empty for leaves without slopes.
    """

    feature: Array
    threshold: Array
    membership: Array
    members: Array
    left: Array
    right: Array
    missing_left: Array
    value: Array
    slopes: Array
    base: Array
    columns: Array
    link: str
    is_single: bool
    missing: float
    slope_features: Array = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def is_linear(self) -> bool:
        return len(self.slopes) > 0

    def read_features(self, features: Array) -> Array:
        """Return the features, [N, F], as the sums read them: with the precision of
        training, and NaN for a missing value.
        """
        rounded = features.astype(np.float32 if self.is_single else np.float64)
        if not np.isnan(self.missing):
            rounded[rounded == self.missing] = np.nan
        read: Array = rounded.astype(np.float64)
        return read

    def sums(self, features: Array) -> Array:
        """Return the sums, [N, K], of features from `read_features`."""
        if self.is_linear:
            linear: Array = features @ self.slopes + self.base
            return linear
        trees = np.arange(len(self.left))
        sums = np.empty((len(features), len(self.base)))
        for row, values in enumerate(features):
            nodes = np.zeros(len(trees), np.int64)
            while (is_inner := self.left[trees, nodes] >= 0).any():
                compared = values[self.feature[trees, nodes]]
                codes = np.clip(np.nan_to_num(compared), -1, self.members.shape[1] - 1)
                is_member = self.members[self.membership[trees, nodes], codes.astype(np.int64)]
                goes_left = np.where(
                    np.isnan(compared),
                    self.missing_left[trees, nodes],
                    is_member | (compared <= self.threshold[trees, nodes]),
                )
                children = np.where(goes_left, self.left[trees, nodes], self.right[trees, nodes])
                nodes = np.where(is_inner, children, nodes)
            summands = self.value[trees, nodes].sum(axis=0).reshape(-1, len(self.base))
            numbers = np.append(1.0, values[self.slope_features])[:, np.newaxis]
            # A missing number reaches no leaf with a slope for it.
            sums[row] = np.where(summands, summands * numbers, 0.0).sum(axis=0) + self.base
        return sums

    def predictions(self, sums: Array) -> Array:
        """Return the predicted numbers, [N, K], or [N, 2] for the probabilities of two
        classes.
        """
        if self.link == "log":
            exponential: Array = np.exp(sums)
            return exponential
        if self.link == "identity":
            return sums
        scores = sums
        if sums.shape[1] == 1:
            scores = np.hstack([np.zeros_like(sums), sums])
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities: Array = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    def check(self) -> None:
        """Raise an error, such as ValueError or IndexError, unless the arrays fit
        together, every path in a tree ends at a leaf, and the explanations of the sums
        take bounded memory.
        """
        by_node = (
            self.feature,
            self.threshold,
            self.membership,
            self.right,
            self.missing_left,
            self.value[..., 0],
        )
        sums = len(self.base)
        widths = self.value.shape[2:] + self.slopes.shape[1:] + self.base.shape[1:]
        if (
            {array.shape for array in by_node} != {self.left.shape}
            or widths != ((1 + len(self.slope_features)) * sums, sums)
            or self.link not in LINK_SCALES
        ):
            raise ValueError("its arrays do not fit together")
        # ravel_multi_index raises a ValueError for nodes, features and categories that
        # do not exist.
        compared = (self.feature, self.membership + 1)
        np.ravel_multi_index(compared, (len(self.columns), len(self.members)))
        np.ravel_multi_index((self.slope_features,), (len(self.columns),))
        trees = np.arange(len(self.left))
        nodes = np.zeros_like(trees)
        conditions = 0
        for level in range(_MOST_LEVELS):
            np.ravel_multi_index((trees, nodes), self.left.shape)
            tests = np.count_nonzero(self.membership[trees, nodes] >= 0)
            conditions += len(trees) * min(level, len(self.columns))
            conditions += tests * self.members.shape[1] // 32
            if conditions > _MOST_CONDITIONS:  # A cycle may double the nodes at each level.
                break
            is_inner = self.left[trees, nodes] >= 0
            inner = trees[is_inner], nodes[is_inner]
            trees = np.tile(inner[0], 2)
            nodes = np.concatenate([self.left[inner], self.right[inner]])
        if trees.size or len(self.columns) > _MOST_FEATURES:
            raise ValueError("it has too many features, or its trees are too large or too deep")
        self.predictions(self.sums(self.read_features(np.zeros((1, len(self.columns))))))

    def to_bytes(self) -> bytes:
        """Return the form as a NumPy archive without pickled objects."""
        content = io.BytesIO()
        np.savez_compressed(
            content, **{item.name: getattr(self, item.name) for item in fields(self)}
        )
        return content.getvalue()


def read_additive(folder: Path) -> AdditiveForm | None:
    """Return the additive form of the model in the folder, or None if it has none.
    Raises InvalidArtifact for a damaged file, or for arrays that are too large for the
    graph.
    """
    file = folder / ADDITIVE_FILE
    if not file.is_file():
        return None
    graph_bytes = read_artifact(folder).onnx_file.stat().st_size
    most_bytes = _BYTES_PER_GRAPH_BYTE * max(graph_bytes, 2**20)
    try:
        with np.load(file, allow_pickle=False) as archive:
            members = archive.zip.infolist()
            declared = sum(member.file_size for member in members)
            # zipfile bounds only the output of Deflate.
            methods = {member.compress_type for member in members}
            if declared > most_bytes or methods != {zipfile.ZIP_DEFLATED}:
                raise ValueError(
                    f"its arrays have {declared:,} bytes; at most {most_bytes:,} bytes, which "
                    "are compressed with Deflate, are expected"
                )
            # The index () converts an array without dimensions to a scalar.
            form = AdditiveForm(
                **{
                    item.name: archive[item.name][()]
                    for item in fields(AdditiveForm)
                    if item.name in archive.files
                }
            )
        form.check()
    except Exception as error:  # noqa: BLE001 - NumPy, zipfile and zlib raise unrelated classes
        raise InvalidArtifact(
            f"{ADDITIVE_FILE} cannot be read: {one_line(error)}; log the model again"
        ) from None
    return form


class FeatureReader:
    """The function from the feeds of a model to the features of its sums. `form` has
    the trees or slopes.
    """

    def __init__(
        self, form: AdditiveForm, inputs: Sequence[Input], session: "ort.InferenceSession | None"
    ) -> None:
        """Read features of rows.

        Args:
            form: the trees or slopes.
            inputs: the inputs of the model's graph.
            session: the graph of a pipeline's earlier steps; None if the sums read the
                columns.
        """
        self.form = form
        self._inputs = [entry.name for entry in inputs]
        self._session = session

    @classmethod
    def load(cls, folder: Path) -> "FeatureReader | None":
        """Load the form of the model in the folder, and the graph of its features if it
        has one. Returns None for a model without an additive form.
        """
        form = read_additive(folder)
        if form is None:
            return None
        file = folder / FEATURES_FILE
        session = open_session(file) if file.is_file() else None
        return cls(form, read_artifact(folder).inputs, session)

    @property
    def has_steps(self) -> bool:
        """True if earlier steps compute the features."""
        return self._session is not None

    def read(self, feeds: Feeds) -> Array:
        """Return the features, [N, F] float64, of rows in the form that the model's
        graph takes.
        """
        arrays = [feeds[name] for name in self._inputs]
        if self._session is None:
            matrices = [array.reshape(len(array), -1) for array in arrays]
            return self.form.read_features(np.hstack(matrices))
        names = [entry.name for entry in self._session.get_inputs()]
        # The graphs may name an input differently, but have the same order.
        renamed = dict(zip(names, arrays, strict=True))
        return self.form.read_features(self._session.run(None, renamed)[0])
