"""The panel shows what the grid holds, at once; the grid edits once what weighs alike."""

import sys
import time
from dataclasses import replace
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_models import tiny_motion_adapter

from vala_research import InputError
from vala_research.evaluation.cases import edit_cases
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.fldm import explorer
from vala_research.experiments.fldm.fusion_panel import explore_fusion
from vala_research.experiments.fldm.grid import FusionGrid, fusion_grid, sheet, weighing
from vala_research.methods.fusion import FusionSchedule
from vala_research.sprites.scene import WORLD

widgets = pytest.importorskip("ipywidgets")
KINDS, VALUES, TAUS = ("constant", "decay_video"), (0.0, 0.5, 1.0), (0.0, 0.5)


@pytest.fixture(scope="module")
def grid(tiny, tmp_path_factory) -> FusionGrid:
    """Twelve points by a random network."""
    motion = tmp_path_factory.mktemp("motion")
    tiny_motion_adapter().save_pretrained(motion)
    (case,) = edit_cases(WORLD, "validation", 1, ("colour",))
    return fusion_grid(
        tiny, case, KINDS, VALUES, TAUS, 3, 32, motion=str(motion), num_inference_steps=2
    )


def made(n_edits: int = 12, with_truth: bool = True) -> FusionGrid:
    """A grid of 8 frames of 64 px in which edit i is of brightness i, without any network; the
    clip and its true edit grow brighter."""
    frames = torch.arange(n_edits, dtype=torch.uint8)[:, None, None, None, None].expand(
        -1, 8, 3, 64, 64
    )
    rows = [dict(clip_t=20.0 + i, clip_f=99.0, warp_error=1e-3 * i, psnr=10.0 + i, success=0.5)
            for i in range(n_edits)]  # fmt: skip
    points = [(k, a, tau) for k in KINDS for a in VALUES for tau in TAUS]
    blank = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 64, 64)
    truth = blank + 200 if with_truth else None
    edit_of = {p: i for i, p in enumerate(points)}
    return FusionGrid(frames.clone(), rows, edit_of, blank + 100, truth, 6, "a <red> star")


class Panel:
    """The controls by their description, and what the panel shows."""

    def __init__(self, grid: FusionGrid):
        self.box = explore_fusion(grid)
        self._text, (self.clip, self.plot) = self.box.text, self.box.pictures
        self.controls = {c.description: c for c in self.box.controls.values()}

    text = property(lambda self: self._text.value)

    def move(self, kind: str, a: float, tau: float) -> None:
        for name, value in zip(("kind", "a", "tau"), (kind, a, tau), strict=True):
            self.box.controls[name].value = value

    def shown(self) -> np.ndarray:
        return np.asarray(Image.open(BytesIO(self.clip.value)).convert("RGB"))


def test_points_that_weigh_alike_share_one_edit(grid):
    """a = 1 is the video model and a = 0 the image model at any tau, while the weights stay; at
    a = 0 decay_video has nothing to lose."""
    place = grid.edit_of
    assert set(place) == {(k, a, t) for k in KINDS for a in VALUES for t in TAUS}
    assert place["constant", 1.0, 0.0] == place["constant", 1.0, 0.5]
    assert len({place[k, 0.0, t] for k in KINDS for t in TAUS}) == 1
    # Of two steps decay_video at tau .5 fuses one, the first of its fall: it weighs as constant.
    assert place["constant", 0.5, 0.5] == place["decay_video", 0.5, 0.5]
    assert place["constant", 0.5, 0.0] != place["decay_video", 0.5, 0.0]
    assert len(grid.frames) == len(grid.rows) == len(set(place.values())) == 6
    assert len({row["psnr"] for row in grid.rows}) == 6
    assert {"psnr", "success", "warp_error"} <= set(grid.rows[0])


def test_every_edit_is_the_one_that_the_pipeline_makes(grid, tiny, tmp_path):
    """A point made alone, in another grid, is the same to the bit."""
    tiny_motion_adapter().save_pretrained(tmp_path)
    (case,) = edit_cases(WORLD, "validation", 1, ("colour",))
    one = fusion_grid(
        tiny, case, ("decay_video",), (0.5,), (0.0,), 3, 32, motion=str(tmp_path),
        num_inference_steps=2,
    )  # fmt: skip
    i = grid.edit_of["decay_video", 0.5, 0.0]
    assert torch.equal(one.frames[0], grid.frames[i])
    assert one.rows[0]["psnr"] == pytest.approx(grid.rows[i]["psnr"])
    frames, truth = (x.double() / 255 for x in (one.frames[0], one.truth))
    mse = (frames - truth).square().flatten(1).mean(1)
    assert one.rows[0]["psnr"] == pytest.approx((-10 * mse.log10()).mean().item(), abs=0.02)


