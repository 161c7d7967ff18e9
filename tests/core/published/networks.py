"""Published networks: tiny random weights under the published names, and an independent forward pass."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.published.vqgan import Kind

State = dict[str, Tensor]
WIDTHS = (32, 32, 64)
Z, CODES, BLOCKS = 12, 24, 2
CODE_DIM = {"taming": 12, "llamagen": 6, "ibq": 12, "clip-gen": 12}


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


TAMING_NAMES = ("taming", "ibq")
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


def ibq(widths: tuple[int, ...] = WIDTHS) -> State:
    """Trained weights under taming's names, and the averaged ones, which count, under names without dots."""
    averaged, trained = taming(widths), {name: value + 1 for name, value in taming(widths).items()}
    averaged["quantize.embedding.weight"] *= torch.linspace(0.5, 2, CODES).unsqueeze(1)
    shadows = {f"model_ema.{name.replace('.', '')}": value for name, value in averaged.items()}
    return {**trained, **shadows, "model_ema.decay": torch.tensor(0.999)}


MAKERS: dict[Kind, Callable[[], State]] = {
    "taming": taming,
    "llamagen": llamagen,
    "ibq": ibq,
    "clip-gen": clip_gen,
}


class Reference:
    """The published networks, written with functions alone: what our modules must agree with."""

    def __init__(self, kind: Kind, state: State) -> None:
        self.kind, self.s = kind, state
        if kind == "ibq":
            plain = (name for name in state if not name.startswith("model_ema."))
            self.s = {name: state["model_ema." + name.replace(".", "")] for name in plain}
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
        """Features before quantization, then the code of each."""
        z = self.run(self.encoder_steps(), x).permute(0, 2, 3, 1)
        codebook = self.codebook()
        if self.kind == "ibq":
            return (z @ codebook.T).argmax(dim=-1)
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
        names = names if self.kind in TAMING_NAMES else ("mid.0", "mid.1", "mid.2")
        return [(what, f"{part}.{name}") for what, name in zip(("res", "attn", "res"), names, strict=True)]

    def encoder_steps(self) -> list[tuple[str, str]]:
        if self.kind == "clip-gen":
            down = [(self.what(f"encoder.down.{k}"), f"encoder.down.{k}") for k in range(10)]
            levels = [(w, f"{name}.conv" if w == "down" else name) for w, name in down if w]
            ends = [("out", "encoder.final.0"), ("conv", "encoder.final.2"), ("conv", "encoder.final.3")]
        else:
            group, res = ("down", "block") if self.kind in TAMING_NAMES else ("conv_blocks", "res")
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
                prefix = f"decoder.up.{2 - n}" if self.kind in TAMING_NAMES else f"decoder.conv_blocks.{n}"
                res = "block" if self.kind in TAMING_NAMES else "res"
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


class PublicGpt(nn.Module):
    """The public implementation's shape in torch's own layers, with its names."""

    def __init__(self, codes: int, layers: int, width: int, heads: int, positions: int, dim: int) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(codes, width)
        self.pos_emb = nn.Parameter(torch.randn(1, positions, width))
        self.cond_proj = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(nn.Module() for _ in range(layers))
        for block in self.blocks:
            block.encoder = nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, activation=F.gelu, batch_first=True, norm_first=True
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


class LlamaGen(nn.Module):
    """A transformer of LlamaGen with its names; rotary embeddings are complex numbers."""

    def __init__(self, codes: int, layers: int, width: int, heads: int, grid: int, classes: int) -> None:
        super().__init__()
        self.heads, self.grid = heads, grid
        hidden = (8 * width // 3 + 255) // 256 * 256
        self.cls_embedding = nn.Module()
        self.cls_embedding.embedding_table = nn.Embedding(classes + 1, width)
        self.tok_embeddings = nn.Embedding(codes, width)
        self.layers = nn.ModuleList(nn.Module() for _ in range(layers))
        for layer in self.layers:
            layer.attention, layer.feed_forward = nn.Module(), nn.Module()
            layer.attention.wqkv = nn.Linear(width, 3 * width, bias=False)
            layer.attention.wo = nn.Linear(width, width, bias=False)
            for name, inner, out in (("w1", width, hidden), ("w3", width, hidden), ("w2", hidden, width)):
                layer.feed_forward.add_module(name, nn.Linear(inner, out, bias=False))
            layer.attention_norm, layer.ffn_norm = (nn.RMSNorm(width, eps=1e-5) for _ in range(2))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.output = nn.Linear(width, codes, bias=False)

    def forward(self, codes: Tensor, label: Tensor) -> Tensor:
        x = torch.cat([self.cls_embedding.embedding_table(label).unsqueeze(1), self.tok_embeddings(codes)], 1)  # type: ignore[union-attr, operator]
        for layer in self.layers:
            h = layer.attention_norm(x)  # type: ignore[operator]
            x = x + layer.attention.wo(self.mix(layer.attention.wqkv(h)))  # type: ignore[union-attr, operator]
            h, ffn = layer.ffn_norm(x), layer.feed_forward  # type: ignore[operator]
            x = x + ffn.w2(F.silu(ffn.w1(h)) * ffn.w3(h))  # type: ignore[union-attr, operator]
        logits: Tensor = self.output(self.norm(x))
        return logits

    def mix(self, qkv: Tensor) -> Tensor:
        n, s, _ = qkv.shape
        q, k, v = (t.view(n, s, self.heads, -1).transpose(1, 2) for t in qkv.chunk(3, -1))
        turn = self.turns(q.shape[-1])[:s]
        q, k = (
            torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(
                -2
            )
            for t in (q, k)
        )
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    def turns(self, head: int) -> Tensor:
        """e^(i angle) of each position; the class has the number 0 instead, which removes it."""
        frequency = 10_000.0 ** -(torch.arange(0, head // 2, 2) / (head // 2))
        row, column = torch.meshgrid(torch.arange(self.grid), torch.arange(self.grid), indexing="ij")
        angles = torch.cat([x.flatten().unsqueeze(1) * frequency for x in (row, column)], dim=1)
        return torch.cat([torch.zeros(1, head // 2), torch.polar(torch.ones_like(angles), angles)])
