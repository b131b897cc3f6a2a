"""What leads from a registered model version to the reports of its monitors: tags, and a section of its description."""

from datetime import datetime

from mlflow_deploy_plugin.errors import NotFound, RegistryUnavailable
from mlflow_deploy_plugin.monitoring.result import MonitorResult
from mlflow_deploy_plugin.registry import registry_client, registry_errors, tag_version, write_description_section

PREFIX = "onnxserve.monitor."
"""Behind it ENDPOINT/MONITOR, and /window, /report: names hold dots, and no slash."""
_WINDOW, _REPORT = "/window", "/report"
_MOST_LINES = 10


def link_report_to_version(result: MonitorResult, report: str) -> None:
    """Tags the version with state, window and report of the monitor's newest window, and lists them in its
    description. What was served from a folder or a run has no page to be found from.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    if not result.version.isdigit():
        return
    model, version = result.model, result.version
    tag = f"{PREFIX}{result.endpoint}/{result.monitor}"
    try:
        tags = _tags(model, version)
        if _is_newer(tags.get(f"{tag}{_WINDOW}", ""), result):
            return
        said = {
            f"{tag}{_WINDOW}": f"{result.window.start.isoformat()}/{result.window.end.isoformat()}",
            f"{tag}{_REPORT}": report,
            tag: result.state,  # last: whoever sees it finds the rest
        }
        try:
            _tag(model, version, said)
        except RegistryUnavailable:  # MLflow fails where two set a new tag at the same time; now it is there
            _tag(model, version, said)
        write_description_section(model, version, _lines({**tags, **said}))
    except NotFound:
        return  # deleted since it answered: the run stands


def _tag(model: str, version: str, said: dict[str, str]) -> None:
    for name, value in said.items():
        tag_version(model, version, name, value)


def _tags(model: str, version: str) -> dict[str, str]:
    with registry_errors(f"model {model} version {version}"):
        return dict(registry_client().get_model_version(model, version).tags)


def _is_newer(window: str, result: MonitorResult) -> bool:
    """Whether the tag's window begins after the one that is judged: one that was made up later changes nothing."""
    try:
        return datetime.fromisoformat(window.partition("/")[0]) > result.window.start
    except ValueError:
        return False


def _lines(tags: dict[str, str]) -> list[str]:
    """A table in Markdown, the newest window first."""
    monitors = [name.removesuffix(_WINDOW) for name in tags if name.startswith(PREFIX) and name.endswith(_WINDOW)]
    monitors.sort(key=lambda name: tags[name + _WINDOW], reverse=True)
    rows = []
    for name in monitors[:_MOST_LINES]:
        start, _, end = tags[name + _WINDOW].partition("/")
        report = tags.get(name + _REPORT, "")
        link = f"[report]({report})" if report.startswith(("http://", "https://")) else f"`{report}`"
        shown = name.removeprefix(PREFIX).replace("/", ", ")
        rows.append(f"| {shown} | {tags.get(name, '')} | {start[:16]} – {end[:16]} | {link} |")
    return ["| monitor | verdict | window (UTC) | |", "| --- | --- | --- | --- |", *rows]
