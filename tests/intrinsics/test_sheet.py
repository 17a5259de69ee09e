"""Contact sheets: where the pictures land, and that the labels can be seen."""

import itertools

import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics.sheet import BACKGROUND, contact_sheet
from PIL import Image


def flat(red, green, blue, height=32, width=32):
    return torch.tensor([red, green, blue]).view(3, 1, 1).expand(3, height, width)


def colours_of(sheet):
    """Every colour that fills at least one per cent of the sheet."""
    counts = sheet.getcolors(sheet.width * sheet.height)
    return {colour: count for count, colour in counts if count > sheet.width * sheet.height / 100}


def test_columns_stand_side_by_side_in_order():
    sheet = contact_sheet(
        [("red", flat(1, 0, 0)), ("green", flat(0, 1, 0)), ("grey", torch.full((1, 32, 32), 0.5))], cell_width=64
    )
    assert sheet.mode == "RGB"
    array = np.asarray(sheet).astype(int)
    middle = array[-8 - 32]  # the row of pixels through the middle of the 64-pixel cells
    runs = [tuple(middle[0])] + [tuple(b) for a, b in itertools.pairwise(middle) if (a != b).any()]
    assert runs == [BACKGROUND, (255, 0, 0), BACKGROUND, (0, 255, 0), BACKGROUND, (128, 128, 128), BACKGROUND]
    assert all(count == 64 * 64 for colour, count in colours_of(sheet).items() if colour != BACKGROUND)


def test_a_batch_fills_the_rows_and_aspect_is_kept():
    batch = torch.stack([flat(1, 0, 0, 20, 40), flat(0, 0, 1, 20, 40)])
    tall = flat(0, 1, 0, 80, 40)
    sheet = contact_sheet([("batch", batch), ("list", [None, tall])], row_labels=["first", "second"], cell_width=40)
    assert colours_of(sheet).keys() == {BACKGROUND, (255, 0, 0), (0, 0, 255), (0, 255, 0)}
    array = np.asarray(sheet)
    boxes = {}
    for colour in ((255, 0, 0), (0, 0, 255), (0, 255, 0)):
        y, x = np.nonzero((array == colour).all(-1))
        boxes[colour] = (x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min())
    red, blue, green = boxes.values()
    assert red[2:] == (40, 20) and blue[2:] == (40, 20) and green[2:] == (40, 80)
    assert red[0] == blue[0] < green[0] and red[1] < blue[1] == green[1]  # None left the first cell of column 2 empty


def test_labels_are_drawn_and_stay_within_their_column():
    def ink(label):
        sheet = contact_sheet([(label, flat(0, 0, 0)), ("", flat(0, 0, 0))], cell_width=96)
        blank = contact_sheet([("", flat(0, 0, 0)), ("", flat(0, 0, 0))], cell_width=96)
        assert sheet.size == blank.size
        y, x = np.nonzero((np.asarray(sheet) != np.asarray(blank)).any(-1))
        return y, x

    y, x = ink("normals")
    assert len(x) > 50 and y.max() < 8 + 20 and x.min() >= 8  # above the pictures, bright enough to differ
    y, x = ink("a label that is far too long for a column of this width")
    assert x.min() >= 8 and x.max() < 8 + 96 and x.max() > 80
    with_rows = contact_sheet([("a", flat(0, 0, 0))], row_labels=["a name that is much too long"], cell_width=96)
    assert with_rows.width == 8 + 48 + 8 + 96 + 8


def test_values_are_clipped_and_any_float_type_goes():
    sheet = contact_sheet([("x", flat(2.0, -1.0, 1.0).bfloat16().requires_grad_())], cell_width=32)
    assert (255, 0, 255) in colours_of(sheet)


def test_a_picture_is_scaled_not_cropped():
    gradient = torch.linspace(0, 1, 256).expand(3, 100, 256)
    sheet = np.asarray(contact_sheet([("x", gradient)], cell_width=64)).astype(float)
    row = sheet[-8 - 10, 8 : 8 + 64, 0]
    reference = np.asarray(
        Image.fromarray(np.uint8(np.linspace(0, 255, 256).round()[None])).resize((64, 1), Image.Resampling.BOX)
    )
    np.testing.assert_allclose(row, reference[0], atol=2)


@pytest.mark.parametrize("columns", [[], [("a", [])], [("a", [None])]])
def test_a_sheet_of_nothing(columns):
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet(columns)


@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 0, 8), (1, 1, 3, 8, 8)])
def test_shapes_that_are_no_picture(shape):
    with pytest.raises(ValueError, match=r"takes pictures \(3, H, W\)"):
        contact_sheet([("a", torch.zeros(shape))])
