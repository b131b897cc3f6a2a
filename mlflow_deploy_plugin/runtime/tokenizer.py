"""The tokenizer of a text model: it converts a column of texts into the token arrays of the graph, before each run.

The schema, the batcher and the capture of a text model only see texts. The `tokenizers` library (Rust) tokenizes as in
training, without torch or transformers. Texts of similar length are computed together, because a run pads its texts to
the longest text.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlflow_deploy_plugin.errors import InvalidArtifact, NotInstalled, SchemaMismatch
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.runtime.artifact import TokenizerSpec
from mlflow_deploy_plugin.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.runtime.values import short_repr

_MAX_CHARACTERS = 200_000
"""The maximum number of characters that are tokenized at once, and thus of a text: they may take a second and 90 MB."""
_RUN_TOKENS = 2**11
"""The maximum number of tokens in one run, unless a single text is longer. Larger runs are not faster per token."""

Run = Callable[..., list[Array]]
"""A session's `run(output names, feeds, options)`."""

_Tokens = tuple[list[int], list[int]]
"""The ids and the type ids of a row's tokens. The type ids are empty if the graph does not read them."""


class TextTokenizer:
    """The tokenizer of a saved model. All threads may call it.

    Raises NotInstalled if `tokenizers` is not installed, and InvalidArtifact if its file cannot be read.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        try:
            from tokenizers import Tokenizer  # Only text models need this library.
        except ImportError:
            raise NotInstalled(
                "a text model needs tokenizers, which is not installed: pip install 'mlflow-onnxserve[text]'"
            ) from None
        try:
            self._tokenizer = Tokenizer.from_file(str(spec.file))
        except Exception as error:  # noqa: BLE001 - the library raises the class Exception
            raise InvalidArtifact(f"{spec.file.name} cannot be read: {one_line(error, 300)}") from None
        self._spec = spec
        self._padding: dict[str, Any] = self._tokenizer.padding or {}
        self._has_types = "token_type_ids" in spec.graph_inputs
        self._tokenizer.no_padding()  # The lengths of the texts determine which texts are padded together.

    def feeds(self, texts: Sequence[str]) -> Feeds:
        """Return the arrays [N, longest] int64 by graph input. Raises SchemaMismatch for a text that is refused."""
        return self._pad(self._tokenize(texts))

    def feeding(self, run: Run) -> Run:
        """Return a function like `run` whose only feed is texts [N]. It may compute several runs."""

        def run_texts(names: Sequence[str], feeds: Feeds, options: object = None) -> list[Array]:
            (texts,) = feeds.values()
            rows = self._tokenize(texts.tolist())
            order = sorted(range(len(rows)), key=lambda row: -len(rows[row][0]))
            parts, start = [], 0
            while start < len(order):
                end = start + max(_RUN_TOKENS // len(rows[order[start]][0]), 1)
                parts.append(run(names, self._pad([rows[row] for row in order[start:end]]), options))
                start = end
            places = np.argsort(order)
            return [np.concatenate(arrays)[places] for arrays in zip(*parts, strict=True)]

        return run_texts

    def _tokenize(self, texts: Sequence[str]) -> list[_Tokens]:
        """Return each text's tokens. Raises SchemaMismatch for too many characters or tokens, or invalid Unicode."""
        if len(longest := max(texts, key=len)) > _MAX_CHARACTERS:
            reason = f"has {len(longest)} characters; at most {_MAX_CHARACTERS} are accepted"
            raise SchemaMismatch(f"the text {short_repr(longest)} {reason}")
        # The library's objects are large: drop them after each text if there are many characters.
        groups = [texts] if sum(map(len, texts)) <= _MAX_CHARACTERS else [[text] for text in texts]
        return [tokens for group in groups for tokens in self._encode(group)]

    def _encode(self, texts: Sequence[str]) -> list[_Tokens]:
        most, prompted = self._spec.max_length, [self._spec.prefix + text for text in texts]
        try:
            encodings = self._tokenizer.encode_batch_fast(prompted)  # The usual function also computes offsets.
        except (TypeError, UnicodeError):
            raise SchemaMismatch("a text is not valid Unicode: it contains half of a surrogate pair") from None
        for text, encoding in zip(texts, encodings, strict=True):
            if not 0 < len(encoding) <= most:
                remedy = ": shorten it, or wrap with truncation=True" if len(encoding) else ""
                reason = f"has {len(encoding)} tokens, and the model accepts 1 to {most}{remedy}"
                raise SchemaMismatch(f"the text {short_repr(text)} {reason}")
        return [(encoding.ids, encoding.type_ids if self._has_types else []) for encoding in encodings]

    def _pad(self, rows: Sequence[_Tokens]) -> Feeds:
        padding, longest = self._padding, max(len(ids) for ids, _ in rows)
        pads = {"input_ids": padding.get("pad_id", 0), "token_type_ids": padding.get("pad_type_id", 0)}
        feeds = {name: np.full((len(rows), longest), pads.get(name, 0)) for name in self._spec.graph_inputs}
        for index, (ids, types) in enumerate(rows):
            part = slice(longest - len(ids), None) if padding.get("direction") == "left" else slice(len(ids))
            for name, array in feeds.items():
                array[index, part] = {"input_ids": ids, "token_type_ids": types}.get(name, 1)
        return feeds
