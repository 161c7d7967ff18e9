import csv
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import clipgen_core
from clipgen_core.cli import app
from clipgen_core.data.pixels import grid
from clipgen_core.generation.export import export_file
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.parts import read_parts
from clipgen_core.recipes import RECIPES
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.storage import Storage

runner = CliRunner()


def test_generate_writes_a_row_a_prompt_and_repeats_by_seed(checkpoint: str, tmp_path: Path) -> None:
    sheets = []
    for name in ("one.png", "two.png"):
        out = tmp_path / name
        args = ["generate", "a red disc", "a blue square", "-n", "3", "--seed", "1", "-m", checkpoint]
        result = runner.invoke(app, [*args, "-o", str(out), "--candidates", "2"])
        assert result.exit_code == 0, result.output
        assert "a red disc: CLIP score" in result.output
        sheets.append(Image.open(out))
    assert sheets[0].size == (3 * 32 + 4, 2 * 32 + 2)
    assert sheets[0].tobytes() == sheets[1].tobytes()


def test_vary_writes_a_row_a_picture(checkpoint: str, pictures: Path, tmp_path: Path) -> None:
    files = [str(file) for file in sorted((pictures / "pictures" / "disc").iterdir())[:2]]
    out = tmp_path / "out.png"
    result = runner.invoke(app, ["vary", *files, "-n", "3", "-m", checkpoint, "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert Image.open(out).size == (3 * 32 + 4, 2 * 32 + 2)
    result = runner.invoke(app, ["vary", str(tmp_path / "none.png"), "-m", checkpoint])
    assert result.exit_code == 2 and "there is no file" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    "args",
    [
        ["vary", "other.png", "photo.png", "-o", "photo.png"],
        ["edit", "photo.png", "--mask", "mask.png", "-o", "mask.png"],
        ["extend", "photo.png", "-o", "./photo.png"],
    ],
)
def test_no_image_that_is_read_is_written_over(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = runner.invoke(app, args)
    assert refused.exit_code == 2
    assert f"{Path(args[-1])} is read and would be written over" in refused.output


def test_edits_and_extensions_need_a_model_of_any_order(
    checkpoint: str, any_order: str, pictures: Path, tmp_path: Path
) -> None:
    file = str(pictures / "pictures" / "disc" / "red 32.png")
    mask, out = tmp_path / "mask.png", tmp_path / "out.png"
    marked = Image.new("L", (32, 32))
    marked.paste(255, (8, 8, 24, 24))
    marked.save(mask)
    edit = ["edit", file, "a blue disc", "--mask", str(mask), "-n", "2", "-o", str(out)]
    extend = ["extend", file, "--left", "8", "--bottom", "1", "-n", "2", "-o", str(out)]
    vary = ["vary", file, "--strength", "0.5", "-n", "2", "-o", str(out)]
    for args, size in ((edit, (32, 32)), (extend, (40, 40)), (vary, (32, 32))):
        result = runner.invoke(app, [*args, "-m", any_order])
        assert result.exit_code == 0, result.output
        assert Image.open(out).size == (2 * size[0] + 2, size[1])
        assert ("added 8 at the bottom instead of 1 pixels" in result.output) == (args is extend)
        refused = runner.invoke(app, [*args, "-m", checkpoint])
        assert refused.exit_code == 2 and "order any" in " ".join(refused.output.split())


@pytest.mark.parametrize("command", ["generate", "vary", "edit", "extend"])
def test_an_output_that_cannot_be_written_is_one_sentence(
    command: str, any_order: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = str(pictures / "pictures" / "disc" / "red 32.png"), tmp_path / "out.png"
    args = {
        "generate": ["a disc"],
        "vary": [file],
        "edit": [file, "--mask", file],
        "extend": [file, "--left", "8"],
    }[command]
    args = [command, *args, "-n", "1", "-m", any_order]
    refused = runner.invoke(app, [*args, "-o", "/proc/out.png"])
    assert refused.exit_code == 2 and "no file can be written to /proc" in refused.output.replace("\n", " ")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused = runner.invoke(app, [*args, "-o", str(out)])
    assert refused.exit_code == 2, refused.output
    assert f"{out} cannot be written (No space left on device): make room" in " ".join(refused.output.split())
    assert not list(tmp_path.iterdir())


def test_generate_takes_the_last_local_run(checkpoint: str, tmp_path: Path) -> None:
    root = Storage(str(tmp_path / "root"))
    root.publish_current("transformer", checkpoint, "x")
    out = tmp_path / "out.png"
    result = runner.invoke(app, ["generate", "a disc", "-n", "1", "--root", root.root, "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert Image.open(out).size == (32, 32)


def test_the_last_local_run_is_the_default(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPGEN_ROOT", raising=False)
    Storage(".clipgen/older").publish_current("transformer", "/no/longer/there", "x")
    os.utime(".clipgen/older/current/transformer.json", (0, 0))
    Storage(".clipgen/mine").publish_current("transformer", checkpoint, "x")
    result = runner.invoke(app, ["generate", "a disc", "-n", "1", "-o", "out.png"])
    assert result.exit_code == 0, result.output
    assert Image.open("out.png").size == (32, 32)


def test_search_finds_the_picture_itself_first(pipeline: Storage, pictures: Path) -> None:
    query = pictures / "pictures" / "disc" / "teal 32.png"
    result = runner.invoke(app, ["search", str(query), "--root", pipeline.root, "-k", "3"])
    assert result.exit_code == 0, result.output
    lines = result.output.replace("\n", " ").split("file://")
    assert "teal" in lines[1] and result.output.count("file://") == 3
    by_text = runner.invoke(app, ["search", "a red disc", "--root", pipeline.root, "-k", "5"])
    assert by_text.output.count("file://") == 5


def test_search_takes_a_model_file(
    checkpoint: str, pipeline: Storage, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CLIPGEN_ROOT", raising=False)
    file = str(tmp_path / "model.clipgen")
    export_file(read_parts(checkpoint), file, name="tiny")
    found = runner.invoke(app, ["search", "a red disc", "-m", checkpoint, "-k", "3"])
    assert found.output.count("file://") == 3, found.output
    for query in ("a red disc", str(pictures / "pictures" / "disc" / "teal 32.png")):
        found = runner.invoke(app, ["search", query, "-m", file, "-k", "3"])
        assert found.exit_code == 0, found.output
        assert len(re.findall(r"\b[0-9a-f]{64}\b", found.output)) == 3
        found = runner.invoke(app, ["search", query, "-m", file, "-k", "3", "--root", pipeline.root])
        assert found.output.count("file://") == 3, found.output
    assert "teal" in found.output.replace("\n", " ").split("file://")[1]


def test_a_long_search_text_is_cut_and_says_so(pipeline: Storage) -> None:
    result = runner.invoke(app, ["search", "a red disc " * 40, "--root", pipeline.root, "-k", "1"])
    assert result.exit_code == 0 and result.output.count("file://") == 1
    assert "the CLIP does not read the last 114 tokens of the prompt 'a red disc" in result.stderr


def test_a_clip_named_by_a_relative_path_is_found_from_elsewhere(
    pictures: Path, clip_reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = Path(clip_reference.removeprefix("local-dir:"))
    monkeypatch.chdir(clip.parent)
    folder, root = str(pictures / "pictures"), str(tmp_path / "root")
    made = runner.invoke(app, ["embed", folder, "--root", root, "--clip", f"local-dir:{clip.name}"])
    assert made.exit_code == 0, made.output
    monkeypatch.chdir(tmp_path)
    later = runner.invoke(app, ["search", "a red disc", "--root", root, "-k", "1"])
    assert later.exit_code == 0, later.output


def test_embed_takes_in_new_pictures_only(pictures: Path, clip_reference: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(pictures / "pictures" / "disc", source)
    (source / "broken.png").write_bytes(b"no")
    args = ["embed", str(source), "--root", str(tmp_path / "root"), "--clip", clip_reference]
    first, second = runner.invoke(app, args), runner.invoke(app, args)
    assert first.exit_code == 0, first.output
    assert "25 images were found, 24 of them new; the images table holds 24 now" in first.output
    assert "1 of them cannot be used (not_an_image): see `clipgen rejects`" in first.output
    assert "25 images were found, 0 of them new" in second.output
    assert "0 images were embedded" in second.output


def test_names_with_brackets_are_printed_as_they_are(
    pictures: Path, clip_reference: str, tmp_path: Path
) -> None:
    shutil.copytree(pictures / "pictures" / "disc", tmp_path / "in" / "[old] scans")
    root = ["--root", str(tmp_path / "[red]root")]
    made = runner.invoke(app, ["embed", str(tmp_path / "in"), *root, "--clip", clip_reference])
    assert f"embedded in {tmp_path}/[red]root/embeddings/" in made.output
    assert "[old] scans" in runner.invoke(app, ["folders", *root]).output
    refused = runner.invoke(app, ["embed", f"{tmp_path}/no[/such]", *root, "--clip", clip_reference])
    assert refused.exit_code == 2 and f"error: the source folder {tmp_path}/no[/such]" in refused.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "x", "-o", "/no/such/folder/a.png"], "does not exist"),
        (["generate", "x", "-o", "a.jpg"], "does not end in .png"),
        (["generate", "x", "-o", "folder.png"], "folder.png is a folder: choose another --output"),
        (["generate", "x", "-m", "/no/such/model"], "there is no model at /no/such/model"),
        (
            ["generate", "x", "--root", "/no/such/root"],
            "there is no model under /no/such/root: name one by --model",
        ),
        (["generate", "x", "-m", "models:/clip-gen@candidate"], "set MLFLOW_TRACKING_URI"),
        (
            ["search", "x", "--root", "/no/such/root"],
            "materialise clip_embeddings first in Dagster, or run `clipgen embed FOLDER` first",
        ),
        (["vary", "photo.png", "-m", "/no/such/model"], "there is no file photo.png: check the path"),
        (["folders", "--root", "bogus://x"], "bogus://x cannot be opened"),
        (["ui", "-m", "/no/such/model"], "there is no model at /no/such/model"),
        (["ui"], "no model is available"),
        (["lineage", "models:/clip-gen@champion"], "set MLFLOW_TRACKING_URI"),
        (["lineage", "model.clipgen"], "model.clipgen is no registered model: give its address in"),
        (["promote", "--root", "TYPO"], "there is nothing at"),
        (["champions", "--root", "TYPO"], "there is nothing at"),
        (["ui", "--port", "80000"], "less than or equal to 65535"),
        (["serve", "--port", "80000"], "less than or equal to 65535"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, args)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert [one.name for one in tmp_path.iterdir()] == ["folder.png"]


def test_a_registry_that_is_down_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipgen_core.cli", "generate", "x", "-m", "models:/clip-gen@champion"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": "http://user:secret@127.0.0.1:9"}
    environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    said = " ".join(done.stderr.split())
    assert done.returncode == 2 and "MLflow at http://127.0.0.1:9 does not answer" in said
    assert "secret" not in said and "Traceback" not in said and list(tmp_path.iterdir()) == []


def test_an_image_that_exists_is_written_over_by_name_only(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for asked, written in (
        ([], "out.png"),
        ([], "out-2.png"),
        (["-o", "out.png"], "out.png"),
        ([], "out-3.png"),
    ):
        result = runner.invoke(app, ["generate", "a disc", "-n", "1", "-m", checkpoint, *asked])
        assert result.exit_code == 0 and f"wrote {written} (" in result.output, result.output
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out-2.png", "out-3.png", "out.png"]


def test_prompts_from_stdin_and_answers_in_json_for_programs(checkpoint: str, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    args = ["generate", "a star", "-", "-n", "2", "-m", checkpoint, "-o", str(out), "--json"]
    result = runner.invoke(app, args, input="a red disc\n\nein großer Kreis\n")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["prompts"] == ["a star", "a red disc", "ein großer Kreis"]
    assert said["file"] == str(out) and [len(row) for row in said["clip_scores"]] == [2, 2, 2]
    image = Image.open(out)
    written = json.loads(image.info["parameters"])
    assert written["model"] == "/".join(Path(checkpoint).parts[-2:]) == said["model"]
    assert written["software"].startswith("clipgen ")
    for sent, message in ((b"", "there is no prompt on stdin"), (b"\xff\xfe", "not encoded in UTF-8")):
        result = runner.invoke(app, ["generate", "-", "-m", checkpoint, "-o", str(out)], input=sent)
        assert result.exit_code == 2 and message in " ".join(result.output.split())


def test_images_can_be_generated_again_by_the_text_in_their_file(
    checkpoint: str, any_order: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    for model, condition in ((checkpoint, "retrieval"), (any_order, "text")):
        args = ["generate", "a red disc", "-n", "2", "--condition", condition, "-m", model, "-o", str(out)]
        assert runner.invoke(app, args).exit_code == 0
        written = json.loads(Image.open(out).info["parameters"])
        used = {name: value for name, value in written.items() if name in SamplingConfig.model_fields}
        assert set(SamplingConfig.model_fields) - set(used) == (
            {"neighbours", "neighbour_temperature"} if condition == "text" else set()
        )
        generator = TextToImage.from_pretrained(model)
        generator.parts = generator.parts.model_copy(
            update={"sampling": SamplingConfig()}
        )  # a model with other defaults
        rows = generator.generate(written["prompts"], written["n"], written["seed"], **used)
        assert grid(rows[0], columns=2).tobytes() == Image.open(out).tobytes()


def test_what_cannot_be_written_is_found_before_a_model_is_loaded(tmp_path: Path) -> None:
    code = "import sys; from clipgen_core.cli.options import app; import clipgen_core.cli\n"
    code += "try: app(['generate', 'x', '-o', '/no/such/a.png'])\n"
    code += "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "False"]


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clipgen_core.cli.generate.loaded", pressed)
    result = runner.invoke(app, ["generate", "x", "-o", str(tmp_path / "a.png")])
    assert result.exit_code == 130 and "Traceback" not in result.output


def test_an_option_has_the_same_names_in_all_commands() -> None:
    names = dict[str, set[str]]()
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        for option in (one for one in command.params if one.param_type_name == "option"):
            assert names.setdefault(option.name, set(option.opts)) == set(option.opts), command.name
    assert "--set" in names["overrides"] and len(names) > 40


def test_the_version_is_that_of_the_package() -> None:
    assert runner.invoke(app, ["--version"]).output == f"clipgen {clipgen_core.__version__}\n"


def test_a_command_ends_without_collecting_what_it_loaded() -> None:
    code = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count() > 1000))\n"
    code += "from clipgen_core.cli import main; sys.argv[1:] = ['--version']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"clipgen {clipgen_core.__version__}", "True"]


def test_an_empty_prompt_writes_nothing(checkpoint: str, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    result = runner.invoke(app, ["generate", " ", "-m", checkpoint, "-o", str(out)])
    assert result.exit_code == 2 and "a prompt is empty" in result.output
    assert not out.exists()


@pytest.mark.parametrize("command", ["generate", "search", "embed"])
def test_help_says_what_a_command_does(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0 and "--root" in result.output


@pytest.mark.parametrize("command", ["train", "init", "plan", "train-stage", "settings"])
def test_help_lists_all_recipes(command: str) -> None:
    said = re.sub(r"[\s│]+", " ", runner.invoke(app, [command, "--help"]).output)
    assert ", ".join(RECIPES) in said


def test_stats_and_rejects_say_what_was_read(clip_reference: str, tmp_path: Path) -> None:
    source, root = tmp_path / "in", str(tmp_path / "root")
    source.mkdir()
    Image.new("RGB", (40, 30), "red").save(source / "a.png")
    Image.new("RGB", (20, 60), "blue").save(source / "b.jpg")
    Image.new("RGB", (9, 9)).save(source / "c.png")
    (source / "d.png").write_text("no image")
    (source / "notes.txt").write_text("x")
    nothing = runner.invoke(app, ["rejects", "--root", root])
    assert nothing.exit_code == 2 and "or run `clipgen embed FOLDER` first" in nothing.output
    embedded = runner.invoke(app, ["embed", str(source), "--root", root, "--clip", clip_reference])
    assert embedded.exit_code == 0 and "1 files are no images: 1 .txt" in embedded.output
    shown = [
        " ".join(line.split()) for line in runner.invoke(app, ["stats", "--root", root]).output.splitlines()
    ]
    for line in (
        "images 2",
        "PNG 1",
        "JPEG 1",
        "files read 5",
        "of which no image 1",
        "rejects 2",
        "too_small 1",
    ):
        assert line in shown
    assert shown[-1].endswith(": 0% 20, 5% 20, 50% 25, 95% 29, 100% 30")
    listed = runner.invoke(app, ["rejects", "--root", root, "--reason", "too_small"]).output
    assert "c.png" in listed and "d.png" not in listed
    none = runner.invoke(app, ["rejects", "--root", root, "--reason", "damaged"])
    assert none.output == f"no image was rejected as damaged under {root}\n"
    listed = runner.invoke(app, ["rejects", "--root", root, "-n", "1"]).output
    assert "and 1 more" in listed
    file = tmp_path / "rejects.csv"
    runner.invoke(app, ["rejects", "--root", root, "-o", str(file)])
    with file.open() as opened:
        assert {row["reason"] for row in csv.DictReader(opened)} == {"too_small", "not_an_image"}
    refused = runner.invoke(app, ["rejects", "--root", root, "-o", str(tmp_path / "x.png")])
    assert refused.exit_code == 2 and "does not end in .csv" in " ".join(refused.output.split())


def test_images_are_referenced_as_the_root_does(clip_reference: str, tmp_path: Path) -> None:
    source, root = tmp_path / "in", str(tmp_path / "root")
    source.mkdir()
    given = ["embed", str(source), "--root", root, "--clip", clip_reference]
    for name, more in (("red", ["--references"]), ("blue", []), ("green", ["--no-references"])):
        Image.new("RGB", (40, 30), name).save(source / f"{name}.png")
        assert runner.invoke(app, [*given, *more]).exit_code == 0
    size = sum((source / f"{name}.png").stat().st_size for name in ("red", "blue"))
    shown = " ".join(runner.invoke(app, ["stats", "--root", root]).output.split())
    assert f"images referenced in their source 2 bytes there {size}" in shown


def test_embed_forgets_what_left_the_folder(clip_reference: str, tmp_path: Path) -> None:
    for name in ("red", "blue", "green"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), name).save(tmp_path / "in" / f"{name}.png")
    given = ["embed", str(tmp_path / "in"), "--root", str(tmp_path / "root"), "--clip", clip_reference]
    runner.invoke(app, given)
    (tmp_path / "in" / "red.png").unlink()
    assert "holds 3 now" in runner.invoke(app, given).output
    waits = runner.invoke(app, [*given, "--mirror-after-days", "1"]).output
    assert (
        "1 files left the folder: their images are forgotten by a later run" in waits
        and "holds 3 now" in waits
    )
    gone = runner.invoke(app, [*given, "--mirror-after-days", "0"]).output
    assert "1 images are forgotten: their files left the folder" in gone and "holds 2 now" in gone


def test_stats_show_the_metadata_of_the_images(clip_reference: str, tmp_path: Path) -> None:
    source, root = tmp_path / "in", str(tmp_path / "root")
    source.mkdir()
    for side in range(20, 24):
        Image.new("RGB", (side, 30), "red").save(source / f"{side}.png")
        (source / f"{side}.json").write_text(json.dumps({"license": "cc0", "score": side, "url": f"u{side}"}))
    (source / "23.json").write_text("{}")
    command = ["embed", str(source), "--root", root, "--clip", clip_reference]
    assert runner.invoke(app, command).exit_code == 0
    shown = " ".join(runner.invoke(app, ["stats", "--root", root]).output.split())
    assert "with caption 0 with license 3 cc0 3 with url 3 with score (20 to 22) 3 with label 0" in shown
    (source / "23.json").write_text('{"score": 9}')
    assert (
        runner.invoke(app, command).exit_code == runner.invoke(app, [*command, "--read-again"]).exit_code == 0
    )
    shown = " ".join(runner.invoke(app, ["stats", "--root", root]).output.split())
    assert "with score (9 to 22) 4" in shown
