"""Formulas of estimators that compare a row with training rows, by the 64-bit distances
of `metrics.pairwise`.
"""

from collections.abc import Callable

import numpy as np
from scipy.sparse import spmatrix
from sklearn import neighbors
from sklearn.cluster import (
    AffinityPropagation,
    Birch,
    BisectingKMeans,
    KMeans,
    MeanShift,
    MiniBatchKMeans,
)
from sklearn.impute import KNNImputer
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.manifold import Isomap, LocallyLinearEmbedding
from sklearn.semi_supervised import LabelPropagation, LabelSpreading
from sklearn.svm import SVC, SVR, NuSVC, NuSVR, OneClassSVM

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator, marks_nan
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.rows import (
    Decision,
    Formula,
    Rows,
    largest,
    softmax,
    votes_of_pairs,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import (
    TracedArray,
    divided,
    smallest,
    take,
)

Metric = str | Callable[[Array, Array], float]
"""A distance or kernel: its name in scikit-learn, or a user's function."""
Option = float | None
"""A parameter of a kernel. None is scikit-learn's default."""
_MAX_DIFFERENCES = 100_000  # differences per row; more would take over 1 MB per row
# numbers of 8 bytes; writing the graph takes about ten times as much memory
_MAX_DENSE = 10_000_000


def _dense(training: "Array | spmatrix") -> Array:
    """Return training rows [K, k] as a dense array. Rows of text features are
    sparse.
    """
    if isinstance(training, np.ndarray):
        return np.asarray(training, float)
    if np.prod(training.shape) > _MAX_DENSE:
        raise NotImplementedError(
            f"{training.shape[0]} training rows of {training.shape[1]} sparse columns"
        )
    return np.asarray(training.toarray(), float)


def squared_distances(x: TracedArray, training: Array) -> TracedArray:
    """Return squared distances [N, K] by differences (exact for equal rows), or by
    products if `training` is large.
    """
    training = _dense(training)
    if training.size <= _MAX_DIFFERENCES:
        away = x[:, None, :] - training
        return (away * away).sum(axis=2)
    products = x @ training.T
    return np.maximum(
        (x * x).sum(axis=1, keepdims=True) - 2.0 * products + (training * training).sum(axis=1), 0.0
    )


def nearest_centre(x: TracedArray, centres: Array) -> TracedArray:
    """Return the position [N] of the nearest of K centres [K, k] without the square of
    x, like scikit-learn.

    Far from the centres, the square has more digits than a float, and the differences
    between the centres are lost.
    """
    centres = _dense(centres)
    return np.argmin((centres * centres).sum(axis=1) - 2.0 * (x @ centres.T), axis=1)


def distances(x: TracedArray, training: Array, metric: Metric, p: float = 2) -> TracedArray:
    """Return the distances [N, K] between rows x [N, k] and training rows [K, k]. `p`
    is the power of the metric "minkowski". Raises NotImplementedError for other metrics
    than these.
    """
    training = _dense(training)
    powers: dict[Metric, float] = {
        "euclidean": 2,
        "l2": 2,
        "manhattan": 1,
        "l1": 1,
        "cityblock": 1,
        "minkowski": p,
    }
    power = powers.get(metric)
    if power == 2:
        return np.sqrt(squared_distances(x, training))
    if metric == "cosine":
        length = np.linalg.norm(x, axis=1, keepdims=True)
        is_zero = length < 10 * np.finfo(np.float64).eps  # like sklearn.preprocessing.normalize
        unit = x / np.where(is_zero, 1.0, length)
        return 1.0 - unit @ (training / np.linalg.norm(training, axis=1, keepdims=True)).T
    away = np.abs(x[:, None, :] - training)
    if metric == "chebyshev" or power == np.inf:
        return away.max(axis=2)
    if power is None:
        raise NotImplementedError(f"metric={metric!r}")
    if power == 1:
        return away.sum(axis=2)
    return (away**power).sum(axis=2) ** (1 / power)


def kernel(
    x: TracedArray,
    training: Array,
    metric: Metric,
    gamma: Option = None,
    degree: Option = None,
    coef0: Option = None,
) -> TracedArray:
    """Return a kernel of sklearn.metrics.pairwise [N, K].

    Args:
        x: the rows [N, k].
        training: the training rows [K, k].
        metric: the name of the kernel; others raise NotImplementedError.
        gamma: the scale; by default 1 / k.
        degree: the exponent of a polynomial; by default 3.
        coef0: the number that is added to the products; by default 1.
    """
    training = _dense(training)
    scale = 1.0 / training.shape[1] if gamma is None else float(gamma)
    shift = 1.0 if coef0 is None else float(coef0)
    exponent = 3.0 if degree is None else float(degree)
    match metric:
        case "linear":
            return x @ training.T
        case "poly" | "polynomial":
            return (scale * (x @ training.T) + shift) ** exponent
        case "rbf":
            return np.exp(-scale * squared_distances(x, training))
        case "sigmoid":
            return np.tanh(scale * (x @ training.T) + shift)
    raise NotImplementedError(f"kernel={metric!r}")


def _weights(
    distance: TracedArray, weights: str | Callable[[TracedArray], TracedArray] | None
) -> TracedArray:
    """Return the weights [N, k] of neighbours. With weights 1 / distance, a distance of
    0 excludes other neighbours.
    """
    if callable(weights):
        return weights(distance)
    if weights != "distance":
        return np.ones_like(distance)
    same = distance == 0
    has_same = np.any(same, axis=1, keepdims=True)
    return np.where(has_same, same.astype(float), 1.0 / np.where(same, 1.0, distance))


def _distances_to_rows(model: Estimator, x: TracedArray) -> TracedArray:
    """Return the distances [N, K] to the training rows of an estimator."""
    if model.metric_params:
        raise NotImplementedError(f"metric_params={model.metric_params!r}")
    return distances(x, model._fit_X, model.metric, model.p)


def _nearest(model: Estimator, rows: Rows, targets: Array) -> TracedArray:
    """Return the weighted mean [N, t] of the targets [K, t] of the nearest training
    rows.
    """
    distance, nearest = smallest(_distances_to_rows(model, rows.matrix), model.n_neighbors)
    weights = _weights(distance, model.weights)[:, :, None]
    return (take(targets, nearest) * weights).sum(axis=1) / weights.sum(axis=1)


def _within_radius(model: Estimator, rows: Rows, targets: Array) -> TracedArray:
    """Return the weighted mean [N, t] of targets within the radius, NaN without
    neighbours.
    """
    distance = _distances_to_rows(model, rows.matrix)
    weights = (distance <= model.radius).astype(float) * _weights(distance, model.weights)
    return (weights @ targets) / weights.sum(axis=1, keepdims=True)


def _targets(model: Estimator) -> Array:
    """Return the targets of the training rows, [K, targets]."""
    return np.asarray(model._y, float).reshape(len(model._y), -1)


def _one_hot(model: Estimator) -> Array:
    """Return the classes of the training rows as flags [K, C]."""
    if model.outputs_2d_:
        raise NotImplementedError(f"{type(model).__name__} of several targets")
    return np.asarray(np.eye(len(model.classes_))[np.ravel(model._y)])


def neighbour_classes(model: neighbors.KNeighborsClassifier, rows: Rows) -> Decision:
    scores = _nearest(model, rows, _one_hot(model))
    return largest(scores)


def radius_classes(model: neighbors.RadiusNeighborsClassifier, rows: Rows) -> Decision:
    """Return the decision by the neighbours within the radius. Raises
    NotImplementedError for a label of rows without neighbours, which scikit-learn
    refuses by default.
    """
    if model.outlier_label_ is not None:
        raise NotImplementedError("RadiusNeighborsClassifier with an outlier_label")
    return largest(_within_radius(model, rows, _one_hot(model)))


def within_radius(model: neighbors.RadiusNeighborsTransformer, rows: Rows) -> TracedArray:
    distance = _distances_to_rows(model, rows.matrix)
    inside = distance if model.mode == "distance" else 1.0
    return np.where(distance <= model.radius, inside, 0.0)


def imputed(model: KNNImputer, rows: Rows) -> TracedArray:
    """Fill gaps with the mean of the nearest training rows. Raises NotImplementedError
    for unsupported options.
    """
    if not marks_nan(model) or callable(model.weights):
        raise NotImplementedError(
            "KNNImputer with missing_values other than NaN, or weights that are a function"
        )
    if not model._valid_mask.all():
        raise NotImplementedError("KNNImputer that dropped a column without any value")
    gaps = np.isnan(rows.matrix)
    # The distances use the columns that are present in both rows, as in
    # sklearn.metrics.pairwise.nan_euclidean_distances.
    x = rows.matrix
    is_present = 1.0 - gaps.astype(float)
    was_present = (~model._mask_fit_X).astype(float)
    x = np.where(gaps, 0.0, x)
    fitted = np.where(model._mask_fit_X, 0.0, model._fit_X)
    shared_counts = is_present @ was_present.T
    squared = np.maximum(
        (x * x) @ was_present.T - 2.0 * (x @ fitted.T) + is_present @ (fitted * fitted).T, 0.0
    )
    distance = np.sqrt(divided(squared, shared_counts) * fitted.shape[1])
    distance = np.where(shared_counts == 0, np.inf, distance)
    columns = []
    for column in range(model.n_features_in_):
        mean = _mean_of_donors(model, distance, column)
        columns.append(np.where(gaps[:, column], mean, rows.matrix[:, column]))
    if model.add_indicator:
        for column in model.indicator_.features_:
            columns.append(gaps[:, int(column)].astype(float))
    return np.column_stack(columns)


def _mean_of_donors(model: KNNImputer, distance: TracedArray, column: int) -> TracedArray:
    """Return the mean [N] of a column in the nearest training rows that have a value,
    or in all of them if no distance is known.
    """
    donors = np.flatnonzero(~model._mask_fit_X[:, column])
    values = model._fit_X[donors, column]
    count = min(model.n_neighbors, len(donors))
    nearest_distance, nearest = smallest(distance[:, donors], count)
    weights = _weights(nearest_distance, model.weights)
    weights = weights * np.where(np.isinf(nearest_distance), 0.0, 1.0)
    total = weights.sum(axis=1)
    mean = divided((take(values, nearest) * weights).sum(axis=1), total)
    return np.where(total == 0, values.mean(), mean)


def nearest_centroid(model: neighbors.NearestCentroid, rows: Rows) -> Decision:
    """Return the class with the nearest centroid if all classes have the same prior,
    otherwise the class with the largest score.
    """
    spread = np.where(model.within_class_std_dev_ == 0, 1.0, model.within_class_std_dev_)
    distance = distances(rows.matrix / spread, model.centroids_ / spread, model.metric)
    scores = -(distance * distance) + 2.0 * np.log(model.class_prior_)
    if np.isclose(model.class_prior_, 1 / len(model.classes_)).all():
        position = np.argmin(distances(rows.matrix, model.centroids_, model.metric), axis=1)
    else:
        position = np.argmax(scores, axis=1)
    return position, softmax(scores)


def closest_centre(model: Estimator, rows: Rows) -> TracedArray:
    if len(model.cluster_centers_) == 0:
        raise NotImplementedError("AffinityPropagation that did not converge")
    return nearest_centre(rows.matrix, model.cluster_centers_)


def bisected(model: BisectingKMeans, rows: Rows) -> TracedArray:
    """Return the label of the leaf that each row reaches in the tree of clusters. At
    each node, a row goes to the nearer of two centres.
    """

    def leaf_below(node: Estimator) -> TracedArray:
        """Return the labels [N] of the leaves that the rows reach below a node."""
        if node.left is None:
            return np.int64(node.label)
        shift = getattr(model, "_X_mean", 0.0)
        centres = np.vstack((node.left.center, node.right.center)) + shift
        nearer = nearest_centre(rows.matrix, centres)
        return np.where(nearer == 0, leaf_below(node.left), leaf_below(node.right))

    return leaf_below(model._bisecting_tree)


def propagated_labels(model: Estimator, rows: Rows) -> Decision:
    """Return the decision by the sum of the label distributions of similar training
    rows. Raises NotImplementedError for other kernels than the default.
    """
    if model.kernel != "rbf":
        raise NotImplementedError(f"{type(model).__name__} with kernel={model.kernel!r}")
    likely = kernel(rows.matrix, model.X_, "rbf", model.gamma) @ model.label_distributions_
    likely = likely / likely.sum(axis=1, keepdims=True)
    return largest(likely)


def kernel_ridge(model: KernelRidge, rows: Rows) -> TracedArray:
    if model.kernel_params:
        raise NotImplementedError("KernelRidge with kernel_params")
    options = {"gamma": model.gamma, "degree": model.degree, "coef0": model.coef0}
    return kernel(rows.matrix, model.X_fit_, model.kernel, **options) @ model.dual_coef_


def nystroem(model: Nystroem, rows: Rows) -> TracedArray:
    options = {
        name: value for name, value in model._get_kernel_params().items() if value is not None
    }
    return kernel(rows.matrix, model.components_, model.kernel, **options) @ model.normalization_.T


def _decisions(model: Estimator, rows: Rows) -> TracedArray:
    """Return the decision values [N, k] of libsvm's svm_predict_values: k is 1 or the
    number of class pairs.
    """
    options = {"gamma": model._gamma, "degree": model.degree, "coef0": model.coef0}
    similar = kernel(rows.matrix, model.support_vectors_, model.kernel, **options)
    weights = _dense(model._dual_coef_).T  # shape: [K, 1 or classes - 1]
    if len(model._intercept_) > 1:
        # libsvm's weights [K, classes - 1] become weights per pair of classes, [K,
        # pairs].
        # A support vector of the first class of a pair (i, j) has its weight in column
        # j - 1, and one of the second class in column i.
        first, second = np.triu_indices(len(model.classes_), 1)
        classes = np.repeat(np.arange(len(model.classes_)), model.n_support_)[:, None]
        of_first = weights[:, second - 1] * (classes == first)
        of_second = weights[:, first] * (classes == second)
        weights = np.asarray(of_first + of_second)
    return similar @ weights + model._intercept_


def one_class(model: OneClassSVM, rows: Rows) -> TracedArray:
    """Return 1 for a positive score, otherwise -1, like libsvm; skl2onnx returns 0 for
    a score of 0.
    """
    return np.where(_decisions(model, rows)[:, 0] > 0, 1, -1)


def machine_classes(model: Estimator, rows: Rows) -> Decision:
    """Return the decision of an SVC or NuSVC: a positive decision value is a vote for
    the first class of a pair. Raises NotImplementedError for probabilities.
    """
    if len(model.probA_):
        raise NotImplementedError(
            f"{type(model).__name__} with probability=True: libsvm computes them iteratively"
        )
    decisions = _decisions(model, rows)
    if len(model.classes_) == 2:
        position = (decisions[:, 0] <= 0).astype(np.int64)
        return position, np.hstack([decisions, -decisions])
    votes, scores = votes_of_pairs((decisions <= 0).astype(float), -decisions, len(model.classes_))
    if model.decision_function_shape == "ovo":
        return np.argmax(votes, axis=1), decisions
    ranks = scores if model.break_ties else votes
    return np.argmax(ranks, axis=1), scores


def _neighbours_of(model: Estimator, x: TracedArray) -> tuple[TracedArray, TracedArray]:
    """Return the distances of the nearest training rows [N, k], and their positions."""
    if model.n_neighbors is None:
        raise NotImplementedError(f"{type(model).__name__} with a radius")
    return smallest(_distances_to_rows(model.nbrs_, x), model.n_neighbors)


def isomap(model: Isomap, rows: Rows) -> TracedArray:
    """Return the kernel PCA of the shortest paths over the neighbours to the training
    rows.
    """
    distance, neighbours = _neighbours_of(model, rows.matrix)
    shortest = (take(model.dist_matrix_, neighbours) + distance[:, :, None]).min(axis=1)
    similar = shortest * shortest * -0.5
    pca = model.kernel_pca_
    means = pca._centerer
    similar = similar - means.K_fit_rows_ - similar.mean(axis=1, keepdims=True) + means.K_fit_all_
    eigenvalues = np.where(pca.eigenvalues_ > 0, pca.eigenvalues_, np.inf)
    return similar @ (pca.eigenvectors_ / np.sqrt(eigenvalues))


def locally_linear(model: LocallyLinearEmbedding, rows: Rows) -> TracedArray:
    """Return the weighted sum of the neighbours' embeddings, with the weights that
    reconstruct the row.
    """
    neighbours = _neighbours_of(model, rows.matrix)[1]
    count = model.n_neighbors
    away = take(model.nbrs_._fit_X, neighbours) - rows.matrix[:, None, :]
    gram_rows = [(away * away[:, n : n + 1, :]).sum(axis=2) for n in range(count)]
    trace = sum(gram_rows[n][:, n] for n in range(1, count)) + gram_rows[0][:, 0]
    ridge = np.where(trace > 0, trace * model.reg, model.reg)
    gram = np.stack(gram_rows, axis=1)
    gram = gram + ridge[:, None, None] * np.eye(count)
    # Gauss-Jordan elimination solves gram [N, count, count] @ weights = 1. A positive
    # definite matrix needs no pivoting.
    system = np.concatenate([gram, np.ones_like(gram)[:, :, :1]], axis=2)
    for n in range(count):
        # Divide line n by its pivot, and clear column n in the other lines.
        line = system[:, n : n + 1, :] / system[:, n : n + 1, n : n + 1]
        is_other_line = 1.0 - np.eye(count)[n][:, None]
        system = system - system[:, :, n : n + 1] * is_other_line * line
        system = system * is_other_line + line * (1.0 - is_other_line)
    weights = system[:, :, count]
    weights = weights / weights.sum(axis=1, keepdims=True)
    return (take(model.embedding_, neighbours) * weights[:, :, None]).sum(axis=1)


FORMULAS: dict[type, Formula] = {
    neighbors.KNeighborsClassifier: neighbour_classes,
    neighbors.KNeighborsRegressor: lambda model, rows: _nearest(model, rows, _targets(model)),
    neighbors.RadiusNeighborsClassifier: radius_classes,
    neighbors.RadiusNeighborsRegressor: lambda model, rows: _within_radius(
        model, rows, _targets(model)
    ),
    neighbors.RadiusNeighborsTransformer: within_radius,
    KNNImputer: imputed,
    neighbors.NearestCentroid: nearest_centroid,
    KMeans: closest_centre,
    MiniBatchKMeans: closest_centre,
    MeanShift: closest_centre,
    AffinityPropagation: closest_centre,
    Birch: lambda model, rows: take(
        np.asarray(model.subcluster_labels_, np.int64),
        nearest_centre(rows.matrix, model.subcluster_centers_),
    ),
    BisectingKMeans: bisected,
    LabelPropagation: propagated_labels,
    LabelSpreading: propagated_labels,
    KernelRidge: kernel_ridge,
    Nystroem: nystroem,
    OneClassSVM: one_class,
    Isomap: isomap,
    LocallyLinearEmbedding: locally_linear,
}
PRECISE: dict[type, Formula] = {
    SVR: _decisions,
    NuSVR: _decisions,
    SVC: machine_classes,
    NuSVC: machine_classes,
}
"""Formulas for the precision `double`. Otherwise, a faster 32-bit ONNX operator is
used.
"""
