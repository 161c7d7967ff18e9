"""VQGAN: images to a grid of codes and back (Esser et al. 2021, arXiv:2012.09841).

Architecture only, for a single device. The layers are those of the VQGAN of taming-transformers, so that
published weights can be loaded (see clipgen_core.published.vqgan). An optional patch stem (space to depth)
ahead of the first level saves computation at full resolution.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipgen_core.models.attention import attend, trains_on_cpu
from clipgen_core.models.quantizer import Quantizer
from clipgen_core.settings.models import GROUPS, VqganConfig


class Vqgan(nn.Module):
    """Encodes images, float [n, 3, s, s] in [-1, 1], to codes, int64 [n, g, g], and decodes them."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = Quantizer(config.quantizer)
        self.decoder = Decoder(config)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct images.

        Args:
            images: Float [n, 3, s, s] in [-1, 1].

        Returns:
            The reconstructions, float [n, 3, s, s]; the codes, int64 [n, g, g]; and the commitment loss,
            a scalar.
        """
        quantized, codes, loss = self.quantizer(self.encoder(images))
        return self.decoder(quantized), codes, loss

    def encode(self, images: Tensor) -> Tensor:
        """The codes of images: float [n, 3, s, s] in [-1, 1] to int64 [n, g, g]."""
        codes: Tensor = self.quantizer(self.encoder(images))[1]
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """The images of codes: int64 [n, g, g] to float [n, 3, s, s], about in [-1, 1]."""
        images: Tensor = self.decoder(self.quantizer.lookup(codes))
        return images

    def set_recompute(self, recompute: bool) -> None:
        """Choose whether encoder and decoder recompute their blocks in the backward pass instead of storing
        what they computed (activation checkpointing)."""
        self.encoder.recompute = self.decoder.recompute = recompute

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the encoder and the decoder, each by itself, and not the search for codes.

        Each size of a batch gets a graph of its own by default: PyTorch 2.14 fails on the code that it
        generates for our convolutions at any size, which it tries as soon as validation has another one.

        Args:
            args: Of `torch.compile`.
            options: Of `torch.compile`.
        """
        options = {"dynamic": False} | options
        self.encoder.compile(*args, **options)
        self.decoder.compile(*args, **options)


class Encoder(nn.Sequential):
    """Images, float [n, 3, s, s], to features, float [n, code_dim, g, g]."""

    def __init__(self, config: VqganConfig) -> None:
        first, last, z = config.channels[0], config.channels[-1], config.z_channels
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.patch),
            nn.Conv2d(3 * config.patch**2, first, 3, padding=1),
        ]
        width = first
        for i, channels in enumerate(config.channels):
            if i:
                layers.append(Downsample(width))
            attend = config.attention == "coarsest" and i == len(config.channels) - 1
            layers += level(config, width, channels, config.blocks, attend)
            width = channels
        layers += [*middle(config), Norm(last, config), nn.SiLU(), nn.Conv2d(last, z, 3, padding=1)]
        super().__init__(*layers, nn.Conv2d(z, config.quantizer.code_dim, 1))
        self.recompute = False
        self._parts = parts(self)

    def forward(self, images: Tensor) -> Tensor:
        return run(self._parts, images, self.recompute)


class Decoder(nn.Sequential):
    """Features, float [n, code_dim, g, g], to images, float [n, 3, s, s]."""

    def __init__(self, config: VqganConfig) -> None:
        first, last, z = config.channels[0], config.channels[-1], config.z_channels
        layers: list[nn.Module] = [
            nn.Conv2d(config.quantizer.code_dim, z, 1),
            nn.Conv2d(z, last, 3, padding=1),
            *middle(config),
        ]
        width = last
        for i, channels in enumerate(reversed(config.channels)):
            if i:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)]
            attend = config.attention == "coarsest" and i == 0
            layers += level(config, width, channels, config.decoder_blocks, attend)
            width = channels
        out = nn.Conv2d(first, 3 * config.patch**2, 3, padding=1)
        initialise_like_nearest(out, config.patch**2)
        super().__init__(*layers, Norm(first, config), nn.SiLU(), out, nn.PixelShuffle(config.patch))
        self.recompute = False
        self._parts = parts(list(self)[:-2])
        self._run: Callable[[Tensor], Tensor] = self._up_to_last_layer

    def _up_to_last_layer(self, features: Tensor) -> Tensor:
        return run(self._parts, features, self.recompute)

    def forward(self, features: Tensor) -> Tensor:
        images: Tensor = self[-1](self[-2](self._run(features)))
        return images

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile all but the last layer, so that the gradients at its weight, which the adaptive loss weight
        compares, need no backward pass of the compiled part.

        Args:
            args: Of `torch.compile`.
            options: Of `torch.compile`.
        """
        self._run = torch.compile(self._up_to_last_layer, *args, **options)

    @property
    def last_layer(self) -> Tensor:
        """The weight at which the VQGAN's adaptive loss weight compares gradients."""
        weight = self[-2].weight
        assert isinstance(weight, Tensor)
        return weight


