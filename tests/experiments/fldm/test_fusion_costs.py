"""Counts without weights are those of the edit that runs; the aims are reached, and can fail."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import ControlNetModel
from tiny_models import tiny_motion_adapter
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from vala_research import InputError
from vala_research.diffusion.controlnet import Control
from vala_research.diffusion.motion import load_motion_unet
from vala_research.editing.fusion import Fusion
from vala_research.evaluation import weightless
from vala_research.evaluation.flops import forward_flops, meta_unet
from vala_research.evaluation.known_calls import KnownCalls
from vala_research.evaluation.memory import LiveTensors
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.fldm import cost, edit_costs, many_sources, settings
from vala_research.experiments.fldm.many_sources import EQUAL, RELEASED, SOURCES, TWIN, many_plan
from vala_research.experiments.fldm.settings import FUSED, IMAGE, VIDEO
from vala_research.methods.fusion import FusionSchedule

N_FRAMES, SIZE = 3, 16


@pytest.fixture(scope="module")
def motion(tiny):
    return load_motion_unet(tiny.unet, tiny_motion_adapter())


@pytest.fixture(scope="module", autouse=True)
def counts():
    """Count each kind of network call once, whichever tests ask."""
    known, count = KnownCalls(), weightless.counted_edit

    def once(*edit, **_) -> tuple[int, int]:
        return count(*edit[:5], known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weightless, "counted_edit", once)
        patch.setattr(edit_costs, "counted_edit", once)
        yield count


@pytest.fixture(scope="module")
def counted(tiny, motion) -> tuple:
    return weightless.weightless(tiny, settings.source_fusions(motion))


def really_counted(pipe, fusion: Fusion, steps: int) -> int:
    """FLOPs of the edit itself, on the processor, whose attention torch's counter would miss."""

    def attention(query, key, value, *_, **__) -> int:
        return sdpa_flop_count(query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={kernel: attention})
    clip = torch.rand(N_FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with counter:
        pipe(
            clip, *weightless.PROMPTS, num_inference_steps=steps, attention="own",
            fusion=fusion, output_type="pt",
        )  # fmt: skip
    return counter.get_total_flops()


@pytest.mark.parametrize("name", [IMAGE, VIDEO, FUSED])
def test_counts_without_weights_are_those_of_the_edit(tiny, motion, counted, name):
    fusion = settings.source_fusions(motion)[name]
    pipe, bare = counted
    found, live = weightless.counted_edit(pipe, bare[name], N_FRAMES, SIZE, 2)
    assert found == really_counted(tiny, fusion, 2) > 0 and live > 0


class Forgetful(dict):
    """Holds nothing that it is given."""

    def __setitem__(self, key, value):
        pass


def test_known_calls_change_no_number(counted, counts):
    """FLOPs and peak of an edit that makes each of its calls, and of one that makes each kind."""
    pipe, bare = counted
    known, edit = KnownCalls(), (pipe, bare[FUSED], N_FRAMES, SIZE, 2)
    first = counts(*edit, known)
    assert first == counts(*edit, known) == counts(*edit, KnownCalls(_known=Forgetful()))
    assert known.flops > first[0]  # the second edit made no call
    video, image = bare[FUSED].sources
    other = replace(bare[FUSED], sources=[video, replace(image, attention="extended")])
    assert counts(pipe, other, *edit[2:], known)[0] > first[0]


def test_an_edit_whose_calls_differ_is_not_counted(tiny, counted):
    pipe, bare = counted
    controlnet = ControlNetModel.from_unet(tiny.unet)
    sources = [replace(source, controls=[Control(controlnet)]) for source in bare[IMAGE].sources]
    with pytest.raises(InputError, match="count without them"):
        weightless.counted_edit(pipe, replace(bare[IMAGE], sources=sources), 1, SIZE, 1)


def test_any_number_of_steps_from_two(counted):
    pipe, bare = counted
    few = {name: bare[name] for name in (IMAGE, FUSED)}
    for row in edit_costs.cost_rows(pipe, few, [N_FRAMES], SIZE, steps=4):
        found, _ = weightless.counted_edit(pipe, bare[row["setting"]], N_FRAMES, SIZE, 4)
        assert row["tflop"] * 1e12 == pytest.approx(found, rel=1e-12)
        assert row["peak"] == pytest.approx(row["weights"] + row["live"])


def test_shared_weights_are_counted_once(tiny, motion, counted):
    bytes_of = weightless.stored_bytes
    own = sum(p.numel() for p in tiny.unet.parameters()) * 4
    assert bytes_of(tiny.unet) == own == bytes_of(tiny.unet, tiny.unet)
    assert bytes_of(tiny.unet, motion) == bytes_of(motion) > own
    pipe, bare = counted
    video, image = bare[FUSED].sources
    assert image.unet is None and pipe.unet.device.type == video.unet.device.type == "meta"
    assert bytes_of(pipe.unet, video.unet) == bytes_of(motion)
    assert video.unet.conv_in.weight is pipe.unet.conv_in.weight
    separate = load_motion_unet(tiny.unet, tiny_motion_adapter())
    separate.conv_in.weight = torch.nn.Parameter(separate.conv_in.weight.clone())
    assert bytes_of(tiny.unet, separate) == bytes_of(motion) + 4 * separate.conv_in.weight.numel()


def test_memory_of_a_fused_edit_is_that_of_the_largest(tiny, motion, counted):
    """Live tensors of the meta device against those of the edit that runs."""
    pipe, bare = counted
    for name in (IMAGE, VIDEO, FUSED):
        _, live = weightless.counted_edit(pipe, bare[name], N_FRAMES, SIZE, 2)
        clip = torch.rand(N_FRAMES, 3, SIZE, SIZE)
        with LiveTensors() as real:
            tiny(
                clip, *weightless.PROMPTS, num_inference_steps=2, attention="own",
                fusion=settings.source_fusions(motion)[name], output_type="pt",
            )  # fmt: skip
        assert live == pytest.approx(real.peak, rel=0.1)


def by_parts(counted: list[dict], weights=(1.0, 2.0, 2.0)) -> pd.DataFrame:
    """Rows as `cost.run` makes them; weights: of the image model, the video model, both."""
    shared = [
        {"setting": n, "weights": w} for n, w in zip((IMAGE, VIDEO, FUSED), weights, strict=True)
    ]
    return pd.concat([pd.DataFrame(counted).assign(part="counted"),
                      pd.DataFrame(shared).assign(part="weights")])  # fmt: skip


def test_aims(counted):
    pipe, bare = counted
    rows = edit_costs.cost_rows(pipe, bare, [N_FRAMES], SIZE, steps=50)
    ratios = cost.ratios(pd.DataFrame(rows))
    assert set(ratios) == {(N_FRAMES, "tflop"), (N_FRAMES, "peak")}
    assert 0.8 < ratios[N_FRAMES, "tflop"] <= 1.0  # the VAE works once for both
    assert_claims(cost.claims(by_parts(rows)))
    wasteful = [row | ({"tflop": 2 * row["tflop"], "peak": 1.2 * row["peak"]}
                       if row["setting"] == FUSED else {}) for row in rows]  # fmt: skip
    aims = [c for c in cost.claims(by_parts(wasteful)) if "at most" in c.sentence]
    assert [c.verdict for c in aims] == ["contradicted"] * 2 and all(c.is_asserted for c in aims)


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"fused": 2.6}, "at most 1.05 times the summed FLOPs"),
        ({"peak": 6.0}, "at most 1.1 times the largest peak memory"),
        ({"both": 3.0}, "shares all weights"),
        ({"fused": 1.4}, "asks both models"),
    ],
    ids=["flops", "memory", "copies", "nothing"],
)
def test_the_claims_of_costs_can_fail(wrong, sentence):
    def rows(fused: float = 2.3, peak: float = 5.0, both: float = 2.0) -> pd.DataFrame:
        known = ((IMAGE, 1.0, 4.0), (VIDEO, 1.4, 5.0), (FUSED, fused, peak))
        counted = [{"setting": s, "frames": 8, "steps": 50, "tflop": x, "peak": p,
                    "weights": 1.0, "live": p - 1} for s, x, p in known]  # fmt: skip
        return by_parts(counted, (1.0, 2.0, both))

    assert_claims(cost.claims(rows()))
    with pytest.raises(AssertionError, match=sentence):
        assert_claims(cost.claims(rows(**wrong)))
    texts = [t.get_text() for t in cost.figure(rows()).axes[0].texts]
    assert texts == [f"{2.3 / 2.4:.3f}"]


