"""Generated pages are up to date, and the targets of links exist."""

import inspect
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path
from typing import get_args

import click
import pytest

import mlflow_deploy_plugin
import onnxserve
from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core import errors
from mlflow_deploy_plugin.core.spec.monitors import MonitorKind
from mlflow_deploy_plugin.serve.http.routes import ROUTES
from tests.support.guides import README, ROOT, blocks

DOCS = Path(__file__).parents[1] / "docs"
PACKAGE = DOCS.parent / "mlflow_deploy_plugin"
FOLDERS = (".", "docs", "docker", "docker/stack", "projects")
GUIDES = (DOCS / "guides.md").read_text()
PAGES = list(chain.from_iterable(sorted((ROOT / folder).glob("*.md")) for folder in FOLDERS))


@pytest.mark.parametrize(
    ("page", "function"),
    [("reference", "reference"), ("errors", "page")],
)
def test_generated_page_matches_the_code(page, function):
    generator = f"make_{page}.py"
    made = runpy.run_path(str(DOCS / generator))[function]()
    assert (DOCS / f"{page}.md").read_text() == made, f"run python docs/{generator}"


@pytest.mark.long
def test_site_builds_with_its_theme(tmp_path):
    command = [f"{sys.prefix}/bin/mkdocs", "build", "--strict", "--site-dir", f"{tmp_path}/site"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = {page.name: page.read_text() for page in (tmp_path / "site").glob("*.html")}
    assert 'href="monitor.html"' in pages["index.html"]
    assert "docs/monitor.md" not in pages["index.html"]
    assert [name for name, page in pages.items() if re.search("<th[^>]*></th>", page)] == []
    # Links must not differ from text only by colour.
    assert '<link rel="stylesheet" href="site.css">' in pages["index.html"]
    assert [
        name for name, page in pages.items() if 'role="dialog" aria-label="Search"' not in page
    ] == []


def test_pages_stay_few_and_short():
    """A guide has less than 16 kB. Lists (generated pages, the glossary, the public
    names) and the architecture may be longer.
    """
    sizes = {page.name: page.stat().st_size for page in DOCS.glob("*.md")}
    longer = {"architecture.md", "errors.md", "extend.md", "glossary.md", "reference.md"}
    assert len(sizes) <= 46
    assert sum(sizes.values()) <= 537_000
    assert {name for name, size in sizes.items() if size >= 16_000} - longer == set()
    assert (ROOT / "benchmarks" / "RESULTS.md").stat().st_size <= 22_400


def test_readme_is_short_and_lists_versions():
    lines = README.splitlines()
    assert len(lines) <= 70
    assert [line for line in lines if len(line) > 160] == []
    setup = (ROOT / "setup.cfg").read_text()
    first, *_, last = re.findall(r"Python :: (\d\.\d+)$", setup, re.MULTILINE)
    (mlflow,) = re.findall(r"^    mlflow-skinny >= ([\d.]+)", setup, re.MULTILINE)
    (numpy,) = re.findall(r"^    numpy >= ([\d.]+)", setup, re.MULTILINE)
    versions = f"Python {first} to {last}, MLflow {mlflow} or newer, numpy {numpy} or newer"
    assert versions in README
    assert f"python-{first}%20to%20{last}-" in README


def test_guides_list_every_page():
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", GUIDES))
    assert {path.name for path in DOCS.glob("*.md")} - linked == {"guides.md"}


def test_coming_from_page_agrees_with_the_pages_it_names():
    """A company decides by this page, so it names every guide for serving, and each
    name in a row is on the pages of the row or in the reference.
    """
    page = (DOCS / "coming-from.md").read_text()
    (serving,) = re.findall(r"\*\*Serve\*\* \|(.+)", GUIDES)
    guides = set(re.findall(r"\]\(([\w-]+\.md)", serving))
    assert guides - set(re.findall(r"\]\(([\w-]+\.md)", page)) == {"coming-from.md"}
    vocabulary = page.partition("## Vocabulary")[2]
    unknown = {}
    for theirs, ours in re.findall(r"^\| (.+?) \| (.+) \|$", vocabulary, re.MULTILINE):
        pages = {*re.findall(r"\]\(([\w-]+\.md)", ours), "reference.md"}
        known = " ".join((DOCS / name).read_text() for name in pages)
        words = re.findall(r"[\w.-]{3,}", " ".join(re.findall(r"`([^`]+)`", ours)))
        if len(pages) > 1 and any(word not in known for word in words):
            unknown[theirs] = [word for word in words if word not in known]
    assert unknown == {}


FUNCTIONS = {name for name in onnxserve.__all__ if not hasattr(errors, name)} - {"__version__"}


def test_alias_has_the_public_names():
    assert onnxserve is mlflow_deploy_plugin
    assert [name for name in onnxserve.__all__ if not hasattr(onnxserve, name)] == []


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_public_function_is_documented(name):
    function = getattr(onnxserve, name)
    assert f"::: mlflow_deploy_plugin.{name}\n" in (DOCS / "client.md").read_text()
    described = re.findall(r"^    (\w+): ", inspect.getdoc(function) or "", re.MULTILINE)
    assert [
        parameter
        for parameter in inspect.signature(function).parameters
        if parameter not in described
    ] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name
)
def test_documented_commands_and_options_exist(page):
    """The tests that run pages try the content between them
    (tests/support/guides.py).
    """
    for words in _commands(page.read_text()):
        command: click.Command | None = main
        while isinstance(command, click.Group) and words and words[0][0] not in "-…":
            command = command.get_command(click.Context(command), words.pop(0))
        assert command is not None, words
        declared = set(
            chain.from_iterable(
                (*parameter.opts, *parameter.secondary_opts) for parameter in command.params
            )
        )
        options = set(
            chain.from_iterable(
                re.findall(r"^(--[a-z][a-z-]*|-[A-Za-z])(?![\w-])", word) for word in words
            )
        )
        assert options <= declared | {"-h", "--help", "--version"}, (
            f"onnxserve {command.name} {words}"
        )


