"""Published weights: tiny checkpoints with the published names, compared with the published networks."""

import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.cli.train_stage import read_settings
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.load import load_vqgan
from clipgen_core.generation.parts import read_parts
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.quantizer import Quantizer
from clipgen_core.models.shapes import VQGANS
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.published.generator import import_generator, import_transformer, import_vqgan
from clipgen_core.published.transformer import convert_clip_gen, convert_llamagen
from clipgen_core.published.vqgan import Kind, convert_vqgan
from clipgen_core.published.weights import Weights
from clipgen_core.recipes import named
from clipgen_core.settings.catalogue import flatten
from clipgen_core.settings.models import QuantizerConfig
from clipgen_core.storage import Storage
from clipgen_core.training.checkpoint import Checkpoint
from tests.core.published.networks import CODES, MAKERS, LlamaGen, PublicGpt, Reference, clip_gen, llamagen


@pytest.mark.parametrize("kind", MAKERS)
def test_a_published_vqgan_gives_the_published_codes_and_pictures(kind: Kind, tmp_path: Path) -> None:
    state = MAKERS[kind]()
    torch.save({"state_dict": state} if kind == "taming" else {"model": state, "epoch": 3}, tmp_path / "w.pt")
    out = Storage(str(tmp_path / "root"))
    url = import_vqgan(kind, tmp_path / "w.pt", out, image_size=32).url
    assert out.current("vqgan", "the test").path == url
    ours, reference = load_vqgan(url), Reference(kind, state)
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    codes = reference.encode(pictures)
    assert codes.unique().numel() > 3  # the codes do tell places apart
    assert torch.equal(ours.encode(pictures), codes)
    assert (ours.decode(codes) - reference.decode(codes)).abs().max() < 1e-4


def test_a_published_vqgan_encodes_images_of_another_size(tmp_path: Path) -> None:
    state = llamagen()
    torch.save({"model": state}, tmp_path / "w.pt")
    ours = load_vqgan(import_vqgan("llamagen", tmp_path / "w.pt", Storage(str(tmp_path)), image_size=48).url)
    pictures = torch.rand(1, 3, 48, 48) * 2 - 1
    assert ours.config.grid == 12
    assert torch.equal(ours.encode(pictures), Reference("llamagen", state).encode(pictures))
    with pytest.raises(ClipgenError, match="image_size 50 is not divisible by the downsampling factor 4"):
        import_vqgan("llamagen", tmp_path / "w.pt", Storage(str(tmp_path)), image_size=50)


def test_ibq_passes_the_gradient_to_every_code() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(QuantizerConfig(kind="ibq", codebook_size=20, code_dim=4))
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    quantized, codes, loss = quantizer(features)
    assert torch.allclose(quantized, quantizer.lookup(codes)) and quantizer.codebook.shape == (20, 4)
    (quantized.square().sum() + loss).backward()
    moved = quantizer.vq.embedding.weight.grad.abs().amax(dim=1)  # type: ignore[union-attr]
    assert (moved > 0).all() and codes.unique().numel() < 20
    assert features.grad is not None and features.grad.abs().max() > 0
    assert quantizer.eval()(features)[2] == 0


@pytest.mark.parametrize("kind", MAKERS)
def test_weights_that_do_not_belong_are_refused(kind: Kind) -> None:
    state = {name: value for name, value in MAKERS[kind]().items() if not name.startswith("model_ema.")}

    def convert(changed: dict[str, Tensor]) -> None:
        convert_vqgan(kind, Weights(changed, kind, "w.pt"))

    missing = {name: value for name, value in state.items() if name != "decoder.conv_in.bias"}
    with pytest.raises(ClipgenError, match=r"w.pt has no decoder\.conv_in\.bias"):
        convert(missing)
    with pytest.raises(ClipgenError, match="w.pt has 1 unexpected weights, surprise"):
        convert(state | {"surprise": torch.zeros(1)})
    wrong = state | {"decoder.conv_in.weight": state["decoder.conv_in.weight"][:, :-1]}
    with pytest.raises(ClipgenError, match=r"weights for decoder\.1\.weight have the shape \(64, 11, 3, 3\)"):
        convert(wrong)
    grey = state | {"encoder.conv_in.weight": state["encoder.conv_in.weight"][:, :1]}
    with pytest.raises(ClipgenError, match="for images of 1 channels"):
        convert(grey)
    for value in (torch.nan, torch.inf):
        broken = state | {"encoder.conv_in.bias": torch.full((32,), value)}
        with pytest.raises(ClipgenError, match=r"values in encoder\.conv_in\.bias that are not finite"):
            convert(broken)


