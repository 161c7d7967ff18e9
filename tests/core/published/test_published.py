"""Published weights: tiny checkpoints with the published key names, and an independent forward pass."""

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.load import load_vqgan
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.shapes import VQGANS
from clipgen_core.models.transformer import Transformer
from clipgen_core.models.vqgan import Vqgan
from clipgen_core.published.generator import (
    convert_transformer,
    import_generator,
    import_vqgan,
    read_state_dict,
)
from clipgen_core.published.vqgan import Kind, convert_vqgan
from clipgen_core.storage import Storage

State = dict[str, Tensor]
WIDTHS = (32, 32, 64)
Z, CODES, BLOCKS = 12, 24, 2
CODE_DIM = {"taming": 12, "llamagen": 6, "clip-gen": 12}


class Making:
    """A random state dict, written name by name."""

    def __init__(self, seed: int = 0) -> None:
        self.state: State = {}
        self.random = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self.random) * scale

    def conv(self, name: str, inner: int, out: int, size: int) -> None:
        self.state[f"{name}.weight"] = self.normal(
            out, inner, size, size, scale=(inner * size * size) ** -0.5
        )
        self.state[f"{name}.bias"] = self.normal(out, scale=0.1)

    def linear(self, name: str, inner: int, out: int) -> None:
        self.state[f"{name}.weight"] = self.normal(out, inner, scale=inner**-0.5)
        self.state[f"{name}.bias"] = self.normal(out, scale=0.1)

    def norm(self, name: str, width: int) -> None:
        self.state[f"{name}.weight"] = 1 + self.normal(width, scale=0.1)
        self.state[f"{name}.bias"] = self.normal(width, scale=0.1)

    def residual(self, name: str, inner: int, out: int, names: tuple[str, ...]) -> None:
        norm1, conv1, norm2, conv2, shortcut = (f"{name}.{one}" for one in names)
        self.norm(norm1, inner)
        self.conv(conv1, inner, out, 3)
        self.norm(norm2, out)
        self.conv(conv2, out, out, 3)
        if inner != out:
            self.conv(shortcut, inner, out, 1)

    def attention(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm", width)
        for one in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{one}", width, width, 1)

    def multihead(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm", width)
        self.state[f"{name}.attn.in_proj_weight"] = self.normal(3 * width, width, scale=width**-0.5)
        self.state[f"{name}.attn.in_proj_bias"] = self.normal(3 * width, scale=0.1)
        self.linear(f"{name}.attn.out_proj", width, width)


PLAIN = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
BLOCK = ("block.0", "block.2", "block.3", "block.6", "shortcut")


def plain(
    kind: Kind, levels: tuple[str, str], blocks: str, middle: tuple[str, str, str], widths: tuple[int, ...]
) -> State:
    """What taming's and LlamaGen's checkpoints have in common; levels are named by {i}, finest first, or
    by {c}, coarsest first."""
    m, last = Making(), len(widths) - 1
    m.conv("encoder.conv_in", 3, widths[0], 3)
    width = widths[0]
    for i, out in enumerate(widths):
        level = levels[0].format(i=i)
        for j in range(BLOCKS):
            m.residual(f"{level}.{blocks}.{j}", width, out, PLAIN)
            width = out
            if i == last:
                m.attention(f"{level}.attn.{j}", width)
        if i < last:
            m.conv(f"{level}.downsample.conv", width, width, 3)
    m.conv("decoder.conv_in", Z, width, 3)
    for i in range(last, -1, -1):
        level = levels[1].format(i=i, c=last - i)
        for j in range(BLOCKS + 1):
            m.residual(f"{level}.{blocks}.{j}", width, widths[i], PLAIN)
            width = widths[i]
            if i == last:
                m.attention(f"{level}.attn.{j}", width)
        if i:
            m.conv(f"{level}.upsample.conv", width, width, 3)
    for part in ("encoder", "decoder"):
        first, attention, second = (f"{part}.{name}" for name in middle)
        m.residual(first, widths[-1], widths[-1], PLAIN)
        m.attention(attention, widths[-1])
        m.residual(second, widths[-1], widths[-1], PLAIN)
    return _ends(m, widths, CODE_DIM[kind])


def taming(widths: tuple[int, ...] = WIDTHS) -> State:
    middle = ("mid.block_1", "mid.attn_1", "mid.block_2")
    return plain("taming", ("encoder.down.{i}", "decoder.up.{i}"), "block", middle, widths)


def llamagen(widths: tuple[int, ...] = WIDTHS) -> State:
    levels = ("encoder.conv_blocks.{i}", "decoder.conv_blocks.{c}")
    made = plain("llamagen", levels, "res", ("mid.0", "mid.1", "mid.2"), widths)
    return made | {"quantize.codebook_used": torch.zeros(65536)}


def _ends(m: Making, widths: tuple[int, ...], code_dim: int) -> State:
    m.norm("encoder.norm_out", widths[-1])
    m.conv("encoder.conv_out", widths[-1], Z, 3)
    m.norm("decoder.norm_out", widths[0])
    m.conv("decoder.conv_out", widths[0], 3, 3)
    m.conv("quant_conv", Z, code_dim, 1)
    m.conv("post_quant_conv", code_dim, Z, 1)
    m.state["quantize.embedding.weight"] = m.normal(CODES, code_dim)
    return m.state


def clip_gen(widths: tuple[int, ...] = WIDTHS) -> State:
    m, last, k = Making(), len(widths) - 1, 0
    m.conv("encoder.conv_in", 3, widths[0], 3)
    width = widths[0]
    for i, out in enumerate(widths):
        for _ in range(BLOCKS):
            m.residual(f"encoder.down.{k}", width, out, BLOCK)
            width, k = out, k + 1
            if i == last:
                m.multihead(f"encoder.down.{k}", width)
                k += 1
        if i < last:
            m.conv(f"encoder.down.{k}.conv", width, width, 3)
            k += 1
    m.norm("encoder.final.0", width)
    m.conv("encoder.final.2", width, Z, 3)
    m.conv("encoder.final.3", Z, Z, 1)
    m.conv("decoder.quant_conv_in", Z, Z, 1)
    m.conv("decoder.conv_in", Z, width, 3)
    k = 0
    for i in range(last, -1, -1):
        for _ in range(BLOCKS + 1):
            m.residual(f"decoder.up.{k}", width, widths[i], BLOCK)
            width, k = widths[i], k + 1
            if i == last:
                m.multihead(f"decoder.up.{k}", width)
                k += 1
        if i:
            m.conv(f"decoder.up.{k}.conv", width, width, 3)
            k += 1
    for part in ("encoder", "decoder"):
        m.residual(f"{part}.mid.0", widths[-1], widths[-1], BLOCK)
        m.multihead(f"{part}.mid.1", widths[-1])
        m.residual(f"{part}.mid.2", widths[-1], widths[-1], BLOCK)
    m.norm("decoder.final.0", widths[0])
    m.conv("decoder.final.2", widths[0], 3, 3)
    m.state["quantizer.embedding.weight"] = m.normal(CODES, Z)
    m.conv("discriminator.layers.0", 3, 8, 4)
    return m.state


MAKERS: dict[Kind, Callable[[], State]] = {"taming": taming, "llamagen": llamagen, "clip-gen": clip_gen}


class Reference:
    """The published networks, written with functions alone: what our modules must agree with."""

    def __init__(self, kind: Kind, state: State) -> None:
        self.kind, self.s = kind, state
        self.names = BLOCK if kind == "clip-gen" else PLAIN
        self.epsilon = 1e-5 if kind == "clip-gen" else 1e-6

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.s[f"{name}.weight"]
        return F.conv2d(x, weight, self.s[f"{name}.bias"], stride, 0 if stride > 1 else weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.s[f"{name}.weight"], self.s[f"{name}.bias"], self.epsilon)

    def residual(self, name: str, x: Tensor) -> Tensor:
        norm1, conv1, norm2, conv2, shortcut = (f"{name}.{one}" for one in self.names)
        h = self.conv(conv1, x_silu(self.norm(norm1, x)))
        h = self.conv(conv2, x_silu(self.norm(norm2, h)))
        return h + (self.conv(shortcut, x) if f"{shortcut}.weight" in self.s else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        h = self.norm(f"{name}.norm", x)
        if self.kind == "clip-gen":
            layer = nn.MultiheadAttention(c, 1, batch_first=True)
            prefix = f"{name}.attn."
            layer.load_state_dict({k[len(prefix) :]: v for k, v in self.s.items() if k.startswith(prefix)})
            tokens = h.view(n, c, -1).transpose(1, 2)
            return x + layer(tokens, tokens, tokens)[0].transpose(1, 2).reshape(n, c, height, width)
        q, k, v = (self.conv(f"{name}.{one}", h).view(n, c, -1) for one in "qkv")
        weight = (torch.einsum("ncq,nck->nqk", q, k) / c**0.5).softmax(dim=2)
        mixed = torch.einsum("nck,nqk->ncq", v, weight).view(n, c, height, width)
        return x + self.conv(f"{name}.proj_out", mixed)

    def run(self, steps: list[tuple[str, str]], x: Tensor) -> Tensor:
        for what, name in steps:
            if what == "down":
                x = self.conv(name, F.pad(x, (0, 1, 0, 1)), stride=2)
            elif what == "up":
                x = self.conv(name, F.interpolate(x, scale_factor=2.0, mode="nearest"))
            elif what == "out":
                x = x_silu(self.norm(name, x))
            else:
                x = {"conv": self.conv, "res": self.residual, "attn": self.attention}[what](name, x)
        return x

    def encode(self, x: Tensor) -> Tensor:
        """Features before quantization, then the nearest code of each."""
        z = self.run(self.encoder_steps(), x).permute(0, 2, 3, 1)
        codebook = self.codebook()
        z = F.normalize(z, dim=-1) if self.kind == "llamagen" else z
        return torch.cdist(z.flatten(0, 2), codebook).argmin(dim=1).view(z.shape[:3])

    def decode(self, codes: Tensor) -> Tensor:
        return self.run(self.decoder_steps(), self.codebook()[codes].permute(0, 3, 1, 2))

    def codebook(self) -> Tensor:
        name = "quantizer" if self.kind == "clip-gen" else "quantize"
        table = self.s[f"{name}.embedding.weight"]
        return F.normalize(table, dim=-1) if self.kind == "llamagen" else table

    def middle(self, part: str) -> list[tuple[str, str]]:
        names = ("mid.block_1", "mid.attn_1", "mid.block_2")
        names = names if self.kind == "taming" else ("mid.0", "mid.1", "mid.2")
        return [(what, f"{part}.{name}") for what, name in zip(("res", "attn", "res"), names, strict=True)]

    def encoder_steps(self) -> list[tuple[str, str]]:
        if self.kind == "clip-gen":
            down = [(self.what(f"encoder.down.{k}"), f"encoder.down.{k}") for k in range(10)]
            levels = [(w, f"{name}.conv" if w == "down" else name) for w, name in down if w]
            ends = [("out", "encoder.final.0"), ("conv", "encoder.final.2"), ("conv", "encoder.final.3")]
        else:
            group, res = ("down", "block") if self.kind == "taming" else ("conv_blocks", "res")
            levels = []
            for i in range(3):
                for j in range(BLOCKS):
                    levels.append(("res", f"encoder.{group}.{i}.{res}.{j}"))
                    levels += [("attn", f"encoder.{group}.{i}.attn.{j}")] if i == 2 else []
                levels += [("down", f"encoder.{group}.{i}.downsample.conv")] if i < 2 else []
            ends = [("out", "encoder.norm_out"), ("conv", "encoder.conv_out"), ("conv", "quant_conv")]
        return [("conv", "encoder.conv_in"), *levels, *self.middle("encoder"), *ends]

    def decoder_steps(self) -> list[tuple[str, str]]:
        if self.kind == "clip-gen":
            up = [(self.what(f"decoder.up.{k}"), f"decoder.up.{k}") for k in range(14)]
            levels = [("up" if w == "down" else w, f"{n}.conv" if w == "down" else n) for w, n in up if w]
            starts = [("conv", "decoder.quant_conv_in"), ("conv", "decoder.conv_in")]
            ends = [("out", "decoder.final.0"), ("conv", "decoder.final.2")]
        else:
            levels = []
            for n in range(3):
                prefix = f"decoder.up.{2 - n}" if self.kind == "taming" else f"decoder.conv_blocks.{n}"
                res = "block" if self.kind == "taming" else "res"
                for j in range(BLOCKS + 1):
                    levels.append(("res", f"{prefix}.{res}.{j}"))
                    levels += [("attn", f"{prefix}.attn.{j}")] if n == 0 else []
                levels += [("up", f"{prefix}.upsample.conv")] if n < 2 else []
            starts = [("conv", "post_quant_conv"), ("conv", "decoder.conv_in")]
            ends = [("out", "decoder.norm_out"), ("conv", "decoder.conv_out")]
        return [*starts, *self.middle("decoder"), *levels, *ends]

    def what(self, name: str) -> str:
        kinds = {
            "down": f"{name}.conv.weight",
            "res": f"{name}.block.0.weight",
            "attn": f"{name}.norm.weight",
        }
        return next((kind for kind, key in kinds.items() if key in self.s), "")


def x_silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_published_vqgan_gives_the_published_codes_and_pictures(kind: Kind, tmp_path: Path) -> None:
    state = MAKERS[kind]()
    torch.save({"state_dict": state} if kind == "taming" else {"model": state, "epoch": 3}, tmp_path / "w.pt")
    out = Storage(str(tmp_path / "root"))
    url = import_vqgan(kind, tmp_path / "w.pt", out)
    assert out.current("vqgan", "the test").path == url
    ours, reference = load_vqgan(url), Reference(kind, state)
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    codes = reference.encode(pictures)
    assert codes.unique().numel() > 3  # the codes do tell places apart
    assert torch.equal(ours.encode(pictures), codes)
    assert (ours.decode(codes) - reference.decode(codes)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", MAKERS)
def test_weights_that_do_not_belong_are_refused(kind: Kind) -> None:
    state = MAKERS[kind]()
    missing = {name: value for name, value in state.items() if name != "decoder.conv_in.bias"}
    with pytest.raises(ClipgenError, match=r"have no decoder\.conv_in\.bias"):
        convert_vqgan(kind, missing)
    with pytest.raises(ClipgenError, match="1 of these weights are unexpected, surprise"):
        convert_vqgan(kind, state | {"surprise": torch.zeros(1)})


def test_the_published_sizes_are_the_presets() -> None:
    with torch.device("meta"):
        expected = {name: Vqgan(VQGANS[name]).state_dict() for name in ("paper", "modern")}
    assert expected["paper"]["encoder.1.weight"].shape == (128, 3, 3, 3)
    assert expected["paper"]["quantizer.vq._codebook.embed"].shape == (1, 16384, 256)
    assert expected["modern"]["quantizer.vq._codebook.embed"].shape == (1, 16384, 8)
    assert VQGANS["paper"].grid == VQGANS["modern"].grid == 16


def test_foreign_classes_are_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, name = taming(), "pytorch_lightning.callbacks"
    callback = type("Checkpoint", (), {"__module__": name})
    module = types.ModuleType(name)
    module.Checkpoint = callback  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        patch.setitem(sys.modules, name, module)
        torch.save({"state_dict": state, "callbacks": {callback: {"best": 1.0}}}, tmp_path / "last.ckpt")
    assert read_state_dict(tmp_path / "last.ckpt").keys() == state.keys()
    torch.save({"state_dict": state, "hook": Path}, tmp_path / "evil.ckpt")
    with pytest.raises(ClipgenError, match="cannot be read safely"):
        read_state_dict(tmp_path / "evil.ckpt")


class PublicGpt(nn.Module):
    """The public implementation's shape in torch's own layers, with its names."""

    def __init__(self, codes: int, layers: int, width: int, positions: int, dim: int) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(codes, width)
        self.pos_emb = nn.Parameter(torch.randn(1, positions, width))
        self.cond_proj = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(nn.Module() for _ in range(layers))
        for block in self.blocks:
            block.encoder = nn.TransformerEncoderLayer(
                width, 1, 4 * width, 0.0, activation=F.gelu, batch_first=True, norm_first=True
            )
            block.register_buffer("mask", ~torch.tril(torch.ones(positions, positions, dtype=torch.bool)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, codes)

    def forward(self, codes: Tensor, embedding: Tensor) -> Tensor:
        x = torch.cat([self.cond_proj(embedding).unsqueeze(1), self.tok_emb(codes)], dim=1)
        x = x + self.pos_emb[:, : x.shape[1]]
        for block in self.blocks:
            encoder: nn.Module = block.encoder  # type: ignore[assignment]
            x = encoder(x, block.mask[: x.shape[1], : x.shape[1]])  # type: ignore[index]
        logits: Tensor = self.head(self.norm(x))
        return logits


def test_the_public_transformer_gives_the_published_logits() -> None:
    torch.manual_seed(0)
    reference = PublicGpt(codes=30, layers=2, width=64, positions=16, dim=20).eval()
    config, weights = convert_transformer(dict(reference.state_dict()), grid=4)
    ours = Transformer(config, 30, 4, 20).eval()
    ours.load_state_dict(weights)
    codes, embedding = torch.randint(30, (3, 15)), F.normalize(torch.randn(3, 20), dim=-1)
    with torch.no_grad():
        wanted, got = reference(codes, embedding), ours(codes, embedding.unsqueeze(1))
    assert (wanted - got).abs().max() < 1e-4


def test_the_public_generator_makes_pictures(clip_reference: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    widths = (32, 32, 32, 32, 32)
    torch.save({"model": clip_gen(widths)}, tmp_path / "vqgan_coco.pt")
    gpt = PublicGpt(codes=CODES, layers=1, width=64, positions=256, dim=ClipEncoder(clip_reference).dim)
    torch.save({"model": gpt.state_dict(), "epoch": 1}, tmp_path / "gpt_coco.pt")
    folder = tmp_path / "generator"
    folder.mkdir()
    import_generator(tmp_path / "vqgan_coco.pt", tmp_path / "gpt_coco.pt", clip_reference, folder)
    generator = TextToImage.from_pretrained(str(folder))
    made = generator.generate_scored(["a red square"], n=2, candidates=2, top_k=10)[0]
    assert [one.image.size for one in made] == [(256, 256)] * 2
    assert made[0].clip_score >= made[1].clip_score
    with pytest.raises(ClipgenError, match="no table of image embeddings"):
        generator.generate(["a red square"], condition="retrieval")
