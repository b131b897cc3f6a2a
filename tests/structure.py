"""The structure of the package in figures, each with its target; `make lint` runs it.

structure.json has the figures on record. A figure may be worse than the record only while it meets its target.
`python -m tests.structure --record` records the figures of today, but it never worsens a figure. To do so, edit
structure.json by hand in a separate commit whose message names the issue. Lines are not counted.
"""

import argparse
import ast
import json
import re
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlflow_deploy_plugin"
RECORD = Path(__file__).with_suffix(".json")
GENERATED = {"inference_pb2.py"}
MIGRATIONS = PACKAGE / "store" / "migrations"
LAYERS = (
    {"supervisor"},
    {"gunicorn_conf"},
    {"http", "grpc"},
    {"assembly"},
    {"inference"},
    {"models"},
    {"observability"},
    {"certificates", "cloud", "device", "listener", "messages", "variants"},
)
"""The layers inside `server`, from the top, as in the contract of pyproject.toml."""
SENTENCE_WORDS = 4
"""A literal with at least this many words is a sentence."""

Function = ast.FunctionDef | ast.AsyncFunctionDef

DESCRIBED = {"SpecPart", "Settings"}
"""Classes, and bases of classes, whose fields the reference page describes."""
HEADLESS = re.compile(r"(What|Whether|Which|Who|Whom|Whose|How|Where|Why|That|Those|Of|As|None|If)\b")
"""The first words of a sentence without a subject, such as "What an endpoint serves." or "Of the windows, …"."""
HUMAN_TEXT = {"note", "reason", "message", "detail", "why"}
"""Names and attributes that contain text for people; the code must not make decisions by that text."""
PLAIN = {"str", "bytes", "int", "float", "bool", "None", "object", "Any"}
"""Types that a result may have next to `str` if the text is also a value, and not the reason for its absence."""


@dataclass(frozen=True)
class Module:
    """A module of the package, parsed."""

    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def name(self) -> str:
        """Its path below the package, as `serve/http/app.py`."""
        return self.path.relative_to(PACKAGE).as_posix()

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    @property
    def only_imports(self) -> bool:
        """True for an `__init__` that hands names on and defines none."""
        return not any(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in self.tree.body
        )

    def at(self, node: ast.stmt | ast.expr) -> str:
        return f"{self.name}:{node.lineno}"


def modules() -> list[Module]:
    """Return the hand-written modules of the package, in the order of their paths."""
    paths = (path for path in sorted(PACKAGE.rglob("*.py")) if path.name not in GENERATED)
    return [Module(path) for path in paths if MIGRATIONS not in path.parents]


def folders(found: list[Module]) -> Counter[str]:
    """Return the number of modules in each folder, `__init__.py` left out."""
    return Counter(str(Path(module.name).parent) for module in found if module.path.name != "__init__.py")


def classes_of_one_name(found: list[Module]) -> list[str]:
    """Return the names that more than one class of the package has, and where."""
    places = defaultdict(list)
    for module in found:
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module.name)
    return [f"{name}: {', '.join(where)}" for name, where in sorted(places.items()) if len(where) > 1]


def union_members(annotation: ast.expr) -> set[str]:
    """Return the types of `A | B | C`."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return union_members(annotation.left) | union_members(annotation.right)
    return {ast.unparse(annotation)}


def results_or_text(found: list[Module]) -> list[str]:
    """Return the functions whose result is a value, or a text with the reason for its absence."""
    return [
        f"{module.at(function)} {function.name} -> {ast.unparse(function.returns)}"
        for module in found
        for function in module.functions
        if function.returns is not None
        and "str" in (members := union_members(function.returns))
        and not members <= PLAIN
    ]


def _is_human_text(node: ast.expr) -> bool:
    """Return True for a name or an attribute that contains text for people, and for `str(error)`."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "str" and ast.unparse(node.args[0]) == "error"
    return (isinstance(node, ast.Name) and node.id in HUMAN_TEXT) or (
        isinstance(node, ast.Attribute) and node.attr in HUMAN_TEXT
    )


def _is_fixed_text(node: ast.expr) -> bool:
    """Return True for a literal, an f-string and a constant. (Comparing two variables only detects a change.)"""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value != ""
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Name) and node.id.isupper())


