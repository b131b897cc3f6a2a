"""Small tokenizers of three kinds, trained on the guides; hostile texts; and a text
model that needs no framework.
"""

from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.support.models import columns, graph_tensor, write_model

SPECIAL = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "##ing",
    "\u2581",
    "\u0120",
)
FRAGMENTS = (
    *(
        "e\u0301",
        "\u0301\u0327",
        "\u1e9e",
        "\ufb01",
        "\u0130",
        "\u2167",
        "\u212a",
        "\u00bd",
        "\u01c5",
        "\ufdfa",
    ),
    *(
        "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "\U0001f1e9\U0001f1ea\U0001f1e9",
        "\u2603\ufe0f",
        "\U0001f44d\U0001f3fd",
    ),
    *(
        "\u65e5\u672c\u8a9e",
        "\ud55c\uad6d\uc5b4",
        "\u0e44\u0e17\u0e22",
        "\u0939\u093f",
        "\u05d0\u05d1",
        "\u0645\u0631",
    ),
    *(
        "\u202eabc\u202c",
        "\u200b",
        "\ufeff",
        "\x00",
        "\x07",
        "\x1b[0m",
        "\t",
        "\r\n",
        "\u2028",
        "\u00a0",
        "\u3000",
    ),
    *(
        "don't",
        "U.S.A.",
        "a_b-c",
        "1,234.50",
        "...",
        "http://x.y/?q=1#z",
        "x" * 120,
        " ",
        "  ",
        "the model",
    ),
)
LANGUAGES = ("WordPiece", "BPE", "Unigram")
GUIDES = Path(__file__).parents[2] / "docs"


@cache
def tokenizer_json(kind, size=500):
    """Return the file of a tokenizer of BERT's kind (WordPiece), RoBERTa's (BPE) or
    XLM-RoBERTa's (Unigram).
    """
    texts = [(GUIDES / name).read_text() for name in ("wrap.md", "serve.md", "monitor.md")]
    first, last, pad, unknown = (
        ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
        if kind == "WordPiece"
        else ("<s>", "</s>", "<pad>", "<unk>")
    )
    special = {
        "special_tokens": [first, last, pad, unknown],
        "show_progress": False,
        "vocab_size": size,
    }
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(**special))
    elif kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
        tokenizer.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(
            texts, trainers.BpeTrainer(initial_alphabet=letters, **special)
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(unk_token=unknown, **special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (first, last)],
    )
    return str(tokenizer.to_str())


def original_tokenizer(kind, **options):
    """Return the tokenizer as an object of transformers."""
    from transformers import PreTrainedTokenizerFast  # Importing transformers takes seconds.

    tokenizer = Tokenizer.from_str(tokenizer_json(kind))
    brackets = kind == "WordPiece"
    pad, unknown = ("[PAD]", "[UNK]") if brackets else ("<pad>", "<unk>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        **{"model_max_length": 32, **options},
    )


def texts():
    """Return texts of any Unicode characters, special tokens and fragments that
    tokenizers treat differently.
    """
    parts = st.one_of(st.text(), st.sampled_from(SPECIAL), st.sampled_from(FRAGMENTS))
    return st.lists(parts, max_size=8).map("".join)


def hostile_texts(count, seed=0):
    """Yield random texts: fragments, special tokens, and characters of all planes
    except surrogates.
    """
    random = np.random.default_rng(seed)
    pieces = (*SPECIAL, *FRAGMENTS)
    for _ in range(count):
        codes = random.integers(
            0, random.choice([0x80, 0x250, 0x3100, 0x10000, 0x110000]), random.integers(0, 12)
        )
        parts = [chr(code) for code in codes.tolist() if not 0xD800 <= code <= 0xDFFF]
        parts += [
            pieces[index]
            for index in random.integers(0, len(pieces), random.integers(0, 5)).tolist()
        ]
        random.shuffle(parts)
        yield "".join(parts)


MEAN = """
mean (int64[N,L] input_ids, int64[N,L] attention_mask) => (float[N,1] embedding) \
<int64[1] axis = {1}> {
  kept = Mul(input_ids, attention_mask)
  total = ReduceSum<keepdims=1>(kept, axis)
  count = ReduceSum<keepdims=1>(attention_mask, axis)
  a = Cast<to=1>(total)
  b = Cast<to=1>(count)
  embedding = Div(a, b)
}"""


PANIC = "a" * 40 + "!"
"""A text that exceeds the retries of the regular expression of `panicking_model`, so
that the tokenizer panics.
"""


def panicking_model(folder):
    """Write the text model with a pre-tokenizer whose regular expression needs
    exponential time for some texts.
    """
    text_model(folder)
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    tokenizer.save(str(file))
    return folder


def text_model(folder, max_length=32, truncates=True, **section):
    """Write a model whose embedding [N, 1] is the mean of a text's token ids, without
    padding.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json("WordPiece"))
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
    if truncates:
        tokenizer.enable_truncation(max_length)
    described = {
        "file": "tokenizer.json",
        "graph_inputs": ["input_ids", "attention_mask"],
        "max_length": max_length,
    }
    whole = {
        "inputs": [graph_tensor("text", "str", -1, columns=["text"])],
        "outputs": [graph_tensor("embedding", "float32", -1, 1, role="values")],
        "prediction": ["embedding"],
        "tokenizer": described | section,
    }
    write_model(folder, MEAN, columns(text="string"), whole)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