def test_what_weighs_alike_is_told_apart():
    def same(a: FusionSchedule, b: FusionSchedule) -> bool:
        return weighing(a, 4) == weighing(b, 4)

    half = (0.5, 0.5)
    assert same(FusionSchedule("constant", (1.0, 0.0), 0.0), FusionSchedule(tau=1.0))
    assert same(FusionSchedule("cosine", (1.0, 0.0), 0.5), FusionSchedule(tau=4))
    image = FusionSchedule("constant", (0.0, 1.0), 0.0)
    assert same(image, FusionSchedule("decay_video", (0.0, 1.0), 0.75))
    assert not same(image, FusionSchedule("decay_image", (0.0, 1.0), 0.0))
    assert not same(image, FusionSchedule("constant", (0.0, 1.0), 1.0))  # nothing is fused
    assert not same(FusionSchedule("constant", half, 0.0), FusionSchedule("constant", half, 0.5))
    assert not same(FusionSchedule("decay_video", (1.0, 0.0), 0.0), FusionSchedule(tau=1.0))


@pytest.mark.parametrize("with_truth", [True, False])
def test_a_grid_comes_back_from_its_file(tmp_path, with_truth):
    kept = made(with_truth=with_truth)
    again = FusionGrid.load(kept.save(tmp_path / "new" / "grid.safetensors"))
    assert torch.equal(again.frames, kept.frames) and torch.equal(again.source, kept.source)
    assert again.edit_of == kept.edit_of and again.rows == kept.rows
    assert (again.n_steps, again.prompt) == (6, "a <red> star")
    assert (again.truth is None) != with_truth


def test_what_is_no_grid_is_refused(tmp_path):
    (tmp_path / "x").write_text("no")
    for path in (tmp_path / "x", tmp_path / "missing"):
        with pytest.raises(InputError, match="holds no grid of fusions"):
            FusionGrid.load(path)


