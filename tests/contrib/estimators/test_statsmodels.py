import warnings
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pandas as pd
import pytest

if TYPE_CHECKING:
    import statsmodels.api as sm
    import statsmodels.formula.api as smf
else:
    sm = pytest.importorskip("statsmodels.api")
    smf = pytest.importorskip("statsmodels.formula.api")

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.wrap.flavor.save import log_model, save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.refusals import refused
from tests.wrap.conftest import cases, proven

pytestmark = pytest.mark.filterwarnings("ignore")


def _data():
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(200, 3)), columns=list("abc"))
    table["city"] = random.choice(["oslo", "rome"], 200)
    table["value"] = table.a * 2 - table.b + random.normal(size=200)
    return table.assign(
        late=(table.value > 0) * 1, count=random.poisson(2, 200), kind=random.integers(0, 3, 200)
    )


DATA = _data()
ROWS = DATA[["a", "b", "c"]]
FAMILIES = sm.families
MODELS = {
    "OLS by interactions": lambda: smf.ols("value ~ a * b + a:b:c", DATA).fit(),
    "OLS of interactions alone": lambda: smf.ols("value ~ a:c - 1", DATA).fit(),
    "Logit": lambda: sm.Logit(DATA.late, ROWS).fit(disp=0),
    "Poisson": lambda: sm.Poisson(DATA["count"], ROWS).fit(disp=0),
    "multinomial": lambda: sm.MNLogit(DATA.kind, ROWS).fit(disp=0),
    "GLM gamma": lambda: sm.GLM(
        DATA.value.abs() + 1, ROWS.abs() + 1, family=FAMILIES.Gamma()
    ).fit(),
    "GLM cloglog": lambda: sm.GLM(
        DATA.late, ROWS, family=FAMILIES.Binomial(FAMILIES.links.CLogLog())
    ).fit(),
}
SELDOM = {
    "OLS": lambda: sm.OLS(DATA.value, ROWS).fit(),
    "OLS of an intercept alone": lambda: smf.ols("value ~ 1", DATA).fit(),
    "quantile": lambda: sm.QuantReg(DATA.value, ROWS).fit(q=0.3),
    "robust": lambda: sm.RLM(DATA.value, ROWS).fit(),
    "GLM Poisson": lambda: smf.glm("count ~ a + b", DATA, family=FAMILIES.Poisson()).fit(),
    "GLM root": lambda: sm.GLM(
        DATA["count"], ROWS.abs(), family=FAMILIES.Poisson(FAMILIES.links.Sqrt())
    ).fit(),
}


@pytest.mark.parametrize("make", [*cases(MODELS), *cases(SELDOM, is_long=True)])
def test_linear_predictor_is_proven(make, tmp_path):
    results = make()

    save_model(results, tmp_path / "model", input_example=ROWS)

    predictions = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(ROWS.head(9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = results.predict(ROWS.head(9))
    assert type(predictions) is type(wanted)
    np.testing.assert_allclose(np.asarray(predictions), np.asarray(wanted), rtol=1e-9)


def test_array_has_the_parameter_order():
    wrapped = proven(
        sm.OLS(DATA.value, sm.add_constant(ROWS)).fit(), sm.add_constant(ROWS.to_numpy())
    )

    assert wrapped.converted.inputs[0].dtype == "float64"


PROBIT = FAMILIES.Binomial(FAMILIES.links.Probit())
REFUSED = {
    "categories": (lambda: smf.ols("value ~ a + C(city)", DATA).fit(), "C(city)[T.rome]"),
    "time series": (
        lambda: sm.tsa.ARIMA(DATA.value.to_numpy(), order=(1, 0, 0)).fit(),
        "ARIMA",
    ),
    "dispersion": (
        lambda: sm.NegativeBinomial(DATA["count"], ROWS).fit(disp=0),
        "NegativeBinomial",
    ),
    "probit": (lambda: sm.GLM(DATA.late, ROWS, family=PROBIT).fit(), "link Probit"),
}


@pytest.mark.parametrize(("make", "reason"), cases(REFUSED))
def test_unsupported_results_are_refused(make, reason, tmp_path):
    with refused(ConversionError, reason, "mlflow.statsmodels.log_model"):
        save_model(make(), tmp_path / "model", input_example=DATA)


def test_formula_reads_its_columns():
    signature = proven(MODELS["OLS by interactions"](), DATA).signature

    assert signature.inputs.input_names() == ["a", "b", "c"]


def test_unfit_example_is_refused():
    with refused(InvalidConfig, "formula", "table"):
        wrap(smf.ols("value ~ a", DATA).fit(), ROWS.to_numpy())
    with refused(InvalidConfig, "input_example", "not aligned"):
        wrap(sm.OLS(DATA.value, ROWS).fit(), ROWS.assign(further=1.0))


@pytest.mark.long
def test_refused_results_have_mlflows_flavor(tracking):
    results = REFUSED["categories"][0]()

    info = log_model(results, name="model", input_example=DATA, pip_requirements=["statsmodels"])

    assert "statsmodels" in info.flavors
    assert "C(city)" in mlflow.get_logged_model(info.model_id).tags["onnxserve.fallback"]
