"""VQGAN: pictures to a grid of codes and back (Esser et al. 2021, arXiv:2012.09841).

Architecture only, single device. The layers are those of taming-transformers' VQGAN, whose published
weights fit (see clipgen_core.published.vqgan); a patch stem (space to depth) ahead of the first level
saves work at full resolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.models.attention import attend
from clipgen_core.models.quantizer import Quantizer
from clipgen_core.settings.models import GROUPS, VqganConfig


class Vqgan(nn.Module):
    """Pictures are float [n, 3, s, s] in [-1, 1]; codes int64 [n, g, g]."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = Quantizer(config.quantizer)
        self.decoder = Decoder(config)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstructions, codes, commitment loss)."""
        quantized, codes, loss = self.quantizer(self.encoder(pictures))
        return self.decoder(quantized), codes, loss

    def encode(self, pictures: Tensor) -> Tensor:
        codes: Tensor = self.quantizer(self.encoder(pictures))[1]
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        pictures: Tensor = self.decoder(self.quantizer.lookup(codes))
        return pictures


class Encoder(nn.Sequential):
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


class Decoder(nn.Sequential):
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
        start_alike(out, config.patch**2)
        super().__init__(*layers, Norm(first, config), nn.SiLU(), out, nn.PixelShuffle(config.patch))

    @property
    def last_layer(self) -> Tensor:
        """The weight at which the adversarial loss's share is measured."""
        weight = self[-2].weight
        assert isinstance(weight, Tensor)
        return weight


@torch.no_grad()
def start_alike(conv: nn.Conv2d, group: int) -> None:
    """Give the channels that PixelShuffle lays side by side one start, so that no checkerboard shows
    (Aitken et al. 2017, arXiv:1707.02937)."""
    for values in (conv.weight, conv.bias):
        assert values is not None
        values.copy_(values[::group].repeat_interleave(group, dim=0))


def level(config: VqganConfig, width: int, channels: int, blocks: int, attend: bool) -> list[nn.Module]:
    """The residual blocks of one resolution."""
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers.append(Residual(width, channels, config))
        layers += [Attention(channels, config)] if attend else []
        width = channels
    return layers


def middle(config: VqganConfig) -> list[nn.Module]:
    width = config.channels[-1]
    return [Residual(width, width, config), Attention(width, config), Residual(width, width, config)]


class Norm(nn.GroupNorm):
    """In training on CPUs channels first, where torch's backward is up to thirty times as fast."""

    def __init__(self, width: int, config: VqganConfig) -> None:
        super().__init__(GROUPS, width, eps=config.norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled() or x.is_contiguous():
            return super().forward(x)
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


class Downsample(nn.Conv2d):
    """Half the side; padded below and to the right only, as the published weights expect."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Residual(nn.Module):
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
    """One head over all positions of the grid."""

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
