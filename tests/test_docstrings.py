"""Public functions and methods with more than one argument say what each is, and what they return."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_CONVERTED = (  # folders and modules whose docstrings do not follow this rule yet
    "clipgen_core/cli/",
    "clipgen_core/data/tables.py",
    "clipgen_core/generation/",
    "clipgen_core/recipes.py",
    "clipgen_core/registry/",
    "clipgen_core/schema.py",
    "clipgen_core/stages/",
    "clipgen_core/storage.py",
    "clipgen_core/tracking.py",
    "clipgen_core/train.py",
    "clipgen_core/training/checkpoint.py",
    "clipgen_core/training/loop.py",
    "pipelines/",
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_converted(path: str) -> bool:
    return not path.startswith(NOT_CONVERTED)


def public_functions(body: list[ast.stmt]) -> Iterator[Function]:
    """Functions of a module and methods of its classes; not those inside functions."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, FUNCTIONS) and not node.name.startswith("_") and not is_command(node):
            yield node


def is_command(function: Function) -> bool:
    """Whether Typer reads the docstring as the help text of a command."""
    return any(".command(" in ast.unparse(decorator) for decorator in function.decorator_list)


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
    lines = [line.strip().lstrip("*") for line in section.splitlines()]
    lacking = [name for name in names if not any(line.startswith(f"{name}:") for line in lines)]
    returned = ast.unparse(function.returns) if function.returns else "None"
    if returned not in ("None", "NoReturn") and not ("Returns:\n" in text or "Yields:\n" in text):
        lacking.append("Returns")
    return lacking


@pytest.mark.parametrize("package", ["clipgen_core", "pipelines"])
def test_public_functions_explain_their_arguments(package: str) -> None:
    problems = []
    for file in sorted((ROOT / package).rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        for function in public_functions(ast.parse(file.read_text()).body) if is_converted(path) else ():
            if lacking := missing(function):
                problems.append(f"{path}:{function.lineno} {function.name} lacks {', '.join(lacking)}")
    assert problems == []


def test_what_is_not_converted_still_exists() -> None:
    assert [path for path in NOT_CONVERTED if not (ROOT / path).exists()] == []
