import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.evaluation_names import (
    DISTURBANCES,
    check_strengths,
    parse_strengths,
)


def test_disturbance_has_default_strengths():
    assert check_strengths(parse_strengths(["missing", "noise=0.5,0.1,0.5"])) == {
        "noise": (0.1, 0.5),
        "missing": DISTURBANCES["missing"].strengths,
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "noise=-1",
            r"noise cannot have the strength -1\.0; a number above 0, up to 1e\+06, is expected",
        ),
        ("noise=nan", "noise cannot have the strength nan"),
        ("noise=inf", "noise cannot have the strength inf"),
        (
            "missing=1.5",
            r"missing cannot have the strength 1\.5; a share above 0, up to 1, is expected",
        ),
        ("scale=0", r"scale cannot have the strength 0\.0"),
        ("noise=much", r"--strengths 'noise=much' is not NAME=STRENGTH,STRENGTH"),
        ("noise=", "is not NAME=STRENGTH"),
        ("nois=1", r"there is no disturbance 'nois'; did you mean 'noise'\?"),
        ("xyzzy", "there is no disturbance 'xyzzy'; the disturbances are noise, missing, "),
        (
            "noise=" + ",".join(map(str, range(1, 22))),
            "noise has 21 strengths; at most 20 are measured",
        ),
    ],
)
def test_invalid_strengths_error_shows_range(entry, message):
    with pytest.raises(InvalidConfig, match=message):
        check_strengths(parse_strengths([entry]))


def test_strengths_may_be_scalars_or_arrays():
    assert check_strengths(
        {"noise": 1, "swap": np.float32(0.5), "missing": np.array([0.5, 0.1])}
    ) == {"noise": (1.0,), "missing": (0.1, 0.5), "swap": (0.5,)}


def test_repeated_disturbance_is_refused():
    with pytest.raises(InvalidConfig, match=r"--strengths .*'noise' twice"):
        parse_strengths(["noise=1", "noise=2"])
