"""Converters for CountVectorizer, TfidfVectorizer and TfidfTransformer: tokens exactly as Python finds them.

skl2onnx's own converters take `[a-zA-Z0-9_]+` for the default pattern, so that "wärm" becomes "w" and "rm", and have
the logarithm of `sublinear_tf` wrong. Python lowers a text and then looks for tokens; ONNX Runtime cannot lower "İ",
which becomes two characters, the second of which ends a word. So the graph looks for tokens in the text as it comes,
by the very characters whose lower case belongs to Python's class, and lowers the tokens.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx.common.data_types import FloatTensorType
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer

from mlflow_deploy_plugin.flavor.convert.graph import add_constant, add_node

_PAD = "\x00 \x00"  # fills up after the last token; it is no character and no term
_DOTTED = "İ"  # the only character whose lower case is two: "i" and a dot
_DOT = "\u0307"
_ALL = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
_SPACES = r"\s"
_ONE = r"(?:\\[wWdDsS]|\[(?:\\.|[^\\\]])+\])"  # a class of characters
_TOKENS = re.compile(
    rf"(?:\(\?u\))?(?P<edge>\\b)?(?P<first>{_ONE})(?P<second>{_ONE})?(?P<count>\+|{{\d+,}})?(?P<end>\\b)?"
)


@dataclass(frozen=True)
class _Analysis:
    """The graph's way of splitting a text.

    Attributes:
        expression: a token in the original text, for RE2.
        characters: a token is a character.
    """

    expression: str
    characters: bool = False

    def split(self, term: str) -> list[str]:
        return list(term) if self.characters else term.split(" ")


def vectorizer_shapes(operator: Any) -> None:
    """Set the output type: a 32-bit float for each term of the vocabulary."""
    operator.outputs[0].type = FloatTensorType([None, len(operator.raw_operator.vocabulary_)])


def convert_vectorizer(scope: Any, operator: Any, container: Any) -> None:
    """Add Tokenizer, StringNormalizer, TfIdfVectorizer, and the weights of TF-IDF.

    Raises:
        NotImplementedError: tokens are not found by one class of characters; the message names the obstacle.
    """
    vectorizer: CountVectorizer = operator.raw_operator
    analysis = _analysis(vectorizer)
    flat = add_constant(scope, container, TensorProto.INT64, [1], [-1])
    texts = add_node(scope, container, "Reshape", [operator.inputs[0].full_name, flat], 13)
    tokens = add_node(
        scope, container, "Tokenizer", [texts], 1, op_domain="com.microsoft",
        tokenexp=analysis.expression, pad_value=_PAD, mark=0, mincharnum=1,
    )  # fmt: skip
    # texts without any token would make a table without columns, which the next operators refuse
    always = add_constant(scope, container, TensorProto.BOOL, [1], [True])
    column = add_constant(scope, container, TensorProto.INT64, [2], [-1, 1])
    column = add_node(scope, container, "Reshape", [texts, column], 13)
    pads = add_node(scope, container, "Where", [always, _text(scope, container, _PAD), column], 16)
    tokens = add_node(scope, container, "Concat", [tokens, pads], 13, axis=1)
    if analysis.characters:  # a run of white space is one space
        runs = add_node(scope, container, "RegexFullMatch", [tokens], 20, pattern=f"{_class(_SPACES)}{{2,}}")
        pads = add_node(scope, container, "Equal", [tokens, _text(scope, container, _PAD)], 19)
        runs = add_node(scope, container, "And", [runs, add_node(scope, container, "Not", [pads], 1)], 7)
        tokens = add_node(scope, container, "Where", [runs, _text(scope, container, " "), tokens], 16)
    if vectorizer.lowercase:
        dotted = add_node(scope, container, "Equal", [tokens, _text(scope, container, _DOTTED)], 19)
        shape = add_node(scope, container, "Shape", [tokens], 19)
        one_by_one = add_node(scope, container, "Reshape", [tokens, flat], 13)
        lower = add_node(
            scope, container, "StringNormalizer", [one_by_one], 10, case_change_action="LOWER", is_case_sensitive=1
        )
        tokens = add_node(scope, container, "Reshape", [lower, shape], 13)
        lowered = _text(scope, container, _DOTTED.lower())
        tokens = add_node(scope, container, "Where", [dotted, lowered, tokens], 16)
    counts = add_node(scope, container, "TfIdfVectorizer", [tokens], 9, **_pool(vectorizer, analysis))
    if vectorizer.binary:
        one = add_constant(scope, container, TensorProto.FLOAT, [1], [1.0])
        counts = add_node(scope, container, "Min", [counts, one], 13)
    if isinstance(vectorizer, TfidfVectorizer):
        counts = _weighted(scope, container, vectorizer._tfidf, counts)
    add_node(scope, container, "Identity", [counts], 16, operator.outputs[0].full_name)


def transformer_shapes(operator: Any) -> None:
    """Set the output type: as many columns as the input."""
    operator.outputs[0].type = FloatTensorType([None, operator.inputs[0].type.shape[1]])


def convert_transformer(scope: Any, operator: Any, container: Any) -> None:
    """Add the weights for counts that another step has made."""
    weighted = _weighted(scope, container, operator.raw_operator, operator.inputs[0].full_name)
    add_node(scope, container, "Identity", [weighted], 16, operator.outputs[0].full_name)


def _weighted(scope: Any, container: Any, transformer: TfidfTransformer, counts: str) -> str:
    """Return counts [N, V] times the terms' weights, each row with norm 1; 64 bits, so that no square vanishes."""
    zero, one = (add_constant(scope, container, TensorProto.DOUBLE, [1], [value]) for value in (0.0, 1.0))
    counts = add_node(scope, container, "Cast", [counts], 19, to=TensorProto.DOUBLE)
    if transformer.sublinear_tf:
        damped = add_node(scope, container, "Add", [add_node(scope, container, "Log", [counts], 13), one], 14)
        absent = add_node(scope, container, "Equal", [counts, zero], 19)
        counts = add_node(scope, container, "Where", [absent, zero, damped], 16)
    if transformer.use_idf:
        weights = [float(weight) for weight in transformer.idf_]
        idf = add_constant(scope, container, TensorProto.DOUBLE, [1, len(weights)], weights)
        counts = add_node(scope, container, "Mul", [counts, idf], 14)
    if transformer.norm is not None:
        axis = add_constant(scope, container, TensorProto.INT64, [1], [1])
        norm = {"l1": "ReduceL1", "l2": "ReduceL2"}[transformer.norm]
        length = add_node(scope, container, norm, [counts, axis], 18)
        empty = add_node(scope, container, "Equal", [length, zero], 19)
        length = add_node(scope, container, "Where", [empty, one, length], 16)
        counts = add_node(scope, container, "Div", [counts, length], 14)
    return add_node(scope, container, "Cast", [counts], 19, to=TensorProto.FLOAT)


