"""What this package declares of others: its base dependencies, and the extra that brings an optional one.

Reads the installed metadata, so that pyproject.toml is the only list.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires

from clipgen_core.errors import ClipgenError

DISTRIBUTION = "clipgen"
OURS = ("clipgen_core", "pipelines")
PACKAGES = {
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}  # modules that are named otherwise than their package
REQUIREMENT = re.compile(r'([\w.-]+)[^;]*(?:;.*extra == "(\w+)")?')


@contextmanager
def needed_for(purpose: str) -> Iterator[None]:
    """Say a missing package, on entering which imports may fail, in one sentence.

    Args:
        purpose: What needs the package; the sentence's subject, e.g. "compute.where: ray".

    Raises:
        ClipgenError: A package is not installed; names the extra that brings it.
    """
    try:
        yield
    except ImportError as error:
        module = _missing_module(error)
        if module is None or module in OURS:
            raise
        package = PACKAGES.get(module, module.replace("_", "-"))
        extra = _extra_of(package)
        install = f"'{DISTRIBUTION}[{extra}]'" if extra else package
        raise ClipgenError(
            f"{purpose} needs {package}, which is not installed: pip install {install}"
        ) from error


def packages_of(*extras: str) -> list[str]:
    """The packages that every installation brings, which is what using most models needs, and those of
    extras."""
    return [package for package, extra in _declared() if extra is None or extra in extras]


def _missing_module(error: BaseException | None) -> str | None:
    """The top-level module at the root of an import error; fsspec, for one, raises another from it."""
    while error and not (isinstance(error, ModuleNotFoundError) and error.name):
        error = error.__cause__
    return error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else None


def _extra_of(package: str) -> str | None:
    try:
        return next((extra for name, extra in _declared() if name == package), None)
    except PackageNotFoundError:  # the code came alone, with a registered model
        return None


def _declared() -> list[tuple[str, str | None]]:
    """Packages as pyproject.toml names them, with the extra that brings each, None for the base."""
    found = (REQUIREMENT.match(line) for line in requires(DISTRIBUTION) or ())
    return [(one[1], one[2]) for one in found if one]
