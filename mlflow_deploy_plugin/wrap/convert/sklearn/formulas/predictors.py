"""Formulas of predictors with a few operations per row. Kernels follow
sklearn.gaussian_process.kernels.
"""

import operator

import numpy as np
from scipy import special
from sklearn.covariance import EllipticEnvelope
from sklearn.cross_decomposition import CCA, PLSCanonical, PLSRegression
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.gaussian_process import GaussianProcessClassifier, kernels
from sklearn.gaussian_process._gpc import COEFS, LAMBDAS
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import SGDClassifier
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.multiclass import OneVsRestClassifier

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.neighbours import squared_distances
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.rows import Decision, Formula, Rows
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import TracedArray, interpolated


def isotonic(models: list[IsotonicRegression], x: TracedArray) -> TracedArray:
    """Return the predictions [N, M] of M models for x [N, M]. Outside its thresholds, a
    single model may return NaN.
    """
    thresholds = [np.asarray(model.X_thresholds_, float) for model in models]
    values = [np.asarray(model.y_thresholds_, float) for model in models]
    is_clipped = models[0].out_of_bounds == "clip"
    if is_clipped:
        lowest = np.array([model.X_min_ for model in models], float)
        highest = np.array([model.X_max_ for model in models], float)
        x = np.clip(x, lowest, highest)
    predicted = interpolated(x, thresholds, values)
    if is_clipped or len(thresholds[0]) == 1:
        return predicted
    is_outside = (x < thresholds[0][0]) | (x > thresholds[0][-1])
    return np.where(is_outside, np.nan, predicted)


def dummy_values(model: DummyRegressor, rows: Rows) -> TracedArray:
    return np.column_stack([rows.full(float(value)) for value in np.ravel(model.constant_)])


def dummy_classes(model: DummyClassifier, rows: Rows) -> Decision:
    """Return the constant or most frequent class of all rows. Raises
    NotImplementedError for random predictions.
    """
    if model.n_outputs_ > 1 or model._strategy not in ("prior", "most_frequent", "constant"):
        raise NotImplementedError(
            f"DummyClassifier with strategy={model._strategy!r}: its predictions are random"
        )
    if model._strategy == "constant":
        best = int(np.flatnonzero(model.classes_ == np.ravel(model.constant)[0])[0])
    else:
        best = int(np.argmax(model.class_prior_))
    if model._strategy == "prior":
        likely = model.class_prior_
    else:
        likely = np.eye(len(model.classes_))[best]
    position = rows.full(float(best)).astype(np.int64)
    return position, np.column_stack([rows.full(float(value)) for value in likely])


def elliptic(model: EllipticEnvelope, rows: Rows) -> TracedArray:
    away = rows.matrix - model.location_
    distance = ((away @ model.get_precision()) * away).sum(axis=1)
    return np.where(-distance - model.offset_ >= 0, 1, -1)


def mixture(model: Estimator, rows: Rows) -> TracedArray:
    """Return the component with the largest log density, by
    sklearn.mixture._gaussian_mixture in 64 bits.
    """
    log_densities = []
    for component, mean in enumerate(model.means_):
        away = rows.matrix - mean
        factors = model.precisions_cholesky_
        factor = factors if model.covariance_type == "tied" else factors[component]
        scaled = away @ factor if np.ndim(factor) == 2 else away * factor
        at_mean = float(model._estimate_weighted_log_prob(mean[None])[0, component])
        log_densities.append(at_mean - (scaled * scaled).sum(axis=1) * 0.5)
    return np.argmax(np.column_stack(log_densities), axis=1)


def partial_least_squares(model: Estimator, rows: Rows) -> TracedArray:
    return (rows.matrix - model._x_mean) @ model.coef_.T + model.intercept_


