"""The tokenizer of a text model: it converts a column of texts into the token arrays of
the graph, before each run.

The schema, the batcher and the capture of a text model only see texts. The `tokenizers`
library (Rust) tokenizes as in training, without torch or transformers. Texts of similar
length are computed together, because a run pads its texts to the longest text.

A tokenizer that truncates would tokenize the complete text first. Therefore only the
start of a long text is tokenized if the tokenizer is known to read a text word by word
(`_reads_words`).
"""

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    InvalidArtifact,
    NotInstalled,
    SchemaMismatch,
    pass_exit,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.serve.runtime.artifact import TokenizerSpec
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.values import short_repr

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_MAX_CHARACTERS = 200_000
"""The maximum number of characters of a text: they may take half a second and 90 MB."""
_CHARACTERS_AT_ONCE = 20_000
"""The number of characters that are tokenized between two looks at the clock, unless a
single text is longer.
"""
_CHARACTERS_PER_TOKEN = 8
"""The length of the first start of a text that is tokenized. English has 4 to 5
characters per token.
"""
_ADDS_SPACES = r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""The characters of Chinese, around which BertNormalizer adds spaces."""
_BECOMES_SPACE = r"\u037a\ufc5e-\ufc63\ufe70-\ufe7e\uff9e\uff9f"
"""The letters of which NFKD and StripAccents leave at most a space."""
_END_OF_WORD = re.compile(rf"[^\W_{_ADDS_SPACES}{_BECOMES_SPACE}](?= [^\W_])")
"""The place where a text may be cut: a single space between letters or digits, which
nothing combines with.

The excluded letters may end with a space after the normalizer, which the rest of the
text could extend.
"""
_LOCAL_NORMALIZERS = {
    "BertNormalizer",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Prepend",
    "Strip",
    "StripAccents",
}
_SPLIT_AT_SPACES = {"BertPreTokenizer", "ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit"}
_SPLIT_MORE = {"Digits", "Punctuation"}
_RUN_TOKENS = 2**11
"""The maximum number of tokens in one run, unless a single text is longer. Larger runs
are not faster per token.
"""

Run = Callable[..., list[Array]]
"""A session's `run(output names, feeds, options)`."""

_Tokens = tuple[list[int], list[int]]
"""The ids and the type ids of a row's tokens. The type ids are empty if the graph does
not read them.
"""


@dataclass(slots=True)
class TextBudget:
    """The characters that a request may still have tokenized, and its deadline in
    `time.perf_counter()`.
    """

    characters: int = sys.maxsize
    deadline: float = math.inf

    def spend(self, characters: int) -> None:
        """Raise BodyTooLarge if the request has more characters than the server's
        limit.
        """
        self.characters -= characters
        if self.characters < 0:
            raise BodyTooLarge(
                "the texts of the request have too many characters to tokenize: send fewer or "
                "shorter texts (a larger server.max_text_characters allows more)"
            )

    def check_deadline(self) -> None:
        if time.perf_counter() >= self.deadline:
            raise DeadlineExceeded(
                "the request's deadline passed before all its texts were computed"
            )


