"""The release workflow's own steps, and the commands of the checklist, in a clone."""

import re
import subprocess

import pytest
import yaml

from mlflow_deploy_plugin.core.version import __version__
from tests.support.guides import ROOT, run_page
from tests.support.workflows import Workflow

RELEASE = ROOT / ".github/workflows/release.yaml"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Return a separate repository with the committed files."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "somebody@example.org")
    folder = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{ROOT}", str(folder))
    return folder


@pytest.mark.long
def test_release_checklist_passes_workflow(clone):
    run_page("../RELEASING.md", clone, "")
    tag = git(clone, "tag").strip()

    assert tag == "v0.2.0"
    assert git(clone, "log", "-1", "--format=%s").strip() == "Release 0.2.0"
    assert sorted(path.name for path in (clone / "dist").iterdir()) == [
        "mlflow_onnxserve-0.2.0-py3-none-any.whl",
        "mlflow_onnxserve-0.2.0.tar.gz",
    ]
    version, notes, _ = Workflow(RELEASE, clone, environment={"GITHUB_REF_NAME": tag}).run(
        "build", leave_out=["Build"]
    )
    assert (version.status, notes.status) == (0, 0), version.output + notes.output
    written = (clone / "release" / "notes.md").read_text()
    assert "### Added" in written
    assert "## [" not in written


@pytest.mark.long
def test_pypi_page_links_to_tag(clone):
    at = "https://github.com/somebody/onnxserve"
    tag = f"v{__version__}"
    environment = {
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "somebody/onnxserve",
    }
    leave_out = [
        "Read the version from the package and compare it with the tag",
        "Extract the notes from the changelog",
        "Build",
    ]

    (linked,) = Workflow(RELEASE, clone, environment={**environment, "GITHUB_REF_NAME": tag}).run(
        "build", leave_out
    )

    assert linked.status == 0, linked.output
    links = re.findall(r"\]\(([^)#]+)", (clone / "README.md").read_text())
    ours = [link.removeprefix(f"{at}/") for link in links if link.startswith(at)]
    assert all(link.startswith("https://") for link in links)
    assert f"raw/{tag}/docs/pictures/console-overview.png" in ours
    assert {"actions/workflows/ci.yaml", "issues"} <= {*ours}
    files = [link.split("/", 2)[2] for link in ours if f"/{tag}/" in link]
    assert [name for name in files if not (clone / name).exists()] == []
    assert f"\nurl = {at}\n" in (clone / "setup.cfg").read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ("tag", "step", "said"),
    [
        ("v9.9.9", 0, f"the tag is v9.9.9, and version.py says {__version__}"),
        (f"v{__version__}", 1, f"CHANGELOG.md has no section [{__version__}]"),
    ],
)
def test_unfit_tag_is_refused(clone, tag, step, said):
    (clone / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n- Much.\n")

    steps = Workflow(RELEASE, clone, environment={"GITHUB_REF_NAME": tag}).run(
        "build", leave_out=["Build"]
    )

    assert steps[-1].status == 1
    assert steps[step].error == said


def test_version_is_defined_once():
    """Only version.py contains the version, and charts, whose format requires it as
    text.
    """
    places = ("mlflow_deploy_plugin", "docker", "setup.cfg", "pyproject.toml", "Makefile")
    files = git(ROOT, "grep", "-lwF", __version__, "--", *places).split()
    assert [name for name in files if not name.endswith("Chart.yaml")] == [
        "mlflow_deploy_plugin/core/version.py"
    ]
    for name in set(files) - {"mlflow_deploy_plugin/core/version.py"}:
        chart = yaml.safe_load((ROOT / name).read_text())
        assert {str(chart["version"]), str(chart["appVersion"])} == {__version__}


def git(folder, *arguments):
    return subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
