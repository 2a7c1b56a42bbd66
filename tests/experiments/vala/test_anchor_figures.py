"""Pictures of anchors show what the anchors hold: colours, entropy and means are read back."""

import math

import matplotlib
import pytest
import torch
from matplotlib.transforms import Bbox

from vala_research import InputError
from vala_research.experiments.vala.anchor_figures import (
    anchor_colours,
    anchor_map,
    entropy_map,
    map_table,
    pseudo_frames,
    resized,
    responsibility_map,
    shown_frames,
    token_swatches,
)
from vala_research.methods.anchors import Anchors, assign_anchors

GRID = (4, 6)


def anchors_of(r, keyframes=(0,), granularity="site") -> Anchors:
    """Anchors of which only the responsibilities f n k matter."""
    f, _, k = r.shape
    directions = torch.eye(k)
    return Anchors(r, directions, torch.ones(k), r.mean((0, 1)), directions.expand(f, k, k), [0.0],
                   list(keyframes), granularity)  # fmt: skip


def halves(f: int = 3, granularity: str = "site") -> Anchors:
    """The first anchor holds the left third of frame 0, the second everything else."""
    left = torch.zeros(f, *GRID)
    left[0, :, :2] = 1
    return anchors_of(torch.stack([left, 1 - left], -1).flatten(1, 2), [1], granularity)


