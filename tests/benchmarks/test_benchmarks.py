"""The benchmarks' own arithmetic; their figures are never asserted."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from benchmarks import callers, edits, gap, guidance, orders, photos, reading, serve
from benchmarks.baseline import PlainGpt
from benchmarks.growing import growing
from benchmarks.shards import write_shards
from benchmarks.static_cache import StaticCacheGpt
from benchmarks.timing import in_turn, ratio, seconds
from benchmarks.year import year
from clipgen_core.data.captions import read_captions
from clipgen_core.data.images import ImageTable
from clipgen_core.data.tokens import TokenShards
from clipgen_core.generation.generator import TextToImage
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.shapes import TRANSFORMERS
from clipgen_core.recipes import RECIPES, named
from clipgen_core.storage import Storage
from tests.conftest import COLOURS, SIZE, tiny_clip_config, tiny_transformer_config, tiny_vqgan_config


def test_works_take_turns_and_the_ratio_is_the_median_of_pairs() -> None:
    calls: list[str] = []
    measured = in_turn(lambda: calls.append("a"), lambda: calls.append("b"), rounds=2, warm_up=1)
    assert calls == ["a", "b"] * 3 and [len(column) for column in measured] == [2, 2]
    assert ratio([2.0, 9.0, 4.0], [1.0, 1.0, 1.0]) == 4.0
    assert seconds(lambda: time.sleep(0.02)) >= 0.02


def test_the_baseline_sees_no_code_to_come() -> None:
    shape = TRANSFORMERS["paper"].model_copy(update={"width": 32, "layers": 1, "heads": 2})
    model = PlainGpt(shape, codebook_size=9, positions=6, dim=4).eval()
    codes, embedding = torch.randint(9, (1, 5)), torch.randn(1, 4)
    other = codes.clone()
    other[0, -1] = (other[0, -1] + 1) % 9
    assert torch.allclose(model(codes, embedding)[:, :5], model(other, embedding)[:, :5], atol=1e-6)
    assert model.next_codes(codes, embedding).shape == (1, 1)


def test_the_static_cache_samples_from_what_a_whole_pass_predicts() -> None:
    torch.manual_seed(0)
    shape = TRANSFORMERS["b"].model_copy(update={"width": 32, "layers": 2, "heads": 2})
    model = StaticCacheGpt(shape, codebook_size=9, grid=3, dim=4).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    codes = model.sample(embedding := torch.randn(2, 4), guidance=1.0, top_k=1)  # greedy
    x = torch.cat([model.condition(embedding).unsqueeze(1), model.codes(codes[:, :-1])], dim=1)
    for layer in model.layers:
        layer.setup(2, 9, x)
        x = layer(x, model.rotary[:, :9], 0, torch.ones(9, 9, dtype=torch.bool).tril())
    assert torch.equal(model.head(model.norm(x)).argmax(dim=-1), codes)


def test_the_loaders_shards_are_shards(tmp_path: Path) -> None:
    shards = TokenShards(write_shards(tmp_path / "shards", 40_000), seed=0)
    assert shards.rows == 40_000 and len(shards.manifest.train) == 10
    assert len(shards.batch(100, 256)) == 256


def test_scores_of_a_way_by_hand() -> None:
    names = np.linspace(0, 0.9, 10)
    cosine = np.stack([[names, names], [names[::-1], names]])  # own name 9 ranks 1st, 1st; 10th, 1st
    scored = gap.score("a", "nothing", cosine, [9, 9])
    assert scored.recall_at_5 == pytest.approx((1 + 0.5) / 2)
    assert scored.clip_score == pytest.approx((0.9 + 0.45) / 2)


def test_every_way_is_trained_by_a_configuration_that_exists() -> None:
    for name in {trained for _, _, trained, _ in gap.WAYS}:
        config = named("demo").override(gap.TRAINED[name]).transformer
        assert (config.model.neighbours > 0) == (name == "neighbours")


def test_orders_are_trained_and_scored(
    pipeline: Storage, pictures: Path, clip_reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = named("demo").model_copy(
        update={"transformer": tiny_transformer_config(3), "vqgan": tiny_vqgan_config()}
    )
    monkeypatch.setitem(RECIPES, "demo", made)
    root = tmp_path / "root"
    shutil.copytree(pipeline.root, root)
    paraphrases = tmp_path / "paraphrases.csv"
    paraphrases.write_text("prompt,names\na crimson circle,a red disc|a orange disc\n")
    (tmp_path / "texts.txt").write_text("a red disc\na blue square\n")
    orders.main(
        root=str(root),
        judge=clip_reference,
        prompts=str(pictures / "prompts.csv"),
        texts=str(tmp_path / "texts.txt"),
        paraphrases=paraphrases,
        steps="2,4",
        most=6,
        seeds=1,
        candidates=1,
        json_file=tmp_path / "orders.json",
    )
    rows = json.loads((tmp_path / "orders.json").read_text())
    assert [(row["order"], row["steps"]) for row in rows] == [
        ("raster", 0),
        ("annealed", 0),
        ("any", 2),
        ("any", 4),
    ]
    assert all(row["recall"].keys() == {"train", "paraphrased"} for row in rows)


def test_images_of_small_recipes_are_compared_with_real_ones(pipeline: Storage, clip_reference: str) -> None:
    judged = photos.Judged(ImageTable(pipeline.images), ClipEncoder(clip_reference))
    real = judged.table.images(np.concatenate([judged.table.train, judged.table.validation]))
    sharp = [image.resize((SIZE, SIZE)) for image in real]
    soft = [image.filter(ImageFilter.GaussianBlur(3)) for image in sharp]
    own, blurred = judged.against_real(sharp, SIZE), judged.against_real(soft, SIZE)
    assert own["1000 kid"] < blurred["1000 kid"] and own["sharpness"] > 2 * blurred["sharpness"]
    assert {"1000 kid", "sharpness", "shape", "variety"} == set(own)


def test_the_steps_of_some_minutes_come_from_the_time_of_a_step() -> None:
    def trained(steps: int, _: Storage) -> None:
        until = time.process_time() + 0.3 + 0.01 * steps
        while time.process_time() < until:
            pass

    assert photos.steps_in(0.01, trained) == pytest.approx(120, rel=0.3)


def test_settings_that_do_not_change_sample_as_the_generator_does(checkpoint: str) -> None:
    generator = TextToImage.from_pretrained(checkpoint)
    texts, own = ["a red disc", "a blue square"], generator.parts.sampling
    conditions = torch.stack([guidance._condition(generator, text) for text in texts])
    codes = guidance.sample(generator.transformer, conditions, texts, own, lambda *_: {})
    made = generator.generate_scored(texts, candidates=1)
    assert torch.equal(codes.view(2, 4, 4), torch.stack([torch.from_numpy(row[0].codes) for row in made]))
    for schedule in guidance.SCHEDULES.values():
        assert own.override(**schedule(0.0, own)) and own.override(**schedule(1.0, own))


def sentence_encoder(folder: Path) -> Path:
    """A tiny untrained BERT, in the format of sentence-transformers."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "disc", "blue", "square"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(words), **shape)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_ways_to_read_are_trained_and_scored(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = named("demo").model_copy(update={"clip": tiny_clip_config()})
    monkeypatch.setitem(RECIPES, "demo", made)
    with (pictures / "captions.csv").open() as file:
        rows = [f'{pictures}/{line.strip()},"small,shape"' for line in list(file)[1:]]
    captions = pictures / "with_keywords.csv"
    captions.write_text("\n".join(["file,caption,keywords", *rows]))
    paraphrases = tmp_path / "paraphrases.csv"
    paraphrases.write_text("prompt,names\na crimson circle,a red disc\na navy box,a blue square\n")

    def read(**given: object) -> list[dict[str, object]]:
        reading.main(
            captions=str(captions),
            prompts=str(pictures / "prompts.csv"),
            paraphrases=paraphrases,
            out=str(tmp_path / "out"),
            json_file=tmp_path / "reading.json",
            **given,  # type: ignore[arg-type]
        )
        return json.loads((tmp_path / "reading.json").read_text())  # type: ignore[no-any-return]

    first = read(sentences=sentence_encoder(tmp_path / "sentences"))
    assert [row["way"] for row in first] == list(reading.WAYS)
    again = read(ways="alone, sigmoid")
    assert [row["way"] for row in again] == ["captions alone", "keywords combined, sigmoid loss"]
    scores = ("recall_at_1", "recall_at_5", "by_templates", "names_at_5")
    for row in again:
        assert row | {"seconds": 0} == next(one for one in first if one["way"] == row["way"]) | {"seconds": 0}
        assert all(0 <= row[name][0] <= 1 for name in scores)  # type: ignore[index]


