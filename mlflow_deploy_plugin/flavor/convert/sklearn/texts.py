"""Converters for CountVectorizer, TfidfVectorizer and TfidfTransformer: tokens exactly as Python finds them.

skl2onnx's own converters take `[a-zA-Z0-9_]+` for the default pattern, so that "wärm" becomes "w" and "rm", and have
the logarithm of `sublinear_tf` wrong. Python lowers a text and then looks for tokens; ONNX Runtime cannot lower "İ",
which becomes two characters, the second of which ends a word. So the graph looks for tokens in the text as it comes,
by the very characters whose lower case belongs to Python's class, and lowers the tokens.
"""

import re
from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx.common.data_types import FloatTensorType
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer

from mlflow_deploy_plugin.flavor.convert.sklearn.graph import NodeBuilder, float_columns

_PAD = "\x00 \x00"  # fills up after the last token; it is no character and no term
_DOTTED = "İ"  # the only character whose lower case is two: "i" and a dot
_DOT = "\u0307"
_ALL = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
_SPACES = r"\s"
_ONE = r"(?:\\[wWdDsS]|\[(?:\\.|[^\\\]])+\])"  # a class of characters
_TOKENS = re.compile(
    rf"(?:\(\?u\))?(?P<edge>\\b)?(?P<first>{_ONE})(?P<second>{_ONE})?(?P<count>\+|{{\d+,}})?(?P<end>\\b)?"
)


def convert_vectorizer(scope: Any, operator: Any, container: Any) -> None:
    """Add Tokenizer, StringNormalizer, TfIdfVectorizer, and the weights of TF-IDF.

    Raises:
        NotImplementedError: tokens are not found by one class of characters; the message names the obstacle.
    """
    graph = NodeBuilder(scope, container)
    vectorizer: CountVectorizer = operator.raw_operator
    characters = vectorizer.analyzer == "char"  # a token is a character
    expression = _token_expression(vectorizer)
    flat = graph.constant(TensorProto.INT64, [1], [-1])
    texts = graph.node("Reshape", [operator.inputs[0].full_name, flat])
    tokens = graph.node("Tokenizer", [texts], tokenexp=expression, pad_value=_PAD, mark=0, mincharnum=1)
    # texts without any token would make a table without columns, which the next operators refuse
    always = graph.constant(TensorProto.BOOL, [1], [True])
    column = graph.constant(TensorProto.INT64, [2], [-1, 1])
    column = graph.node("Reshape", [texts, column])
    pads = graph.node("Where", [always, _text(graph, _PAD), column])
    tokens = graph.node("Concat", [tokens, pads], axis=1)
    if characters:  # a run of white space is one space
        runs = graph.node("RegexFullMatch", [tokens], pattern=f"{_class(_SPACES)}{{2,}}")
        pads = graph.node("Equal", [tokens, _text(graph, _PAD)])
        runs = graph.node("And", [runs, graph.node("Not", [pads])])
        tokens = graph.node("Where", [runs, _text(graph, " "), tokens])
    if vectorizer.lowercase:
        dotted = graph.node("Equal", [tokens, _text(graph, _DOTTED)])
        shape = graph.node("Shape", [tokens])
        one_by_one = graph.node("Reshape", [tokens, flat])
        lower = graph.node("StringNormalizer", [one_by_one], case_change_action="LOWER", is_case_sensitive=1)
        tokens = graph.node("Reshape", [lower, shape])
        lowered = _text(graph, _DOTTED.lower())
        tokens = graph.node("Where", [dotted, lowered, tokens])
    counts = graph.node("TfIdfVectorizer", [tokens], **_pool(vectorizer, characters))
    if vectorizer.binary:
        one = graph.constant(TensorProto.FLOAT, [1], [1.0])
        counts = graph.node("Min", [counts, one])
    if isinstance(vectorizer, TfidfVectorizer):
        counts = _weighted(graph, vectorizer._tfidf, counts)
    graph.node("Identity", [counts], operator.outputs[0].full_name)


def transformer_shapes(operator: Any) -> None:
    """Set the output type: as many columns as the input."""
    operator.outputs[0].type = FloatTensorType([None, operator.inputs[0].type.shape[1]])


def convert_transformer(scope: Any, operator: Any, container: Any) -> None:
    """Add the weights for counts that another step has made."""
    graph = NodeBuilder(scope, container)
    weighted = _weighted(graph, operator.raw_operator, operator.inputs[0].full_name)
    graph.node("Identity", [weighted], operator.outputs[0].full_name)