@torch.no_grad()
def initialise_like_nearest(conv: nn.Conv2d, group: int) -> None:
    """Initialise a convolution ahead of PixelShuffle as if nearest-neighbour upsampling followed it.

    The channels that become neighbouring pixels start with the same weights, which avoids checkerboard
    artefacts (ICNR; Aitken et al. 2017, arXiv:1707.02937).

    Args:
        conv: The convolution.
        group: Number of output channels that become neighbouring pixels of one colour.
    """
    for values in (conv.weight, conv.bias):
        assert values is not None
        values.copy_(values[::group].repeat_interleave(group, dim=0))


def level(config: VqganConfig, width: int, channels: int, blocks: int, attend: bool) -> list[nn.Module]:
    """The residual blocks of one resolution, with or without attention.

    Args:
        config: The architecture.
        width: Input channels.
        channels: Output channels.
        blocks: Number of residual blocks.
        attend: Whether an attention layer follows each block.

    Returns:
        The layers in order.
    """
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers.append(Residual(width, channels, config))
        layers += [Attention(channels, config)] if attend else []
        width = channels
    return layers


def middle(config: VqganConfig) -> list[nn.Module]:
    """The layers at the resolution of the grid that encoder and decoder both have."""
    width = config.channels[-1]
    return [Residual(width, width, config), Attention(width, config), Residual(width, width, config)]


def parts(layers: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """Split layers into what is recomputed at once: each block, and all layers between two blocks."""
    split: list[list[nn.Module]] = [[]]
    for layer in layers:
        if isinstance(layer, Residual | Attention):
            split += [[layer], []]
        else:
            split[-1].append(layer)
    return [part for part in split if part]


def run(parts: list[list[nn.Module]], x: Tensor, recompute: bool) -> Tensor:
    """Run layers one after the other.

    Args:
        parts: The layers.
        x: Float [n, c, h, w].
        recompute: Whether each part is recomputed in the backward pass; nothing in it is random.

    Returns:
        The output of the last layer.
    """
    for part in parts:
        if recompute and torch.is_grad_enabled():
            x = checkpoint(_through, part, x, use_reentrant=False, preserve_rng_state=False)
        else:
            x = _through(part, x)
    return x


def _through(layers: list[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


class Norm(nn.GroupNorm):
    """GroupNorm that runs channels first when it trains on a CPU: PyTorch's backward pass is up to thirty
    times as fast there."""

    def __init__(self, width: int, config: VqganConfig) -> None:
        super().__init__(GROUPS, width, eps=config.norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        if not trains_on_cpu(x) or x.is_contiguous():
            return super().forward(x)
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


class Downsample(nn.Conv2d):
    """Halves the resolution. Pads only below and on the right, as the published weights expect."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Residual(nn.Module):
    """Two 3x3 convolutions with a skip connection.

    Args:
        width: Input channels.
        out: Output channels.
        config: The architecture.
    """

    def __init__(self, width: int, out: int, config: VqganConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(width, config), Norm(out, config)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = self.skip(x) + h
        return out


class Attention(nn.Module):
    """Self-attention with one head over all positions of the grid.

    Args:
        width: Input and output channels.
        config: The architecture.
    """

    def __init__(self, width: int, config: VqganConfig) -> None:
        super().__init__()
        self.norm = Norm(width, config)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        mixed = attend(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), causal=False)
        out: Tensor = x + self.out(mixed.squeeze(1).transpose(1, 2).reshape(n, c, h, w))
        return out
