"""A figure's files belong together: redrawn from its csv it is the same, the json says how."""

import csv
import hashlib
import json

import numpy as np
import pytest
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from vala_research import InputError
from vala_research.evaluation.figures import STYLE, Picture, emit
from vala_research.evaluation.provenance import model_revision
from vala_research.evaluation.sheet import strip


def lines(rows):
    """A figure that is a function of its table alone."""
    fig = Figure()
    axes = fig.add_subplot(xlabel="steps", ylabel="PSNR, dB")
    for policy in dict.fromkeys(row["policy"] for row in rows):
        points = [(float(r["steps"]), float(r["psnr"])) for r in rows if r["policy"] == policy]
        axes.plot(*zip(*points, strict=True), marker="o", label=policy)
    axes.legend()
    return fig


@pytest.fixture(autouse=True)
def style():
    with rc_context(STYLE):
        yield


def table():
    rng = np.random.default_rng(0)
    return [
        {"policy": policy, "steps": n, "psnr": float(20 + rng.normal())}
        for policy in ("own", "extended")
        for n in (10, 25, 50)
    ]


def test_emit_writes_five_files_and_a_figure_can_be_redrawn_from_its_csv(tmp_path):
    source = tmp_path / "input.bin"
    source.write_bytes(b"frames")
    params = {"seed": 3, "model": "runwayml/sd", "steps": np.int64(50), "gain": float("inf")}
    origin = {"paper": "VALA", "figure": "Fig. 4", "notebook": "10_vala", "inputs": [source]}
    paths = emit("psnr", lines(table()), table(), params, tmp_path / "figures", **origin)
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "psnr.csv", "psnr.json", "psnr.pdf", "psnr.png", "psnr.tex",
    ]  # fmt: skip
    with paths["csv"].open() as file:
        again = list(csv.DictReader(file))
    redrawn = emit("psnr", lines(again), again, params, tmp_path / "again")
    # Full precision in the csv and no dates in the pdf: the same bytes, not only the same look.
    for kind in ("pdf", "png", "csv"):
        assert redrawn[kind].read_bytes() == paths[kind].read_bytes(), kind
    changed = [{**row, "psnr": float(row["psnr"]) + 1e-3} for row in again]
    other = emit("psnr", lines(changed), changed, params, tmp_path / "changed")
    assert other["pdf"].read_bytes() != paths["pdf"].read_bytes()

    found = json.loads(paths["json"].read_text())
    expected = {"paper": "VALA", "figure": "Fig. 4", "notebook": "10_vala", "seed": 3}
    assert expected.items() <= found.items()
    assert found["parameters"] == {**params, "steps": 50, "gain": "inf"}
    assert found["model"] == {"name": "runwayml/sd", "revision": None}
    assert found["versions"]["torch"] == torch.__version__
    assert {"commit", "dirty", "device"} <= set(found)
    assert found["inputs"] == {str(source): hashlib.sha256(b"frames").hexdigest()}
    pdf = hashlib.sha256(paths["pdf"].read_bytes()).hexdigest()
    assert found["outputs"]["pdf"] == pdf


def test_fonts_are_embedded_as_truetype(tmp_path):
    data = emit("a", lines(table()), table(), {}, tmp_path)["pdf"].read_bytes()
    assert b"/Type0" in data and b"/FontFile2" in data and b"/Type3" not in data


def test_tables_may_be_data_frames(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table())
    by_list = emit("a", lines(table()), table(), {}, tmp_path / "list")["csv"].read_text()
    assert emit("a", lines(table()), frame, {}, tmp_path / "frame")["csv"].read_text() == by_list
    mean = frame.groupby("policy")[["psnr"]].mean()
    lines_ = emit("b", Figure(), mean, {}, tmp_path)["csv"].read_text().splitlines()
    assert lines_[0] == "policy,psnr" and len(lines_) == 3


def test_a_failed_emit_leaves_the_old_figure(tmp_path):
    paths = emit("a", lines(table()), table(), {"seed": 1}, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    class Broken(Figure):
        def savefig(self, path, **options):
            if str(path).endswith("png"):
                raise OSError(28, "No space left on device")
            super().savefig(path, **options)

    with pytest.raises(InputError, match="No space left"):
        emit("a", Broken(), table(), {"seed": 2}, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert len(before) == len(paths)


def test_bad_requests(tmp_path):
    (tmp_path / "file").touch()
    for arguments, problem in [
        (("../a", Figure(), table(), {}, tmp_path), "plain file name"),
        (("a", Figure(), [], {}, tmp_path), "table is empty"),
        (("a", Figure(), table(), {}, tmp_path / "file"), "cannot be written"),
    ]:
        with pytest.raises(InputError, match=problem):
            emit(*arguments)
    with pytest.raises(InputError, match="does not exist"):
        emit("a", Figure(), table(), {}, tmp_path, inputs=[tmp_path / "missing"])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_models_revision_follows_its_files(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "weights").write_bytes(b"1")
    first = model_revision(str(tmp_path))
    assert first == model_revision(str(tmp_path))
    (tmp_path / "unet" / "weights").write_bytes(b"2")
    assert model_revision(str(tmp_path)) != first
    assert model_revision("someone/some-model") is None


# --- the strip ----------------------------------------------------------------------------------


def clip(n=20, h=64, w=64, c=3, seed=0):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


def test_every_pixel_of_a_small_frame_is_a_square_of_the_strip(tmp_path):
    rows = {"source": clip(), "edit": clip(seed=1), "|difference|": clip(c=1, seed=2)}
    fig = strip(rows, n_columns=4, title="a red circle → a blue star")
    path = tmp_path / "strip.png"
    fig.savefig(path, dpi=Picture.pixels_per_inch)
    found = np.asarray(Image.open(path).convert("RGB")).astype(int)
    for row, frames in enumerate(rows.values()):
        expected = (frames[[0, 6, 13, 19]] * 255).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
        for column, picture in enumerate(expected.numpy()):
            box = fig.axes[4 * row + column].get_position()
            top = round((1 - box.y1) * found.shape[0])
            left = round(box.x0 * found.shape[1])
            shown = found[top : top + 192, left : left + 192].reshape(64, 3, 64, 3, 3)
            assert (np.ptp(shown, axis=(1, 3)) == 0).all()  # 3x3 equal pixels, no blur
            # Bytes may round down or to the nearest: one step.
            assert np.abs(shown[:, 0, :, 0] - picture).max() <= 1


def test_strips_of_all_kinds():
    assert len(strip({"a": clip(3)}).axes) == 3
    assert len(strip({"a": clip(1, c=1), "b": clip(1)}).axes) == 2
    wide = strip({"a": clip(4, 90, 160), "b": clip(4, 300, 600)}, n_columns=2)
    assert len(wide.axes) == 4 and wide._repr_png_().startswith(b"\x89PNG")
    for rows in ({}, {"a": clip(3), "b": clip(4)}, {"a": clip(2, c=4)}, {"a": clip(2)[:0]}):
        with pytest.raises(InputError):
            strip(rows)


def test_a_strip_can_be_emitted(tmp_path):
    paths = emit("strip", strip({"a": clip(2)}), [{"psnr": 1.0}], {}, tmp_path)
    assert Image.open(paths["png"]).width > 2 * 192 and STYLE["pdf.fonttype"] == 42