def test_the_published_sizes_are_the_presets() -> None:
    with torch.device("meta"):
        expected = {name: Vqgan(VQGANS[name]).state_dict() for name in ("paper", "modern")}
    assert expected["paper"]["encoder.1.weight"].shape == (128, 3, 3, 3)
    assert expected["paper"]["quantizer.vq._codebook.embed"].shape == (1, 16384, 256)
    assert expected["modern"]["quantizer.vq._codebook.embed"].shape == (1, 16384, 8)
    assert VQGANS["paper"].grid == VQGANS["modern"].grid == 16


@pytest.mark.parametrize("heads", [1, 4])
def test_the_public_transformer_gives_the_published_logits(heads: int) -> None:
    torch.manual_seed(0)
    reference = PublicGpt(codes=30, layers=2, width=64, heads=heads, positions=16, dim=20).eval()
    weights = Weights(dict(reference.state_dict()), "clip-gen-gpt", "gpt.pt")
    config, state = convert_clip_gen(weights, grid=4, heads=heads)
    ours = Transformer(config, 30, 4, 20).eval()
    ours.load_state_dict(state)
    codes, embedding = torch.randint(30, (3, 15)), F.normalize(torch.randn(3, 20), dim=-1)
    with torch.no_grad():
        wanted, got = reference(codes, embedding), ours(codes, embedding.unsqueeze(1))
    assert (wanted - got).abs().max() < 1e-4
    again = Weights(dict(reference.state_dict()), "clip-gen-gpt", "gpt.pt")
    with pytest.raises(ClipgenError, match=r"gpt.pt has 2 blocks of width 64.*: give it as --heads"):
        convert_clip_gen(again, grid=4)


@pytest.mark.parametrize("grid", [4, 6])
def test_a_llamagen_transformer_gives_the_published_logits_after_the_same_first_token(grid: int) -> None:
    torch.manual_seed(0)
    reference = LlamaGen(codes=30, layers=2, width=64, heads=4, grid=grid, classes=9).eval()
    weights = Weights(dict(reference.state_dict()), "llamagen-gpt", "gpt.pt")
    config, state = convert_llamagen(weights, grid, dim=10, heads=4)
    ours = Transformer(config, 30, grid, 10).eval()
    ours.load_state_dict(state)
    label, codes = torch.tensor([2, 9]), torch.randint(30, (2, grid * grid - 1))
    with torch.no_grad():  # one dimension of the embedding for each class
        ours.condition.weight.copy_(reference.cls_embedding.embedding_table.weight.T / 10**0.5)  # type: ignore[union-attr, operator]
        ours.condition.bias.zero_()
        wanted, got = reference(codes, label), ours(codes, F.one_hot(label, 10).float().unsqueeze(1))
    assert wanted.std() > 0.1 and (wanted - got).abs().max() < 1e-5


@pytest.fixture
def with_llamagen(tmp_path: Path) -> Storage:
    """A root whose current VQGAN is LlamaGen's."""
    torch.save({"model": llamagen()}, tmp_path / "vq.pt")
    root = Storage(str(tmp_path / "root"))
    import_vqgan("llamagen", tmp_path / "vq.pt", root, image_size=16)
    return root


def gpt(file: Path, codes: int = CODES) -> Path:
    torch.manual_seed(0)
    model = LlamaGen(codes=codes, layers=1, width=64, heads=4, grid=4, classes=9)
    torch.save({"model": model.state_dict()}, file)
    return file


