"""The scripts of examples/ do what their first line says."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from clipgen_core.generation.generator import TextToImage
from clipgen_core.recipes import RECIPES
from tests.conftest import tiny_transformer_config, tiny_vqgan_config

EXAMPLES = Path(__file__).parents[1] / "examples"


Example = Callable[..., list[str]]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Example:
    """Runs a script with arguments, in an empty folder; gives the lines that it prints."""

    def run(name: str, *arguments: str) -> list[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_images_are_generated_and_saved(example: Example, checkpoint: str, tmp_path: Path) -> None:
    printed = example("generate.py", "a red disc", "a blue square", "-m", checkpoint, "-n", "2", "-o", "made")
    files = sorted((tmp_path / "made").iterdir())
    assert [file.name for file in files] == ["0-0.png", "0-1.png", "1-0.png", "1-1.png"]
    assert {Image.open(file).size for file in files} == {(32, 32)}
    assert "a red disc, CLIP score" in printed[0] and "a blue square, CLIP score" in printed[3]


def test_a_folder_is_embedded_and_searched(example: Example, pictures: Path, clip_reference: str) -> None:
    folder = pictures / "pictures"
    printed = example("embed_and_search.py", str(folder), "a red disc", "--clip", clip_reference, "-k", "5")
    found = [line.split(" ", 1) for line in printed if "file://" in line]
    cosines = [float(cosine) for cosine, _ in found]
    assert len({uri for _, uri in found}) == 5 and cosines == sorted(cosines, reverse=True)
    assert all(Path(uri.removeprefix("file://")).is_file() for _, uri in found)


def test_a_folder_becomes_a_generator(
    example: Example, pictures: Path, clip_reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"vqgan": tiny_vqgan_config(), "transformer": tiny_transformer_config()}
    monkeypatch.setitem(RECIPES, "tiny", RECIPES["quick"].model_copy(update=models))
    options = ("--clip", clip_reference, "--root", str(tmp_path / "root"), "--recipe", "tiny")
    last = example("train_on_folder.py", str(pictures / "pictures"), *options)[-1]
    generator = TextToImage.from_pretrained(last.rsplit(" -m ")[1])
    assert generator.generate(["a red disc"])[0][0].size == (32, 32)


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.name)
def test_every_example_is_short_and_linked_from_the_docs(script: Path) -> None:
    docs = "\n".join(page.read_text() for page in (EXAMPLES.parent / "docs").glob("*.md"))
    assert len(script.read_text().splitlines()) < 50
    assert f"examples/{script.name}" in docs
