"""Images of which a part is generated anew: which codes stay, and how the new part joins the rest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFilter, ImageOps
from torch import Tensor

from clipgen_core.data.colour import to_rgb
from clipgen_core.data.pixels import fit_square, to_tensor
from clipgen_core.errors import ClipgenError
from clipgen_core.models.layout import NONE
from clipgen_core.models.vqgan import Vqgan

TOUCHED = 32  # of 255: how far a mask must cover a pixel of the model
SEAM = 0.25  # blur of the seam, in sides of a code
LARGEST = 4  # sides of an extended image, in sides of the model's


@dataclass(frozen=True)
class Kept:
    """An image of which some codes stay.

    image: RGB, at the model's scale.
    codes: int64 [h, w], -1 where a code is to be generated.
    """

    image: Image.Image
    codes: Tensor

    def join(self, generated: Image.Image) -> Image.Image:
        """The image with its new part from a generated one.

        Pixels of codes that stay are those of the image. Within the new part, the generated image fades in.

        Args:
            generated: Decoded from all codes, of the image's size.

        Returns:
            An RGB image.
        """
        new = Image.fromarray((self.codes == NONE).cpu().numpy().astype(np.uint8) * 255)
        new = new.resize(self.image.size, Image.Resampling.NEAREST)
        blurred = new.filter(ImageFilter.GaussianBlur(SEAM * self.image.width / self.codes.shape[1]))
        alpha = blurred.point([max(2 * value - 255, 0) for value in range(256)])
        return Image.composite(generated, self.image, ImageChops.darker(alpha, new))


def outside(vqgan: Vqgan, image: Image.Image, mask: Image.Image | np.ndarray) -> Kept:
    """An image of which the codes outside of a mask stay.

    Args:
        vqgan: Encodes the image.
        image: Of any size; its central square is used, as in training.
        mask: Of the image's size, white (or True) where it is to change. A code changes if the mask touches
            its pixels.

    Returns:
        The image at the model's scale and its codes.

    Raises:
        ClipgenError: The mask has another size, or marks nothing within the square.
    """
    marked = _as_image(mask)
    if marked.size != image.size:
        raise ClipgenError(
            f"the mask has {marked.width}x{marked.height} pixels, the image {image.width}x{image.height}: "
            "give a mask of the image's size"
        )
    size, grid = vqgan.config.image_size, vqgan.config.grid
    covered = np.asarray(ImageOps.fit(marked, (size, size), Image.Resampling.BOX))
    touched = covered.reshape(grid, size // grid, grid, size // grid).max(axis=(1, 3)) >= TOUCHED
    if not touched.any():
        raise ClipgenError(
            "the mask marks nothing of the image's central square: make white what is to change"
        )
    square = fit_square(to_rgb(image), size)
    codes = encode(vqgan, square)
    return Kept(square, codes.masked_fill(torch.from_numpy(touched).to(codes.device), NONE))


def in_part(vqgan: Vqgan, image: Image.Image, strength: float, seed: int) -> Kept:
    """An image of which a random share of the codes stays.

    Args:
        vqgan: Encodes the image.
        image: Of any size; its central square is used.
        strength: The share of codes to generate anew, above 0 and at most 1.
        seed: Chooses them; the same for every image.

    Returns:
        The image at the model's scale and its codes.
    """
    square = fit_square(to_rgb(image), vqgan.config.image_size)
    codes = encode(vqgan, square)
    count = max(round(strength * codes.numel()), 1)
    changed = np.random.default_rng(abs(seed)).permutation(codes.numel())[:count]
    codes.view(-1)[torch.from_numpy(changed).to(codes.device)] = NONE
    return Kept(square, codes)


def beyond(vqgan: Vqgan, image: Image.Image, margins: Mapping[str, int]) -> Kept:
    """A larger image of which the codes of the given one stay.

    Args:
        vqgan: Encodes the image.
        image: Of any size; its central square is used.
        margins: Pixels to add at `left`, `right`, `top` and `bottom`, at the model's scale, rounded up to
            whole codes.

    Returns:
        The larger image, grey where it is new, and its codes.

    Raises:
        ClipgenError: The image would be too large.
    """
    side, grid = vqgan.config.downsampling, vqgan.config.grid
    codes_of = {name: pixels // side for name, pixels in rounded(margins, side).items()}
    left, right, top, bottom = (codes_of[name] for name in ("left", "right", "top", "bottom"))
    if max(left + right, top + bottom) + grid > LARGEST * grid:
        most = LARGEST * vqgan.config.image_size
        raise ClipgenError(f"the extended image would have more than {most} pixels a side: add less")
    square = fit_square(to_rgb(image), vqgan.config.image_size)
    codes = F.pad(encode(vqgan, square), (left, right, top, bottom), value=NONE)
    canvas = Image.new("RGB", (codes.shape[1] * side, codes.shape[0] * side), "grey")
    canvas.paste(square, (left * side, top * side))
    return Kept(canvas, codes)


def rounded(margins: Mapping[str, int], side: int) -> dict[str, int]:
    """The pixels that are added where whole codes are.

    Args:
        margins: Pixels to add, by side of the image.
        side: Of a code, in pixels.

    Returns:
        The least multiples of `side` that are as large.
    """
    return {name: -(-pixels // side) * side for name, pixels in margins.items()}


def windows(known: np.ndarray, grid: int) -> Iterator[tuple[slice, slice]]:
    """Squares that fill what is not known, one after the other.

    Each is the one that adds the most codes of those that are half known at least, as long as there are any.

    Args:
        known: Where there is a code, bool [h, w]; both sides are `grid` at least.
        grid: Side of the squares.

    Yields:
        Rows and columns of a square.
    """
    known = known.copy()
    while not known.all():
        counts = np.lib.stride_tricks.sliding_window_view(known, (grid, grid)).sum(axis=(2, 3))
        score = np.where(counts * 2 >= grid**2, 2 * grid**2 - counts, counts)
        score[counts == grid**2] = -1
        top, left = np.unravel_index(score.argmax(), score.shape)
        square = slice(int(top), int(top) + grid), slice(int(left), int(left) + grid)
        yield square
        known[square] = True


@torch.no_grad()
def encode(vqgan: Vqgan, square: Image.Image) -> Tensor:
    """The codes of one image.

    Args:
        vqgan: Encodes it.
        square: RGB, of the VQGAN's size.

    Returns:
        int64 [grid, grid], on the VQGAN's device.
    """
    device = next(vqgan.parameters()).device
    return vqgan.encode(to_tensor([square]).to(device))[0]


def _as_image(mask: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype.kind in "biuf":
        return Image.fromarray((mask > 0).astype(np.uint8) * 255)
    if isinstance(mask, Image.Image):
        return mask.convert("L")
    raise ClipgenError("the mask is no image: give a PIL image, or an array of the image's height and width")
