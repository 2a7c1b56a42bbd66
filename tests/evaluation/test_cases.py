"""Cases of fast motion and of cuts show and ask what the usual cases do. Costs about 15 s."""

import pandas as pd
import pytest
import torch

from vala_research import InputError
from vala_research.evaluation.cases import edit_cases
from vala_research.evaluation.comparison import Run, compare, row_keys
from vala_research.evaluation.comparison_tables import per_clip
from vala_research.evaluation.edit_rows import edit_row
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.sprites.edits import EDITS, target_scene
from vala_research.sprites.reader import read_attributes
from vala_research.sprites.render import render
from vala_research.sprites.scene import WORLD, Scene, random_scene, split_generator

HARD = ("fast", "cut")


def cases(motion: str, n: int = 2, kinds: tuple = tuple(EDITS)) -> list:
    return edit_cases(WORLD, "validation", n, kinds, motion)


def centres(scene: Scene, n_frames: int) -> torch.Tensor:
    """In pixels of 64."""
    return 64 * scene.motion.at(torch.linspace(0, 1, n_frames))[0]


def test_the_usual_cases_stay_what_they_are():
    for case in cases("usual", 3):
        generator = split_generator("validation", 10_000_000 + case.index)
        source = random_scene(generator, world=WORLD)  # draws "empty", which no object of these is
        assert case.source == source and source.shape is not None
        assert case.target == target_scene(source, case.kind, WORLD, generator)
        assert case.labels == {"kind": case.kind, "index": case.index}
        assert (case.source_prompt, case.prompt) == (source.caption, case.target.caption)


@pytest.mark.parametrize("motion", HARD)
def test_the_true_clip_has_no_error_in_any_kind_of_edit(motion):
    for case, usual in zip(cases(motion, 1), cases("usual", 1), strict=True):
        material = case.material(8, 64)
        row = edit_row(material.truth, case, material)
        assert row["success"] == row["presence"] == 1
        assert row["path_error"] == row["size_error"] == row["jitter"] == 0
        assert row["warp_error_truth"] < 0.01
        read = read_attributes(material.frames)
        assert all(frame == case.source.attributes for frame in read)
        assert not torch.equal(material.frames, usual.material(8, 64).frames)

        # The same words as of the usual case, and columns of its own.
        assert case.source_prompt == usual.source_prompt and case.prompt == usual.prompt
        assert case.attributes == usual.attributes
        assert case.labels == usual.labels | {"motion": motion}


def test_a_fast_object_crosses_the_frame_and_comes_back():
    for case, usual in zip(cases("fast", 12, ("shape",)), cases("usual", 12, ("shape",)),
                           strict=True):  # fmt: skip
        path, radius = centres(case.source, 33), 64 * max(case.source.motion.size)
        assert path.min() > radius + 1 and path.max() < 63 - radius
        out, back = ((path[i] - path[16]).abs().max().item() for i in (0, 32))
        assert out == pytest.approx(back, abs=1e-3) and out > 25
        for n, low, high in ((8, 7.0, 10.5), (24, 2.1, 3.3)):
            steps = centres(case.source, n).diff(dim=0).norm(dim=1)
            assert low < steps.mean() < high
        assert case.source.motion.size == usual.source.motion.size


def test_at_a_cut_the_object_and_the_pattern_jump():
    for case in cases("cut", 12, ("several",)):
        (second,) = case.source.then
        assert second.attributes == case.source.attributes
        assert case.target.then[0].attributes == case.target.attributes == case.attributes
        for scene in (case.source, case.target):
            jump = centres(scene.then[0], 4)[0] - centres(scene, 4)[-1]
            assert jump.norm() >= 0.2 * 64 - 1e-3
        clip = render(case.source, 8)
        assert clip.scene_index.tolist() == [0] * 4 + [1] * 4
        assert not clip.flow_valid[3].any() and not clip.flow[3].any()
        followed = clip.flow_valid.mean((1, 2, 3))
        assert (followed[:3] > 0.5).all() and (followed[4:] > 0.5).all()

        # Seen where neither frame shows the object; then a wrong edit of one shot is seen, too.
        ground = (clip.depth[3:5] == 0).all(0).expand(3, -1, -1)
        change = (clip.frames[4] - clip.frames[3])[ground].abs().mean()
        assert (change > 0.02) == (case.source.pattern != "plain")
        material = case.material(8, 64)
        half = torch.cat([material.truth[:4], material.frames[4:]])
        assert edit_row(half, case, material)["success"] == 0.5


def test_an_unknown_motion_is_refused():
    with pytest.raises(InputError, match="Unknown motion 'slow': choose one of usual, fast, cut"):
        cases("slow")


def test_motions_share_neither_rows_nor_inversions(checkpoint, tmp_path):
    """Their captions and numbers are the same. An edit lost under one motion is known under all."""
    run, own = Run(checkpoint, 4, 32, n_processes=1), {"own": EditSetting(num_inference_steps=2)}
    mixed = [case for m in ("usual", *HARD) for case in cases(m, 1, ("colour",))]
    assert len(set(row_keys(mixed, own, run).values())) == 3
    rows = compare(mixed, own, tmp_path / "rows.csv", run)
    assert rows.motion.fillna("").tolist() == ["", *HARD]
    for i, case in enumerate(mixed):
        alone = compare([case], own, tmp_path / f"{i}.csv", run)
        assert ("motion" in alone) == (i > 0)
        numbers = ["psnr", "warp_error", "inversion_psnr"]
        pd.testing.assert_frame_equal(
            rows.iloc[[i]][numbers].reset_index(drop=True), alone[numbers], rtol=1e-4
        )

    lost = pd.DataFrame(
        {"setting": s, "kind": "shape", "index": 0, "motion": m, "jitter": value}
        for s, m, value in (("a", "usual", 1.0), ("a", "fast", 3.0),
                            ("b", "usual", 2.0), ("b", "fast", float("nan")))
    )  # fmt: skip
    assert per_clip(lost, "jitter").loc[0].tolist() == [1.0, 2.0]