def test_what_a_machine_takes_is_reported_alone():
    known = ((IMAGE, 1.0), (VIDEO, 1.0), (FUSED, 3.0))
    slow = pd.DataFrame([{"part": "measured", "setting": s, "frames": 8, "seconds": x,
                          "peak": np.nan} for s, x in known])  # fmt: skip
    counted = [{"setting": s, "frames": 8, "steps": 50, "tflop": x, "weights": 1.0, "live": 1.0,
                "peak": 2.0} for s, x in ((IMAGE, 1.0), (VIDEO, 1.0), (FUSED, 2.0))]  # fmt: skip
    claims = cost.claims(pd.concat([by_parts(counted), slow]))
    assert_claims(claims)
    (seconds,) = [c for c in claims if "measured" in c.sentence]
    assert seconds.verdict == "contradicted" and seconds.value == 1.5


def test_stable_diffusion_by_hand():
    """Parameters as published; a step of the edit asks 1 + 2 forwards of each network."""
    pipe, video = weightless.stable_diffusion()
    n_image = sum(p.numel() for p in pipe.unet.parameters())
    assert n_image == 859_520_964
    assert sum(p.numel() for p in video.parameters()) - n_image == 453_209_280
    assert sum(p.numel() for p in pipe.vae.parameters()) == 83_653_863
    assert weightless.stored_bytes(pipe.unet) == 2 * n_image
    fusions = settings.source_fusions(video)
    one, two = (weightless.counted_edit(pipe, fusions[IMAGE], 1, 512, k)[0] for k in (1, 2))
    assert two - one == 3 * forward_flops(meta_unet(), "own", 1, 64, 64)