def test_colours_can_be_told_apart_by_all_readers():
    """Pairs of the first eight differ in lightness or hue, for deuteranopes too (Vienot 1999)."""
    colours = anchor_colours(8).double()
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    blind = torch.tensor([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    seen = (linear @ blind.T.double()).clamp(0, 1) ** (1 / 2.4)
    assert torch.pdist(seen).min() > 0.12
    red_green = torch.tensor([[0.8, 0.2, 0.2], [0.5, 0.42, 0.2]]).double() ** 2.4
    assert torch.pdist((red_green @ blind.T.double()).clamp(0, 1) ** (1 / 2.4)).min() < 0.12
    assert len(anchor_colours(24).unique(dim=0)) >= 22 and anchor_colours(60).shape == (60, 3)


def test_a_map_mixes_colours_by_responsibility():
    sure = responsibility_map(halves(), GRID)
    first, second = anchor_colours(2)
    assert torch.allclose(sure[0, :, 3, 1], first) and torch.allclose(sure[0, :, 3, 2], second)
    assert torch.allclose(sure[1:], second[None, :, None, None].expand_as(sure[1:]))
    r = torch.tensor([0.25, 0.75]).expand(1, 24, 2)
    mixed = responsibility_map(anchors_of(r), GRID)
    assert torch.allclose(mixed[0, :, 0, 0], 0.25 * first + 0.75 * second)


def test_entropy_has_one_scale_over_the_clip():
    r = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    picture, top = entropy_map(anchors_of(r[:, None].expand(3, 24, 4)), GRID)
    colours = matplotlib.colormaps["viridis"]([0.0, 0.5, 1.0])[:, :3]
    assert top == pytest.approx(math.log(4))
    assert torch.allclose(
        picture[:, :, 0, 0], torch.tensor(colours, dtype=torch.float32), atol=0.01
    )
    _, top = entropy_map(halves(), GRID)  # all sure: noise must not be stretched to the full scale
    assert top == pytest.approx(math.log(2))


def test_pseudo_frames_are_the_means_that_attention_is_given():
    frames = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    pictures = pseudo_frames(frames, halves(), GRID)
    # Left third: anchor 0 saw frame 0 only, anchor 1 the others; the weights have a floor of 1e-3.
    assert (pictures[0, :, :, :4] - frames[0, :, :, :4]).abs().max() < 2e-3
    assert (pictures[1, :, :, :4] - frames[1:, :, :, :4].mean(0)).abs().max() < 2e-3
    assert (pictures[1, :, :, 4:] - frames[:, :, :, 4:].mean(0)).abs().max() < 2e-3
    assert (pictures[0] - frames[1]).abs().max() > 0.1


def test_swatches_are_mean_colours():
    frames = torch.zeros(3, 3, 8, 12)
    frames[0, 0, :, :4] = 1.0  # red where the first anchor is
    frames[1:, 2] = 0.5
    first, second = token_swatches(frames, halves(granularity="token"), GRID)
    assert torch.allclose(first, torch.tensor([1.0, 0, 0]))
    assert torch.allclose(second, torch.tensor([0, 0, 0.5 * 48 / 64]), atol=1e-6)


def test_key_frames_are_shown_first():
    assert shown_frames(16, [5, 6], 4) == [0, 5, 6, 15]
    assert shown_frames(3, [1], 8) == [0, 1, 2] and shown_frames(9, [2, 3, 7], 2) == [2, 3]


@pytest.mark.parametrize("size", [(8, 12), (300, 200), (720, 1280), (1280, 720), (1, 1)])
def test_resized_keeps_aspect_and_colours(size):
    x = torch.full((1, 3, *size), 0.3)
    out = resized(x, 192)
    assert 128 <= max(out.shape[-2:]) <= 256 and torch.allclose(out, torch.tensor(0.3))
    assert out.shape[-1] / out.shape[-2] == pytest.approx(size[1] / size[0], rel=0.02)


def texts(figure) -> list:
    return [text for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def overlaps(figure) -> list[tuple[str, str]]:
    """Pairs of texts that touch, and texts beyond the page."""
    figure.canvas.draw()
    page, found = figure.bbox, []
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts(figure) if t.get_visible()]
    for i, (text, box) in enumerate(boxes):
        found += [(text, other) for other, b in boxes[:i] if Bbox.intersection(box, b) is not None]
        inside = page.x0 <= box.x0 and page.y0 <= box.y0 and box.x1 <= page.x1 and box.y1 <= page.y1
        found += [] if inside else [(text, "page")]
    return found


@pytest.mark.parametrize("granularity", ["site", "token"])
@pytest.mark.parametrize("size", [(8, 12), (160, 90), (90, 160)])
def test_no_text_touches_another(granularity, size):
    generator = torch.Generator().manual_seed(1)
    r = (4 * torch.rand(14, 24, 9, generator=generator)).softmax(-1)
    anchors = anchors_of(r, [1, 10, 11, 13], granularity)
    frames = torch.rand(14, 3, *size, generator=generator)
    assert overlaps(anchor_map(frames, anchors, GRID, title="a clip")) == []
    crowded = anchor_map(frames, anchors, GRID)
    crowded.texts[0].set_fontsize(30)  # the check itself sees what it should
    assert overlaps(crowded)


def test_a_map_names_frames_and_marks_key_frames():
    frames = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    figure = anchor_map(frames, halves(), GRID)
    names = [t.get_text() for t in texts(figure)]
    assert {"frame 0", "key frame 1", "frame 2", "frames", "anchors", "entropy"} <= set(names)
    assert "anchor 1: 11%" in names and "anchor 2: 89%" in names
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(images) == 3 * 3 + 1 + 2  # three rows, the scale, two anchors
    # The second row is the map: nearest neighbours, so the border between anchors is sharp.
    first, second = anchor_colours(2).numpy()
    drawn = images[3]
    edge = drawn.shape[1] // 3
    assert abs(drawn[0, edge - 1] - first).max() < 1e-6
    assert abs(drawn[0, edge] - second).max() < 1e-6
    tokens = [t.get_text() for t in texts(anchor_map(frames, halves(granularity="token"), GRID))]
    assert {"11%", "89%"} <= set(tokens)


def test_one_frame_is_a_clip():
    anchors = assign_anchors(torch.rand(1, 24, 4, generator=torch.Generator().manual_seed(0)))
    assert overlaps(anchor_map(torch.rand(1, 3, 8, 12), anchors, GRID)) == []


def test_frames_of_another_clip_are_refused():
    with pytest.raises(InputError, match="3 frames with 24 sites.*2 frames"):
        anchor_map(torch.rand(2, 3, 8, 12), halves(), GRID)
    with pytest.raises(InputError, match="grid 4 x 4"):
        anchor_map(torch.rand(3, 3, 8, 12), halves(), (4, 4))
    lost = anchors_of(torch.full((3, 24, 2), torch.nan))
    with pytest.raises(InputError, match="hold NaN"):
        anchor_map(torch.rand(3, 3, 8, 12), lost, GRID)


def test_table_holds_the_shares():
    table = map_table(halves())
    assert len(table) == 6 and {row["frame"] for row in table if row["is_key"]} == {1}
    assert table[0]["share"] == pytest.approx(1 / 3) and table[2]["share"] == 0
    for frame in range(3):
        assert sum(r["share"] for r in table if r["frame"] == frame) == pytest.approx(1)
