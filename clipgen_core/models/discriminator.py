"""PatchGAN: judges overlapping patches of a picture (Isola et al. 2017, arXiv:1611.07004)."""

import torch
from torch import Tensor, nn


class PatchDiscriminator(nn.Sequential):
    """[n, 3, s, s] to logits [n, 1, s', s']; GroupNorm, so that a picture's verdict is its own."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        stack: list[nn.Module] = [
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for _ in range(layers - 1):
            stack += [
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(16, 2 * width),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            width *= 2
        super().__init__(*stack, nn.Conv2d(width, 1, 4, padding=1))
        self.register_buffer("anchors", torch.zeros(2))  # running means of the logits, real and fake

    anchors: Tensor

    @torch.no_grad()
    def remember(self, real: Tensor, fake: Tensor, decay: float = 0.99) -> None:
        """Move the anchors of the LeCam penalty towards these logits."""
        self.anchors.lerp_(torch.stack([real.mean(), fake.mean()]).to(self.anchors), 1 - decay)
