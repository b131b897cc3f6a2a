"""Measure how densely the package and its tests are written. `make lint` runs this
module, and fails on the branch main only: elsewhere it warns.

The limits are in structure.json; a figure may exceed its limit by 2 %. A token is a
Python token without comments, docstrings, line ends and indentation. A code line is a
line with a token. A part is a folder directly below the package; the tests are one more
part.
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path("mlflow_deploy_plugin")
LIMITS = Path("tests/structure.json")
SLACK = 0.02
PER_LINE = ("tuple-packed assignments", "inline ifs", "walrus operators", "nested comprehensions")
NOT_CODE = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENCODING", "ENDMARKER"}
FILLERS = "what|told|said|beside|nobody|nothing_is|that_is_no|which_is_no|is_no"
TRANSLATED = re.compile(rf"_(?:{FILLERS})(?:_|$)|_is_told|_is_said")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Branch = ast.If | ast.IfExp | ast.For | ast.While | ast.ExceptHandler | ast.BoolOp


class MeasuredFunction(NamedTuple):
    weight: float
    local_names: int
    branches: int
    tokens: int
    place: str


class MeasuredFile(NamedTuple):
    path: Path
    counts: Counter[str]
    functions: list[MeasuredFunction]


def measure_folder(folder):
    """Measure the Python files of a folder, except those that protoc generates."""
    paths = [path for path in sorted(folder.rglob("*.py")) if not path.name.endswith("_pb2.py")]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(measure_text, map(Path.read_text, paths), paths, chunksize=16))


def measure_text(text, path):
    nodes = list(ast.walk(ast.parse(text)))
    tokens = count_tokens(text, set(docstring_lines(nodes)))
    definitions = [node for node in nodes if isinstance(node, Function)]
    functions = [measure_function(definition, tokens, path) for definition in definitions]
    lines = text.splitlines()
    counts = count_nodes(nodes)
    counts["tokens"] = tokens.total()
    counts["code lines"] = len(tokens)
    counts["long lines"] = sum(len(lines[number - 1]) > 100 for number in tokens)
    counts["functions"] = len(functions)
    counts["many names"] = sum(function.local_names >= 13 for function in functions)
    counts["large"] = sum(function.tokens > 400 for function in functions)
    return MeasuredFile(path, counts, functions)


def docstring_lines(nodes):
    """Yield the lines of docstrings, and of descriptions below constants and fields."""
    for node in nodes:
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                yield from lines_of(node)


def lines_of(node):
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def count_tokens(text, ignored_lines):
    """Return the number of tokens per line. An f-string is one token in every version
    of Python.
    """
    tokens = Counter()
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        line = token.start[0]
        if depth == 0 and kind not in NOT_CODE and line not in ignored_lines:
            tokens[line] += 1
        depth += (kind == "FSTRING_START") - (kind == "FSTRING_END")  # from Python 3.12 on
    return tokens


def count_nodes(nodes):
    """Count the nodes that make code dense, and the tests. The swap `a, b = b, a` is
    not dense.
    """
    counts = Counter()
    for node in nodes:
        match node:
            case ast.Assign([ast.Tuple([_, _, *_] as names), *_], ast.Tuple(values)):
                is_swap = {*map(ast.unparse, names)} == {*map(ast.unparse, values)}
                counts["tuple-packed assignments"] += not is_swap
            case ast.IfExp():
                counts["inline ifs"] += 1
            case ast.NamedExpr():
                counts["walrus operators"] += 1
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                loops = [inner for inner in ast.walk(node) if isinstance(inner, ast.comprehension)]
                counts["nested comprehensions"] += len(loops) > 1
            case ast.FunctionDef() | ast.AsyncFunctionDef() if node.name.startswith("test_"):
                counts["tests"] += 1
                counts["translated tests"] += bool(TRANSLATED.search(node.name))
    return counts


def measure_function(function, tokens, path):
    nodes = list(own_nodes(function))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    local_names = len({name.id for name in names if isinstance(name.ctx, ast.Store)})
    branches = sum(isinstance(node, Branch) for node in nodes)
    size = sum(tokens[line] for line in lines_of(function))
    weight = local_names * (5 + branches) + size / 20
    place = f"{path}:{function.lineno} {function.name}"
    return MeasuredFunction(weight, local_names, branches, size, place)


def own_nodes(node):
    """Yield the nodes inside a node, but not the bodies of functions and classes inside
    it.
    """
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, Function | ast.ClassDef | ast.Lambda):
            yield from own_nodes(child)


def density(group, files):
    total = sum((file.counts for file in files), Counter[str]())
    lines = max(total["code lines"], 1)
    functions = max(total["functions"], 1)
    figures = {
        "tokens per code line": total["tokens"] / lines,
        "% of code lines over 100 columns": 100 * total["long lines"] / lines,
        "functions with 13 or more local names, per 1,000": 1000 * total["many names"] / functions,
        "functions over 400 tokens, per 1,000": 1000 * total["large"] / functions,
    }
    figures |= {f"{name} per 1,000 code lines": 1000 * total[name] / lines for name in PER_LINE}
    if total["tests"]:
        share = total["translated tests"] / total["tests"]
        figures["% of test names that read as a translation"] = 100 * share
    return {f"{group}: {name}": round(value, 2) for name, value in figures.items()}


def tokens_per_part(package, tests):
    tokens = Counter({"tokens of tests": sum(file.counts["tokens"] for file in tests)})
    for file in package:
        if file.path.parent != PACKAGE:
            tokens[f"tokens of {file.path.parts[1]}"] += file.counts["tokens"]
    return dict(tokens)


def worse(limits, figures):
    """Return a line per figure that exceeds its limit. The limit of a new part is 0."""
    allowed = {name: limits.get(name, 0) * (1 + SLACK) for name in figures}
    names = [name for name, value in figures.items() if value > allowed[name]]
    return [f"{name}: {figures[name]:,}, limit {limits.get(name, 0):,}" for name in names]


def better(limits, figures):
    """Return the limits of today's parts, with the figures that are better or new."""
    return {name: min(value, limits.get(name, value)) for name, value in figures.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worst", type=int, metavar="N", help="print the N densest functions")
    parser.add_argument("--record", action="store_true", help="record better figures and new parts")
    parser.add_argument("--warn", action="store_true", help="exit with 0 in any case")
    options = parser.parse_args()
    package = measure_folder(PACKAGE)
    tests = measure_folder(LIMITS.parent)
    if options.worst:
        for files in (package, tests):
            functions = chain.from_iterable(file.functions for file in files)
            for function in sorted(functions, reverse=True)[: options.worst]:
                print("{:5.0f} {:3} local names {:3} branches {:5} tokens  {}".format(*function))
        return 0
    figures = density("package", package) | density("tests", tests)
    figures |= tokens_per_part(package, tests)
    limits = json.loads(LIMITS.read_text())
    if options.record:
        limits = better(limits, figures)
        LIMITS.write_text(json.dumps(limits, indent=2) + "\n")
    complaints = worse(limits, figures)
    summary = f"{len(complaints)} of {len(figures)} figures are worse than in {LIMITS}"
    print(*complaints, summary, sep="\n")
    return int(bool(complaints) and not options.warn)


if __name__ == "__main__":
    sys.exit(main())
