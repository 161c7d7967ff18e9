"""PatchGAN, which classifies overlapping patches as real or fake (Isola et al. 2017, arXiv:1611.07004)."""

import torch
from torch import Tensor, nn


class PatchDiscriminator(nn.Sequential):
    """A convolutional discriminator: images float [n, 3, s, s] to logits [n, 1, s', s'], one a patch.

    It normalises by GroupNorm instead of BatchNorm, so that the logits of an image do not depend on the
    other images of the batch.

    Args:
        width: Channels of the first layer; each further layer doubles them.
        layers: Number of convolutions with stride 2.
    """

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
    def update_anchors(self, real: Tensor, fake: Tensor, decay: float = 0.99) -> None:
        """Update the running means that the LeCam penalty uses as anchors (arXiv:2104.03310).

        Args:
            real: Logits of real images, of any shape.
            fake: Logits of reconstructed images, of any shape.
            decay: Weight of the former means.
        """
        self.anchors.lerp_(torch.stack([real.mean(), fake.mean()]).to(self.anchors), 1 - decay)