def test_every_control_shows_its_edit():
    """Edit i is of brightness i, and lies between the source's and the true edit's rows."""
    grid = made()
    panel, plots = Panel(grid), set()
    for point, i in grid.edit_of.items():
        panel.move(*point)
        picture = panel.shown()
        h = picture.shape[0] // 3
        middles = [picture[r * h + h // 2, 60].tolist() for r in range(3)]
        assert middles == [[100] * 3, [i] * 3, [200] * 3]
        assert f"CLIP-T {20 + i}" in panel.text and f"E_warp x 1000: {i:.4g}" in panel.text
        plots.add(bytes(panel.plot.value))
    assert "success, %: 50" in panel.text and "PSNR to the true edit: 21.00 dB" in panel.text
    assert "a &lt;red&gt; star" in panel.text
    assert len(plots) == 12


def test_a_clip_moves_on_demand():
    panel = Panel(made())
    panel.controls["show"].value = "animation"
    assert panel.clip.format == "gif"
    moving = Image.open(BytesIO(panel.clip.value))
    assert moving.is_animated and moving.width > 3 * 64
    panel.controls["show"].value = "strip"
    assert panel.clip.format == "png"


def test_without_a_true_edit_two_rows_are_shown():
    panel = Panel(made(with_truth=False))
    assert panel.shown().shape[0] == 2 * (128 + 4)
    assert "PSNR to the source" in panel.text and "true edit" not in panel.text


def test_errors_are_text_and_take_the_stale_clip_away():
    grid = made()
    panel = Panel(grid)
    del grid.edit_of["constant", 0.0, 0.0]
    panel.move("constant", 0.0, 0.0)
    assert "KeyError" in panel.text and not panel.clip.value and not panel.plot.value
    panel.move("constant", 1.0, 0.0)
    assert panel.clip.value and "KeyError" not in panel.text


def test_a_redraw_takes_a_small_part_of_a_second():
    """Processor time of 8 frames of 64 px, best of three: 0.12 s were measured."""
    panel = Panel(made())
    seconds = []
    for value in (0.0, 0.5, 1.0):
        start = time.process_time()
        panel.controls["video's share a"].value = value
        seconds.append(time.process_time() - start)
    assert panel.clip.value and min(seconds) < 0.5


def test_the_sheet_shows_every_share_and_tau():
    grid = made()
    fig = sheet(grid, "decay_video", frame=2)
    assert len(fig.axes) == 6
    assert [ax.get_title() for ax in fig.axes[:2]] == ["tau 0", "tau 0.5"]
    levels = [ax.images[0].get_array()[0, 0, 0] for ax in fig.axes]
    assert levels == [grid.edit_of["decay_video", a, t] for a in VALUES for t in TAUS]
    assert "E_warp x 1000" in fig.axes[0].get_xlabel()


def test_a_kept_grid_makes_rows_and_figure(tmp_path):
    """One row per point; nothing is edited, no other grid is written."""
    grid = made()
    points = list(grid.edit_of)[:2]
    path = replace(grid, edit_of={p: i for i, p in enumerate(points)}).save(tmp_path / "grid")
    settings = explorer.Settings.preset("smoke", grid=str(path))
    rows = explorer.run(settings, tmp_path / "out")
    assert [tuple(p) for p in rows[["schedule", "a", "tau"]].to_numpy()] == points
    assert rows.edit.tolist() == [0, 1] and rows.is_shown.all() and (rows.redraw > 0).any()
    assert not list((tmp_path / "out").glob("*.safetensors"))
    kept = pd.read_csv(tmp_path / "out" / "rows.csv")
    pd.testing.assert_frame_equal(explorer.table(kept), explorer.table(rows))
    again = explorer.kept_grid(settings, tmp_path / "out")
    assert explorer.figure(rows, again).axes[0].get_title() == "tau 0"


def test_the_menu_switches_the_clip_and_lists_the_grids_of_the_folder(tmp_path):
    one, two = made(), replace(made(), prompt="a blue star")
    panel = explore_fusion({"this clip": one, "colour_1": two})
    before = panel.text.value
    panel.controls["clip"].value = "colour_1"
    assert "a blue star" in panel.text.value != before
    panel.copy.click()
    assert "27_fldm_explorer.ipynb" in panel.busy.value and "-p taus" in panel.busy.value
    with pytest.raises(InputError, match="different points"):
        explore_fusion({"a": one, "b": replace(one, edit_of={("constant", 0.0, 0.0): 0})})

    one.save(tmp_path / "grid_colour_0.safetensors")
    two.save(tmp_path / "grid_shape_3.safetensors")
    few = replace(one, edit_of={("constant", 0.0, 0.0): 0})
    few.save(tmp_path / "grid_colour_9.safetensors")  # other points
    grids = explorer.kept_grids(explorer.Settings.preset("smoke"), tmp_path)
    assert list(grids) == ["this clip", "shape_3"]


def test_a_point_that_is_not_shown_is_told():
    grid = made()
    first, second = list(grid.edit_of)[:2]
    short = replace(grid, edit_of={first: 0, second: 99})  # there is no edit 99
    drawn = explorer.redraws(explore_fusion(short), short)
    assert drawn[first]["is_shown"] and not drawn[second]["is_shown"]


@pytest.mark.parametrize(
    "row, column, wrong, sentence",
    [
        (0, "is_shown", False, "the panel shows every point"),
        (slice(None), "redraw", 1.5, "well under a second"),
        (1, "edit", 9, "a constant share of 0 is the image model"),
        (3, "edit", 9, "a constant share of 1 is the video model"),
    ],
)
def test_the_claims_can_fail(row, column, wrong, sentence):
    rows = pd.DataFrame(
        {"schedule": "constant", "a": a, "tau": tau, "edit": int(a), "redraw": 0.2,
         "is_shown": True}
        for a in (0.0, 1.0) for tau in (0.0, 0.5)
    )  # fmt: skip
    assert_claims(explorer.claims(rows))
    rows.loc[row, column] = wrong
    with pytest.raises(AssertionError, match=sentence):
        assert_claims(explorer.claims(rows))


def test_without_ipywidgets_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InputError, match="pip install ipywidgets"):
        explore_fusion(made())
