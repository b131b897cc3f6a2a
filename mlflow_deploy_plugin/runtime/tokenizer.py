"""The tokenizer of a text model: it converts columns of texts into the token arrays of the graph, before each run.

The schema, the batcher and the capture of a text model only see texts. The `tokenizers` library (Rust) tokenizes as in
training, without torch or transformers. Texts of similar length are computed together, because a run pads its texts to
the longest text.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy_plugin.errors import InvalidArtifact, NotInstalled, SchemaMismatch
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.runtime.artifact import TokenizerSpec
from mlflow_deploy_plugin.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.runtime.values import short_repr

if TYPE_CHECKING:
    from tokenizers import Encoding

_MAX_CHARACTERS = 1_000_000
"""The maximum length of a text: tokenizing a text of this length takes up to two seconds."""
_RUN_TOKENS = 2**12
"""The maximum number of tokens in one run, unless a single text is longer. Larger runs are not faster per token."""

Run = Callable[..., list[Array]]
"""A session's `run(output names, feeds, options)`."""


class TextTokenizer:
    """The tokenizer of a saved model. All threads may call it.

    Raises NotInstalled if `tokenizers` is not installed, and InvalidArtifact if its file cannot be read.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        # The server's threads use all cores, and the library's own threads do not survive a fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            from tokenizers import Tokenizer  # Only text models need this library.
        except ImportError:
            raise NotInstalled(
                "a text model needs tokenizers, which is not installed here: pip install 'mlflow-onnxserve[text]'"
            ) from None
        try:
            self._tokenizer = Tokenizer.from_file(str(spec.file))
        except Exception as error:  # noqa: BLE001 - the library raises the class Exception
            raise InvalidArtifact(f"{spec.file.name} cannot be read: {one_line(error, 300)}") from None
        self._spec = spec
        self._padding: dict[str, Any] = self._tokenizer.padding or {}
        self._tokenizer.no_padding()  # The lengths of the texts determine which texts are padded together.

    def feeds(self, *columns: Sequence[str]) -> Feeds:
        """Return the arrays [N, longest] int64 by graph input. The second column contains the second text of each row.

        Raises SchemaMismatch for a text that has too many characters or tokens, or is not valid Unicode.
        """
        return self._pad(self._encode(columns))

    def feeding(self, run: Run) -> Run:
        """Return a function like `run` whose feeds are texts [N]. It computes several runs for many or long texts."""

        def run_texts(names: Sequence[str], feeds: Feeds, options: object = None) -> list[Array]:
            encodings = self._encode([array.tolist() for array in feeds.values()])
            lengths = np.array([len(encoding) for encoding in encodings])
            order = np.argsort(-lengths, kind="stable")
            parts, start = [], 0
            while start < len(order):
                end = start + max(_RUN_TOKENS // max(int(lengths[order[start]]), 1), 1)
                parts.append(run(names, self._pad([encodings[row] for row in order[start:end]]), options))
                start = end
            rows = np.argsort(order)
            return [np.concatenate(arrays)[rows] for arrays in zip(*parts, strict=True)]

        return run_texts

    def _encode(self, columns: Sequence[Sequence[str]]) -> "list[Encoding]":
        spec = self._spec
        for text in (text for column in columns for text in column):
            if len(text) > _MAX_CHARACTERS:
                raise SchemaMismatch(
                    f"the text {short_repr(text)} has {len(text)} characters; at most {_MAX_CHARACTERS} are accepted"
                )
        if spec.prefix:
            columns = [[spec.prefix + text for text in columns[0]], *columns[1:]]
        try:
            encodings = self._tokenizer.encode_batch(
                columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
            )
        except (TypeError, UnicodeError):
            raise SchemaMismatch("a text is not valid Unicode: it contains half of a surrogate pair") from None
        for row, encoding in enumerate(encodings):
            if not 0 < len(encoding) <= spec.max_length:
                raise SchemaMismatch(
                    f"the text {short_repr(columns[0][row])} has {len(encoding)} tokens; 1 to {spec.max_length} are "
                    "accepted, and this model does not truncate texts"
                )
        return encodings

    def _pad(self, encodings: "Sequence[Encoding]") -> Feeds:
        longest = max(map(len, encodings))
        ids, types = (self._padding.get(name, 0) for name in ("pad_id", "pad_type_id"))
        is_left = self._padding.get("direction") == "left"
        feeds = {}
        for name in self._spec.graph_inputs:
            attribute, pad = {"input_ids": ("ids", ids), "token_type_ids": ("type_ids", types)}.get(
                name, ("attention_mask", 0)
            )
            feeds[name] = array = np.full((len(encodings), longest), pad, np.int64)
            for row, encoding in enumerate(encodings):
                values = getattr(encoding, attribute)
                array[row, longest - len(values) if is_left else 0 :][: len(values)] = values
        return feeds