def process_classes(model: GaussianProcessClassifier, rows: Rows) -> Decision:
    """Return the decision of a Gaussian process for two classes, or of one process per
    class. Raises NotImplementedError for processes per pair of classes.
    """
    base = model.base_estimator_
    if model.n_classes_ == 2:
        mean, likely = _latent(base, rows.matrix)
        position = (mean > 0).astype(np.int64)
        return position, np.column_stack([1.0 - likely, likely])
    if not isinstance(base, OneVsRestClassifier):
        raise NotImplementedError("GaussianProcessClassifier with multi_class='one_vs_one'")
    scores = np.stack([_latent(member, rows.matrix)[1] for member in base.estimators_], axis=1)
    return np.argmax(scores, axis=1), scores / scores.sum(axis=1, keepdims=True)


def by_gradient(model: SGDClassifier, rows: Rows) -> Decision:
    """Return the decision of a linear classifier; skl2onnx's labels differ if
    probabilities are 1 or equal.
    """
    scores = rows.sums([model])
    if scores.sample.shape[1] == 1:
        scores = np.hstack([-scores, scores])
    position = np.argmax(scores, axis=1)
    if hasattr(model, "predict_proba"):
        return position, rows.ask(model, "predict_proba")
    return position, scores


def _latent(model: Estimator, x: TracedArray) -> tuple[TracedArray, TracedArray]:
    """Return the latent mean [N] and P(class 1) [N]: Algorithm 3.2 of
    https://gaussianprocess.org/gpml/.
    """
    kernel = _kernel(model.kernel_, x, model.X_train_)
    mean = kernel @ (model.y_train_ - model.pi_)
    solved = (kernel * model.W_sr_) @ np.linalg.inv(model.L_).T
    variance = _kernel(model.kernel_, x) - (solved * solved).sum(axis=1)
    slope = 1.0 / (2.0 * variance)
    squares = np.ravel(LAMBDAS) ** 2
    alpha = slope[:, None]
    error = special.erf(mean[:, None] * np.ravel(LAMBDAS) * np.sqrt(alpha / (alpha + squares)))
    integrals = np.sqrt(np.pi / alpha) * error / (2.0 * np.sqrt(variance * (2 * np.pi)))[:, None]
    return mean, integrals @ np.ravel(COEFS) + 0.5 * float(COEFS.sum())


def _kernel(kernel: kernels.Kernel, x: TracedArray, training: Array | None = None) -> TracedArray:
    """Return the kernel [N, K] between rows x [N, k] and training rows [K, k]. Raises
    NotImplementedError for an unsupported kernel.

    Without training rows, return the kernel of each row with itself, as [N] or a
    number.
    """
    match kernel:
        case kernels.Sum() | kernels.Product():
            combine = operator.add if isinstance(kernel, kernels.Sum) else operator.mul
            return combine(_kernel(kernel.k1, x, training), _kernel(kernel.k2, x, training))
        case kernels.ConstantKernel():
            return float(kernel.constant_value)
        case kernels.WhiteKernel():
            return float(kernel.noise_level) if training is None else 0.0
        case kernels.RBF() if type(kernel) is kernels.RBF:  # Matern is derived from it.
            if training is None:
                return 1.0  # The kernel depends only on the distance, which is 0.
            return np.exp(
                squared_distances(x / kernel.length_scale, training / kernel.length_scale) * -0.5
            )
    raise NotImplementedError(f"the kernel {kernel!r}")


FORMULAS: dict[type, Formula] = {
    DummyClassifier: dummy_classes,
    DummyRegressor: dummy_values,
    IsotonicRegression: lambda model, rows: isotonic([model], rows.matrix[:, :1]),
    EllipticEnvelope: elliptic,
    GaussianMixture: mixture,
    BayesianGaussianMixture: mixture,
    CCA: partial_least_squares,
    PLSCanonical: partial_least_squares,
    PLSRegression: partial_least_squares,
    GaussianProcessClassifier: process_classes,
    LinearDiscriminantAnalysis: by_gradient,
    SGDClassifier: by_gradient,
}