def _pool(vectorizer: CountVectorizer, analysis: _Analysis) -> dict[str, Any]:
    """The vocabulary as TfIdfVectorizer has it: terms of one token first, then of two, each with its column."""
    smallest, largest = vectorizer.ngram_range
    dotted = analysis.characters and vectorizer.lowercase
    if dotted and any(_DOT in term for term in vectorizer.vocabulary_):
        raise NotImplementedError(f"a vocabulary with the dot {_DOT!r} of a lowered {_DOTTED!r}")
    by_length: dict[int, list[tuple[list[str], int]]] = {size: [] for size in range(1, largest + 1)}
    for term, column in vectorizer.vocabulary_.items():
        tokens = analysis.split(term)
        if len(tokens) in range(smallest, largest + 1):  # of a vocabulary that the user gave, others are never met
            by_length[len(tokens)].append((tokens, int(column)))
            if dotted and tokens[-1] == "i":  # the dot that follows is in no term
                by_length[len(tokens)].append(([*tokens[:-1], _DOTTED.lower()], int(column)))
    starts: list[int] = []
    pool: list[str] = []
    columns: list[int] = []
    for entries in by_length.values():
        starts.append(len(pool))
        for tokens, column in entries:
            pool.extend(tokens)
            columns.append(column)
    missing = set(range(len(vectorizer.vocabulary_))) - set(columns)
    if missing:
        raise NotImplementedError("terms of the vocabulary that are no n-grams of its ngram_range")
    return {
        "min_gram_length": smallest, "max_gram_length": largest, "max_skip_count": 0, "mode": "TF",
        "pool_strings": pool, "ngram_counts": starts, "ngram_indexes": columns,
    }  # fmt: skip


