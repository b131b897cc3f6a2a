"""The parts of a batch, and the manifest `_batch.json` in the output, with which an
interrupted batch can continue.

The manifest contains the model version, the input files and the options. The same
command continues the batch. A command with another model, other options or changed
files is refused. `_SUCCESS` marks a complete batch.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypedDict

import orjson
import pyarrow as pa
from pyarrow import fs

from mlflow_deploy_plugin.core.errors import AlreadyExists, InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.statedir.files import locked
from mlflow_deploy_plugin.core.tabular.row_files import (
    FileFormat,
    compression_of,
    format_of,
    unfinished_stem,
)
from mlflow_deploy_plugin.serve.inference_log.storage import LogLocation, locate_log, write_file
from mlflow_deploy_plugin.ship.batch.part import REJECTED, OnError, Part, state_of

MANIFEST = "_batch.json"
SUCCESS = "_SUCCESS"
_LOCK = ".batch.lock"
_SUFFIXES: dict[FileFormat, str] = {"csv": ".csv", "jsonl": ".jsonl", "parquet": ".parquet"}


class ManifestPart(TypedDict):
    output: str
    state: str


class Manifest(TypedDict):
    """The content of `_batch.json`: the model, the options, and the parts by name."""

    model: dict[str, str]
    input: str
    input_digest: str
    keep: Sequence[str]
    on_error: OnError
    format: FileFormat | None
    input_format: FileFormat | None
    parts: dict[str, ManifestPart]


def list_parts(
    input: str, input_format: FileFormat | None, output_format: FileFormat | None
) -> list[Part]:
    """Return the input files, sorted by name. As in Spark, a name that begins with `_`
    or a dot is not a part.

    Raises InvalidConfig if there are no files, a format is unknown or two outputs have
    the same name, and OnnxserveError if the files cannot be reached.
    """
    parts: dict[str, Part] = {}
    location = locate_log(input, "input")
    try:
        (root,) = location.filesystem.get_file_info([location.root])
        if root.type == fs.FileType.NotFound:
            raise InvalidConfig(f"input {input}: the file or folder does not exist")
        files = {root.base_name: root}
        if root.type != fs.FileType.File:
            _refuse_loops(location, input)
            files = _list_files(location)
    except (OSError, pa.ArrowException) as error:
        raise OnnxserveError(f"input {input} cannot be reached: {one_line(error, 300)}") from None
    inputs = [(input, root.base_name, root)]
    if root.type != fs.FileType.File:
        inputs = [
            (f"{input.rstrip('/')}/{name}", name, files[name])
            for name in sorted(files)
            if not re.search(r"(^|/)[_.]", name)
        ]
        if not inputs:
            raise InvalidConfig(f"input {input}: the folder has no files")
    for uri, name, entry in inputs:
        plain = name
        if compression_of(name):
            plain = _without_suffix(name)
        kind = input_format or format_of(plain)
        if kind not in _SUFFIXES:
            raise InvalidConfig(
                f"input {input}: the name of {name} does not have one of the formats "
                f"{', '.join(_SUFFIXES)}; set --input-format"
            )
        stem = _without_suffix(plain) if format_of(plain) else plain
        output = stem + _SUFFIXES[output_format or kind]
        if output in parts:
            raise InvalidConfig(
                f"input {input}: {parts[output].name} and {name} would both become {output}"
            )
        parts[output] = Part(
            name=name,
            uri=uri,
            output=output,
            input_format=kind,
            output_format=output_format or kind,
            size=entry.size,
            state=state_of(entry),
        )
    return list(parts.values())


def _without_suffix(name: str) -> str:
    return name.removesuffix(Path(name).suffix)


def _list_files(location: LogLocation) -> dict[str, fs.FileInfo]:
    """Return the files of a folder or a bucket (relative name → file); empty if the
    folder does not exist.
    """
    selector = fs.FileSelector(location.root, allow_not_found=True, recursive=True)
    entries = location.filesystem.get_file_info(selector)
    return {
        entry.path.removeprefix(location.root).lstrip("/"): entry
        for entry in entries
        if entry.type == fs.FileType.File
    }


def _refuse_loops(location: LogLocation, input: str) -> None:
    """Raise InvalidConfig if an input link leads to one of its parent folders: Linux
    would follow it 40 times.
    """
    if not location.is_local:
        return
    for folder, names, _ in os.walk(location.root, followlinks=True):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                continue
            target = path.resolve()
            if any(parent.resolve().is_relative_to(target) for parent in path.parents):
                relative = path.relative_to(location.root)
                raise InvalidConfig(
                    f"input {input}: {relative} is a link to one of its parent folders; remove "
                    "the link"
                )


class BatchOutput:
    def __init__(self, uri: str) -> None:
        if format_of(uri):
            raise InvalidConfig(
                f"output {uri} is a file name, but the output is a folder with one file per "
                "part: specify a folder, or use `onnxserve predict`, which writes a single file"
            )
        self.uri = uri
        self._location: LogLocation = locate_log(uri, "output")

    def refuse_overlap(self, input: str) -> None:
        """Raise InvalidConfig if the input and the output folder overlap."""
        read = locate_log(input, "input")
        if read.is_local != self._location.is_local:
            return
        roots = [read.root, self._location.root]
        if read.is_local:
            roots = [os.path.realpath(root) for root in roots]
        if any(f"{inner}/".startswith(f"{outer}/") for inner, outer in (roots, reversed(roots))):
            raise InvalidConfig(
                f"output {self.uri} and input {input} overlap: specify another folder"
            )

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the output folder, because batches delete each other's unfinished files.
        Raises AlreadyExists.
        """
        # A bucket needs no lock, because it has no unfinished files.
        if not self._location.is_local:
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(Path(self._location.root, _LOCK), seconds=0))
            except BlockingIOError:
                raise AlreadyExists(f"output {self.uri}: another batch is writing to it") from None
            except OSError as error:
                raise OnnxserveError(
                    f"output {self.uri} cannot be written: {error.strerror}"
                ) from None
            yield

    def begin(self, manifest: Manifest, restart: bool) -> set[str]:
        """Write the manifest, or continue an existing manifest. Return the finished
        files.

        With `restart`, the files of another batch are deleted. Raises AlreadyExists if
        the output belongs to another batch, and OnnxserveError if it cannot be used.
        """
        # Convert tuples to lists for the comparison.
        manifest = orjson.loads(orjson.dumps(manifest))
        try:
            previous: Manifest | None = None
            files = {*_list_files(self._location)}
            if MANIFEST in files:
                with self._location.filesystem.open_input_file(
                    f"{self._location.root}/{MANIFEST}"
                ) as file:
                    previous = orjson.loads(file.read())
                outputs = _outputs(previous)
                # Because of the lock, no other batch writes to a local folder now.
                is_replaceable = self._location.is_local and not outputs & files
                if restart or is_replaceable:
                    previous = None
                    rejected = {name for name in files if name.startswith(f"{REJECTED}/")}
                    self._remove(rejected | files & {MANIFEST, SUCCESS, *outputs})
                    files = {*_list_files(self._location)}
            if previous is None:
                # Ignore the lock and the files of a killed writer, whose names begin
                # with a dot.
                strange = {name for name in files if not name.rpartition("/")[2].startswith(".")}
                if strange:
                    raise AlreadyExists(
                        f"output {self.uri} contains {min(strange)}, not from a batch: "
                        "specify another folder"
                    )
            else:
                difference = _model_difference(
                    previous["model"], manifest["model"]
                ) or _input_difference(previous, manifest, files)
                if difference:
                    raise AlreadyExists(
                        f"output {self.uri} was begun with {difference}; specify another "
                        "folder, or use --restart to delete its files and start again"
                    )
            outputs = _outputs(manifest)
            stems = set(map(unfinished_stem, outputs))
            obsolete = {name for name in files if name.rpartition(".")[0] in stems}
            if outputs - files:
                obsolete |= {SUCCESS} & files
            self._remove(obsolete)
            if not previous or previous["parts"] != manifest["parts"]:
                write_file(
                    self._location,
                    MANIFEST,
                    orjson.dumps(manifest, option=orjson.OPT_INDENT_2),
                    is_new=not previous,
                )
        except FileExistsError:
            raise AlreadyExists(
                f"output {self.uri}: another batch has just started to write to it; specify "
                "another folder, or retry when that batch has ended"
            ) from None
        except (OSError, pa.ArrowException) as error:
            raise OnnxserveError(
                f"output {self.uri} cannot be used: {one_line(error, 300)}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise OnnxserveError(
                f"output {self.uri}: its {MANIFEST} is damaged; specify another folder"
            ) from None
        return files

    def finish(self, summary: Mapping[str, object]) -> None:
        try:
            write_file(self._location, SUCCESS, orjson.dumps(summary, option=orjson.OPT_INDENT_2))
        except OSError as error:
            raise OnnxserveError(f"output {self.uri} cannot be written: {error}") from None

    def _remove(self, names: set[str]) -> None:
        # Delete the manifest last, because it shows which files are from a batch.
        for name in sorted(names, key=lambda name: name == MANIFEST):
            self._location.filesystem.delete_file(f"{self._location.root}/{name}")