def test_measurements(checkpoint, tmp_path):
    tiny_motion_adapter().save_pretrained(tmp_path)
    how = edit_costs.Measurement(str(checkpoint), str(tmp_path), 16, 1, 1, is_fresh=False)
    rows = edit_costs.measured_rows(how, [2], (IMAGE, FUSED))
    assert [(r["setting"], r["frames"]) for r in rows] == [(IMAGE, 2), (FUSED, 2)]
    assert all(r["seconds"] > 0 for r in rows)


# Many sources.


def test_plans_of_many_sources(tiny):
    plan = many_plan(SOURCES, RELEASED, 2.0)
    assert plan.sources == ("video", "image", "image", "video")
    assert plan.guidances == (2.0, 2.0, 2.0, 4.0) and plan.attentions[2] == "anchors"
    assert plan.schedule.initial == pytest.approx((0.7, 0.1, 0.1, 0.1))
    equal = many_plan(SOURCES[:3], EQUAL).schedule
    assert equal.weights(9, 10) == pytest.approx([1 / 3] * 3) and equal.weights(4, 10) is None
    edits = many_sources.edit_settings(many_sources.Settings.preset("sprites"))
    assert len(edits) == 2 + 2 * 3 + 1
    twin = edits[TWIN].fusion
    assert twin.sources[1:] == ("image", "image") and twin.attentions[1:] == ("own", "own")
    assert edits["4 sources, equal"].fusion.inverting() != twin.inverting()


