"""`onnxserve wrap` converts an existing model to checked ONNX and registers it as the
next version; `sign` and `verify` write and check the signature of a version.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import (
    align_columns,
    flag,
    model_argument,
    option,
    output_option,
    path_option,
    show_progress,
    show_result,
    show_table,
)
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri, registry_uri
from mlflow_deploy_plugin.core.spec.steps import (
    SIGNATURE_SUFFIX,
    STEPS_FILE,
    read_steps,
    steps_digest,
)
from mlflow_deploy_plugin.core.tabular.row_files import FILE_FORMATS, FileFormat

if TYPE_CHECKING:
    from mlflow_deploy_plugin.serve.runtime.artifact import Input, Output
    from mlflow_deploy_plugin.wrap.flavor.signing import SignedVersion


@click.command()
@click.argument("model", required=False)
@option(
    "--registry SELECTOR",
    "Instead of MODEL, list all registered models with this alias, stage or tag, and the form in "
    "which a server would serve each. Requires --dry-run.",
)
@option("--register NAME", "Registered model of the new version.", show_default="the name of MODEL")
@path_option(
    "--data",
    "Rows for the check and the reference: CSV, JSON, JSON Lines or Parquet. Other columns are "
    "ignored.",
    show_default="the input example, otherwise rows generated from the signature",
)
@option(
    "-t --content-type",
    "Format of FILE.",
    type=click.Choice(FILE_FORMATS),
    show_default="from its name",
)
@option(
    "--predict-fn",
    "pyfunc_predict_fn",
    "Result of the new version: labels and values, or probabilities.",
    type=click.Choice(["predict", "predict_proba"]),
    show_default="as in the model",
)
@option(
    "--parity",
    "If predictions differ: refuse the version, or register it in the state `warned`.",
    type=click.Choice(["require", "warn"]),
    default="require",
)
@flag("--allow-pickle", "Load a joblib or pickle file, which can run any code.")
@option(
    "--drop COLUMN",
    "Column that the model does not read. Requests may contain it. May be repeated.",
    multiple=True,
)
@option(
    "--event-time COLUMN",
    "Column with the time of each row of the reference, which the model does not read.",
)
@flag("--dry-run", "Convert and check the model, but do not register it.")
@output_option
def wrap(data: Path | None, content_type: FileFormat | None, output: str, **options: Any) -> None:
    """Convert a model to checked ONNX as a new registered version.

    MODEL is a registered version of any MLflow flavor. With --register, it may also be
    the model of a run, the folder of an MLmodel file, or a joblib, pickle, ONNX, Keras,
    torch or PMML file. A PMML file is not converted: it becomes a pyfunc. The new
    version keeps signature, input example, tags, description and run. Stages and
    aliases do not move; use `onnxserve promote`. Exit status 1 if MODEL cannot be
    converted, or if its ONNX form predicts differently. MODEL can still be served
    without conversion.

    \b
      onnxserve wrap models:/old/3 --dry-run
      onnxserve wrap models:/old/3 --data rows.csv
      onnxserve wrap model.joblib --allow-pickle --data rows.csv --register old
      onnxserve wrap --registry @champion --dry-run
    """
    model = _model_or_listed(output, options)
    from mlflow_deploy_plugin.wrap.flavor.example_rows import read_rows
    from mlflow_deploy_plugin.wrap.flavor.registered import wrap_registered

    rows = None if data is None else read_rows(data, content_type)
    wrapped = wrap_registered(model, data=rows, progress=show_progress, **options)
    document = {
        "source": wrapped.source,
        "name": wrapped.name,
        "version": wrapped.version or None,
        "model_id": wrapped.model_id or None,
        "run_id": wrapped.run_id or None,
        "model": wrapped.model,
        "inputs": _tensors(wrapped.inputs),
        "outputs": _tensors(wrapped.outputs),
        "prediction": wrapped.prediction,
        "parity": wrapped.report.figures(),
        "warnings": wrapped.warnings,
    }
    state: str = wrapped.report.state
    if state != "no-original":
        state = f"{state} on {wrapped.report.rows:,} rows"
    target = f"the next version of {wrapped.name} would be"
    if wrapped.version:
        target = f"{wrapped.name} version {wrapped.version}:"
    form = "the pyfunc" if wrapped.is_pyfunc else "the ONNX form"
    table = []
    for tensor in wrapped.inputs:
        columns = "".join(tensor.columns[:1])
        if len(tensor.columns) > 1:
            columns = f"{len(tensor.columns)} columns"
        table.append(_row("  input", tensor, columns))
    proofs = {}
    for proof in wrapped.report.outputs:
        text = f"agrees on {proof.agreement:.4%} of the rows"
        if proof.role != "label":
            text += (
                f", largest error {proof.max_absolute_error:.2g}, {proof.max_excess:.0%} of the "
                "tolerance"
            )
        if proof.ties:
            text += f", {proof.ties} ties"
        proofs[proof.name] = text
    table += [_row("  output", entry, proofs.get(entry.name, "")) for entry in wrapped.outputs]
    lines = [
        f"{target} {form} of {wrapped.source} ({wrapped.model}), {state}",
        *align_columns(table),
    ]
    if wrapped.report.repair:
        lines.append(f"  {wrapped.report.repair}")
    if wrapped.version:
        lines.append(
            f"  next: onnxserve promote models:/{wrapped.name}/{wrapped.version} --to @champion"
        )
    show_result(output, document, lines)


def _model_or_listed(output: str, options: dict[str, Any]) -> str:
    """Take MODEL and --registry out of the options, and return MODEL. With --registry,
    print the forms of the registered models that it selects, and end the command.
    """
    model: str | None = options.pop("model")
    registry: str | None = options.pop("registry")
    if model is not None and registry is None:
        return model
    if registry is None or model is not None:
        raise click.UsageError("specify either MODEL or --registry SELECTOR")
    if not options["dry_run"]:
        raise click.UsageError(
            "--registry requires --dry-run, which lists the models; wrap each of them by its URI"
        )
    from mlflow_deploy_plugin.wrap.flavor.registry_forms import registered_forms

    forms = [*registered_forms(parse_model_uri(registry_uri(registry)))]
    table = [("model", "version", "flavor", "form", "reason", "consent")]
    table += [
        (form.name, form.version, form.flavor, form.form, form.reason, form.consent)
        for form in forms
    ]
    empty = f"no registered model has {registry}"
    show_table(output, [asdict(form) for form in forms], table, empty)
    raise click.exceptions.Exit


@click.command()
@model_argument
@option(
    "--key FILE|URI",
    "Private key: a PEM file with an elliptic-curve key, or a PKCS#11 URI.",
    required=True,
)
@option(
    "--certificate FILE",
    "Certificate of the key, if servers trust its authority and not the key.",
    default="",
)
@option(
    "--chain FILE",
    "Certificate between --certificate and the authority. May be repeated.",
    multiple=True,
)
@output_option
def sign(model_uri: str, key: str, certificate: str, chain: tuple[str, ...], output: str) -> None:
    """Sign all files of a version, or a file of steps.

    The signature is a bundle of OpenSSF Model Signing, the file model.sig next to the
    files of the version. It changes neither the digest of the version nor its verdicts.
    The signature of steps is the file steps.py.sig.

    \b
      onnxserve sign models:/flight-delay/7 --key release.key
      onnxserve sign models:/flight-delay/7 --key 'pkcs11:object=key?pin-source=pin'
      onnxserve sign steps.py --key release.key
    """
    from mlflow_deploy_plugin.core.signatures import Signer
    from mlflow_deploy_plugin.wrap.flavor.signing import sign_version

    signer = Signer(key, certificate, chain)
    if model_uri.endswith(".py"):
        file = Path(model_uri)
        source = read_steps(file)["steps"]
        signer.sign_text(STEPS_FILE, source, file.with_name(file.name + SIGNATURE_SUFFIX))
        digest = steps_digest(source)
        document = {"file": model_uri, "digest": digest}
        show_result(output, document, [f"{model_uri} is signed (sha256 {digest})"])
        return
    signed = sign_version(model_uri, signer)
    show_result(output, asdict(signed), [_signature_line(signed, "signed")])


@click.command()
@model_argument
@path_option(
    "--key", "PEM file with the public key, or with the certificates of authorities.", required=True
)
@output_option
def verify(model_uri: str, key: Path, output: str) -> None:
    """Check the signature of a version.

    Exit status 1 unless the key, or a certificate of an authority, has signed exactly
    the files that the version has now.

    \b
      onnxserve verify models:/flight-delay/7 --key release.pub
    """
    from mlflow_deploy_plugin.core.signatures import trust_file
    from mlflow_deploy_plugin.wrap.flavor.signing import verify_version

    verified = verify_version(model_uri, trust_file(key))
    show_result(output, asdict(verified), [_signature_line(verified, "signed and verified")])


def _signature_line(version: "SignedVersion", what: str) -> str:
    return f"{version.model_uri}: {version.files} files are {what} (sha256 {version.digest})"


def _tensors(entries: "Sequence[Input | Output]") -> list[dict[str, object]]:
    return [
        {"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape} for tensor in entries
    ]


def _row(kind: str, tensor: "Input | Output", text: str) -> tuple[str, ...]:
    return kind, tensor.name, tensor.dtype, str(list(tensor.shape)), text
