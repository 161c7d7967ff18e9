"""Public functions and methods with more than one argument say what each is, and what they return."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(body: list[ast.stmt]) -> Iterator[Function]:
    """Functions of a module and methods of its classes; not those inside functions."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, FUNCTIONS) and not node.name.startswith("_") and not is_shown(node):
            yield node


def is_shown(function: Function) -> bool:
    """Whether people read the docstring elsewhere: as the help of a command, or in Dagster's UI."""
    decorators = " ".join(ast.unparse(decorator) for decorator in function.decorator_list)
    return ".command(" in decorators or "dg." in decorators


def arguments(function: Function) -> list[str]:
    """Names of the arguments but self and cls."""
    given = function.args
    every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [one.arg for one in every if one and one.arg not in ("self", "cls")]


def missing(function: Function) -> list[str]:
    """What the docstring lacks."""
    names, text = arguments(function), ast.get_docstring(function) or ""
    if len(names) < 2:
        return []
    section = text.partition("Args:\n")[2].partition("\n\n")[0]
    heads = [line.partition(":")[0].replace("*", "").split(",") for line in section.splitlines()]
    explained = {name.strip() for head in heads for name in head}
    lacking = [name for name in names if name not in explained]
    returned = ast.unparse(function.returns) if function.returns else "None"
    if returned not in ("None", "NoReturn") and not ("Returns:\n" in text or "Yields:\n" in text):
        lacking.append("Returns")
    return lacking


@pytest.mark.parametrize("package", ["clipgen_core", "pipelines"])
def test_public_functions_explain_their_arguments(package: str) -> None:
    problems = []
    for file in sorted((ROOT / package).rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        for function in public_functions(ast.parse(file.read_text()).body):
            if lacking := missing(function):
                problems.append(f"{path}:{function.lineno} {function.name} lacks {', '.join(lacking)}")
    assert problems == []
