"""The messages are generated from inference.proto, and have the field numbers of the standard."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2, service_pb2

from mlflow_deploy_plugin.serve.grpc import inference_pb2
from itertools import chain

PROTO = Path(inference_pb2.__file__).with_name("inference.proto")
_NAMES = {
    3: "int64",
    4: "uint64",
    5: "int32",
    13: "uint32",
    8: "bool",
    9: "string",
    12: "bytes",
    1: "double",
    2: "float",
}

Field = tuple[str, str, str, int]


def written(text):
    """Return the message, field, type and number of each field in inference.proto."""
    scope = []
    for line in re.sub(r"//.*", "", text).splitlines():
        if opened := re.match(r"\s*(message|enum|oneof) (\w+) \{(\})?", line):
            if not opened[3]:
                scope.append("" if opened[1] == "oneof" else opened[2])
        elif line.strip() == "}":
            scope.pop()
        elif field := re.match(r"\s*(repeated )?(map<.*>|\w+) (\w+) = (\d+);", line):
            owner = ".".join(filter(None, scope))
            yield (
                owner,
                field[3],
                ("repeated " if field[1] else "") + field[2].replace(" ", ""),
                int(field[4]),
            )
        elif value := re.match(r"\s*(\w+) = (\d+);", line):
            yield ".".join(scope), value[1], "value", int(value[2])


def made(owner, descriptor):
    """Return the same data for a descriptor."""
    for enum in descriptor.enum_types:
        yield from (
            (
                f"{owner}.{enum.name}",
                value.name,
                "value",
                value.number,
            )
            for value in enum.values
        )
    for field in descriptor.fields:
        yield owner, field.name, kind_of(field), field.number
    for nested in descriptor.nested_types:
        if not nested.GetOptions().map_entry:
            yield from made(f"{owner}.{nested.name}", nested)


def kind_of(field):
    if field.message_type and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return f"map<{kind_of(key)},{kind_of(value)}>"
    descriptor = field.message_type or field.enum_type
    return ("repeated " if field.is_repeated else "") + (
        descriptor.name if descriptor else _NAMES[field.type]
    )


def test_module_matches_the_proto_file():
    file = inference_pb2.DESCRIPTOR
    entries = set(
        chain.from_iterable(
            made(name, message) for name, message in file.message_types_by_name.items()
        )
    )
    enums = file.enum_types_by_name.items()
    entries |= {
        (
            name,
            value.name,
            "value",
            value.number,
        )
        for name, enum in enums
        for value in enum.values
    }
    assert entries == set(written(PROTO.read_text()))


def test_fields_match_those_of_triton():
    compared = 0
    for name, message in inference_pb2.DESCRIPTOR.message_types_by_name.items():
        standard = getattr(service_pb2, name, None) or getattr(model_config_pb2, name, None)
        if standard is not None:
            assert set(made(name, message)) <= set(made(name, standard.DESCRIPTOR)), name
            compared += 1
    assert compared == len(inference_pb2.DESCRIPTOR.message_types_by_name) - 2  # without health
    data_types = inference_pb2.DataType.DESCRIPTOR.values
    assert {(value.name, value.number) for value in data_types} <= set(
        model_config_pb2.DataType.items()
    )
