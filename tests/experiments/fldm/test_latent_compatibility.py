"""A rotated space is the same model in other words; cosines know a copy, a shift and a stranger."""

import pandas as pd
import pytest
import torch
from planted_rows import failed
from tiny_models import tiny_motion_adapter, tiny_unet

from vala_research import InputError
from vala_research.editing.fusion import Fusion
from vala_research.evaluation.benchmark import edited_frames
from vala_research.evaluation.cases import edit_cases
from vala_research.experiments.fldm.foreign_space import (
    OTHER_CLIP,
    SAME,
    UNTRAINED,
    ForeignPlan,
    foreign_plans,
    foreign_unet,
    rotation,
)
from vala_research.experiments.fldm.latent_compatibility import (
    NORMALISED,
    Settings,
    claims,
    edit_settings,
)
from vala_research.experiments.fldm.latent_cosines import (
    EDIT,
    INVERSION,
    cosine_rows,
    latent_cosines,
    source_paths,
)
from vala_research.experiments.fldm.settings import VIDEO
from vala_research.methods.fusion import FusionSchedule
from vala_research.sprites.scene import WORLD

N_FRAMES, SIZE, STEPS = 3, 16, 2


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def motion(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("motion")
    tiny_motion_adapter().save_pretrained(folder)
    return str(folder)


# Other spaces.


@pytest.mark.parametrize("n", [2, 4, 5])
def test_a_rotation_keeps_noise_noise(n):
    r = rotation(30, n)
    torch.testing.assert_close(r @ r.T, torch.eye(n))
    torch.testing.assert_close(rotation(180, 4), -torch.eye(4))
    assert not torch.allclose(r, torch.eye(n), atol=0.1)


@pytest.mark.parametrize("angle", [30.0, 90.0, 180.0])
def test_a_foreign_network_is_the_same_one_in_other_words(angle):
    unet = tiny_unet()
    foreign, r = foreign_unet(unet, angle, True), rotation(angle, 4)
    z, text = noise(0, 2, 4, 8, 8), noise(1, 2, 5, 16)
    ours = unet(z, 7, text)[0]
    rotated = torch.einsum("jc,fchw->fjhw", r, z)
    expected = torch.einsum("jc,fchw->fjhw", r, ours)
    torch.testing.assert_close(foreign(rotated, 7, text)[0], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(foreign(z, 7, text)[0], ours, atol=1e-2)  # given our latents
    own = {id(p) for p in unet.parameters()}
    new = [n for n, p in foreign.named_parameters() if id(p) not in own]
    assert sorted(new) == ["conv_in.weight", "conv_out.bias", "conv_out.weight"]


def test_the_same_space_is_the_network_itself_and_an_untrained_one_is_not():
    unet = tiny_unet(1)
    before = torch.random.get_rng_state()
    assert foreign_unet(unet, 0.0, True) is unet
    fresh = foreign_unet(unet, 0.0, False)
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = zip(fresh.parameters(), unet.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_a_plan_says_where_its_image_model_lives(tiny, motion):
    plan = ForeignPlan(motion=motion, angle=90.0)
    video, image = plan.built(tiny)
    assert plan.built(tiny)[1].unet is image.unet  # made once
    expected = foreign_unet(tiny.unet, 90.0, True).conv_in.weight
    assert torch.equal(image.unet.conv_in.weight, expected) and video.unet is not image.unet
    assert ForeignPlan(motion=motion).built(tiny)[1].unet is tiny.unet
    keys = {p.inverting() for p in (plan, ForeignPlan(motion=motion),
                                    ForeignPlan(motion=motion, is_trained=False))}  # fmt: skip
    assert len(keys) == 3  # their inversions are not taken for one another's
    assert "angle=90" in repr(plan)


# Cosines.


def test_cosines_by_hand():
    z = noise(0, 3, 4, 5, 6)
    same = latent_cosines(z, 2 * z)
    assert same["raw"] == pytest.approx(1) and same["distance"] == pytest.approx(1)
    assert same["matched_distance"] == pytest.approx(0, abs=1e-6)
    flipped = latent_cosines(z, -z)
    assert flipped["raw"] == pytest.approx(-1) and flipped["centred"] == pytest.approx(-1)
    assert flipped["matched_centred"] == pytest.approx(-1)  # moments mend no sign
    shift = torch.tensor([9.0, -9, 9, -9])[:, None, None]
    shifted = latent_cosines(z, z + shift)
    assert shifted["raw"] < 0.5 and shifted["centred"] == pytest.approx(1)
    assert shifted["matched"] == pytest.approx(1)
    assert abs(latent_cosines(z, noise(1, 3, 4, 5, 6))["centred"]) < 0.2
    # What two clips share in every channel's mean is seen raw, and not centred.
    assert latent_cosines(z + shift, noise(1, 3, 4, 5, 6) + shift)["raw"] > 0.9


def test_paths_begin_at_the_inversion_and_end_at_the_edit(tiny, motion):
    case = edit_cases(WORLD, "test", 1, ["colour"])[0]
    plan = ForeignPlan(motion=motion)
    names = ("video", "image")
    sources = dict(zip(names, plan.built(tiny), strict=True))
    sources["image"].attention = "own"
    found = source_paths(tiny, sources, case, N_FRAMES, SIZE, STEPS, 2.0)
    frames = case.material(N_FRAMES, SIZE).frames
    for name in names:
        inversion, edit = found[INVERSION][name], found[EDIT][name]
        assert len(inversion) == len(edit) == STEPS + 1
        assert torch.equal(inversion[0], edit[0])
        torch.testing.assert_close(inversion[-1], tiny.encode(frames))
    image = tiny(
        frames, case.prompt, case.source_prompt, num_inference_steps=STEPS, guidance_scale=2.0,
        attention="own", output_type="latent",
    ).frames[0]  # fmt: skip
    torch.testing.assert_close(found[EDIT]["image"][-1], image)
    assert not torch.allclose(found[EDIT]["video"][-1], image, atol=1e-3)


def test_rows_and_settings(tiny, motion):
    plans = foreign_plans(motion, (0, 180), schedule=FusionSchedule("constant", (0.5, 0.5), 0.0))
    assert list(plans) == [SAME, "rotated by 180", UNTRAINED]
    cases = edit_cases(WORLD, "test", 2, ["colour"])
    rows = cosine_rows(tiny, cases, plans, N_FRAMES, SIZE, STEPS)
    assert set(rows.source) == {*plans, OTHER_CLIP} and set(rows.t) == {501, 1, 0}
    assert len(rows) == 2 * 2 * 4 * 3
    clean = rows[(rows.phase == INVERSION) & (rows.t == 0)].set_index("source").raw
    assert clean[[*plans]].to_numpy() == pytest.approx(1)  # all begin at the clip's own latents
    assert clean[OTHER_CLIP].max() < 0.999
    asked = dict(motion=motion, parts=(), steps=STEPS, angles=(0, 180))
    chosen = Settings.preset("sprites", **asked)
    assert chosen.plans() == plans
    settings = edit_settings(chosen)
    assert settings["untrained" + NORMALISED].fusion.normalise
    assert not settings[SAME].fusion.normalise and settings[VIDEO].fusion.schedule.tau == 1.0
    few = {name: settings[name] for name in (SAME, "rotated by 180")}
    pictures = edited_frames(tiny, cases[0], few, N_FRAMES, SIZE)
    assert not torch.allclose(pictures[SAME], pictures["rotated by 180"], atol=1e-3)
    for name, plan in plans.items():  # what is drawn is what such a fusion makes
        if name in few:
            sources = plan.built(tiny)
            again = tiny(
                cases[0].material(N_FRAMES, SIZE).frames, cases[0].prompt, cases[0].source_prompt,
                num_inference_steps=STEPS, guidance_scale=2.0, output_type="pt",
                fusion=Fusion(sources, plan.schedule),
            ).frames[0]  # fmt: skip
            torch.testing.assert_close(pictures[name], again, rtol=0, atol=1e-4)


def planted(psnr: dict[str, float], agreement: float = 0.9, beginning: float = 1.0) -> pd.DataFrame:
    """Edits of these mean PSNR on eight clips, and cosines on the same clips."""
    edits = [
        {"part": "edits", "setting": s, "kind": "colour", "index": i, "psnr": v + 0.1 * (i * k % 5)}
        for k, (s, v) in enumerate(psnr.items(), 1) for i in range(8)
    ]  # fmt: skip
    cosines = [
        {"part": "cosines", "index": i, "phase": phase, "t": 0, "source": source,
         "raw": beginning if source == SAME else 0.1, "centred": level + 0.01 * (i % m)}
        for source, level, m in ((SAME, agreement, 3), (OTHER_CLIP, 0.1, 5))
        for phase in (INVERSION, EDIT) for i in range(8)
    ]  # fmt: skip
    return pd.DataFrame(edits + cosines)


def levels(foreign: float = 15.0, mended: float = 0.0) -> dict[str, float]:
    """Mean PSNR of the same space and of a rotated one, each with and without normalising."""
    name = "rotated by 90"
    return {SAME: 20.0, SAME + NORMALISED: 20.0, name: foreign, name + NORMALISED: foreign + mended}


def test_verdicts_are_read_from_the_rows():
    def verdicts(*psnr: float) -> dict[str, str]:
        return {c.sentence: c.verdict for c in claims(planted(levels(*psnr)))}

    worse = verdicts(15.0, 0.0)
    assert worse["latents of the same frames agree more than those of other clips"] == "confirmed"
    assert worse["rotated by 90 is worse than the same space"] == "confirmed"
    assert worse["normalising gains for rotated by 90"] != "confirmed"
    assert verdicts(15.0, 4.0)["normalising gains for rotated by 90"] == "confirmed"
    assert verdicts(25.0, -4.0)["rotated by 90 is worse than the same space"] == "contradicted"
    assert verdicts(25.0, -4.0)["normalising gains for rotated by 90"] == "contradicted"


def test_asserted_claims_can_fail():
    """Another beginning, a cosine above 1, an edit without PSNR, lost rows."""
    rows = planted(levels())
    assert not failed(claims(rows))
    apart = planted(levels(), beginning=0.9)
    assert failed(claims(apart)) == ["every inversion begins at the clip's own latents"]
    above = rows.assign(raw=rows.raw.where(rows.phase != EDIT, 1.1))
    assert failed(claims(above)) == ["no cosine exceeds 1"]
    with pytest.raises(InputError, match="NaN"):
        claims(rows.iloc[1:])

    # A second kind of edit: the mean of each clip stays known.
    other = rows[rows.part == "edits"].assign(kind="shape", psnr=float("nan"))
    assert failed(claims(pd.concat([rows, other]))) == ["every edit has a PSNR"]
    assert failed(claims(pd.concat([rows, other.iloc[1:].assign(psnr=1.0)]))) == [
        "every setting makes every edit"
    ]