class TextTokenizer:
    """The tokenizer of a saved model. All threads may call it.

    Raises NotInstalled if `tokenizers` is not installed, and InvalidArtifact if its
    file cannot be read.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        try:
            from tokenizers import Tokenizer  # Only text models need this library.
        except ImportError:
            raise NotInstalled(
                "a text model needs tokenizers, which is not installed: pip install "
                "'mlflow-onnxserve[text]'"
            ) from None
        try:
            self._tokenizer = Tokenizer.from_file(str(spec.file))
        except BaseException as error:  # noqa: BLE001 - the library raises the class Exception, and panics
            pass_exit(error)
            raise InvalidArtifact(
                f"{spec.file.name} cannot be read: {one_line(error, 300)}"
            ) from None
        self._spec = spec
        self._padding: dict[str, Any] = self._tokenizer.padding or {}
        self._has_types = "token_type_ids" in spec.graph_inputs
        # The lengths of the texts determine which texts are padded together.
        self._tokenizer.no_padding()
        truncation = self._tokenizer.truncation or {}
        cuts = truncation.get("direction") == "right" and _reads_words(self._tokenizer)
        self._truncated_length = truncation["max_length"] if cuts else 0

    def feeds(self, texts: Sequence[str]) -> Feeds:
        """Return the arrays [N, longest] int64 by graph input. Raises SchemaMismatch
        for a text that is refused.
        """
        return self._pad(self._tokenize(texts, TextBudget()))

    def feeding(self, run: Run) -> Run:
        """Return a function like `run` whose only feed is texts [N]. It may compute
        several runs.

        Its last argument is the `TextBudget` of the request. It raises the errors of
        this budget, and SchemaMismatch.
        """

        def run_texts(
            names: Sequence[str],
            feeds: Feeds,
            options: object = None,
            budget: TextBudget | None = None,
        ) -> list[Array]:
            """Run the longest texts first, so that each run has texts of similar
            length, and restore the order of the rows.
            """
            (texts,) = feeds.values()
            budget = budget or TextBudget()
            rows = self._tokenize(texts.tolist(), budget)
            order = sorted(range(len(rows)), key=lambda row: -len(rows[row][0]))
            parts = []
            start = 0
            while start < len(order):
                budget.check_deadline()
                longest = len(rows[order[start]][0])
                end = start + max(_RUN_TOKENS // longest, 1)
                padded = self._pad([rows[row] for row in order[start:end]])
                parts.append(run(names, padded, options))
                start = end
            positions = np.argsort(order)
            return [np.concatenate(arrays)[positions] for arrays in zip(*parts, strict=True)]

        return run_texts

    def _tokenize(self, texts: Sequence[str], budget: TextBudget) -> list[_Tokens]:
        """Return each text's tokens. Raises SchemaMismatch for a text with too many
        characters or too many tokens, or a text that the tokenizer cannot read, and the
        errors of the budget.
        """
        longest = max(texts, key=len)
        if len(longest) > _MAX_CHARACTERS:
            raise SchemaMismatch(
                f"the text {short_repr(longest)} has {len(longest)} characters; at most "
                f"{_MAX_CHARACTERS} are accepted"
            )
        most = self._spec.max_length
        prompted = [self._spec.prefix + text for text in texts]
        tokens = {}
        waiting = list(range(len(texts)))
        size = self._truncated_length * _CHARACTERS_PER_TOKEN or sys.maxsize
        while waiting:
            starts = {}
            for row in waiting:
                # Cut at the first end of a word at `size` or more characters.
                text = prompted[row]
                end = _END_OF_WORD.search(text, size) if len(text) > size else None
                starts[row] = text if end is None else text[: end.end()]
            budget.spend(sum(map(len, starts.values())))
            waiting = []
            for group in _group_texts(starts):
                budget.check_deadline()
                for row, encoding in zip(group, self._encode(list(group.values())), strict=True):
                    is_cut = len(group[row]) < len(prompted[row])
                    if is_cut and len(encoding) < self._truncated_length:
                        waiting.append(row)  # The start of the text has too few tokens.
                        continue
                    if not 0 < len(encoding) <= most:
                        remedy = (
                            ": shorten it, or wrap with truncation=True" if len(encoding) else ""
                        )
                        raise SchemaMismatch(
                            f"the text {short_repr(texts[row])} has {len(encoding)} tokens, and "
                            f"the model accepts 1 to {most}{remedy}"
                        )
                    type_ids = encoding.type_ids if self._has_types else []
                    tokens[row] = encoding.ids, type_ids
            size *= 2
        return [tokens[row] for row in range(len(texts))]

    def _encode(self, texts: Sequence[str]) -> "Sequence[Encoding]":
        """Tokenize the texts. Raises SchemaMismatch for the first text that the
        tokenizer cannot read.
        """
        try:
            # The usual function also computes offsets.
            return self._tokenizer.encode_batch_fast(texts)
        except (TypeError, UnicodeError):
            raise SchemaMismatch(
                "a text is not valid Unicode: it contains half of a surrogate pair"
            ) from None
        except BaseException as error:  # noqa: BLE001 - a regular expression of the tokenizer may panic
            pass_exit(error)
            if len(texts) > 1:  # Find the text.
                return [self._encode([text])[0] for text in texts]
            text = texts[0].removeprefix(self._spec.prefix)
            reason = f"cannot be tokenized: the tokenizer fails with {one_line(error, 200)}"
            raise SchemaMismatch(f"the text {short_repr(text)} {reason}") from None

    def _pad(self, rows: Sequence[_Tokens]) -> Feeds:
        """Return the graph's inputs, [N, longest]: the ids and type ids of the tokens,
        and 1 for each token in any other input (the attention mask).
        """
        padding = self._padding
        longest = max(len(ids) for ids, _ in rows)
        pads = {
            "input_ids": padding.get("pad_id", 0),
            "token_type_ids": padding.get("pad_type_id", 0),
        }
        feeds = {}
        for name in self._spec.graph_inputs:
            feeds[name] = np.full((len(rows), longest), pads.get(name, 0))
        for index, (ids, type_ids) in enumerate(rows):
            part = slice(len(ids))
            if padding.get("direction") == "left":
                part = slice(longest - len(ids), None)
            for name, array in feeds.items():
                array[index, part] = {"input_ids": ids, "token_type_ids": type_ids}.get(name, 1)
        return feeds


def _group_texts(texts: Mapping[int, str]) -> Iterator[dict[int, str]]:
    """Yield the texts in groups that are tokenized at once: their objects are large,
    and take a noticeable time.
    """
    group: dict[int, str] = {}
    characters = 0
    for row, text in texts.items():
        characters += len(text)
        if group and characters > _CHARACTERS_AT_ONCE:
            yield group
            group = {}
            characters = len(text)
        group[row] = text
    yield group


def _reads_words(tokenizer: "Tokenizer") -> bool:
    """Return True if the tokens of a text begin with the tokens of its start, for a
    start that ends between two words.

    Then every part of the tokenizer is local: normalizers do not look beyond a space
    between two letters, the text is split at this space before the model sees it, and
    no added token contains a space.
    """
    normalizers = _read_parts(tokenizer.normalizer, "normalizers")
    splitters = _read_parts(tokenizer.pre_tokenizer, "pretokenizers")
    # ByteLevel and Metaspace replace spaces, so that later parts do not see them.
    first = next((part for part in splitters if part["type"] not in _SPLIT_MORE), {"type": ""})
    if first["type"] not in _SPLIT_AT_SPACES or not (
        first.get("use_regex", True) and first.get("split", True)
    ):
        return False
    if not {part["type"] for part in splitters} <= _SPLIT_AT_SPACES | _SPLIT_MORE:
        return False
    for part in normalizers:
        pattern = part.get("pattern", {})
        # XLM-R joins several spaces. The text is cut at a single space.
        has_no_space = pattern == {"Regex": " {2,}"} or " " not in pattern.get("String", " ")
        if part["type"] not in _LOCAL_NORMALIZERS and not has_no_space:
            return False
    for token in tokenizer.get_added_tokens_decoder().values():
        content = token.content
        if token.normalized and tokenizer.normalizer is not None:
            content += tokenizer.normalizer.normalize_str(content)
        if any(character.isspace() for character in content):
            return False
    return True


def _read_parts(component: Any, sequence: str) -> list[dict[str, Any]]:
    """Return the parts of a normalizer or pre-tokenizer as in the tokenizer's file;
    several parts form a Sequence.
    """
    if component is None:
        return []
    described: dict[str, Any] = orjson.loads(component.__getstate__())
    parts = described.get(sequence, [described])
    return list(chain.from_iterable(outer.get(sequence, [outer]) for outer in parts))