def _analysis(vectorizer: CountVectorizer) -> _Analysis:
    obstacle = next((name for name in ("strip_accents", "preprocessor", "tokenizer") if getattr(vectorizer, name)), "")
    if not obstacle and (callable(vectorizer.analyzer) or vectorizer.analyzer == "char_wb"):
        obstacle = "analyzer"
    if not obstacle and vectorizer.stop_words and vectorizer.ngram_range[1] > 1:
        obstacle = "stop_words between the words of an n-gram"
    if obstacle:
        value = getattr(vectorizer, obstacle.split()[0])
        raise NotImplementedError(f"{obstacle} ({value!r}): no ONNX operator takes texts apart in this way")
    if vectorizer.analyzer == "char":
        return _Analysis(f"{_class(_SPACES)}{{2,}}|(?s:.)", characters=True)
    return _Analysis(_word_expression(vectorizer))


def _word_expression(vectorizer: CountVectorizer) -> str:
    """Return the expression of a token in the original text: the longest run of characters of one class.

    Raises:
        NotImplementedError: the pattern is another.
    """
    pattern = vectorizer.token_pattern
    found = _TOKENS.fullmatch(pattern)
    second = found and found["second"]
    if found is None or (second and second != found["first"]) or bool(found["edge"]) != bool(found["end"]):
        raise NotImplementedError(f"token_pattern ({pattern!r}): only runs of one class of characters are converted")
    kind, least = found["first"], _least(found["count"], bool(second))
    if found["edge"] and kind != r"\w":
        # whole words are looked up in a vocabulary that holds those of the class alone; neighbours would be others
        if vectorizer.ngram_range[1] > 1 or not set(_members(kind)) <= set(_members(r"\w")):
            raise NotImplementedError(f"token_pattern ({pattern!r}): \\b around something else than \\w")
        kind = r"\w"
    if not found["count"]:
        raise NotImplementedError(f"token_pattern ({pattern!r}): tokens of a fixed length")
    if " " in _members(kind) and vectorizer.ngram_range[1] > 1:
        raise NotImplementedError(f"token_pattern ({pattern!r}): tokens that hold spaces, and n-grams of them")
    if not vectorizer.lowercase:
        return f"{_class(kind)}{{{least},}}"
    members = set(_members(kind))
    lowered = [one for one in _ALL if one != _DOTTED and one.lower() in members]
    run = _as_class(lowered)
    expression = f"{run}{{{least},}}"
    if "i" not in members:
        return expression
    if _DOT in members:
        raise NotImplementedError(f"token_pattern ({pattern!r}): a class that holds the dot of a lowered {_DOTTED!r}")
    return f"{expression}|{run}{{{least - 1},}}{_DOTTED}"


def _least(count: str | None, doubled: bool) -> int:
    """Return the length of the shortest token: 1 for `c+`, 2 for `cc+`, 3 for `c{3,}`."""
    least = 1 if count in ("+", None) else int(str(count)[1:-2])
    return least + doubled


def _class(kind: str) -> str:
    return _as_class(_members(kind))


@cache
def _members(kind: str) -> tuple[str, ...]:
    """Return the characters of a class, by the Unicode tables of this Python."""
    expression = re.compile(kind)
    return tuple(one for one in _ALL if expression.fullmatch(one))


def _as_class(members: Any) -> str:
    """Return the characters as a class for RE2, whose own Unicode tables are of another version."""
    codes = np.array([ord(one) for one in members])
    parts = np.split(codes, np.flatnonzero(np.diff(codes) != 1) + 1)
    return "[" + "".join(f"\\x{{{part[0]:X}}}-\\x{{{part[-1]:X}}}" for part in parts) + "]"


def _text(scope: Any, container: Any, text: str) -> str:
    return add_constant(scope, container, TensorProto.STRING, [1], [text.encode()])


SHAPES = {CountVectorizer: vectorizer_shapes, TfidfVectorizer: vectorizer_shapes, TfidfTransformer: transformer_shapes}
CONVERTERS = {
    CountVectorizer: convert_vectorizer,
    TfidfVectorizer: convert_vectorizer,
    TfidfTransformer: convert_transformer,
}
