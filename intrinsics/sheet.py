"""Contact sheets: labelled pictures side by side."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .pictures import level_bands
from .resizing import resize

Shown = Tensor | Image.Image | None
BACKGROUND = (40, 40, 40)  # neutral and dark, so that it does not influence the perception of the maps
INK = (235, 235, 235)


def contact_sheet(
    columns: Sequence[tuple[str, Tensor | Sequence[Shown]]],
    row_labels: Sequence[str] = (),
    cell_width: int = 256,
    gap: int = 8,
) -> Image.Image:
    """Arrange display pictures in labelled columns.

    Args:
        columns: (label, picture or pictures). A picture is (3, H, W) or (1, H, W), display-referred in [0, 1];
            several, such as a batch (B, 3, H, W), fill the rows from the top. None leaves a cell empty; images from
            `thumbnail` are used unchanged.
        row_labels: labels to the left of the rows, if any.
        cell_width: width of every picture in pixels; the height follows from its aspect ratio.
        gap: pixels between cells and around the sheet.

    Returns:
        An RGB image. A label wider than its column is shortened with an ellipsis.

    Raises:
        ValueError: no picture, or a picture of another shape.
    """
    cells = [_thumbnails(pictures, cell_width) for _, pictures in columns]
    heights = [
        max(cell.height if cell else 0 for column in cells for cell in column[row : row + 1])
        for row in range(max(map(len, cells), default=0))
    ]
    if not sum(heights):
        raise ValueError("A contact sheet needs at least one picture.")

    font_size = max(12, cell_width // 14)
    font = ImageFont.load_default(size=font_size)
    title = font_size + gap
    margin = gap + (cell_width // 2 + gap if row_labels else 0)  # left of the first column
    width = margin + len(columns) * (cell_width + gap)
    sheet = Image.new("RGB", (width, gap + title + sum(heights) + gap * len(heights)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    tops = [gap + title + sum(heights[:row]) + gap * row for row in range(len(heights))]
    for top, label in zip(tops, row_labels, strict=False):
        draw.text((gap, top), _fitted(label, font, cell_width // 2), fill=INK, font=font)
    for index, ((label, _), column) in enumerate(zip(columns, cells, strict=True)):
        left = margin + index * (cell_width + gap)
        draw.text((left, gap), _fitted(label, font, cell_width), fill=INK, font=font)
        for top, cell in zip(tops, column, strict=False):
            if cell:
                sheet.paste(cell, (left, top))
    return sheet


def _thumbnails(pictures: Tensor | Sequence[Shown], width: int) -> list[Image.Image | None]:
    several = [pictures] if isinstance(pictures, Tensor) and pictures.ndim == 3 else pictures
    return [thumbnail(picture, width) if isinstance(picture, Tensor) else picture for picture in several]


def thumbnail(picture: Tensor, width: int = 256, draw: Callable[[Tensor], Tensor] | None = None) -> Image.Image:
    """Downscale (3, H, W) or (1, H, W) in [0, 1] to this width for `contact_sheet`. `draw`: see `write_png`.

    Raises:
        ValueError: invalid shape, or NaN.
    """
    if picture.ndim != 3 or picture.shape[0] not in (1, 3) or 0 in picture.shape:
        raise ValueError(f"A contact sheet takes pictures (3, H, W) or (1, H, W), not {tuple(picture.shape)}.")
    height = max(1, round(width * picture.shape[1] / picture.shape[2]))
    if picture.shape[2] > 8 * width:  # avoids a full-size copy of a large picture
        picture = resize(picture[None], (4 * height, 4 * width))[0]
    levels = np.concatenate([band for _, band in level_bands(picture, 8, draw)])  # (H, W, C)
    image = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels).convert("RGB")
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _fitted(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(label + "…") > width:
        label = label[:-1]
    return label + "…"
