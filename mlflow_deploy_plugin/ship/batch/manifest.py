"""The parts of a batch, and the manifest `_batch.json` in the output, with which an
interrupted batch can continue.

The manifest contains the model version, the input files and the options. The same
command continues the batch. A command with another model, other options or changed
files is refused. `_SUCCESS` marks a complete batch.
"""

import os
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
from mlflow_deploy_plugin.core.tabular.files import (
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
    input: str,
    input_format: FileFormat | None,
    output_format: FileFormat | None,
) -> list[Part]:
    """Return the input files, sorted by name. As in Spark, a name that begins with `_`
    or a dot is not a part.

    Raises InvalidConfig if there are no files, a format is unknown or two outputs have
    the same name, and OnnxserveError if a bucket fails.
    """
    location = locate_log(input, "--input")
    try:
        (root,) = location.filesystem.get_file_info([location.root])
        if root.type == fs.FileType.NotFound:
            raise InvalidConfig(f"--input {input}: the file or folder does not exist")
        if root.type == fs.FileType.File:
            inputs = [(root.base_name, root)]
        else:
            _refuse_loops(location, input)
            files = _list_files(location)
            inputs = [
                (name, files[name])
                for name in sorted(files)
                if not any(piece[:1] in "_." for piece in name.split("/"))
            ]
    except (OSError, pa.ArrowException) as error:
        raise OnnxserveError(f"--input {input} cannot be reached: {one_line(error, 300)}") from None
    if not inputs:
        raise InvalidConfig(f"--input {input}: the folder has no files")
    parts: dict[str, Part] = {}
    for name, entry in inputs:
        plain = name.removesuffix(Path(name).suffix) if compression_of(name) else name
        kind = input_format or format_of(plain)
        if kind not in _SUFFIXES:
            raise InvalidConfig(
                f"--input {input}: the name of {name} does not have one of the formats "
                f"{', '.join(_SUFFIXES)}; set --input-format",
            )
        output_kind = output_format or kind
        output = (
            plain.removesuffix(Path(plain).suffix) if format_of(plain) else plain
        ) + _SUFFIXES[output_kind]
        if output in parts:
            raise InvalidConfig(
                f"--input {input}: {parts[output].name} and {name} would both become {output}",
            )
        uri = input if root.type == fs.FileType.File else f"{input.rstrip('/')}/{name}"
        parts[output] = Part(name, uri, output, kind, output_kind, entry.size, state_of(entry))
    return list(parts.values())


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
    for folder, names, _ in os.walk(location.root, followlinks=True) if location.is_local else ():
        for path in (Path(folder, name) for name in names):
            if path.is_symlink() and any(
                parent.resolve().is_relative_to(path.resolve()) for parent in path.parents
            ):
                relative = path.relative_to(location.root)
                raise InvalidConfig(
                    f"--input {input}: {relative} is a link to one of its parent folders; remove "
                    "the link",
                )