def test_recall_of_prompts_by_hand(pictures: Path, clip_reference: str) -> None:
    captions, config = str(pictures / "captions.csv"), tiny_clip_config()
    task = reading.ClipTask(config, captions, read_captions(captions))
    encoder = ClipEncoder(clip_reference)
    task.model.load_state_dict(encoder.model.state_dict())
    task.model.eval()
    gallery = {f"{pictures}/pictures/disc/{colour} {SIZE}.png": f"a {colour} disc" for colour in COLOURS}
    images = encoder.encode_images([Image.open(url).convert("RGB") for url in gallery])
    assert np.allclose(reading.embed_images(task, list(gallery)), images, atol=2e-2)
    nearest = list(gallery.values())[int(np.argmax(encoder.encode_texts(["a circle"]) @ images.T))]
    scored = reading.read("", 0.0, task, gallery, [("a circle", [nearest]), ("a circle", ["nothing"])])
    assert scored.recall_at_1.mean == 0.5 and scored.recall_at_5.mean == 0.5


def test_edits_are_scored(any_order: str, pictures: Path, clip_reference: str, tmp_path: Path) -> None:
    file, prompts = tmp_path / "edits.json", str(pictures / "prompts.csv")
    edits.main(any_order, clip_reference, prompts, split="train", most=4, json_file=file)
    rows = json.loads(file.read_text())
    assert [row["way"] for row in rows] == 4 * list(edits.WAYS)
    outside = {way: [row["outside"][0] for row in rows if row["way"] == way] for way in edits.WAYS}
    assert all(not any(outside[way]) for way in edits.WAYS[:3]) and all(outside["generated"])
    assert all(-1 <= row[name][0] <= 1 for row in rows for name in ("inside", "whole"))