def test_glossary_paths_exist():
    paths = re.findall(r"`([a-z_]+/[a-z0-9_/]*(?:\.py)?)`", (DOCS / "glossary.md").read_text())
    roots = [DOCS.parent / "mlflow_deploy_plugin", DOCS.parent]
    assert paths
    assert [path for path in paths if not any((root / path).exists() for root in roots)] == []


def test_architecture_modules_and_names_exist():
    page = (DOCS / "architecture.md").read_text()
    folders = ("mlflow_deploy_plugin", "tests", "docs", "docker", "benchmarks")
    modules_of = chain.from_iterable((ROOT / top).rglob("*.py") for top in folders)
    sources = {f"/{path.relative_to(ROOT)}": path.read_text() for path in modules_of}
    modules = set(re.findall(r"`([\w/]+\.py)`", page))
    paths = {name for name in modules if "/" in name}
    assert {
        name for name in paths if not any((root / name).is_file() for root in (PACKAGE, ROOT))
    } == set()
    assert {
        name for name in modules - paths if not any(path.endswith(f"/{name}") for path in sources)
    } == set()
    identifiers = set(
        chain.from_iterable(re.findall(r"\w+", source) for source in sources.values())
    )
    assert {*re.findall(r"`(\w*[A-Z_]\w*)`", page)} - identifiers == set()


def test_routes_and_monitor_kinds_are_documented():
    guides = "\n".join(page.read_text() for page in PAGES)
    paths = {
        route.path.partition("[")[0].format(endpoint="NAME", job="ID")
        for route in ROUTES
        if not route.path.startswith("/pages/")
    }
    assert {path for path in paths if not re.search(rf"[ `]{re.escape(path)}\b", guides)} == set()
    assert [
        kind
        for kind in get_args(MonitorKind)
        if f"| `{kind}` |" not in (DOCS / "monitor.md").read_text()
    ] == []


def test_extension_examples_build(tmp_path):
    page = (DOCS / "extend.md").read_text()
    examples = {
        tmp_path / str(number): document for number, document in enumerate(blocks("toml", page))
    }
    for folder, document in examples.items():
        folder.mkdir()
        for name, code in re.findall(
            r"^`(\w+\.py)`:\n\n```python\n(.*?)```", page, flags=re.MULTILINE | re.DOTALL
        ):
            (folder / name).write_text(code)
        (folder / "pyproject.toml").write_text(document)

    build = (
        "import os, sys; from setuptools import build_meta\n"
        "for folder in sys.argv[1:]: os.chdir(folder); build_meta.build_wheel('.')"
    )
    built = subprocess.run(
        [sys.executable, "-c", build, *map(str, examples)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert built.returncode == 0, built.stderr
    for folder, document in examples.items():
        (wheel,) = folder.glob("*.whl")
        for group in tomllib.loads(document)["project"]["entry-points"].values():
            for entry in group.values():
                assert f"{entry.partition(':')[0]}.py" in zipfile.ZipFile(wheel).namelist()


def _commands(page):
    """Return the words behind `onnxserve` of each command in a block or between
    back-ticks.
    """
    code = re.findall(
        r"^```\w*\n(.*?)^```$|`([^`\n]+)`",
        page.replace("\\\n", " "),
        flags=re.DOTALL | re.MULTILINE,
    )
    start = r"(?:^|[$&|<] |\(|=\S+ )onnxserve ([^|<>&;#$)\n]+)"
    text = "\n".join(chain.from_iterable(code))
    return [command.split() for command in re.findall(start, text, re.MULTILINE)]
