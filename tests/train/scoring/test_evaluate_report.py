"""The HTML report, parsed: its cases, pixels and figures; hostile names stay text."""

import base64
import io
import math
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from intrinsic_lora.intrinsics.color import linear_to_srgb
from intrinsic_lora.intrinsics.pictures import write_png
from intrinsic_lora.train.scoring.folders import evaluate_folders
from intrinsic_lora.train.scoring.report import (
    INFERNO,
    WIDTH,
    color_error,
    error_limit,
    figure,
    pick_cases,
    ranking,
    write_report,
)
from PIL import Image

HOSTILE = "x\"><script>alert('1')</script><img src=a onerror=b>&amp;"


class Page(HTMLParser):
    """Tags, text and embedded pictures of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())

    @property
    def pictures(self) -> list[np.ndarray]:
        """Return the pictures of the cases in [0, 1], without the colour scales, one pixel high."""
        sources = [attrs["src"] for tag, attrs in self.tags if tag == "img" and "class" not in attrs]
        data = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
        return [np.asarray(Image.open(io.BytesIO(png))) / 255 for png in data]


def tilted(degrees: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W, 3): unit vectors tilted from +Z towards +X."""
    angle = np.radians(degrees)
    return np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], axis=-1)


@pytest.fixture
def folders(tmp_path):
    """Seven images whose normals are off by 10, 20 .. 70 degrees and whose shadow is off by 0.1 .. 0.7."""
    pred, gt = tmp_path / "pred", tmp_path / "gt"
    pred.mkdir()
    gt.mkdir()
    size = (6, 5)
    for i in range(1, 8):
        np.savez(gt / f"{i}.npz", normals=tilted(np.zeros(size)), shadow=np.zeros(size))
        np.savez(pred / f"{i}_rgb.npz", normals=tilted(np.full(size, 10.0 * i)), shadow=np.full(size, i / 10))
    return pred, gt


def read(path) -> Page:
    return Page(path.read_text("utf-8"))


def rows(page: Page) -> list[tuple[str, str, str]]:
    """(kind, stem, figure) of the cases."""
    kinds = ("worst", "median", "best")
    return [tuple(page.texts[i : i + 3]) for i, text in enumerate(page.texts) if text in kinds]


def test_cases_are_worst_median_and_best_with_their_figures(folders, tmp_path):
    write_report(tmp_path / "r.html", evaluate_folders(*folders), *folders)
    page = read(tmp_path / "r.html")
    expected = ["worst 7 70.00", "worst 6 60.00", "median 4 40.00", "median 5 50.00", "best 2 20.00", "best 1 10.00"]
    assert sorted(" ".join(row) for row in rows(page)[:6]) == sorted(expected)
    assert [row[1] for row in rows(page)[6:]] == [row[1] for row in rows(page)[:6]]  # shadow: the same order
    captions = [text for text in page.texts if text.startswith("mean_angle: ")]
    assert captions == ["mean_angle: 10.00 to 70.00, median 40.00"]
    assert "10.00" in page.texts and "100" in page.texts and "0.5" not in page.texts


def test_pictures_are_truth_prediction_and_error_in_one_scale(folders, tmp_path):
    write_report(tmp_path / "r.html", evaluate_folders(*folders), *folders)
    page = read(tmp_path / "r.html")
    truth, prediction, error = page.pictures[:3]  # no photo; the worst case, 70 degrees
    np.testing.assert_allclose(truth, np.broadcast_to([0.5, 0.5, 1], (6, 5, 3)), atol=0.003)
    drawn = [np.sin(np.radians(70)) / 2 + 0.5, 0.5, np.cos(np.radians(70)) / 2 + 0.5]
    np.testing.assert_allclose(prediction, np.broadcast_to(drawn, (6, 5, 3)), atol=0.003)
    # 70 of 100 degrees lies 0.8 of the way between the third and the fourth colour.
    expected = INFERNO[2] + 0.8 * (INFERNO[3] - INFERNO[2])
    np.testing.assert_allclose(error, np.broadcast_to(expected.numpy(), (6, 5, 3)), atol=0.003)


def test_photos_and_masks(tmp_path):
    for folder in ("pred", "gt", "photos"):
        (tmp_path / folder).mkdir()
    mask = np.zeros((4, 4))
    mask[:, :2] = 1
    metric = np.linspace(1, 4, 16).reshape(4, 4)
    linear = np.full((4, 4, 3), 0.2, np.float32)
    for stem in ("a", "b"):
        np.savez(tmp_path / "gt" / f"{stem}.npz", depth_metric=metric, mask=mask, rgb_linear=linear)
        np.savez(tmp_path / "pred" / f"{stem}.npz", depth=3 - metric)
    write_png(tmp_path / "photos" / "a.png", torch.full((3, 4, 4), 0.25))
    result = evaluate_folders(tmp_path / "pred", tmp_path / "gt")
    write_report(tmp_path / "r.html", result, tmp_path / "pred", tmp_path / "gt", tmp_path / "photos")
    page = read(tmp_path / "r.html")
    found = {row[1]: page.pictures[4 * i : 4 * i + 4] for i, row in enumerate(rows(page))}
    assert found["a"][0] == pytest.approx(0.25, abs=0.003)
    assert found["b"][0] == pytest.approx(linear_to_srgb(torch.tensor(0.2)).item(), abs=0.003)
    _, truth, prediction, error = found["a"]
    # A prediction affine to the truth (of any sign, as the metric allows) is drawn like it, near is white.
    np.testing.assert_allclose(prediction, truth, atol=0.005)
    assert truth[0, 0, 0] == 1 and truth[3, 1, 0] == 0
    assert np.allclose(error[:, 2:], 0.5, atol=0.003) and np.allclose(error[:, :2], INFERNO[0].numpy(), atol=0.003)


