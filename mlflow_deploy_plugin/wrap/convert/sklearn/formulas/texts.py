"""Formulas of text vectorizers and TfidfTransformer, with exactly the same tokens as in
Python.

skl2onnx's converters use `[a-zA-Z0-9_]+` for the default pattern, and compute
`sublinear_tf` incorrectly. ONNX Runtime converts "İ" and a final "Σ" to other lowercase
letters than Python. Texts with these letters, or with accents that must be removed, are
converted character by character.
"""

import re
from collections.abc import Callable
from functools import cache, partial
from itertools import chain
from operator import methodcaller

import numpy as np
from onnx import TensorProto
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfTransformer,
    TfidfVectorizer,
    strip_accents_ascii,
    strip_accents_unicode,
)

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.rows import Formula, Rows
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import (
    SAMPLE_ROWS,
    Traced,
    TracedArray,
    divided,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.graph import NodeBuilder, Values

# Padding after the last token. It is neither a character nor a term; a NUL at the end
# of a constant would be lost.
_PAD = "\x01 \x01"
_MAX_HASHED = 2**16  # columns; a row is dense in a graph, so more columns take over 256 KiB per row
_BLOCK = 64  # rows per block; a block costs about 20 µs, as much as two short texts
_LONG = r"\C{1000,}"  # a text of 1,000 bytes or more; RE2's largest repetition count is 1,000
_SIGMA = "Σ"
_NEAR = 8  # characters before and after a sigma that are searched for a letter
_NO_RANK = np.array([-4e15])  # the rank of characters that are skipped
_CHARACTERS = ("char", "char_wb")
"""The analyzers whose tokens are characters."""
_SPACES = r"\s"
_ONE = r"(?:\\[wWdDsS]|\[(?:\\.|[^\\\]])+\])"  # a class of characters
_TOKENS = re.compile(
    rf"(?:\(\?u\))?(?P<edge>\\b)?(?P<first>{_ONE})(?P<second>{_ONE})?(?P<count>\+|{{\d+,}})?(?P<end>\\b)?"
)


def vectorized(vectorizer: CountVectorizer, rows: Rows) -> TracedArray:
    """Return the term counts from the operator TfIdfVectorizer, with TF-IDF weights."""
    width = len(vectorizer.vocabulary_)

    def write(graph: NodeBuilder, texts: str) -> str:
        # An unsupported tokenizer is refused before its terms are read.
        tokens_of_texts = _split_into_tokens(graph, vectorizer, texts)
        # The operator reads the terms sorted by their number of tokens.
        smallest, largest = vectorizer.ngram_range
        if vectorizer.analyzer == "char_wb":  # A word shorter than the n-grams is a term.
            if any("  " in term or term == " " for term in vectorizer.vocabulary_):
                raise NotImplementedError("analyzer ('char_wb'): a term of only a space")
            smallest = min([smallest, *map(len, vectorizer.vocabulary_)])
        split = list if vectorizer.analyzer in _CHARACTERS else methodcaller("split", " ")
        terms = []
        for term, column in vectorizer.vocabulary_.items():
            tokens = split(term)
            # A user's vocabulary may contain terms that never occur.
            if smallest <= len(tokens) <= largest:
                terms.append((tokens, int(column)))
        terms.sort(key=lambda term: len(term[0]))
        columns = [column for _, column in terms]
        if set(range(len(vectorizer.vocabulary_))) - set(columns):
            raise NotImplementedError(
                "terms of the vocabulary that are not n-grams of its ngram_range"
            )
        sizes = np.array([len(tokens) for tokens, _ in terms])
        vocabulary_attributes = {
            "min_gram_length": smallest,
            "max_gram_length": largest,
            "max_skip_count": 0,
            "mode": "TF",
            "pool_strings": list(chain.from_iterable(tokens for tokens, _ in terms)),
            "ngram_indexes": columns,
            "ngram_counts": [int(sizes[sizes < size].sum()) for size in range(1, largest + 1)],
        }
        counts = graph.node("TfIdfVectorizer", [tokens_of_texts], **vocabulary_attributes)
        if vectorizer.binary:
            counts = graph.node("Min", [counts, np.ones(1, np.float32)])
        if not isinstance(vectorizer, TfidfVectorizer):
            return counts
        return _apply_in_64_bits(graph, counts, width, partial(weighted, vectorizer._tfidf))

    return _in_blocks(rows.raw, vectorizer, width, write)


def hashed(vectorizer: HashingVectorizer, rows: Rows) -> TracedArray:
    """Return the sums per column. MurmurHash3 of a token determines its column and
    sign. Raises NotImplementedError for n-grams and for too many columns.
    """
    if vectorizer.ngram_range != (1, 1) or vectorizer.analyzer == "char_wb":
        raise NotImplementedError(
            f"ngram_range ({vectorizer.ngram_range!r}): hashes of several tokens"
        )
    if vectorizer.n_features > _MAX_HASHED:
        raise NotImplementedError(
            f"n_features ({vectorizer.n_features}): a graph supports up to 2**16 hash columns"
        )
    width = vectorizer.n_features

    def write(graph: NodeBuilder, texts: str) -> str:
        tokens = _split_into_tokens(graph, vectorizer, texts)
        skipped = graph.node("Equal", [tokens, _text(_PAD)])
        hashes = graph.cast(
            graph.node("MurmurHash3", [tokens], positive=0, seed=0), TensorProto.INT64
        )
        column = graph.node("Mod", [graph.node("Abs", [hashes]), [width]])
        if vectorizer.alternate_sign:
            signs = graph.node("Sign", [hashes])
        else:
            signs = graph.node("Equal", [hashes, hashes])
        is_token = graph.cast(graph.node("Not", [skipped]), TensorProto.FLOAT)
        values = graph.node("Mul", [graph.cast(signs, TensorProto.FLOAT), is_token])
        shape = graph.node("Concat", [graph.row_count(tokens), [width]], axis=0)
        zeros = graph.node("Expand", [np.zeros(1, np.float32), shape])
        # The sums are added for a binary vectorizer too, although they are unused.
        sums = graph.node("ScatterElements", [zeros, column, values], axis=1, reduction="add")
        if vectorizer.binary:
            sums = graph.node("ScatterElements", [zeros, column, is_token], axis=1, reduction="max")
        if vectorizer.norm is None:
            return sums
        return _apply_in_64_bits(graph, sums, width, partial(_normalize_rows, norm=vectorizer.norm))

    return _in_blocks(rows.raw, vectorizer, width, write)


def _in_blocks(
    column: TracedArray, vectorizer: Estimator, width: int, write: Callable[[NodeBuilder, str], str]
) -> TracedArray:
    """Return the numbers [N, width] that `write` computes for blocks of preprocessed
    texts of a column. If a text is long, each row is a block.

    The longest text determines a block's width: 1,000 rows with a text of 50,000 words
    took 20 s and more than 9 GB.
    """
    graph = column.graph
    count = graph.row_count(column.name)
    blocks = _divide_into_blocks(graph, column.name, count)
    body = graph.subgraph()
    texts = body.name()
    numbers = write(body, _preprocessed(body, vectorizer, texts))
    step = body.finish(
        {texts: (TensorProto.STRING, [None])}, {numbers: (TensorProto.FLOAT, [None, width])}
    )
    stacked = graph.node("Scan", [blocks], body=step, num_scan_inputs=1)
    flat = graph.node("Reshape", [stacked, [-1, width]])
    sliced = graph.node("Slice", [flat, [0], count])
    return Traced(graph, sliced, np.ones((SAMPLE_ROWS, width), np.float32))


def _divide_into_blocks(graph: NodeBuilder, texts: str, count: str) -> str:
    """Add the texts as blocks of equal size, [blocks, rows]. The first texts pad the
    last block.
    """
    single = graph.subgraph()
    several = graph.subgraph()
    flat = several.node("Reshape", [texts, [-1]])
    is_long = several.node("RegexFullMatch", [flat], pattern=_LONG)
    most_rows = several.node("ReduceMin", [several.node("Where", [is_long, [1], [_BLOCK]])])
    row_count = several.node("Shape", [flat])
    block_count, block_rows = several.equal_blocks(row_count, most_rows)
    positions = _positions(several, several.node("Mul", [block_count, block_rows]))
    rows = several.node("Mod", [positions, row_count])
    shape = several.node("Concat", [block_count, block_rows], axis=0)
    cut = several.node("Reshape", [several.node("Gather", [flat, rows]), shape])
    row = single.node("Reshape", [texts, [1, -1]])
    is_one = graph.node("Less", [count, [2]])  # For a single row, this saves 5 of 25 µs.
    return graph.node(
        "If",
        [is_one],
        then_branch=single.finish({}, {row: (TensorProto.STRING, [None, None])}),
        else_branch=several.finish({}, {cut: (TensorProto.STRING, [None, None])}),
    )


def _positions(graph: NodeBuilder, count: str) -> str:
    """Add the positions from 0 for a number of items, [1]."""
    return graph.node("Range", [np.int64(0), graph.node("Squeeze", [count]), np.int64(1)])


def _split_into_tokens(graph: NodeBuilder, vectorizer: CountVectorizer, texts: str) -> str:
    """Return the tokens [N, L] of preprocessed texts [N], padded with `_PAD` or
    spaces.
    """
    pad = " " if vectorizer.analyzer == "char_wb" else _PAD
    for option in ("analyzer", "preprocessor", "strip_accents"):
        function = getattr(vectorizer, option)
        if callable(function):
            raise NotImplementedError(
                f"its option {option}={_name_of(function)} is a Python function, which a graph "
                "cannot call"
            )
    if vectorizer.analyzer == "char_wb":
        token_expression = f"{_class_expression(_SPACES)}+|(?s:.)"
    elif vectorizer.analyzer == "char":
        token_expression = f"{_class_expression(_SPACES)}{{2,}}|(?s:.)"
    else:
        token_expression = _word_expression(vectorizer)
    tokens = _split_by(graph, texts, token_expression, pad)
    if vectorizer.analyzer in _CHARACTERS:
        # For the analyzer `char`, a single character of white space is a token and
        # stays as it is.
        min_length = 1 if vectorizer.analyzer == "char_wb" else 2
        pattern = f"{_class_expression(_SPACES)}{{{min_length},}}"
        is_space = graph.node("RegexFullMatch", [tokens], pattern=pattern)
        is_padding = graph.node("Equal", [tokens, _text(_PAD)])
        is_space = graph.node("And", [is_space, graph.node("Not", [is_padding])])
        return graph.node("Where", [is_space, _text(" "), tokens])
    words = sorted(vectorizer.get_stop_words() or ())
    if not words:
        return tokens
    # Stop words become padding, which is moved behind all other tokens for n-grams.
    flags = graph.node(
        "LabelEncoder",
        [tokens],
        keys_strings=words,
        values_int64s=[1] * len(words),
        default_int64=0,
    )
    tokens = graph.node("Where", [graph.cast(flags, TensorProto.BOOL), _text(_PAD), tokens])
    if vectorizer.ngram_range[1] == 1:
        return tokens
    # Each token's key is its position, plus the length for stop words.
    length = graph.node("Shape", [tokens], start=1)
    positions = _positions(graph, length)
    keys = graph.node("Add", [graph.node("Mul", [flags, length]), positions])
    _, order = graph.nodes("TopK", [keys, length], 2, largest=0)
    return graph.node("GatherElements", [tokens, order], axis=1)


def _split_by(graph: NodeBuilder, texts: str, expression: str, pad: str) -> str:
    """Return the parts [N, L] of texts [N] that match an expression.

    The parts are followed by a column of `pad`, because the next operators reject a
    table without columns. If `pad` is a space, such a column also precedes the parts:
    for `char_wb`, spaces surround each word. Words can share a space, since no term
    contains an inner space.
    """
    parts = graph.node(
        "Tokenizer", [texts], tokenexp=expression, pad_value=pad, mark=0, mincharnum=1
    )
    column = graph.node("Reshape", [texts, [-1, 1]])
    pads = graph.node("Where", [[True], _text(pad), column])
    columns = [parts, pads]
    if pad == " ":
        columns = [pads, *columns]
    return graph.node("Concat", columns, axis=1)


def _preprocessed(graph: NodeBuilder, vectorizer: CountVectorizer, texts: str) -> str:
    """Return the texts [N], in lower case and without accents if the vectorizer
    requires it. If a text has characters that ONNX Runtime converts otherwise than
    Python, all texts are converted character by character.
    """
    if not vectorizer.lowercase and not isinstance(vectorizer.strip_accents, str):
        return texts
    plain = graph.subgraph()
    by_character = graph.subgraph()
    lowered = plain.node(
        "StringNormalizer",
        [texts],
        is_case_sensitive=1,
        case_change_action="LOWER" if vectorizer.lowercase else "NONE",
        locale="C.UTF-8",  # available on all machines; the default en_US may be missing
    )
    replacements, default = _replacements(vectorizer.strip_accents, vectorizer.lowercase)
    characters = _split_by(by_character, texts, "(?s:.)", _PAD)
    if vectorizer.lowercase and default:
        characters = _with_final_sigma(by_character, characters)
    replaced = by_character.node(
        "LabelEncoder",
        [characters],
        keys_strings=[*replacements, _PAD],
        values_strings=[*replacements.values(), ""],
        default_string=default,
    )
    is_unchanged = by_character.node("Equal", [replaced, _text(_PAD)])
    replaced = _join_characters(
        by_character, by_character.node("Where", [is_unchanged, characters, replaced])
    )
    if isinstance(vectorizer.strip_accents, str):
        pattern = r"[\x00-\x7F]*"
    else:
        pattern = f"[^İ{_SIGMA}]*"
    matches = graph.node("RegexFullMatch", [texts], pattern=pattern)
    is_plain = graph.cast(matches, TensorProto.INT32)
    all_plain = graph.cast(graph.node("ReduceMin", [is_plain], keepdims=0), TensorProto.BOOL)
    return graph.node(
        "If",
        [all_plain],
        then_branch=plain.finish({}, {lowered: (TensorProto.STRING, [None])}),
        else_branch=by_character.finish({}, {replaced: (TensorProto.STRING, [None])}),
    )


def _join_characters(graph: NodeBuilder, characters: str) -> str:
    """Join adjacent characters [N, L] in log2(L) rounds, and return the texts [N]."""
    body = graph.subgraph()
    parts = body.name()
    # Join the first part [N, L] with the second, the third with the fourth, and so on.
    end = [np.iinfo(np.int64).max]
    # With a column of "" at the end, the last of an odd number of parts has a partner.
    first_column = body.node("Slice", [parts, [0], [1], [1]])
    empty = body.node("Where", [[True], _text(""), first_column])
    left = body.node("Slice", [parts, [0], end, [1], [2]])
    padded = body.node("Concat", [parts, empty], axis=1)
    right = body.node("Slice", [padded, [1], end, [1], [2]])
    joined = body.node("StringConcat", [left, right])
    length = body.node("Squeeze", [body.node("Shape", [joined], start=1)])
    goes_on = body.node("Greater", [length, np.int64(1)])
    table: tuple[int, list[int | None]] = (TensorProto.STRING, [None, None])
    # A Loop passes the number of the round and the condition, which are unused.
    inputs: Values = {
        body.name(): (TensorProto.INT64, []),
        body.name(): (TensorProto.BOOL, []),
        parts: table,
    }
    outputs: Values = {goes_on: (TensorProto.BOOL, []), joined: table}
    rounds = body.finish(inputs, outputs)
    texts = graph.node("Loop", ["", np.bool_(True), characters], body=rounds)
    return graph.node("Reshape", [texts, [-1]])


def _with_final_sigma(graph: NodeBuilder, characters: str) -> str:
    """Return the characters [N, L] with "ς" for a "Σ" at the end of a word, by
    Unicode's rule Final_Sigma.
    """
    # The code is 2 for a letter next to a sigma, 0 for a character that is skipped,
    # otherwise 1.
    letters, skipped = _letters_and_skipped()
    code = graph.node(
        "LabelEncoder",
        [characters],
        keys_strings=[*letters, *skipped],
        values_floats=[2.0] * len(letters) + [0.0] * len(skipped),
        default_float=1.0,
    )
    is_skipped = graph.node("Equal", [code, np.zeros(1, np.float32)])
    code = graph.cast(code, TensorProto.DOUBLE)
    position = _positions(graph, graph.node("Shape", [characters], start=1))
    position = graph.cast(position, TensorProto.DOUBLE)
    near_letters = []
    for step in (4.0, -4.0):
        # The nearest character has the largest rank. A rank modulo 4 is the character's
        # code, or the code minus 4.
        rank = graph.node("Add", [code, graph.node("Mul", [position, [step]])])
        rank = graph.node("Where", [is_skipped, _NO_RANK, rank])
        near_letters.append(_is_near_letter(graph, rank, is_before=step > 0))
    is_after_letter, is_before_letter = near_letters
    is_final = graph.node("And", [is_after_letter, graph.node("Not", [is_before_letter])])
    is_final = graph.node("And", [is_final, graph.node("Equal", [characters, _text(_SIGMA)])])
    return graph.node("Where", [is_final, _text("ς"), characters])


def _is_near_letter(graph: NodeBuilder, rank: str, is_before: bool) -> str:
    """Return True for each character [N, L] if the nearest character before or after it
    is a letter. The nearest character has the largest rank; `is_before` is True for
    the characters before.
    """
    padding = [0, 0, 0, 0, 0, _NEAR]
    start = 1
    end = 2**62
    if is_before:
        padding = [0, 0, _NEAR, 0, 0, 0]
        start = 0
        end = -1
    ranks = graph.node("Unsqueeze", [rank, [1]])
    padded = graph.node("Pad", [ranks, padding, _NO_RANK[0]])
    nearest = graph.node("MaxPool", [padded], kernel_shape=[_NEAR])  # shape: [N, 1, L + 1]
    nearest = graph.node("Slice", [nearest, [start], [end], [2]])
    code = graph.node("Mod", [graph.node("Squeeze", [nearest, [1]]), [4.0]], fmod=1)
    return graph.node("Equal", [graph.node("Abs", [code]), [2.0]])


@cache
def _letters_and_skipped() -> tuple[list[str], list[str]]:
    """Return the characters that Python treats as letters next to a sigma, and the
    characters that Python skips between a sigma and a letter.
    """
    # A sigma before a letter is "σ"; a skipped character is between sigma and letter.
    letters = [
        character for character in _characters() if f"A{_SIGMA}{character}".lower()[1] == "σ"
    ]
    other_characters = set(_characters()).difference(letters)
    skipped = [
        character for character in other_characters if f"A{_SIGMA}{character}A".lower()[1] == "σ"
    ]
    return letters, skipped


@cache
def _replacements(strip_accents: str | None, lowercase: bool) -> tuple[dict[str, str], str]:
    """Return the replacements of characters, and the default for other characters.

    The default is "" to drop a character, or `_PAD` to keep the character.
    """
    strippers = {"ascii": strip_accents_ascii, "unicode": strip_accents_unicode}
    strip = strippers.get(strip_accents or "", str)
    convert = str.lower if lowercase else str
    texts = ((character, strip(convert(character))) for character in _characters())
    if strip_accents == "ascii":
        return {character: text for character, text in texts if text}, ""
    return {character: text for character, text in texts if text != character}, _PAD


def weighted(transformer: TfidfTransformer, counts: TracedArray) -> TracedArray:
    """Return counts [N, V] times the term weights, with rows of norm 1, in 64 bits to
    avoid underflow of squares.
    """
    counts = counts.astype(float)
    if transformer.sublinear_tf:
        counts = np.where(counts == 0, 0.0, np.log(counts) + 1.0)
    if transformer.use_idf:
        counts = counts * np.asarray(transformer.idf_, np.float64)[None]
    return _normalize_rows(counts, transformer.norm)


def _normalize_rows(counts: TracedArray, norm: str | None) -> TracedArray:
    """Return counts [N, V] with rows of norm 1. Rows of zeros are not changed."""
    if norm is None:
        return counts
    if norm == "l1":
        length = np.abs(counts).sum(axis=1, keepdims=True)
    else:
        length = np.linalg.norm(counts, axis=1, keepdims=True)
    return divided(counts, length)


def _apply_in_64_bits(
    graph: NodeBuilder, name: str, width: int, change: Callable[[TracedArray], TracedArray]
) -> str:
    """Apply a 64-bit formula to 32-bit floats [N, width], and return the name of 32-bit
    floats.
    """
    numbers = Traced(graph, name, np.ones((SAMPLE_ROWS, width), np.float32))
    changed = change(numbers.astype(float))
    return str(changed.astype(np.float32).name)


def _word_expression(vectorizer: CountVectorizer) -> str:
    """Return the RE2 expression of words. A word is a maximal run of characters of one
    class; raises NotImplementedError for other patterns.
    """
    if vectorizer.tokenizer is None:
        pattern = vectorizer.token_pattern
    else:
        # The pattern finds the tokenizer's tokens in some texts. The parity check
        # compares other texts.
        for pattern in _PATTERNS:
            finds = re.compile(pattern).findall
            if all(list(vectorizer.tokenizer(text)) == finds(text) for text in _TOKENIZED):
                break
        else:
            raise NotImplementedError(
                f"its option tokenizer={_name_of(vectorizer.tokenizer)} is a Python function; only "
                "str.split and patterns are supported"
            )
    match = _TOKENS.fullmatch(pattern)
    # A class may occur twice, with word boundaries at both ends or at none.
    if (
        match is None
        or match["second"] not in (None, match["first"])
        or bool(match["edge"]) != bool(match["end"])
    ):
        raise NotImplementedError(
            f"token_pattern ({pattern!r}): only runs of one character class are supported"
        )
    kind = match["first"]
    has_ngrams = vectorizer.ngram_range[1] > 1
    if match["edge"] and kind != r"\w":
        # A vocabulary contains only words of the class, but hashes and n-grams would
        # include other words.
        has_other_words = has_ngrams or isinstance(vectorizer, HashingVectorizer)
        if has_other_words or not set(_members(kind)) <= set(_members(r"\w")):
            raise NotImplementedError(
                f"token_pattern ({pattern!r}): \\b around a class other than \\w"
            )
        kind = r"\w"
    if not match["count"]:
        raise NotImplementedError(f"token_pattern ({pattern!r}): tokens of a fixed length")
    if " " in _members(kind) and has_ngrams:
        raise NotImplementedError(
            f"token_pattern ({pattern!r}): n-grams of tokens that contain spaces"
        )
    # The minimum token length is 1 for `c+`, 2 for `cc+`, and 3 for `c{3,}`.
    least = 1 if match["count"] == "+" else int(match["count"][1:-2])
    least_length = least + bool(match["second"])
    return f"{_class_expression(kind)}{{{least_length},}}"


def _name_of(option: object) -> str:
    return getattr(option, "__qualname__", None) or repr(option)[:60]


_PATTERNS = (
    r"\S+",
    r"\w+",
    r"\b\w+\b",
    r"\b\w\w+\b",
    r"\w{3,}",
    "[a-zA-Z]+",
    "[a-zA-Z0-9]+",
    "[A-Za-z0-9_]+",
)
"""The patterns of most custom tokenizers."""
_TOKENIZED = (
    "",
    " a",
    "a bb  CCC-d_1.5,é\tżółw\n日本 it's (x) [y]/z; ",
    "#b @c $1.2 50% e-mail a@b.cd …«q»\xa0“r”",
    # A stemmer, a lemmatizer or stop words would change the tokens of this text.
    "The studies were running happily and better, but my dogs don't see 1,234 "
    "organizations at https://x.org/y :-)",
    "Häuser gingen, maisons étaient, niños comieron; aaaaaah GREATEST geese mice",
)
"""The texts for which a custom tokenizer is compared with the patterns."""


def _class_expression(kind: str) -> str:
    """Return a character class as RE2's class of code points: the Unicode versions of
    RE2 and Python differ.
    """
    codes = np.sort(np.frombuffer(_members(kind).encode("utf-32-le"), "<u4"))
    runs = np.split(codes, np.flatnonzero(np.diff(codes) != 1) + 1)
    ranges = [f"\\x{{{run[0]:X}}}-\\x{{{run[-1]:X}}}" for run in runs]
    return "[" + "".join(ranges) + "]"


@cache
def _characters() -> str:
    """Return all characters in order. One string takes 4 MB; a list of characters would
    take 70 MB and 1 s.
    """
    return bytes(np.r_[:0xD800, 0xE000:0x110000].astype("<u4")).decode("utf-32-le")


@cache
def _members(kind: str) -> str:
    """Return the characters of a class in order, by Python's Unicode tables."""
    return "".join(re.findall(f"{kind}+", _characters()))


def _text(text: str) -> Array:
    return np.array([text], dtype=object)


FORMULAS: dict[type, Formula] = {
    CountVectorizer: vectorized,
    TfidfVectorizer: vectorized,
    HashingVectorizer: hashed,
    TfidfTransformer: lambda transformer, rows: weighted(transformer, rows.matrix),
}