def test_a_llamagen_transformer_becomes_a_folder_to_start_from(
    clip_reference: str, with_llamagen: Storage, tmp_path: Path
) -> None:
    file = gpt(tmp_path / "c2i_B.pt")
    first = import_transformer(file, with_llamagen, clip_reference, heads=4)
    generator = TextToImage.from_pretrained(first.url)
    assert generator.generate(["a red disc"], candidates=1)[0][0].size == (16, 16)
    saved = Checkpoint(read_parts(first.url).transformer)
    vqgan = Checkpoint(with_llamagen.current("vqgan", "the test").path).provenance.imported
    assert vqgan is not None and saved.codes.vqgan_digest == vqgan.sha256
    assert (saved.codes.grid, saved.codes.codebook_size) == (4, CODES)
    before = saved.weights()
    assert import_transformer(file, with_llamagen, clip_reference, heads=4).url == first.url
    after = Checkpoint(saved.url).weights()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    shared = torch.load(file)["model"] | {"layers.0.attention.wqkv.weight": torch.zeros(96, 64)}
    torch.save({"model": shared}, file)
    with pytest.raises(ClipgenError, match=r"blocks\.0\.attention\.qkv\.weight have the shape \(96, 64\)"):
        import_transformer(file, with_llamagen, clip_reference, heads=4)


def test_a_llamagen_transformer_needs_the_codes_it_was_trained_on(
    clip_reference: str, with_llamagen: Storage, tmp_path: Path
) -> None:
    with pytest.raises(ClipgenError, match="knows 9 codes, the current VQGAN of .* has 24"):
        import_transformer(gpt(tmp_path / "c2i_B.pt", codes=9), with_llamagen, clip_reference, heads=4)
    torch.save({"model": clip_gen()}, tmp_path / "vq.pt")
    import_vqgan("clip-gen", tmp_path / "vq.pt", with_llamagen, image_size=16)
    with pytest.raises(ClipgenError, match="is not LlamaGen's.*: run clipgen import-vqgan llamagen first"):
        import_transformer(gpt(tmp_path / "c2i_B.pt"), with_llamagen, clip_reference, heads=4)


def test_the_commands_print_what_starts_a_training(clip_reference: str, tmp_path: Path) -> None:
    torch.save({"model": llamagen()}, tmp_path / "vq.pt")
    arguments = ["import-vqgan", "llamagen", str(tmp_path / "vq.pt"), "--root", str(tmp_path), "--image-size"]
    printed = CliRunner().invoke(app, [*arguments, "64"]).output
    command, _, config = printed.partition("or, in a run config of the recipe b, in the config of vqgan_chec")
    program, *words = shlex.split(command[command.index("  clipgen train-stage") :].replace("\\\n", ""))
    assert program == "clipgen" and words[:5] == ["train-stage", "vqgan", "--root", str(tmp_path), "--recipe"]
    given = read_settings("vqgan", words[7::2])
    assert set(words[6::2]) == {"--set"} and str(given["vqgan.start_from"]).startswith(str(tmp_path))
    assert named("b").override(given).vqgan.model.image_size == 64
    in_yaml = flatten(yaml.safe_load(config.partition("\n")[2]))
    assert {f"vqgan.{name}": value for name, value in in_yaml.items()} == given
    options = ["--root", str(tmp_path), "--clip", clip_reference, "--heads", "4"]
    file = gpt(tmp_path / "gpt.pt")
    printed = CliRunner().invoke(app, ["import-transformer", "llamagen", str(file), *options]).output
    assert "--set model.details=llamagen" in printed and "--set model.qk_norm=false" in printed


def test_the_public_generator_makes_pictures(clip_reference: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    widths = (32, 32, 32, 32, 32)
    torch.save({"model": clip_gen(widths)}, tmp_path / "vqgan_coco.pt")
    gpt = PublicGpt(
        codes=CODES, layers=1, width=64, heads=1, positions=256, dim=ClipEncoder(clip_reference).dim
    )
    torch.save({"model": gpt.state_dict(), "epoch": 1}, tmp_path / "gpt_coco.pt")
    folder = tmp_path / "generator"
    folder.mkdir()
    import_generator(tmp_path / "vqgan_coco.pt", tmp_path / "gpt_coco.pt", clip_reference, folder, heads=1)
    generator = TextToImage.from_pretrained(str(folder))
    made = generator.generate_scored(["a red square"], n=2, candidates=2, top_k=10)[0]
    assert [one.image.size for one in made] == [(256, 256)] * 2
    assert made[0].clip_score >= made[1].clip_score
    with pytest.raises(ClipgenError, match="no table of image embeddings"):
        generator.generate(["a red square"], condition="retrieval")
