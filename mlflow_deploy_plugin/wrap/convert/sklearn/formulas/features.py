"""Formulas of transformers: selected columns, projections, random features, scalers,
bins, splines.
"""

from functools import reduce
from math import factorial

import numpy as np
from scipy import special
from scipy.interpolate import BSpline
from sklearn import feature_selection, preprocessing
from sklearn.cluster import FeatureAgglomeration
from sklearn.decomposition import FactorAnalysis, FastICA, MiniBatchSparsePCA, SparsePCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.impute import MissingIndicator
from sklearn.kernel_approximation import (
    AdditiveChi2Sampler,
    PolynomialCountSketch,
    RBFSampler,
    SkewedChi2Sampler,
)
from sklearn.neural_network import BernoulliRBM
from sklearn.random_projection import SparseRandomProjection

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator, marks_nan
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.neighbours import squared_distances
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.rows import Formula, Rows
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import (
    Traced,
    TracedArray,
    counted,
    of_column,
    take,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import Computed, Selection, Transforming


def selected(model: Estimator, rows: Rows) -> TracedArray:
    return rows.matrix[:, np.flatnonzero(model.get_support())]


def transformed(model: Transforming, rows: Rows) -> TracedArray:
    """Return the distances from cluster centres, or the projection of a discriminant
    analysis.
    """
    within = model.estimator
    if not isinstance(within, LinearDiscriminantAnalysis):
        return np.sqrt(squared_distances(rows.matrix, within.cluster_centers_))
    centred = rows.matrix - within.xbar_ if within.solver == "svd" else rows.matrix
    return centred @ within.scalings_[:, : within._max_components]


def called(model: preprocessing.FunctionTransformer, rows: Rows) -> TracedArray:
    """Return the columns of a user's numpy function. Raises NotImplementedError, which
    names the unsupported operation, if the function cannot be recorded.
    """
    if model.func is None:
        return rows.matrix
    name = getattr(model.func, "__name__", repr(model.func))
    options = model.kw_args or {}
    try:
        answer = model.func(rows.matrix, **options)
    except _FUNCTION_ERRORS as error:
        raise NotImplementedError(
            f"its option func={name} is a Python function with {error}"
        ) from None
    if not isinstance(answer, Traced) or answer.ndim != 2:
        raise NotImplementedError(
            f"its option func={name} is a Python function that does not return computed columns"
        )
    return answer.astype(float)


_FUNCTION_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""The errors of a user's function that cannot be recorded."""


def marked(model: MissingIndicator, rows: Rows) -> TracedArray:
    if not marks_nan(model):
        raise NotImplementedError("MissingIndicator with missing_values other than NaN")
    return np.isnan(rows.matrix)[:, model.features_].astype(float)


def factors(model: FactorAnalysis, rows: Rows) -> TracedArray:
    """Return the latent factors of the rows."""
    weighted = model.components_ / model.noise_variance_
    covariance = np.linalg.inv(np.eye(len(model.components_)) + weighted @ model.components_.T)
    return (rows.matrix - model.mean_) @ weighted.T @ covariance


def independent(model: FastICA, rows: Rows) -> TracedArray:
    centred = rows.matrix - model.mean_ if model.whiten else rows.matrix
    return centred @ model.components_.T


def sparse_components(model: Estimator, rows: Rows) -> TracedArray:
    """Return the ridge regression of a row on the components."""
    components = model.components_
    gram = components @ components.T + model.ridge_alpha * np.eye(len(components))
    return (rows.matrix - model.mean_) @ np.linalg.solve(gram, components).T


def agglomerated(model: FeatureAgglomeration, rows: Rows) -> TracedArray:
    """Return the pooled number of each group of columns."""
    groups = (np.flatnonzero(model.labels_ == label) for label in np.unique(model.labels_))
    return np.stack([model.pooling_func(rows.matrix[:, group], axis=1) for group in groups], axis=1)


def _random_cosines(x: TracedArray, model: Estimator) -> TracedArray:
    scale = (2.0 / model.n_components) ** 0.5
    return np.cos(x @ model.random_weights_ + model.random_offset_) * scale


def additive_chi2(model: AdditiveChi2Sampler, rows: Rows) -> TracedArray:
    """Return the square roots of the columns, and a cosine and a sine of their
    logarithms per step. Features of 0 are 0.
    """
    interval = model.sample_interval or _CHI2_INTERVALS[model.sample_steps]
    x = rows.matrix
    is_zero = x == 0
    logarithm = interval * np.log(np.where(is_zero, 1.0, x))
    parts = [np.sqrt(x * interval)]
    for step in range(1, model.sample_steps):
        factor = np.sqrt(2.0 * x * interval / np.cosh(np.pi * step * interval))
        parts.append(factor * np.cos(step * logarithm))
        parts.append(factor * np.sin(step * logarithm))
    return np.hstack([np.where(is_zero, 0.0, part) for part in parts])


def count_sketch(model: PolynomialCountSketch, rows: Rows) -> TracedArray:
    """Return the inverse Fourier transform of the product of the sketches' Fourier
    transforms, by matrix products.
    """
    x = rows.matrix * np.sqrt(model.gamma)
    if model.coef0 != 0:
        x = np.hstack([x, np.full_like(x[:, :1], np.sqrt(model.coef0))])
    count = model.n_components
    fourier = np.fft.fft(np.eye(count))
    real: TracedArray = 1.0
    imaginary: TracedArray = 0.0
    for columns, signs in zip(model.indexHash_, model.bitHash_, strict=True):
        sketch = np.eye(count)[columns] * signs[:, None]
        real_part = x @ (sketch @ fourier.real)
        imaginary_part = x @ (sketch @ fourier.imag)
        next_real = real * real_part - imaginary * imaginary_part
        imaginary = real * imaginary_part + imaginary * real_part
        real = next_real
    return real @ (fourier.real / count) + imaginary @ (fourier.imag / count)


def products(model: preprocessing.PolynomialFeatures, rows: Rows) -> TracedArray:
    """Return products of columns in the precision of the rows. Products of equal degree
    are computed together.
    """
    x = rows.own
    parts = []
    degrees = model.powers_.sum(axis=1)
    for degree in np.unique(degrees):  # The products are ordered by degree.
        # Each product is a list of as many columns as its degree; a square is a column
        # twice.
        products_of_degree = [
            np.repeat(np.arange(len(powers)), powers) for powers in model.powers_[degrees == degree]
        ]
        factors = [x[:, indices] for indices in np.transpose(products_of_degree)]
        if factors:
            parts.append(reduce(np.multiply, factors))
        else:
            parts.append(np.ones_like(x[:, :1]))
    return np.hstack(parts)


def scaled(model: Estimator, rows: Rows) -> TracedArray:
    """Scale in scikit-learn's order and precision: skl2onnx's inverse scale moves
    numbers across thresholds.
    """
    x = rows.own
    steps: list[tuple[np.ufunc, Array]] = []
    match model:
        case preprocessing.MinMaxScaler():
            steps = [(np.multiply, model.scale_), (np.add, model.min_)]
            if model.clip:
                low, high = model.feature_range
                steps.append((np.maximum, np.array([low], x.dtype)))
                steps.append((np.minimum, np.array([high], x.dtype)))
        case preprocessing.StandardScaler():
            if model.with_mean:
                steps.append((np.subtract, model.mean_.astype(x.dtype)))
            if model.with_std:
                steps.append((np.divide, model.scale_.astype(x.dtype)))
        case preprocessing.RobustScaler():
            if model.with_centering:
                steps.append((np.subtract, model.center_))
            if model.with_scaling:
                steps.append((np.divide, model.scale_))
        case _:
            steps.append((np.divide, model.scale_))
    for operation, values in steps:
        x = operation(x, values).astype(x.dtype)
    return x


def binarized(model: preprocessing.Binarizer, rows: Rows) -> TracedArray:
    """Return 1 if a value is above the threshold in the precision of the rows,
    otherwise 0.
    """
    threshold = np.float32(model.threshold) if rows.is_single else model.threshold
    return (rows.matrix > float(threshold)).astype(float)


def binned(model: preprocessing.KBinsDiscretizer, rows: Rows) -> TracedArray:
    """Return the number of inner edges up to each value, as a code or one-hot
    encoded.
    """
    codes = []
    for column, edges in enumerate(model.bin_edges_):
        inner = edges[1:-1] if len(edges) > 2 else [np.inf]
        codes.append(np.digitize(rows.matrix[:, column], inner))
    if model.encode == "ordinal":
        return np.column_stack(codes).astype(float)
    flags = [
        code[:, None] == np.arange(count) for code, count in zip(codes, model.n_bins_, strict=True)
    ]
    return np.hstack(flags).astype(float)


def box_cox(x: TracedArray, powers: Array) -> TracedArray:
    """Return the power transform (x**power - 1) / power, or the logarithm for a power
    of 0.
    """
    is_zero = np.abs(powers) < np.spacing(1.0)
    divisors = np.where(is_zero, 1.0, powers)
    return np.where(is_zero, np.log(x), (x**powers - 1.0) / divisors)


def yeo_johnson(x: TracedArray, powers: Array) -> TracedArray:
    """Return the power transform of https://doi.org/10.1093/biomet/87.4.954."""
    upper = np.where(x >= 0, x, 0.0) + 1.0
    lower = 1.0 - np.where(x >= 0, 0.0, x)
    return np.where(x >= 0, box_cox(upper, powers), -box_cox(lower, 2 - powers))


def powered(model: preprocessing.PowerTransformer, rows: Rows) -> TracedArray:
    """Return the Box-Cox or Yeo-Johnson transform, standardised if required."""
    transform = box_cox if model.method == "box-cox" else yeo_johnson
    transformed_rows = transform(rows.matrix, model.lambdas_)
    if model.standardize:
        return (transformed_rows - model._scaler.mean_) / model._scaler.scale_
    return transformed_rows


def ranked(model: preprocessing.QuantileTransformer, rows: Rows) -> TracedArray:
    """Return the quantile of each value in the training rows, or its normal deviate.
    skl2onnx's graph takes minutes.
    """
    lowest = model.quantiles_[0]
    highest = model.quantiles_[-1]
    values = rows.own if rows.is_single else rows.matrix
    share = _shares(model, np.clip(rows.matrix, lowest, highest))
    if model.output_distribution == "uniform":
        is_lowest = values <= lowest
        return np.where(is_lowest, 0.0, np.where(values >= highest, 1.0, share))
    # Like scikit-learn, read a value within the margin of the extremes as an extreme.
    margin = np.asarray(_MARGIN, values.dtype)
    is_lowest = values - margin < lowest
    share = np.where(is_lowest, 0.0, np.where(values + margin > highest, 1.0, share))
    limit = _MARGIN - np.spacing(1.0)
    share = share.astype(values.dtype).astype(float)
    # AS 241 computes normal deviates to 16 digits for shares above 1e-11:
    # https://doi.org/10.2307/2347330.
    share = np.clip(share, limit, 1.0 - limit)
    centred = share - 0.5
    square = 0.180625 - centred * centred  # 0.425 squared
    tail = np.sqrt(-np.log(np.minimum(share, 1.0 - share))) - 1.6
    near = _polynomial(square, _NEAR[0]) / _polynomial(square, _NEAR[1])
    far = _polynomial(tail, _FAR[0]) / _polynomial(tail, _FAR[1])
    return np.where(np.abs(centred) <= 0.425, centred * near, np.where(centred < 0, -far, far))


def _shares(model: preprocessing.QuantileTransformer, x: TracedArray) -> TracedArray:
    """Return the share of the training rows below each value x [N, k]. Interpolate in
    both directions like scikit-learn, since quantiles may be equal.
    """
    quantiles = model.quantiles_
    shares = model.references_
    # Equal quantiles divide by 0, but no value is between them.
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.diff(shares)[:, None] / np.diff(quantiles, axis=0)
    last = len(quantiles) - 1
    start = np.clip(counted(quantiles, np.less_equal, x) - 1, 0, last - 1)
    upwards = of_column(slopes, start) * (x - of_column(quantiles, start)) + take(shares, start)
    end = np.clip(counted(quantiles, np.less, x), 1, last)
    # This is the negative share.
    downwards = of_column(slopes, end - 1) * (of_column(quantiles, end) - x) - take(shares, end)
    upwards = np.where(x >= quantiles[-1], 1.0, upwards)
    return 0.5 * (upwards - np.where(x <= quantiles[0], 0.0, downwards))


def _polynomial(x: TracedArray, coefficients: tuple[float, ...]) -> TracedArray:
    """Return a polynomial of x. The coefficient of the highest power is the first."""
    return reduce(lambda total, coefficient: total * x + coefficient, coefficients)


def splines(model: preprocessing.SplineTransformer, rows: Rows) -> TracedArray:
    """Return the basis splines of each column."""
    columns = []
    for number, spline in enumerate(model.bsplines_):
        x = rows.matrix[:, number]
        lowest = float(spline.t[spline.k])
        highest = float(spline.t[-spline.k - 1])
        inside = x
        if model.extrapolation == "periodic":
            inside = lowest + np.remainder(x - lowest, highest - lowest)
        elif model.extrapolation in ("constant", "linear"):
            inside = np.clip(x, lowest, highest)
        values = _polynomials(spline, inside)
        if model.extrapolation in ("constant", "linear"):
            # scikit-learn continues only the outermost splines. With repeated knots,
            # other splines are not 0 at the boundary, but 0 beyond.
            is_line = model.extrapolation == "linear"
            continued = max(spline.k, 1 + (spline.k > 0)) if is_line else spline.k
            first = np.arange(spline.c.shape[1]) < continued
            for knot, is_beyond, is_continued in (
                (lowest, x < lowest, first),
                (highest, x > highest, first[::-1]),
            ):
                beyond = (x - knot)[:, None] * (spline(knot, nu=1) * is_line) + spline(knot)
                values = np.where(is_beyond[:, None], beyond * is_continued, values)
        if getattr(model, "handle_missing", "error") == "zeros":
            values = np.where(np.isnan(x)[:, None], 0.0, values)
        if not model.include_bias:
            values = values[:, : spline.c.shape[1] - 1]
        columns.append(values)
    return np.hstack(columns)


def _polynomials(spline: BSpline, x: TracedArray) -> TracedArray:
    """Return the basis splines of numbers within the knots, as polynomials between
    adjacent knots.
    """
    degree = spline.k
    knots = np.unique(spline.t[degree : len(spline.t) - degree])
    starts = knots[: max(len(knots) - 1, 1)]  # A constant column has only one knot.
    position = (x[:, None] >= starts).astype(np.int64).sum(axis=1)
    position = np.maximum(position - 1, 0)
    derivatives = [spline(starts, nu=n) / factorial(n) for n in range(degree + 1)]
    step = x - take(starts, position)
    powers = [np.ones_like(step), *(step**n for n in range(1, degree + 1))]
    power_table = np.stack(powers, axis=1)
    coefficients = take(np.stack(derivatives, axis=1), position)
    return (coefficients * power_table[:, :, None]).sum(axis=1)


_CHI2_INTERVALS = {1: 0.8, 2: 0.5, 3: 0.4}
"""scikit-learn's default intervals of AdditiveChi2Sampler by number of steps."""
_MARGIN = 1e-7
"""scikit-learn's BOUNDS_THRESHOLD: the minimum distance of shares from 0 and 1, whose
deviates are infinite.
"""
_NEAR = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_FAR = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177,
     1.27045825245236838258, 3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),  # noqa: E501
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966,
     0.14810397642748007459, 0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),  # noqa: E501
)  # fmt: skip

