"""Losses of the VQGAN and of the transformer, each with its equation."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.errors import ClipgenError
from clipgen_core.extras import needed_for
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.vqgan import Vqgan


class ClipFeatureDistance(nn.Module):
    """Perceptual distance between the block features f_b of a frozen CLIP image tower.

    mean over the blocks b of || f_b(x)/|f_b(x)| - f_b(y)/|f_b(y)| ||^2,

    the form of LPIPS (Zhang et al. 2018, arXiv:1801.03924) without learned weights, so that nothing has to
    be downloaded.

    Args:
        clip: The CLIP.
        blocks: Number of blocks, counted from the input; all by default.

    Raises:
        ClipgenError: The image tower has fewer blocks.
    """

    def __init__(self, clip: ClipEncoder, blocks: int | None = None) -> None:
        super().__init__()
        if blocks and blocks > clip.blocks:
            raise ClipgenError(
                f"perceptual_blocks is {blocks}, and the image tower of CLIP {clip.reference!r} has only "
                f"{clip.blocks}: set vqgan.perceptual_blocks to {clip.blocks}, or to null for all of them"
            )
        self.clip, self.blocks = clip, blocks

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Compute the distance.

        Args:
            images: Float [n, 3, h, w] in [-1, 1], with gradients.
            targets: Float [n, 3, h, w] in [-1, 1], without gradients.

        Returns:
            The mean over the batch, a scalar.
        """
        with torch.no_grad():
            target_features = self.clip.features(targets, self.blocks)
        distances = [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
            for a, b in zip(self.clip.features(images, self.blocks), target_features, strict=True)
        ]
        return torch.stack(distances).mean()


class Lpips(nn.Module):
    """LPIPS (arXiv:1801.03924) with torchvision's VGG16.

    Args:
        vgg_weights: A local file, torchvision's vgg16-397923af.pth.

    Raises:
        ClipgenError: The file does not exist.
    """

    def __init__(self, vgg_weights: str) -> None:
        super().__init__()
        with needed_for("lpips_weights"):
            import lpips
        from torchvision.models import vgg16

        if not Path(vgg_weights).is_file():
            raise ClipgenError(
                f"LPIPS weights {vgg_weights} do not exist: download torchvision's "
                "vgg16-397923af.pth there, or leave lpips_weights unset"
            )
        self.metric = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        backbone = vgg16()
        backbone.load_state_dict(torch.load(vgg_weights, weights_only=True))
        own = self.metric.net.state_dict()
        values = list(backbone.features.state_dict().values())
        self.metric.net.load_state_dict(dict(zip(own, values, strict=True)))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Compute the distance.

        Args:
            images: Float [n, 3, h, w] in [-1, 1].
            targets: Float [n, 3, h, w] in [-1, 1].

        Returns:
            The mean over the batch, a scalar.
        """
        distance: Tensor = self.metric(images, targets).mean()
        return distance


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss (Lim & Ye 2017, arXiv:1705.02894).

    (E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(x)))]) / 2

    Args:
        real: Logits D(x) of real images, of any shape.
        fake: Logits D(G(x)) of reconstructions, of any shape.

    Returns:
        A scalar.
    """
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    """The generator's hinge loss, -E[D(G(x))]: logits of reconstructions, of any shape, to a scalar."""
    return -fake.mean()


def lecam(real: Tensor, fake: Tensor, anchors: Tensor) -> Tensor:
    """The LeCam penalty, which regularises the discriminator on small data sets (arXiv:2104.03310).

    E[max(0, D(x) - a_F)^2] + E[max(0, a_R - D(G(x)))^2], where the anchors a_R and a_F are the running means
    of the logits of real and of reconstructed images.

    Args:
        real: Logits D(x) of real images, of any shape.
        fake: Logits D(G(x)) of reconstructions, of any shape.
        anchors: a_R and a_F, float [2].

    Returns:
        A scalar.
    """
    return F.relu(real - anchors[1]).square().mean() + F.relu(anchors[0] - fake).square().mean()


def gradient_penalty(real: Tensor, images: Tensor) -> Tensor:
    """The R1 penalty E|dD(x)/dx|^2 on real images (Mescheder et al. 2018, arXiv:1801.04406).

    Args:
        real: Logits D(x) of the images, of any shape.
        images: The images x, float [n, 3, h, w], from which `real` was computed with gradients.

    Returns:
        A scalar, itself with gradients.
    """
    gradient = torch.autograd.grad(real.sum(), images, create_graph=True)[0]
    return gradient.square().sum((1, 2, 3)).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """The weight of the adversarial loss (VQGAN, arXiv:2012.09841, equation 7).

    |grad of the reconstruction loss| / (|grad of the adversarial loss| + 1e-4), at most 1e4, both gradients
    with respect to the decoder's last layer.

    Args:
        reconstruction: The reconstruction loss, a scalar.
        adversarial: The adversarial loss, a scalar.
        last_layer: The weight of the decoder's last layer.

    Returns:
        A scalar without gradients.
    """
    of_reconstruction = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0]
    of_adversarial = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0]
    return (of_reconstruction.norm() / (of_adversarial.norm() + 1e-4)).clamp(0, 1e4).detach()


def code_cross_entropy(logits: Tensor, codes: Tensor, predicted: float | None = None) -> Tensor:
    """-mean log p(code | codes known before it, embedding).

    Args:
        logits: Float [n, t, k].
        codes: int64 [n, t]; -1 where a prediction does not count.
        predicted: The share of predictions that count on average over many batches. The sum is divided by it
            instead of by the number in this batch, so that the parts of a batch give the loss of the whole.

    Returns:
        The mean over all predictions that count, a float32 scalar.
    """
    logits, codes = logits.flatten(0, 1).float(), codes.flatten()
    if predicted is None:
        return F.cross_entropy(logits, codes, ignore_index=-1)
    return F.cross_entropy(logits, codes, ignore_index=-1, reduction="sum") / (len(codes) * predicted)


def embedding_reconstruction(logits: Tensor, embedding: Tensor, vqgan: Vqgan, clip: ClipEncoder) -> Tensor:
    """-mean log((1 + cos(e, e')) / 2), e' the CLIP embedding of the decoded image (CLIP-GEN, section 3.3).

    The image is decoded from the most likely code at each position. The gradient passes straight through
    this choice to the probabilities (straight-through estimator).

    Args:
        logits: Float [n, t, k].
        embedding: The embeddings e of the training images, float [n, d], of length 1.
        vqgan: The frozen VQGAN that decodes the codes.
        clip: The frozen CLIP that embeds the images.

    Returns:
        A scalar.
    """
    probabilities = logits.float().softmax(dim=-1)
    chosen = F.one_hot(probabilities.argmax(dim=-1), probabilities.shape[-1])
    straight = chosen + probabilities - probabilities.detach()
    side = vqgan.config.grid
    features = (straight @ vqgan.quantizer.codebook).unflatten(1, (side, side)).permute(0, 3, 1, 2)
    decoded = clip.embed(vqgan.decoder(features).float().clamp(-1, 1))
    cosine = (decoded * embedding).sum(dim=-1).clamp(min=-0.999)
    return -((1 + cosine) / 2).log().mean()
