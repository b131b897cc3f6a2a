import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
MODELS: dict[str, Callable[[], Any]] = {
    "OLS": lambda: sm.OLS(DATA.value, ROWS).fit(),
    "OLS by formula": lambda: smf.ols("value ~ c + a", DATA).fit(),
    "OLS by interactions": lambda: smf.ols("value ~ a * b + a:b:c", DATA).fit(),
    "OLS of interactions alone": lambda: smf.ols("value ~ a:c - 1", DATA).fit(),
    "OLS of an intercept alone": lambda: smf.ols("value ~ 1", DATA).fit(),
    "quantile": lambda: sm.QuantReg(DATA.value, ROWS).fit(q=0.3),
    "robust": lambda: sm.RLM(DATA.value, ROWS).fit(),
    "Logit": lambda: sm.Logit(DATA.late, ROWS).fit(disp=0),
    "Logit by formula": lambda: smf.logit("late ~ b", DATA).fit(disp=0),
    "Poisson": lambda: sm.Poisson(DATA["count"], ROWS).fit(disp=0),
    "multinomial": lambda: sm.MNLogit(DATA.kind, ROWS).fit(disp=0),
    "GLM Poisson": lambda: smf.glm("count ~ a + b", DATA, family=FAMILIES.Poisson()).fit(),
    "GLM gamma": lambda: sm.GLM(
        DATA.value.abs() + 1, ROWS.abs() + 1, family=FAMILIES.Gamma()
    ).fit(),
    "GLM cloglog": lambda: sm.GLM(
        DATA.late, ROWS, family=FAMILIES.Binomial(FAMILIES.links.CLogLog())
    ).fit(),
    "GLM root": lambda: sm.GLM(
        DATA["count"], ROWS.abs(), family=FAMILIES.Poisson(FAMILIES.links.Sqrt())
    ).fit(),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_linear_predictor_with_its_link_is_proven(name, tmp_path):
    results = MODELS[name]()

    save_model(results, tmp_path / "model", input_example=ROWS)

    predictions = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(ROWS.head(9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = results.predict(ROWS.head(9))
    assert type(predictions) is type(wanted)
    np.testing.assert_allclose(np.asarray(predictions), np.asarray(wanted), rtol=1e-9)


def test_an_array_is_read_in_the_order_of_the_parameters():
    wrapped = wrap(
        sm.OLS(DATA.value, sm.add_constant(ROWS)).fit(), sm.add_constant(ROWS.to_numpy())
    )

    assert wrapped.report.state == "proven"
    assert wrapped.converted.inputs[0].dtype == "float64"


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "categories": (
        lambda: smf.ols("value ~ a + C(city)", DATA).fit(),
        r"its term 'C\(city\)\[T.rome\]' is computed",
    ),
    "time series": (
        lambda: sm.tsa.ARIMA(DATA.value.to_numpy(), order=(1, 0, 0)).fit(),
        "ARIMA cannot be converted",
    ),
    "dispersion": (
        lambda: sm.NegativeBinomial(DATA["count"], ROWS).fit(disp=0),
        "NegativeBinomial cannot be",
    ),
    "probit": (
        lambda: sm.GLM(DATA.late, ROWS, family=FAMILIES.Binomial(FAMILIES.links.Probit())).fit(),
        "link Probit",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_results_are_refused_with_mlflows_flavor(name, tmp_path):
    make, reason = REFUSED[name]
    with pytest.raises(ConversionError, match=rf"{reason}.* mlflow.statsmodels.log_model"):
        save_model(make(), tmp_path / "model", input_example=DATA)


def test_a_formula_reads_its_own_columns_of_a_table_with_texts():
    wrapped = wrap(MODELS["OLS by interactions"](), DATA)

    assert wrapped.signature.inputs.input_names() == ["a", "b", "c"]
    assert wrapped.report.state == "proven"


def test_a_formula_needs_a_table():
    with pytest.raises(InvalidConfig, match=r"formula.*table"):
        wrap(smf.ols("value ~ a", DATA).fit(), ROWS.to_numpy())


def test_an_example_that_the_results_refuse_is_a_config_error():
    with pytest.raises(InvalidConfig, match=r"input_example: .*not aligned"):
        wrap(sm.OLS(DATA.value, ROWS).fit(), ROWS.assign(further=1.0))


def test_refused_results_are_logged_with_mlflows_own_flavor(tracking):
    results = REFUSED["categories"][0]()

    info = log_model(results, name="model", input_example=DATA, pip_requirements=["statsmodels"])

    assert "statsmodels" in info.flavors
    assert "C(city)" in mlflow.get_logged_model(info.model_id).tags["onnxserve.fallback"]
