"""Sources of diffusion and of a rectified flow denoise one clip together. Costs 10 s."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_models import tiny_checkpoint, tiny_wan

from vala_research import InputError, VideoEditPipeline
from vala_research.diffusion.difference import DifferenceEdit
from vala_research.diffusion.level import Level
from vala_research.diffusion.schedule import Schedule
from vala_research.editing.fusion import Fusion
from vala_research.editing.source import Source, own_scales, own_schedule
from vala_research.methods.fusion import FusionSchedule

FLOW = FlowMatchEulerDiscreteScheduler()
HALF = FusionSchedule("constant", (0.5, 0.5), 0.0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    pipe = VideoEditPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def video():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def edit(pipe, video, **kwargs):
    settings = dict(num_inference_steps=4, guidance_scale=3.0, output_type="latent",
                    generator=torch.Generator().manual_seed(0)) | kwargs  # fmt: skip
    return pipe(video, "a blue circle", "a red circle", **settings).frames[0]


class FlowTwin:
    """The velocity of a network of noise, at the timestep of equal signal-to-noise ratio."""

    def __init__(self, unet, alpha_bar: torch.Tensor, kind: str = "epsilon"):
        self.unet, self.alpha_bar, self.asked = unet, alpha_bar.double(), []
        self.schedule = Schedule(tuple(self.alpha_bar.tolist()), 1.0, kind, (1,))

    def __call__(self, x, t, **kwargs):
        s = float(t) / 1000
        self.asked.append(s)
        signal = Level.flow(s).alpha_bar
        nearest = int((self.alpha_bar.sqrt() - signal**0.5).abs().argmin())
        level = Level.preserving(float(self.alpha_bar[nearest]))
        z = x * (level.a + level.b)
        x0, noise = self.schedule.split(z, self.unet(z, nearest, **kwargs)[0], level)
        return (noise - x0,)


def test_a_model_fused_with_itself_in_the_other_path_changes_nothing(tiny, video):
    """The edit is one of diffusion; the flow source is asked at s = b / (a + b), at z / (a + b).

    Both start at one inversion: plain DDIM holds the noise and plain Euler the velocity.
    """
    unet = copy.deepcopy(tiny.unet)
    unet.forward = twin = FlowTwin(unet.forward, tiny.scheduler.alphas_cumprod)
    alone = edit(tiny, video)
    for weights in ((0.5, 0.5), (0.0, 1.0)):
        fusion = Fusion([Source(), Source(unet, scheduler=FLOW)],
                        FusionSchedule("constant", weights, 0.0), "shared")  # fmt: skip
        assert (edit(tiny, video, fusion=fusion) - alone).abs().max() < 1e-4 * alone.abs().max()
    levels = [step.noisy.s for step in Schedule.from_scheduler(tiny.scheduler, 4)]
    assert sorted(set(twin.asked)) == pytest.approx(sorted(levels))


def test_a_diffusion_source_in_the_edit_of_a_flow(tiny, video):
    """Levels of both that agree: a diffusion network in flow's clothes equals its own velocity."""
    steps = Schedule.from_scheduler(FLOW, 4)
    wanted = sorted({Level.flow(s).alpha_bar for s in steps.flow[1:-1]}, reverse=True)
    # A network of noise knows 1000 levels, among them those of the flow; none is without signal.
    known = torch.cat([torch.linspace(0.9999, 0.6, 900).double(), torch.tensor(wanted).double(),
                       torch.tensor([4e-5]).double()]).sort(descending=True).values  # fmt: skip
    betas = 1 - known / torch.cat([torch.ones(1, dtype=torch.float64), known[:-1]])
    scheduler = DDIMScheduler(num_train_timesteps=len(known), trained_betas=betas.numpy())
    unet = copy.deepcopy(tiny.unet)
    unet.forward = FlowTwin(unet.forward, scheduler.alphas_cumprod)
    flow = Source(unet, scheduler=FLOW)
    diffusion = Source(tiny.unet, scheduler=scheduler)
    # strength leaves out s = 1, where no network of noise has a level
    found = [
        edit(tiny, video, strength=0.75, fusion=Fusion(
            [flow, diffusion], replace(HALF, initial=initial), "shared"
        )) for initial in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))
    ]  # fmt: skip
    assert all((x - found[0]).abs().max() < 1e-4 * found[0].abs().max() for x in found[1:])
    assert edit(tiny, video, fusion=Fusion([flow, diffusion], HALF)).isfinite().all()  # s = 1 too


def test_levels_of_the_other_path():
    flow = Schedule.from_scheduler(FLOW, 4)
    preserving = Schedule.from_scheduler(DDIMScheduler(), 4)
    own = own_schedule(preserving, FLOW)
    assert own.flow == pytest.approx([step.noisy.s for step in preserving])
    assert own.timesteps == pytest.approx([1000 * s for s in own.flow])
    for step in preserving:
        scale = own_scales(preserving, own)[step.t]
        same = Level.flow(step.noisy.s)
        assert (scale * step.noisy.a, scale * step.noisy.b) == pytest.approx((same.a, same.b))
    assert own_scales(preserving, preserving) == {} == own_scales(flow, flow)
    back = own_schedule(flow, DDIMScheduler())
    for step, t in zip(flow, back.timesteps, strict=True):
        assert abs(back.alpha_bar[t] ** 0.5 - step.alpha_bar_t**0.5) < 0.07
        scale = own_scales(flow, back)[step.t]
        assert (scale * step.noisy.a) ** 2 + (scale * step.noisy.b) ** 2 == pytest.approx(1)


@pytest.mark.parametrize("first", ["image", "flow"])
def test_an_image_model_and_a_video_transformer_denoise_together(tiny, video, first):
    """FLDM's sources in one latent space: frames of the flow model see each other."""
    sources = {"image": Source(attention="own"),
               "flow": Source(tiny_wan(), scheduler=FLOW, attention="extended")}  # fmt: skip
    order = [sources.pop(first), *sources.values()]
    fusion = Fusion(order, HALF)
    found = edit(tiny, video, fusion=fusion)
    assert found.isfinite().all()
    for inversion in ("exact", DifferenceEdit(1.0)):
        assert edit(tiny, video, fusion=fusion, inversion=inversion).isfinite().all()
    one = edit(tiny, video[:1], fusion=fusion)
    assert not torch.allclose(one, found[:1], atol=1e-5)


def test_flow_edit_of_a_fusion_averages_differences(tiny, video):
    """A model fused with itself edits as it does alone."""
    alone = edit(tiny, video, inversion="flow_edit")
    fused = edit(tiny, video, inversion="flow_edit", fusion=Fusion([Source(), Source()], HALF))
    assert torch.allclose(alone, fused, atol=1e-5)


def test_sources_of_other_latent_spaces_are_refused(tiny, video):
    from tiny_videos import tiny_wan_vae

    other = Source(tiny_wan(), scheduler=FLOW, vae=tiny_wan_vae())
    with pytest.raises(InputError, match="one latent space|latents_mean"):
        edit(tiny, video, fusion=Fusion([Source(), other], HALF))
    wider = Source(tiny_wan(in_channels=8, out_channels=8), scheduler=FLOW)
    with pytest.raises(InputError, match="8 channels"):
        edit(tiny, video, fusion=Fusion([Source(), wider], HALF))
    narrow = Source(tiny_wan(text_dim=24), scheduler=FLOW)
    with pytest.raises(InputError, match="text of width 24"):
        edit(tiny, video, fusion=Fusion([Source(), narrow], HALF))