class BatchOutput:
    def __init__(self, uri: str) -> None:
        if format_of(uri):
            raise InvalidConfig(
                f"--output {uri} is a file name, but the output is a folder with one file per "
                "part: specify a folder, or use `onnxserve predict`, which writes a single file",
            )
        self.uri = uri
        self._location: LogLocation = locate_log(uri, "--output")

    def refuse_overlap(self, input: str) -> None:
        """Raise InvalidConfig if the input and the output folder overlap."""
        read = locate_log(input, "--input")
        if read.is_local != self._location.is_local:
            return
        roots = [
            str(Path(log.root).resolve()) if log.is_local else log.root
            for log in (read, self._location)
        ]
        if any(f"{inner}/".startswith(f"{outer}/") for inner, outer in (roots, reversed(roots))):
            raise InvalidConfig(
                f"--output {self.uri} and --input {input} overlap: specify another folder",
            )

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the output folder, because batches delete each other's unfinished files.
        Raises AlreadyExists.
        """
        if (
            not self._location.is_local
        ):  # A bucket needs no lock, because it has no unfinished files.
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(Path(self._location.root, _LOCK), seconds=0))
            except BlockingIOError:
                raise AlreadyExists(
                    f"--output {self.uri}: another batch is writing to it",
                ) from None
            except OSError as error:
                raise OnnxserveError(
                    f"--output {self.uri} cannot be written: {error.strerror}",
                ) from None
            yield

    def begin(self, manifest: Manifest, restart: bool) -> set[str]:
        """Write the manifest, or continue an existing manifest. Return the finished
        files. Raises like `run_batch`.
        """
        # Convert tuples to lists for the comparison.
        manifest = orjson.loads(orjson.dumps(manifest))
        try:
            files = {*_list_files(self._location)}
            previous: Manifest | None = None
            written: set[str] = set()
            if MANIFEST in files:
                with self._location.filesystem.open_input_file(
                    f"{self._location.root}/{MANIFEST}",
                ) as file:
                    begun: Manifest = orjson.loads(file.read())
                previous = begun
                written = {part["output"] for part in begun["parts"].values()}
            # Replace a local batch without output files: because of the lock, no other
            # batch is running.
            if previous and (restart or (self._location.is_local and not written & files)):
                removable = {MANIFEST, SUCCESS, *written}
                self._remove(
                    {
                        name
                        for name in files
                        if name in removable or name.startswith(f"{REJECTED}/")
                    },
                )
                files = {*_list_files(self._location)}
                previous = None
            # Ignore the lock and the files of a killed writer, whose names begin with a
            # dot.
            if not previous and (
                strange := {name for name in files if not name.rpartition("/")[2].startswith(".")}
            ):
                raise AlreadyExists(
                    f"--output {self.uri} contains {min(strange)}, which is not from a batch: "
                    "specify another folder",
                )
            if previous and (changed := _difference(previous, manifest, files)):
                raise AlreadyExists(
                    f"--output {self.uri} was begun with {changed}; specify another folder, or "
                    "use --restart to delete its files and start again",
                )
            expected = {part["output"] for part in manifest["parts"].values()}
            gone = {SUCCESS} & files if expected - files else set()
            stems = set(map(unfinished_stem, expected))
            self._remove(gone | {name for name in files if name.rpartition(".")[0] in stems})
            if not previous or previous["parts"] != manifest["parts"]:
                content = orjson.dumps(manifest, option=orjson.OPT_INDENT_2)
                write_file(self._location, MANIFEST, content, is_new=not previous)
        except FileExistsError:
            raise AlreadyExists(
                f"--output {self.uri}: another batch has just started to write to it; specify "
                "another folder, or retry when that batch has ended",
            ) from None
        except (OSError, pa.ArrowException) as error:
            reason = one_line(error, 300)
            raise OnnxserveError(f"--output {self.uri} cannot be used: {reason}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise OnnxserveError(
                f"--output {self.uri}: its {MANIFEST} is damaged; specify another folder",
            ) from None
        return files

    def finish(self, summary: Mapping[str, object]) -> None:
        try:
            write_file(self._location, SUCCESS, orjson.dumps(summary, option=orjson.OPT_INDENT_2))
        except OSError as error:
            raise OnnxserveError(f"--output {self.uri} cannot be written: {error}") from None

    def _remove(self, names: set[str]) -> None:
        # Delete the manifest last, because it shows which files are from a batch.
        for name in sorted(names, key=lambda name: name == MANIFEST):
            self._location.filesystem.delete_file(f"{self._location.root}/{name}")


def _difference(known: Manifest, manifest: Manifest, files: set[str]) -> str:
    """Return how `known` differs from `manifest`, or "". An input file may change until
    its predictions are written.
    """
    for field in ("digest", "name", "version"):
        old = known["model"].get(field)
        new = manifest["model"].get(field)
        if old != new:
            versions = [
                f"{entry['model']['name']} {entry['model']['version']}".strip()
                for entry in (known, manifest)
            ]
            change = f"{versions[0]}, and {manifest['model']['uri']} is now {versions[1]}"
            if versions[0] != versions[1]:
                return change
            return f"other files of the model {versions[0]} (another {field})"
    for option in ("input", "keep", "on_error", "format", "input_format"):
        if known.get(option) != manifest.get(option):
            return (
                f"{option.replace('_', '-')} {known.get(option)!r}, and it is now "
                f"{manifest.get(option)!r}"
            )
    before = known["parts"]
    now = manifest["parts"]
    for name in sorted({*before, *now}):
        entries = [parts[name] for parts in (before, now) if name in parts]
        if before.get(name) != now.get(name) and any(part["output"] in files for part in entries):
            if name not in before:
                how = "is new"
            elif name not in now:
                how = "is gone"
            else:
                how = "has changed"
            return f"other files of {known['input']}: {name} {how}"
    return ""