SCALERS = (
    preprocessing.StandardScaler,
    preprocessing.MinMaxScaler,
    preprocessing.MaxAbsScaler,
    preprocessing.RobustScaler,
)
_SELECTORS = (
    feature_selection.GenericUnivariateSelect,
    feature_selection.SelectFromModel,
    feature_selection.SelectPercentile,
    feature_selection.SequentialFeatureSelector,
    feature_selection.RFE,
    feature_selection.RFECV,
    Selection,
)
FORMULAS: dict[type, Formula] = {
    **dict.fromkeys(_SELECTORS, selected),
    Transforming: transformed,
    MissingIndicator: marked,
    FactorAnalysis: factors,
    FastICA: independent,
    SparsePCA: sparse_components,
    MiniBatchSparsePCA: sparse_components,
    FeatureAgglomeration: agglomerated,
    RBFSampler: lambda model, rows: _random_cosines(rows.matrix, model),
    SkewedChi2Sampler: lambda model, rows: _random_cosines(
        np.log(rows.matrix + model.skewedness), model
    ),
    **dict.fromkeys(SCALERS, scaled),
    preprocessing.Binarizer: binarized,
    preprocessing.KBinsDiscretizer: binned,
    Computed: lambda model, rows: model.compute(rows.matrix),
    preprocessing.FunctionTransformer: called,
    preprocessing.PowerTransformer: powered,
    preprocessing.QuantileTransformer: ranked,
    AdditiveChi2Sampler: additive_chi2,
    PolynomialCountSketch: count_sketch,
    preprocessing.PolynomialFeatures: products,
    preprocessing.SplineTransformer: splines,
    BernoulliRBM: lambda model, rows: special.expit(
        rows.matrix @ model.components_.T + model.intercept_hidden_
    ),
    SparseRandomProjection: lambda model, rows: (
        rows.matrix @ np.asarray(model.components_.todense()).T
    ),
}
