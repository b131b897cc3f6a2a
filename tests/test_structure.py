"""The figures of small texts, the slack of 2 %, and the limits that `--record` writes."""

import json
from pathlib import Path

import pytest

from tests.structure import density, main, measure_text, worse

TWELVE_NAMES = "".join(f"    {name} = 1\n" for name in "abcdefghijkl")
THIRTEEN_NAMES = TWELVE_NAMES + "    m = 1\n"
MANY_NAMES = "functions with 13 or more local names, per 1,000"
LARGE = "functions over 400 tokens, per 1,000"


def measure(text: str) -> dict[str, float]:
    return density("code", [measure_text(text, Path("code.py"))])


@pytest.mark.parametrize(
    ("figure", "text", "value"),
    [
        ("tokens per code line", "if a:\n    print(a)\n\n", 3.5),
        ("tokens per code line", '"""Text."""\na = 1  # a comment\n"""A description."""\n', 3),
        ("tokens per code line", 'a = f"{b + c} and {d!r:>{width}}"\n', 3),
        ("% of code lines over 100 columns", f"a = {'1' * 97}\na = {'1' * 96}\n# {'1' * 99}\n", 50),
        ("tuple-packed assignments per 1,000 code lines", "a, b = 1, 2\na = 1, 2\n", 500),
        ("tuple-packed assignments per 1,000 code lines", "a, b = b, a\na, b = f()\n", 0),
        ("inline ifs per 1,000 code lines", "a = 1 if b else 2\na = 1\n", 500),
        ("walrus operators per 1,000 code lines", "print(a := 1)\na = 1\n", 500),
        ("nested comprehensions per 1,000 code lines", "[a for b in c for a in b]\n", 1000),
        ("nested comprehensions per 1,000 code lines", "{a: [b for b in a] for a in c}\n", 1000),
        ("nested comprehensions per 1,000 code lines", "[a for a in b if a]\n", 0),
        (MANY_NAMES, f"def f():\n{THIRTEEN_NAMES}", 1000),
        (MANY_NAMES, f"def f(m):\n{TWELVE_NAMES}", 0),
        (MANY_NAMES, f"def f():\n{TWELVE_NAMES}    def g():\n        m = 1\n", 0),
        (LARGE, "def f():\n" + "    f(1)\n" * 99, 1000),
        (LARGE, "def f():\n" + "    f(1)\n" * 98, 0),
    ],
)
def test_a_short_text_has_the_figure(figure: str, text: str, value: float) -> None:
    assert measure(text)[f"code: {figure}"] == value


def test_only_the_names_of_tests_can_read_as_a_translation() -> None:
    figure = "code: % of test names that read as a translation"

    assert figure not in measure("def find_what_is_known(): ...\n")
    assert measure("def test_a(): ...\ndef test_what_is_known(): ...\n")[figure] == 50


def test_a_figure_may_exceed_its_limit_by_two_percent() -> None:
    limits: dict[str, float] = {"tokens of core": 1000}

    assert worse(limits, {"tokens of core": 1020}) == []
    assert worse(limits, {"tokens of core": 1021}) == ["tokens of core: 1,021, limit 1,000"]


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file for the limits of a tree with the parts `core` and `serve`, of three tokens each."""
    for folder in ("tests", "mlflow_deploy_plugin/core", "mlflow_deploy_plugin/serve"):
        path = tmp_path / folder
        path.mkdir(parents=True)
        (path / "code.py").write_text("a = 1\n")
    (tmp_path / "mlflow_deploy_plugin/__init__.py").write_text("a = 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tests/structure.json"


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr("sys.argv", ["structure", *options])
    return main()


def test_a_new_part_is_worse_until_it_is_recorded(limits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits.write_text("{}")

    assert run(monkeypatch) == 1
    assert run(monkeypatch, "--record") == 0
    assert run(monkeypatch) == 0


def test_worse_figures_are_not_recorded(
    limits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits.write_text("{}")
    run(monkeypatch, "--record")
    figures = json.loads(limits.read_text())
    before = {"tokens of core": 2, "tokens of serve": 4, "tokens of a part that is gone": 5}
    limits.write_text(json.dumps(figures | before))
    capsys.readouterr()

    assert run(monkeypatch, "--record") == 1
    assert capsys.readouterr().out.startswith("tokens of core: 3, limit 2\n1 of ")
    assert json.loads(limits.read_text()) == figures | {"tokens of core": 2}


def test_the_densest_functions_are_listed_first(
    limits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    functions = f"def g():\n{TWELVE_NAMES}\ndef f():\n{THIRTEEN_NAMES}\ndef h(): ...\n"
    for folder in ("tests", "mlflow_deploy_plugin/core"):
        Path(folder, "code.py").write_text(functions)

    run(monkeypatch, "--worst", "2")

    places = [line.split("tokens")[1].strip() for line in capsys.readouterr().out.splitlines()]
    assert places == [
        "mlflow_deploy_plugin/core/code.py:15 f",
        "mlflow_deploy_plugin/core/code.py:1 g",
        "tests/code.py:15 f",
        "tests/code.py:1 g",
    ]