def _weighted(graph: NodeBuilder, transformer: TfidfTransformer, counts: str) -> str:
    """Return counts [N, V] times the terms' weights, each row with norm 1; 64 bits, so that no square vanishes."""
    zero, one = (graph.constant(TensorProto.DOUBLE, [1], [value]) for value in (0.0, 1.0))
    counts = graph.node("Cast", [counts], to=TensorProto.DOUBLE)
    if transformer.sublinear_tf:
        damped = graph.node("Add", [graph.node("Log", [counts]), one])
        absent = graph.node("Equal", [counts, zero])
        counts = graph.node("Where", [absent, zero, damped])
    if transformer.use_idf:
        weights = [float(weight) for weight in transformer.idf_]
        idf = graph.constant(TensorProto.DOUBLE, [1, len(weights)], weights)
        counts = graph.node("Mul", [counts, idf])
    if transformer.norm is not None:
        axis = graph.constant(TensorProto.INT64, [1], [1])
        norm = {"l1": "ReduceL1", "l2": "ReduceL2"}[transformer.norm]
        length = graph.node(norm, [counts, axis])
        empty = graph.node("Equal", [length, zero])
        length = graph.node("Where", [empty, one, length])
        counts = graph.node("Div", [counts, length])
    return graph.node("Cast", [counts], to=TensorProto.FLOAT)


def _pool(vectorizer: CountVectorizer, characters: bool) -> dict[str, Any]:
    """The vocabulary as TfIdfVectorizer has it: terms of one token first, then of two, each with its column."""
    smallest, largest = vectorizer.ngram_range
    dotted = characters and vectorizer.lowercase
    if dotted and any(_DOT in term for term in vectorizer.vocabulary_):
        raise NotImplementedError(f"a vocabulary with the dot {_DOT!r} of a lowered {_DOTTED!r}")
    entries: list[tuple[list[str], int]] = []
    for term, column in vectorizer.vocabulary_.items():
        tokens = list(term) if characters else term.split(" ")
        if len(tokens) in range(smallest, largest + 1):  # of a vocabulary that the user gave, others are never met
            entries.append((tokens, int(column)))
            if dotted and tokens[-1] == "i":  # the dot that follows is in no term
                entries.append(([*tokens[:-1], _DOTTED.lower()], int(column)))
    entries.sort(key=lambda entry: len(entry[0]))
    columns = [column for _, column in entries]
    if set(range(len(vectorizer.vocabulary_))) - set(columns):
        raise NotImplementedError("terms of the vocabulary that are no n-grams of its ngram_range")
    return {
        "min_gram_length": smallest, "max_gram_length": largest, "max_skip_count": 0, "mode": "TF",
        "pool_strings": [token for tokens, _ in entries for token in tokens], "ngram_indexes": columns,
        "ngram_counts": [sum(len(t) for t, _ in entries if len(t) < size) for size in range(1, largest + 1)],
    }  # fmt: skip


def _token_expression(vectorizer: CountVectorizer) -> str:
    """Return the expression of a token in the original text, for RE2.

    Raises:
        NotImplementedError: the vectorizer finds its tokens in another way.
    """
    obstacle = next((name for name in ("strip_accents", "preprocessor", "tokenizer") if getattr(vectorizer, name)), "")
    if not obstacle and (callable(vectorizer.analyzer) or vectorizer.analyzer == "char_wb"):
        obstacle = "analyzer"
    if not obstacle and vectorizer.stop_words and vectorizer.ngram_range[1] > 1:
        obstacle = "stop_words between the words of an n-gram"
    if obstacle:
        value = getattr(vectorizer, obstacle.split()[0])
        raise NotImplementedError(f"{obstacle} ({value!r}): no ONNX operator takes texts apart in this way")
    if vectorizer.analyzer == "char":
        return f"{_class(_SPACES)}{{2,}}|(?s:.)"
    return _word_expression(vectorizer)


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
    # the shortest token has 1 character for `c+`, 2 for `cc+`, 3 for `c{3,}`
    kind, least = found["first"], bool(second) + (1 if found["count"] in ("+", None) else int(found["count"][1:-2]))
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


def _text(graph: NodeBuilder, text: str) -> str:
    return graph.constant(TensorProto.STRING, [1], [text.encode()])


_VECTORIZER = float_columns(lambda vectorizer: len(vectorizer.vocabulary_)), convert_vectorizer
CONVERTERS = {
    CountVectorizer: _VECTORIZER,
    TfidfVectorizer: _VECTORIZER,
    TfidfTransformer: (transformer_shapes, convert_transformer),
}
