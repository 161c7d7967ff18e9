"""The images of several prompts on one sheet. Knows images and texts; knows nothing of scores."""

from PIL import Image, ImageDraw, ImageFont


def sheet(samples: dict[str, list[Image.Image]], columns: int = 3, side: int = 96) -> Image.Image:
    """Arrange the images of several prompts on one sheet, each prompt below its images.

    Args:
        samples: The images of each prompt, at least one prompt.
        columns: Prompts in a row.
        side: Side of an image, in pixels.

    Returns:
        One RGB image.
    """
    count = max(len(row) for row in samples.values())
    width, height, gap = count * (side + 2), side + 24, 14
    rows = -(-len(samples) // columns)
    page = Image.new("RGB", (columns * (width + gap) - gap, rows * height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    for number, (prompt, images) in enumerate(samples.items()):
        left, top = number % columns * (width + gap), number // columns * height
        for i, image in enumerate(images):
            page.paste(image.resize((side, side), Image.Resampling.BICUBIC), (left + i * (side + 2), top))
        pen.text((left, top + side + 2), prompt, fill="black", font=font)
    return page
