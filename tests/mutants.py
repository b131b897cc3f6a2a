"""Change random lines of the package and report which changes the tests find.

    python tests/mutants.py --results now.jsonl
    git worktree add ../before COMMIT
    git -C ../before checkout main -- mlflow_deploy_plugin
    git -C ../before commit -m "The package of today with the tests of COMMIT"
    python tests/mutants.py --tree ../before --among now.jsonl --results then.jsonl

The last command runs the earlier tests for the mutants that live now, because tests
that were only removed find no mutant that the earlier tests miss.

Each mutant changes one line: a comparison, a constant, an operator, a condition or a
statement. First the test module of the changed module runs, then its folder, then all
other test files that import the module; a mutant lives if none of them fails. The seed
decides the mutants, so that two checkouts with the same package get the same ones. A
run that was stopped continues after the last line of its results. Long tests are left
out.
"""

import argparse
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PACKAGE = "mlflow_deploy_plugin"
SECONDS = 400
PAIRS = [
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Eq, ast.NotEq),
    (ast.In, ast.NotIn),
    (ast.Is, ast.IsNot),
    (ast.And, ast.Or),
    (ast.Add, ast.Sub),
    (ast.Mult, ast.FloorDiv),
]
OPPOSITES: dict[type[ast.AST], Any] = dict(PAIRS) | {second: first for first, second in PAIRS}


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    before: str
    after: str
    text: str
    """The file with the change."""


def changed(node: ast.AST) -> ast.expr | ast.stmt | None:
    """Return a changed copy of a node, or None if this kind of node is not changed."""
    match node:
        case ast.Compare(left, [operator], comparators):
            return ast.Compare(left, [OPPOSITES[type(operator)]()], comparators)
        case ast.BoolOp(operator, values):
            return ast.BoolOp(OPPOSITES[type(operator)](), values)
        case ast.BinOp(left, operator, right) if type(operator) in OPPOSITES:
            return ast.BinOp(left, OPPOSITES[type(operator)](), right)
        case ast.UnaryOp(ast.Not(), operand):
            return operand
        case ast.Constant(bool() as value):
            return ast.Constant(not value)
        case ast.Constant(int() as value):
            return ast.Constant(value + 1)
        case ast.Return(ast.Constant(None)):
            return None
        case ast.Return(ast.expr()):
            return ast.Return(None)
        case ast.Expr(ast.Call()) | ast.Raise():
            return ast.Pass()
        case _:
            return None


def mutants_of(file: Path, tree: Path) -> Iterator[Mutant]:
    """Yield a mutant for each node of a module that can be changed within its line."""
    text = file.read_text()
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        replacement = changed(node)
        if replacement is None or not isinstance(node, ast.expr | ast.stmt):
            continue
        if node.lineno != node.end_lineno:
            continue
        line = lines[node.lineno - 1].encode()
        part = line[node.col_offset : node.end_col_offset]
        new = ast.unparse(replacement).encode()
        if isinstance(replacement, ast.expr) and not isinstance(replacement, ast.Constant):
            new = b"(" + new + b")"
        after = line[: node.col_offset] + new + line[node.end_col_offset :]
        rest = [*lines[: node.lineno - 1], after.decode(), *lines[node.lineno :]]
        name = str(file.relative_to(tree))
        yield Mutant(name, node.lineno, part.decode(), new.decode(), "\n".join(rest))


def chosen(tree: Path, count: int, seed: int) -> list[Mutant]:
    """Return mutants of different lines; each line has the same chance."""
    by_line: dict[tuple[str, int], list[Mutant]] = {}
    for file in sorted((tree / PACKAGE).rglob("*.py")):
        if file.name.endswith("_pb2.py") or "migrations" in file.parts:
            continue
        for mutant in mutants_of(file, tree):
            by_line.setdefault((mutant.file, mutant.line), []).append(mutant)
    order = random.Random(seed)
    return [order.choice(by_line[line]) for line in order.sample(sorted(by_line), count)]


def test_files(tree: Path, file: str) -> list[list[str]]:
    """Return the groups of test files that run for a module, the nearest first."""
    module = Path(file).relative_to(PACKAGE)
    folder = tree / "tests" / module.parent
    mirror = folder / f"test_{module.stem}.py"
    name = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
    importing = subprocess.run(
        ["git", "grep", "-lwF", name, "--", "tests/**/test_*.py"],
        cwd=tree,
        check=False,
        capture_output=True,
        text=True,
    ).stdout.split()
    groups = [
        [str(mirror.relative_to(tree))] if mirror.exists() else [],
        sorted(str(path.relative_to(tree)) for path in folder.glob("test_*.py")),
        importing,
    ]
    seen: set[str] = set()
    stages = []
    for group in groups:
        stage = [path for path in group if path not in seen]
        seen.update(stage)
        if stage:
            stages.append(stage)
    return stages


def found_by(mutant: Mutant, tree: Path, copy: Path) -> str | None:
    """Return the test files of the stage that found a mutant, or None if it lives."""
    target = copy / mutant.file
    target.write_text(mutant.text)
    try:
        for stage in test_files(tree, mutant.file):
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
            run = subprocess.Popen(
                [*command, "-n", "0", "-m", "not long and not install", *stage],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                status = run.wait(SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
                return "time"
            if status not in (0, 5):  # 5: only long tests
                return " ".join(stage)
        return None
    finally:
        shutil.copyfile(tree / mutant.file, target)


def read_results(path: Path) -> list[tuple[tuple[str, int], bool]]:
    """Return the place of each mutant, and whether the tests found it."""
    results = [json.loads(line) for line in path.read_text().splitlines()]
    return [((row["file"], row["line"]), row["found_by"] is not None) for row in results]


def judge_all(mutants: list[Mutant], tree: Path, results: Path, processes: int) -> None:
    """Judge each mutant in one of several copies of the checkout, and append a line to
    the results.
    """
    with tempfile.TemporaryDirectory(dir=tree.parent) as folder:
        copies = [Path(folder) / str(number) for number in range(processes)]
        for copy in copies:
            subprocess.run(["git", "clone", "-q", str(tree), str(copy)], check=True)

        def judge(mutant: Mutant) -> None:
            copy = copies.pop()
            stage = found_by(mutant, tree, copy)
            copies.append(copy)
            result = {**asdict(mutant), "found_by": stage}
            del result["text"]
            with results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{mutant.file}:{mutant.line} {'found' if stage else 'LIVES'}", flush=True)

        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(judge, mutants))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, default=Path(), help="the checkout")
    parser.add_argument("--results", type=Path, required=True, help="a file of JSON Lines")
    parser.add_argument("--among", type=Path, help="only mutants that live in these results")
    parser.add_argument("--count", type=int, default=300, help="number of mutants (300)")
    parser.add_argument("--seed", type=int, default=69)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    tree = options.tree.resolve()
    options.results.touch()
    judged = {place for place, _ in read_results(options.results)}
    waiting = [
        mutant
        for mutant in chosen(tree, options.count, options.seed)
        if (mutant.file, mutant.line) not in judged
    ]
    if options.among:
        living = {place for place, found in read_results(options.among) if not found}
        waiting = [mutant for mutant in waiting if (mutant.file, mutant.line) in living]
    judge_all(waiting, tree, options.results, options.processes)
    done = read_results(options.results)
    count = sum(not found for _, found in done)
    print(f"{count} of {len(done)} mutants live ({count / len(done):.1%})")


if __name__ == "__main__":
    main()