def decisions_by_text(found: list[Module]) -> list[str]:
    """Return the places where a text for people is compared with a fixed one."""

    def compared(node: ast.AST) -> bool:
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            return any(map(_is_human_text, sides)) and any(map(_is_fixed_text, sides))
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("startswith", "endswith", "removeprefix")
            and _is_human_text(node.func.value)
        )

    return [
        f"{module.at(node)} {ast.unparse(node)}"
        for module in found
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Compare | ast.Call) and compared(node)
    ]


def _docstrings(module: Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text
        if isinstance(node, ast.ClassDef) and DESCRIBED & {node.name, *map(ast.unparse, node.bases)}:
            continue  # The strings below its fields are table cells instead of sentences.
        if isinstance(node, ast.Module | ast.ClassDef):  # the strings below constants and fields
            for before, statement in zip(node.body, node.body[1:], strict=False):
                if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(statement, ast.Expr):
                    value = statement.value
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield statement.lineno, value.value


def headless_docstrings(found: list[Module]) -> list[str]:
    """Return the docstrings whose first sentence has neither a subject nor an imperative verb."""
    return [
        f"{module.name}:{line} {text.splitlines()[0]}"
        for module in found
        for line, text in _docstrings(module)
        if HEADLESS.match(text.strip())
    ]


def names_in_faces() -> list[str]:
    """Return the names that the stubs `__init__.pyi` export, each after the folder of its stub."""
    return [
        f"{face.parent.relative_to(PACKAGE).as_posix()} {name.asname or name.name}"
        for face in sorted(PACKAGE.rglob("__init__.pyi"))
        for node in ast.parse(face.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    ]


def _imported(module: Module) -> Iterator[tuple[ast.ImportFrom, str]]:
    """Yield each `from … import` of a module with the path of each imported name."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node, f"{node.module}.{name.name}") for name in node.names)


def rooms_that_import_server(found: list[Module]) -> list[str]:
    """Return the rooms that import a name of `server` or of its modules."""
    rooms = {
        Path(module.name).parts[0]
        for module in found
        for _, path in _imported(module)
        if path.startswith(f"{PACKAGE.name}.server.") or path == f"{PACKAGE.name}.server"
    }
    return sorted(rooms - {"server"})


def upward_imports_in_server(found: list[Module]) -> list[str]:
    """Return the imports inside `server` of a higher layer by a lower layer."""
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    upward = set()
    for module in found:
        room, own, *_ = [*Path(module.name).with_suffix("").parts, ""]
        for node, path in _imported(module):
            if room == "server" and path.startswith(f"{PACKAGE.name}.server."):
                imported = level.get(path.split(".")[2], len(LAYERS))
                if imported < level.get(own, 0):
                    upward.add(f"{module.at(node)} {node.module}")
    return sorted(upward)


def lines_with_any(found: list[Module]) -> list[str]:
    """Return the lines that contain the word `Any`, except imports."""
    return [
        f"{module.name}:{number} {line.strip()}"
        for module in found
        for number, line in enumerate(module.text.splitlines(), 1)
        if re.search(r"\bAny\b", line) and not re.match(r"\s*(from|import)\b", line)
    ]


def _is_sentence(node: ast.expr) -> bool:
    """Return True for a string or an f-string of at least SENTENCE_WORDS words, separated by white space."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [part.value if isinstance(part, ast.Constant) else "_" for part in parts]
    return len("".join(text for text in texts if isinstance(text, str)).split()) >= SENTENCE_WORDS


def sentences_in_tests() -> list[str]:
    """Return the literal sentences in the tests that are an argument `match=` or a side of a comparison.

    Names in a message and patterns of up to three words are not counted.
    """
    sentences = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            if isinstance(node, ast.keyword) and node.arg == "match":
                sides = [node.value]
            sentences += [
                f"{path.relative_to(ROOT)}:{side.lineno} {ast.unparse(side)}" for side in filter(_is_sentence, sides)
            ]
    return sentences


def without_test(found: list[Module]) -> list[str]:
    """Return the modules that no test file of the mirrored path tests."""
    missing = []
    for module in found:
        path = Path(module.name)
        if module.only_imports or module.path.name.startswith("__"):
            continue
        if not any((ROOT / "tests" / path.parent).glob(f"test_{path.stem}*.py")):
            missing.append(module.name)
    return missing


def tests_without_types() -> list[str]:
    """Return the test files that pyproject.toml takes out of mypy's check."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    return sorted(
        name
        for override in settings
        if override.get("ignore_errors")
        for name in ([override["module"]] if isinstance(override["module"], str) else override["module"])
        if name.startswith("tests.")
    )


@dataclass(frozen=True)
class Figure:
    """A figure of the structure.

    Attributes:
        target: the value to reach.
        places: returns the places that it counts, where it counts places.
        higher: True if more is better.
    """

    value: float
    target: float
    places: Callable[[], list[str]] | None = None
    higher: bool = False

    def worse_than(self, other: float) -> bool:
        return self.value < other if self.higher else self.value > other


def measure(found: list[Module]) -> dict[str, Figure]:
    """Return the figures of the package as it stands."""
    parts = [module for module in found if module.path.name != "__init__.py"]
    most = max(folders(found).values())
    tested = [module for module in parts if not module.only_imports and not module.path.name.startswith("__")]

    def counted(places: Callable[[list[Module]], list[str]], target: int = 0) -> Figure:
        return Figure(len(places(found)), target, lambda: places(found))

    faces = Counter(name.split()[0] for name in names_in_faces())

    return {
        "modules": Figure(len(found), 280),
        "modules in the largest folder": Figure(
            most, 15, lambda: [f"{n} {c}" for n, c in folders(found).most_common(12)]
        ),
        "class names with several meanings": counted(classes_of_one_name),
        "results that are a value or a text": counted(results_or_text),
        "decisions by a text for people": counted(decisions_by_text),
        "docstrings that begin without a subject": counted(headless_docstrings),
        "modules with a test of their own, %": Figure(
            round(100 * (1 - len(without_test(found)) / len(tested)), 1), 80, lambda: without_test(found), higher=True
        ),
        "test files without checked types": Figure(len(tests_without_types()), 0, tests_without_types),
        "names in faces": Figure(faces.total(), 300, names_in_faces),
        "names in the widest face": Figure(
            max(faces.values()), 25, lambda: [f"{face} {count}" for face, count in faces.most_common()]
        ),
        "rooms that import the server": counted(rooms_that_import_server, 3),
        "upward imports inside the server": counted(upward_imports_in_server),
        "literal sentences in tests": Figure(len(sentences_in_tests()), 200, sentences_in_tests),
        "lines with Any": counted(lines_with_any, 700),
    }


Record = dict[str, dict[str, float]]
"""The figures on record by their names, under the key "figures"."""


def violations(record: Record, figures: dict[str, Figure]) -> list[str]:
    """Return a line for each figure that is worse than its record and its target."""
    before = record["figures"]
    return [
        f"{name}: {figure.value:,g}, on record {before[name]:,g}, target {figure.target:,g}"
        for name, figure in figures.items()
        if name in before and figure.worse_than(before[name]) and figure.worse_than(figure.target)
    ]


def improved(record: Record, figures: dict[str, Figure]) -> Record:
    """Return the record with the figures that are better today."""
    before = record["figures"]
    return {
        "figures": {
            name: before[name] if name in before and figure.worse_than(before[name]) else figure.value
            for name, figure in figures.items()
        }
    }


def main() -> int:
    """Print every figure; return 1 if a figure is worse than its record and its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="record the figures that are better today")
    parser.add_argument("--show", metavar="WORD", help="print the places of the figures whose names contain the word")
    asked = parser.parse_args()
    found = modules()
    figures = measure(found)
    record = json.loads(RECORD.read_text())
    for name, figure in figures.items():
        before = record["figures"].get(name, figure.value)
        met = "" if figure.worse_than(figure.target) else "met"
        print(f"{name:<48} {figure.value:>9,g}   on record {before:>9,g}   target {figure.target:>8,g}   {met}")
        if asked.show and asked.show in name and figure.places:
            print(*(f"    {place}" for place in figure.places()), sep="\n")
    if asked.record:
        RECORD.write_text(json.dumps(improved(record, figures), indent=2) + "\n")
    if broken := violations(record, figures):
        print("not recorded:" if asked.record else "worse than on record:", *broken, sep="\n    ")
        print("`python -m tests.structure --show WORD` lists the places of a figure. To allow the change for an issue,")
        print("edit tests/structure.json by hand in a separate commit whose message names the issue.")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
