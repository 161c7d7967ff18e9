"""What may know what: the core never loads Dagster, loading the definitions never loads torch."""

import subprocess
import sys

import pytest

NOT_ON_A_GPU_MACHINE = ("lance", "dagster", "mlflow", "ray", "gradio")


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_core_loads_no_dagster() -> None:
    modules = loaded_by("import clipgen_core.recipes, clipgen_core.generation.generator, clipgen_core.cli")
    assert "torch" in modules
    assert not modules & {"dagster", "pipelines", "mlflow"}


def test_a_training_from_shards_loads_where_its_platform_is_not_installed() -> None:
    trained = "stages.transformer", "stages.vqgan", "training.loop", "generation.sampling"
    code = f"for name in {NOT_ON_A_GPU_MACHINE}: sys.modules[name] = None\n"
    loaded_by(code + "\n".join(f"import clipgen_core.{name}" for name in trained))


def test_the_public_face_loads_torch_on_first_use_only() -> None:
    assert "torch" not in loaded_by("import clipgen_core\nassert clipgen_core.__version__")
    assert "torch" in loaded_by("from clipgen_core import ClipgenError, TextToImage")


def test_loading_the_definitions_loads_no_torch() -> None:
    code = "from pipelines.definitions import defs\nassert defs().resolve_all_asset_specs()"
    modules = loaded_by(code)
    assert "dagster" in modules
    assert not modules & {"torch", "lance", "open_clip", "mlflow"}


@pytest.mark.parametrize(
    ("path", "code", "rule"),
    [
        ("clipgen_core/x.py", "import dagster\n", "TID251"),
        ("clipgen_core/x.py", "import pipelines\n", "TID251"),
        ("pipelines/x.py", "import torch\n", "TID253"),
    ],
)
def test_the_linter_holds_the_line(path: str, code: str, rule: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", path, "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
    assert rule in done.stdout
