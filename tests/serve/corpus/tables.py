"""Tables in CSV, JSON Lines and Arrow; tensors as bytes; the repository."""

import json

import numpy as np
import pyarrow as pa

from tests.serve.corpus.case import body_cases
from tests.serve.corpus.routes import MAX_BODY_BYTES, RECORD, dump, reading, table
from tests.support.bodies import arrow_file, arrow_stream

_HEADER = b"carrier,distance,hour,late\n"
CSV = body_cases(
    reading("csv"),
    {
        "a hundred thousand commas": b"," * 100_000 + b"\n1",
        "a field of 200,000 characters": _HEADER + b"x" * 200_000 + b",1,1,true\n",
    },
)

_LINE = dump(RECORD) + b"\n"
LINES = body_cases(
    reading("jsonl"),
    {
        "the thousandth line does not fit": _LINE * 1500 + _LINE.replace(b"100.5", b'"far"'),
        "a deep line": b"[" * 100_000 + b"\n",
    },
)

_TABLE = table([RECORD])
_LONG = arrow_stream(pa.table({"distance": np.zeros(MAX_BODY_BYTES // 8 + 1)}), "zstd")


def _of(writer, language):
    good = writer(_TABLE)
    return body_cases(
        reading(language),
        {
            f"nothing in place of {language}": b"",
            f"half of {language}": good[: len(good) // 2],
            f"zeros in place of {language}": bytes(1000),
            f"no rows in {language}": writer(_TABLE.slice(0, 0)),
        },
    )


ARROW = [
    *_of(arrow_stream, "arrow"),
    *_of(arrow_file, "arrow file"),
    *body_cases(reading("arrow"), {"a compressed column of 2 MB": (_LONG, "decompressed")}, 413),
]


def _parameters(**parameters):
    return dump({"parameters": parameters})


_SPEC = {"name": "other", "variants": {"v": {"model": "models:/m/1"}}}
_LAUGHS = "b0: &b0 [x,x]\n" + "".join(
    f"b{n + 1}: &b{n + 1} [{','.join([f'*b{n}'] * 9)}]\n" for n in range(9)
)
REPOSITORY = [
    *body_cases(
        reading("parameters"),
        {
            "an unknown parameter of a load": (_parameters(x="y"), "known"),
            "parameters of a command that are a list": dump({"parameters": [1]}),
        },
    ),
    *body_cases(reading("index"), {"ready that is a text": dump({"ready": "yes"})}),
    *body_cases(
        tuple(route for route in reading("parameters") if route.path.endswith("/load")),
        {
            "a config and a model": (_parameters(config="a", model_uri="b"), "either config or"),
            "a config that is an object": (_parameters(config=_SPEC), "a string is expected"),
            "a config of another name": (
                _parameters(config=json.dumps({**_SPEC, "name": "else"})),
                "'other' is expected",
            ),
            "a config that is no YAML": _parameters(config="{: ["),
            "a config with a day that is none": (_parameters(config="a: 2001-99-99"), "YAML"),
            "a config that makes objects": _parameters(config="!!python/object/apply:os.getcwd []"),
            "a config that changes the server": (
                _parameters(config=json.dumps({**_SPEC, "server": {"workers": 9}})),
                "`server` cannot",
            ),
            "a config of 70,000 characters": (
                _parameters(config=json.dumps(_SPEC) + " " * 70_000),
                "65536",
            ),
            "a config of aliases": (_parameters(config=_LAUGHS), "config cannot be read"),
            "a deep config": (_parameters(config="[" * 20_000), "config cannot be read"),
        },
    ),
]

CASES = [*CSV, *LINES, *ARROW, *REPOSITORY]
