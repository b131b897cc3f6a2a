"""Files of steps become a part of the spec, or are refused with their line."""

import hashlib

import pytest

from mlflow_deploy_plugin.core.errors import InvalidArtifact, InvalidConfig
from mlflow_deploy_plugin.core.spec.document import (
    apply_config,
    dump_spec,
    load_specs,
    load_stored_specs,
    new_endpoint,
    steps_files,
    validate_spec,
)
from mlflow_deploy_plugin.core.spec.parts import ServeSpec
from mlflow_deploy_plugin.core.store.audit import describe_change
from mlflow_deploy_plugin.serve.runtime.steps import load_steps
from tests.support.refusals import mentions, refused

SOURCE = "def before(request):\r\n    return request.inputs  # é\n"
SPEC = "{name: e, variants: {v: {model: x}}, serve: {steps: steps.py}}"


def test_spec_contains_the_source(tmp_path):
    file = tmp_path / "steps.py"
    file.write_text(SOURCE)
    (tmp_path / "steps.py.sig").write_text("{}")
    assert steps_files(SPEC, tmp_path) == [file]
    (spec,) = load_specs(SPEC, tmp_path)
    assert spec == apply_config(new_endpoint("e", "x", variant="v"), {"serve.steps": str(file)})
    assert (spec.serve.steps, spec.serve.signature) == (SOURCE, "{}")
    assert spec.serve.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert load_stored_specs(dump_spec(spec)) == [spec]
    without = apply_config(spec, {"serve.steps": ""})
    assert without.serve == ServeSpec()
    digest = f"serve.steps sha256 {spec.serve.digest[:12]}"
    assert describe_change(without, spec) == ("serve.steps not set", digest)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def before(request):\n  return (\n", ["steps.py line 2", "never closed"]),
        ("x = 1\n", ["neither before(request) nor after(outputs, request)"]),
        ("async def before(request): ...\n", ["line 1", "def before(request)"]),
        ("def after(outputs): ...\n", ["line 1", "def after(outputs, request)"]),
        ("a\0b\n", ["steps.py line 1", "null"]),
        ("#" * 65536 + "\n", ["65537 bytes", "65536"]),
        ("(" * 10_000 + "\n", ["steps.py line 1"]),
        (None, ["steps.py", "No such file"]),
        (b"\xff\n", ["steps.py", "not a text"]),
    ],
)
def test_unusable_file_is_refused(tmp_path, source, words):
    file = tmp_path / "steps.py"
    if source is not None:
        file.write_bytes(source if isinstance(source, bytes) else source.encode())
    with pytest.raises(InvalidConfig) as refusal:
        load_specs(SPEC, tmp_path)
    assert mentions(refusal.value.message, "serve.steps", *words)


@pytest.mark.parametrize(
    ("source", "error"), [("(", InvalidConfig), ("import gone", InvalidArtifact)]
)
def test_steps_are_called_by_the_name_of_their_file(tmp_path, source, error):
    (tmp_path / "clean.py").write_text(f"{source}\ndef before(request): ...\n")
    with refused(error, "clean.py line 1"):
        (spec,) = load_specs(SPEC.replace("steps.py", "clean.py"), tmp_path)
        load_steps(spec.serve.steps or "", load_stored_specs(dump_spec(spec))[0].serve.file)


@pytest.mark.parametrize("file", ["", "a/b.py", "a\nb.py", "a\x7f.py", "x" * 256])
def test_impossible_name_of_the_file_is_refused(file):
    with refused(InvalidConfig, "serve.file"):
        validate_spec({"name": "e", "variants": {"v": {"model": "x"}}, "serve": {"file": file}})


def test_path_is_refused_without_a_folder():
    with pytest.raises(InvalidConfig, match=r"the path 'steps\.py'"):
        load_specs(SPEC)