def test_change_outside_and_seam_by_hand() -> None:
    before, after, box = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8)), (4, 0, 8, 4)
    after.paste((90, 90, 90), box)
    assert edits.change_outside(before, after, box) == 0 and edits.seam(before, box) == 0
    assert edits.seam(after, box) == 90
    after.paste((12, 12, 12), (0, 0, 4, 8))  # 32 of the 48 pixels outside
    assert edits.change_outside(before, after, box) == 8
    assert edits.seam(after, box) == (4 * 78 + 4 * 90) / 8


@pytest.mark.slow
def test_a_root_does_not_grow_but_by_its_images() -> None:
    files, versions, tags, size = (row.value for row in year(nights=56))
    assert files <= 1.1 and versions == tags == 1 and size < 1


def test_an_unknown_benchmark_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nothing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "there is no benchmark nothing" in done.stderr


def test_tables_of_two_sizes_are_measured() -> None:
    commit, lookup = growing(small=3000, large=9000)
    assert commit.value > 0 and lookup.value > 0
    assert commit.what == "committing 4096 rows, 9,000 rows against 3,000"


@pytest.mark.slow
def test_users_of_the_api_get_the_images_of_one_call(checkpoint: str, tmp_path: Path) -> None:
    serve.main(checkpoint, users=4, json_file=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["equal_to_one_call"] >= 3 and figures["another_users"] == 0
    assert figures["slowest_s"] >= figures["median_s"] > 0 and figures["share_of_one_call"] > 0


def test_callers_in_threads_are_compared_with_one_call(checkpoint: str, tmp_path: Path) -> None:
    callers.main(checkpoint, callers=3, json_file=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["callers"] == 3 and figures["equal_to_one_call"] > 0.6
    assert figures["slowest_s"] > 0 and figures["share_of_one_call"] > 0