def test_light_is_drawn_at_the_scale_its_metric_uses(tmp_path):
    for folder in ("pred", "gt"):
        (tmp_path / folder).mkdir()
    truth = np.linspace(0, 2, 12).reshape(3, 4, 1)
    np.savez(tmp_path / "gt" / "a.npz", shading=truth)
    np.savez(tmp_path / "pred" / "a.npz", shading=np.repeat(7 * truth, 3, -1))
    write_report(
        tmp_path / "r.html",
        evaluate_folders(tmp_path / "pred", tmp_path / "gt"),
        tmp_path / "pred",
        tmp_path / "gt",
    )
    drawn, prediction, _ = read(tmp_path / "r.html").pictures
    np.testing.assert_allclose(prediction, drawn, atol=0.003)
    expected = linear_to_srgb(torch.from_numpy(truth / 2)).numpy()
    np.testing.assert_allclose(drawn, np.repeat(expected, 3, -1), atol=0.003)


def test_hostile_names_stay_text(tmp_path):
    for folder in ("pred", "gt"):
        (tmp_path / folder).mkdir()
    stem = HOSTILE.replace("/", "∕")  # the one character a file name cannot hold
    maps = {"normals": tilted(np.zeros((3, 3))), "<b onclick=x>shadow": np.ones((3, 3))}
    for folder in ("pred", "gt"):
        np.savez(tmp_path / folder / f"{stem}.npz", **maps)
    odd = "caf\udce9"  # how Python decodes a byte that is not UTF-8
    for folder in ("pred", "gt"):
        np.savez(tmp_path / folder / f"{odd}.npz", **maps)
    write_report(
        tmp_path / "r.html",
        evaluate_folders(tmp_path / "pred", tmp_path / "gt"),
        tmp_path / "pred",
        tmp_path / "gt",
    )
    page = read(tmp_path / "r.html")
    assert {tag for tag, _ in page.tags} & {"script", "b"} == set()
    assert all(not key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert all(attrs["src"].startswith("data:image/png") for tag, attrs in page.tags if tag == "img")
    assert stem in page.texts and "<b onclick=x>shadow" in page.texts and "caf?" in page.texts


@pytest.mark.parametrize("count", range(1, 12))
def test_cases_never_repeat_and_come_in_order(count):
    rng = np.random.default_rng(count)
    errors = {f"s{i}": float(e) for i, e in enumerate(rng.permutation(count))} | {"undefined": math.nan}
    cases = pick_cases(errors)
    values = [errors[stem] for _, stem in cases]
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values)
    assert cases[0] == ("worst", next(s for s in errors if errors[s] == count - 1))
    if count > 1:
        assert cases[-1] == ("best", next(s for s in errors if errors[s] == 0))
    if count in (3, 5, 9, 11):
        assert np.median([errors[stem] for kind, stem in cases if kind == "median"]) == (count - 1) / 2


def test_depth_without_a_relative_error_is_ranked_by_rmse():
    assert ranking("depth", {"depth": {"abs_rel": math.nan, "rmse": 0.3}}) == 0.3
    assert ranking("depth", {"depth": {"abs_rel": 0.1, "rmse": 0.3}}) == 0.1
    assert math.isnan(ranking("depth", {"normals": {"mean_angle": 3.0}}))


def test_the_scale_ends_at_a_round_number_and_colours_grow_brighter():
    assert [error_limit([np.full(200, x)]) for x in (0.0, 0.013, 0.2, 3.0, 7.0, 50.0)] == pytest.approx(
        [1, 0.02, 0.2, 5, 10, 50]
    )
    assert error_limit([np.array([np.nan, 1.0] * 100 + [900])]) == 1  # one stray pixel does not set the scale
    ramp = color_error(np.linspace(0, 2, 101)[None], 1.0)  # (3, 1, 101), the second half beyond the scale
    light = (ramp * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(0)[0]
    assert (light[:51].diff() > 0).all() and torch.equal(ramp[..., 50:], ramp[..., 50:51].expand(-1, -1, 51))
    assert torch.equal(ramp[:, 0, 0], INFERNO[0]) and torch.equal(ramp[:, 0, 50], INFERNO[4])


def test_large_pictures_are_embedded_small(tmp_path):
    for folder in ("pred", "gt"):
        (tmp_path / folder).mkdir()
        np.savez_compressed(tmp_path / folder / "a.npz", normals=tilted(np.zeros((300, 600))))
    write_report(
        tmp_path / "r.html",
        evaluate_folders(tmp_path / "pred", tmp_path / "gt"),
        tmp_path / "pred",
        tmp_path / "gt",
    )
    assert {picture.shape for picture in read(tmp_path / "r.html").pictures} == {(WIDTH // 2, WIDTH, 3)}


def test_refusals(folders, tmp_path):
    result = evaluate_folders(*folders)
    with pytest.raises(ValueError, match=r"r\.pdf: a report is written as \.html"):
        write_report(tmp_path / "r.pdf", result, *folders)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        write_report(tmp_path / "r.html", result, *folders, photos=tmp_path / "nowhere")
    (tmp_path / "gt" / "3.png").write_bytes(b"no picture")
    (tmp_path / "gt" / "7.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"7\.png"):
        write_report(tmp_path / "r.html", result, *folders)
    assert not (tmp_path / "r.html").exists()


def test_figures():
    assert [figure(x) for x in (3, 3.14159, 31.4159, math.nan)] == ["3", "3.142", "31.42", "-"]
