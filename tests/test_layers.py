"""The tree says what the imports say: each folder of clipgen_core imports only from the layers below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).parents[1] / "clipgen_core"
GROUND = {
    "cache",
    "errors",
    "extras",
    "device",
    "downloads",
    "filesystem",
    "logs",
    "mlflow_folder",
    "mlflow_sender",
    "mlflow_tracker",
    "progress",
    "ray_address",
    "schema",
    "settings",
    "storage",
    "stores",
    "tracking",
}
MAY_IMPORT = {name: GROUND for name in GROUND} | {"data": GROUND, "models": GROUND}
MAY_IMPORT["training"] = GROUND | {"data", "models"}
MAY_IMPORT["generation"] = MAY_IMPORT["training"] | {"training"}
MAY_IMPORT["judging"] = MAY_IMPORT["generation"] | {"generation"}
MAY_IMPORT["registry"] = MAY_IMPORT["published"] = MAY_IMPORT["judging"] | {"judging"}
MAY_IMPORT["stages"] = MAY_IMPORT["serving"] = MAY_IMPORT["registry"] | {"registry"}
MAY_IMPORT["recipes"] = GROUND | {"models"}
MAY_IMPORT["plan"] = MAY_IMPORT["train"] = MAY_IMPORT["stages"] | {"stages", "recipes"}
MAY_IMPORT["assets"] = GROUND
MAY_IMPORT["config_files"] = GROUND | {"assets"}
MAY_IMPORT["run_config"] = GROUND | {"assets", "config_files", "recipes"}
MAY_IMPORT["preflight"] = MAY_IMPORT["plan"] | {"assets", "plan", "run_config"}
MAY_IMPORT["proposal"] = MAY_IMPORT["preflight"] | {"preflight"}
MAY_IMPORT["cli"] = MAY_IMPORT["proposal"] | {"proposal", "train", "serving", "published", "config_files"}
MAY_IMPORT["__main__"] = {"cli"}
MAY_IMPORT["generator"] = {"generation"}  # an alias for models registered by version 0.1
ONE_FILE_EACH = {"stages"}  # whose modules meet in files alone and never import each other


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def wrong_imports(module: str, source: str) -> list[str]:
    room, used = room_of(module), [one for one in imports(source) if one.startswith("clipgen_core.")]
    allowed = MAY_IMPORT[room] | ({room} - ONE_FILE_EACH)
    return [one for one in used if room_of(one) not in allowed and one != "clipgen_core.__version__"]


def test_every_module_imports_only_from_below() -> None:
    for path in CORE.rglob("*.py"):
        module = ".".join(path.relative_to(CORE.parent).with_suffix("").parts)
        if path != CORE / "__init__.py":
            assert wrong_imports(module, path.read_text()) == [], module


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("clipgen_core.stages.tokens", "from clipgen_core.stages import vqgan"),
        ("clipgen_core.models.clip", "from clipgen_core.data import tables"),
        ("clipgen_core.data.fill", "import clipgen_core.models.clip"),
        ("clipgen_core.storage", "def f():\n    from clipgen_core.data.tables import open_table"),
        ("clipgen_core.generation.generator", "from clipgen_core.registry.champions import Registry"),
        ("clipgen_core.recipes", "from clipgen_core.stages import vqgan"),
    ],
)
def test_an_import_against_the_layers_is_found(module: str, source: str) -> None:
    assert wrong_imports(module, source)