def tiny_edits(folder, **given) -> dict:
    tiny_motion_adapter().save_pretrained(folder)
    return many_sources.edit_settings(
        many_sources.Settings.preset("smoke", motion=str(folder), **given)
    )


def test_a_source_given_twice_is_that_source(tiny, tmp_path, video):
    edits = tiny_edits(tmp_path, numbers=[2])

    def edit(name: str) -> torch.Tensor:
        plan = edits[name].fusion
        return tiny(
            video, "a blue square", "a red circle", num_inference_steps=4, guidance_scale=2.0,
            fusion=plan.fusion(plan.built(tiny)), output_type="latent",
        ).frames[0]  # fmt: skip

    torch.testing.assert_close(edit(TWIN), edit("2 sources, released"), rtol=0, atol=1e-4)
    assert not torch.allclose(edit(TWIN), edit(VIDEO), atol=1e-3)


def test_costs_of_many_sources_and_their_figure(tiny, tmp_path):
    edits = tiny_edits(tmp_path, numbers=[2, 3], rules=[EQUAL])
    del edits[TWIN]
    costs = many_sources.relative_costs(tiny, edits, N_FRAMES, SIZE, 10)
    assert set(costs) == set(edits) and costs[IMAGE] == 1 < costs[VIDEO]
    two, three = (costs[f"{m} sources, equal"] for m in (2, 3))
    assert two <= costs[IMAGE] + costs[VIDEO]  # the VAE works once
    assert three > two + 0.9  # frames that attend to anchors cost more than those that do not
    rows = pd.DataFrame(
        {"setting": name, "kind": "several", "index": i, "gain": 1.0, "success": 0.5,
         "psnr": 20 + name.startswith("3") + 0.01 * (i * (k + 2) % 5), "warp_error": 0.1 * i,
         "flops": costs[name]}
        for k, name in enumerate(edits) for i in range(8)
    )  # fmt: skip

    def verdict(rows: pd.DataFrame) -> str:
        (claim,) = [c for c in many_sources.claims(rows) if c.measured == "PSNR"]
        assert claim.sentence == "3 sources beat 2, equal weights"
        return claim.verdict

    assert verdict(rows) == "confirmed"
    assert verdict(rows.assign(psnr=-rows.psnr)) == "contradicted"
    bars = many_sources.figure(rows).axes[-1].patches
    assert [bar.get_height() for bar in bars] == [costs[VIDEO], two, three]


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"psnr": np.nan}, "any number of sources edits every clip"),
        ({"twin": 0.3}, "a model given twice is that model"),
        ({"cost": 2.7}, "two sources cost what they cost alone"),
    ],
)
def test_the_claims_of_many_sources_can_fail(wrong, sentence):
    def rows(psnr: float = 20.0, twin: float = 0.001, cost: float = 2.3) -> pd.DataFrame:
        known = ((IMAGE, 20.0, 1.0), (VIDEO, psnr, 1.4), ("2 sources, released", 20.0, cost),
                 (TWIN, 20.0 + twin, 3.3))  # fmt: skip
        return pd.DataFrame(
            {"setting": s, "kind": "several", "index": i, "psnr": 20 + i if i else x, "flops": c}
            for s, x, c in known for i in range(2)
        )  # fmt: skip

    assert_claims(many_sources.claims(rows()))
    with pytest.raises(AssertionError, match=sentence):
        assert_claims(many_sources.claims(rows(**wrong)))


def test_sources_by_name():
    fusions = settings.source_fusions(None, FusionSchedule(tau=0.25))
    assert fusions[FUSED].schedule.tau == 0.25 and fusions[FUSED].sources[1].attention == "own"
    assert fusions[IMAGE].schedule == fusions[VIDEO].schedule == settings.NEVER