def _outputs(manifest: Manifest) -> set[str]:
    return {part["output"] for part in manifest["parts"].values()}


def _model_difference(begun: dict[str, str], model: dict[str, str]) -> str:
    """Return how the model of an earlier batch differs from `model`, or ""."""
    before = f"{begun['name']} {begun['version']}".strip()
    now = f"{model['name']} {model['version']}".strip()
    for field in ("digest", "name", "version"):
        if begun.get(field) == model.get(field):
            continue
        if before != now:
            return f"{before}, and {model['uri']} is now {now}"
        return f"other files of the model {before} (another {field})"
    return ""


def _input_difference(begun: Manifest, manifest: Manifest, files: set[str]) -> str:
    """Return how the options or the input files differ, or "". A file may change until
    its predictions are written.
    """
    for option in ("input", "keep", "on_error", "format", "input_format"):
        if begun.get(option) != manifest.get(option):
            name = option.replace("_", "-")
            return f"{name} {begun.get(option)!r}, and it is now {manifest.get(option)!r}"
    before = begun["parts"]
    now = manifest["parts"]
    for name in sorted({*before, *now}):
        entries = [parts[name] for parts in (before, now) if name in parts]
        is_predicted = any(part["output"] in files for part in entries)
        if before.get(name) == now.get(name) or not is_predicted:
            continue
        if name not in before:
            how = "is new"
        elif name not in now:
            how = "is gone"
        else:
            how = "has changed"
        return f"other files of {begun['input']}: {name} {how}"
    return ""
