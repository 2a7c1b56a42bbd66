"""Weights stay on the simplex; a fusion of weight one is its source alone, to the last bit."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler
from peft import LoraConfig
from tiny_models import tiny_motion_adapter, tiny_unet, tiny_unet3d

from vala_research import InputError, VideoEditPipeline
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.controlnet import Control
from vala_research.diffusion.motion import load_motion_unet, max_frames
from vala_research.diffusion.patching import is_temporal
from vala_research.editing.fusion import Fusion
from vala_research.editing.plan import inverted_sources
from vala_research.editing.source import Source, SourceBackbone, shares_of, windows_of
from vala_research.methods.fusion import KINDS, FusionSchedule, fuse

SOURCE, TARGET, N_STEPS = "a red circle", "a blue square", 3

# Weights.


def test_the_released_schedule():
    schedule = FusionSchedule("decay_image", (0.7, 0.3), 20)
    found = [schedule.weights(i, 40) for i in range(40)]
    assert found[:20] == [None] * 20
    video = [w[0] for w in found[20:]]
    assert video == pytest.approx([0.7 + 0.015 * i for i in range(20)]) and video[-1] < 0.986
    reverse = FusionSchedule("decay_video", (0.7, 0.3), 20)
    assert reverse.weights(39, 40)[0] == pytest.approx(0.7 / 20)
    assert FusionSchedule(tau=0.5).weights(20, 40) == found[20]  # the default is the released one
    assert FusionSchedule("constant").weights(30, 40) == [0.7, 0.3]


@pytest.mark.parametrize("initial", [(0.7, 0.3), (0, 1), (1, 0), (0.2, 0.5, 0.3), (1, 0, 0, 0)])
@pytest.mark.parametrize("kind", [*KINDS, lambda p: [p, 1 - p]])
def test_weights_stay_on_the_simplex(kind, initial):
    if callable(kind) and len(initial) != 2:
        with pytest.raises(InputError, match="at progress 0 .*give one per source"):
            FusionSchedule(kind, initial).weights(20, 40)
        return
    schedule = FusionSchedule(kind, initial, 0.25)
    for i in range(10, 40):
        weights = schedule.weights(i, 40)
        assert min(weights) >= 0 and abs(sum(weights) - 1) < 1e-12
        assert len(weights) == len(initial)
    if not callable(kind):
        assert schedule.weights(10, 40) == pytest.approx(initial)
        rest = [w / max(sum(weights[1:]), 1e-9) for w in weights[1:]]
        shares = [w / sum(initial[1:]) for w in initial[1:]] if sum(initial[1:]) else rest
        if sum(weights[1:]) > 1e-9:
            assert rest == pytest.approx(shares)  # the others keep their proportions


def test_tau_in_steps_and_as_a_fraction():
    assert FusionSchedule(tau=1).weights(0, 4) is None  # one step
    assert all(FusionSchedule(tau=1.0).weights(i, 4) is None for i in range(4))  # all of them
    assert all(FusionSchedule(tau=4).weights(i, 4) is None for i in range(4))
    assert FusionSchedule(tau=0).weights(0, 4) == pytest.approx([0.7, 0.3])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(kind="linear"), "Unknown fusion schedule 'linear'"),
        (dict(initial=(0.7, 0.4)), "sum to 1"),
        (dict(initial=(1.2, -0.2)), "not negative"),
        (dict(initial=(float("nan"), 1)), "not negative"),
        (dict(initial=(1.0,)), "two or more"),
        (dict(tau=-1), "tau is -1"),
        (dict(tau=1.5), "tau is 1.5"),
        (dict(tau=True), "tau is True"),
    ],
)
def test_bad_schedules(arguments, message):
    with pytest.raises(InputError, match=message):
        FusionSchedule(**arguments)


def test_fuse():
    z = [torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    assert torch.equal(fuse(z, [0, 1, 0]), z[1])
    weights, order = [0.5, 0.2, 0.3], [2, 0, 1]
    permuted = fuse([z[i] for i in order], [weights[i] for i in order])
    torch.testing.assert_close(permuted, fuse(z, weights), rtol=0, atol=1e-6)
    assert not torch.allclose(fuse([z[i] for i in order], weights), fuse(z, weights), atol=1e-2)
    far = [z[0], 7 * z[1] + 3]
    mixed = fuse(
        far, [0, 1], normalise=True
    )  # the second source, as bright and strong as the first
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(mixed, (0, 2, 3)), moment(z[0], (0, 2, 3)))
    torch.testing.assert_close(fuse([z[0], 2 * z[0] - 1], [0.4, 0.6], True), z[0])
    with pytest.raises(InputError, match="must share one"):
        fuse([z[0], z[1][:2]], [0.5, 0.5])
    with pytest.raises(InputError, match="give one per source, 3"):
        fuse(z, [0.5, 0.5])


# The engine.


@pytest.fixture(scope="module")
def motion(tiny):
    """The tiny checkpoint's UNet with motion modules."""
    unet = load_motion_unet(tiny.unet, tiny_motion_adapter())
    return unet


@pytest.fixture(scope="module")
def video_pipe(tiny, motion):
    """The video model alone, as a pipeline of its own."""
    parts = {k: v for k, v in tiny.components.items() if k != "unet"}
    pipe = VideoEditPipeline(**parts, unet=motion)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit(pipe, video, **kwargs) -> torch.Tensor:
    settings = dict(source_prompt=SOURCE, num_inference_steps=N_STEPS, output_type="latent")
    settings |= {"attention": "own", "guidance_scale": 2.0}  # 7.5 enlarges rounding errors
    return pipe(video, TARGET, **{**settings, **kwargs}).frames[0]


def constant(*initial: float, tau: int | float = 0) -> FusionSchedule:
    return FusionSchedule("constant", initial, tau)


def counted(*unets):
    """Calls of each network, by forward hooks."""
    counts = [0] * len(unets)

    def count(i):
        def hook(*_):
            counts[i] += 1

        return hook

    handles = [u.register_forward_pre_hook(count(i)) for i, u in enumerate(unets)]
    return counts, lambda: [h.remove() for h in handles]


@pytest.mark.parametrize("image_start", ["inverted", "shared"])
def test_a_weight_of_one_is_that_model_alone(tiny, motion, video_pipe, video, image_start):
    latents = tiny.invert(video, SOURCE, N_STEPS, attention="own")
    sources = [Source(motion), Source()]
    given = {} if image_start == "inverted" else {"latents": latents}
    alone = [edit(video_pipe, video, **given), edit(tiny, video, **given)]
    assert not torch.allclose(*alone, atol=1e-2)
    counts, remove = counted(motion, tiny.unet)
    for weights, expected in (((1, 0), alone[0]), ((0, 1), alone[1])):
        fusion = Fusion(sources, constant(*weights), image_start)
        before = list(counts)
        assert torch.equal(edit(tiny, video, fusion=fusion, **given), expected)
        steps = N_STEPS if given else 2 * N_STEPS  # both are asked, whatever their weights
        assert [n - m for n, m in zip(counts, before, strict=True)] == [steps, steps]
    never = Fusion(sources, constant(0.5, 0.5, tau=N_STEPS), image_start)
    assert torch.equal(edit(tiny, video, fusion=never, **given), alone[0])
    mixed = edit(tiny, video, fusion=Fusion(sources, constant(0.5, 0.5), image_start), **given)
    assert all(not torch.allclose(mixed, other, atol=1e-3) for other in alone)
    remove()


def test_permuting_sources_with_their_weights(tiny, motion, video):
    sources = [Source(motion), Source(prompt="a red square"), Source(guidance_scale=1.0)]
    weights = [0.5, 0.2, 0.3]
    found = edit(tiny, video, fusion=Fusion(sources, constant(*weights)))
    for order in ([0, 2, 1], [2, 0, 1]):
        fusion = Fusion([sources[i] for i in order], constant(*(weights[i] for i in order)))
        torch.testing.assert_close(edit(tiny, video, fusion=fusion), found, rtol=0, atol=1e-4)
    other = Fusion([sources[i] for i in order], constant(*weights))
    assert not torch.allclose(edit(tiny, video, fusion=other), found, atol=1e-2)


def test_the_released_start_is_noise_from_the_generator(tiny, motion, video):
    fusion = Fusion([Source(motion), Source()], constant(0.5, 0.5), "noise")

    def run(seed: int) -> torch.Tensor:
        return edit(tiny, video, fusion=fusion, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(run(0), run(0)) and not torch.allclose(run(0), run(1), atol=1e-2)
    with pytest.raises(InputError, match="no features of the clip to inject"):
        edit(tiny, video, fusion=fusion, injection=0.5)


def test_a_source_keeps_its_own_guidance_prompt_and_attention(tiny, video):
    expected = edit(tiny, video, guidance_scale=1.5, attention="extended", negative_prompt="red")
    own = Source(guidance_scale=1.5, attention="extended", negative_prompt="red")
    found = edit(tiny, video, fusion=Fusion([Source(), own], constant(0, 1)))
    assert torch.equal(found, expected)
    injected = edit(tiny, video, fusion=Fusion([Source(), own], constant(1, 0)), injection=0.5)
    assert torch.equal(injected, edit(tiny, video, injection=0.5))


class Twin:
    """A network of another prediction type and schedule, equal to a given one in (x0, eps)."""

    def __init__(self, unet, kind: str, alpha_bar: torch.Tensor, stride: int):
        self.unet, self.kind, self.alpha_bar, self.stride = unet, kind, alpha_bar, stride
        self.asked: list[int] = []

    def __call__(self, x, t, **kwargs):
        self.asked.append(t)
        t = 1 + self.stride * t
        eps, a = self.unet(x, t, **kwargs)[0], float(self.alpha_bar[t])
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        v = a**0.5 * eps - (1 - a) ** 0.5 * x0
        return ({"epsilon": eps, "sample": x0, "v_prediction": v}[self.kind],)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_other_predictions_and_schedules_are_converted(tiny, video, kind):
    alpha_bar = tiny.scheduler.alphas_cumprod
    kept = alpha_bar[1::3].double()  # a model of 333 levels, every third of ours
    betas = 1 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    scheduler = DDIMScheduler(
        num_train_timesteps=len(kept), trained_betas=betas.numpy(), prediction_type=kind
    )
    unet = copy.deepcopy(tiny.unet)
    unet.forward = twin = Twin(tiny.unet, kind, alpha_bar, 3)
    fusion = Fusion([Source(), Source(unet, scheduler=scheduler)], constant(0, 1))
    found = edit(tiny, video, fusion=fusion)
    # The levels asked are those of source 0, timesteps 667, 334, 1; floats of another order.
    assert set(twin.asked) == {222, 111, 0}
    torch.testing.assert_close(found, edit(tiny, video), rtol=0, atol=1e-3)
    wrong = DDIMScheduler(
        num_train_timesteps=len(kept), trained_betas=betas.numpy(),
        prediction_type="epsilon" if kind != "epsilon" else "sample",
    )  # fmt: skip
    fusion = Fusion([Source(), Source(unet, scheduler=wrong)], constant(0, 1))
    assert not torch.allclose(edit(tiny, video, fusion=fusion), found, atol=0.1)


def test_a_unet3d_is_a_source(tiny, video):
    unet = tiny_unet3d()
    unet.conv_out.weight.mul_(0.2)
    fusion = Fusion([Source(unet), Source()], constant(1, 0))
    found = edit(tiny, video, fusion=fusion)
    torch.testing.assert_close(
        edit(tiny, video, fusion=fusion, frames_per_chunk=1), found, rtol=0, atol=1e-5
    )
    frame = edit(tiny, video[:1], fusion=fusion)
    assert not torch.allclose(frame, found[:1], atol=1e-3)  # its frames see each other
    mixed = edit(tiny, video, fusion=Fusion([Source(unet), Source()], constant(0.5, 0.5)))
    assert mixed.isfinite().all() and not torch.allclose(mixed, found, atol=1e-3)


def test_the_motion_model_costs_its_motion_modules_only(tiny, motion):
    own = {id(p) for p in tiny.unet.parameters()}
    new = [n for n, p in motion.named_parameters() if id(p) not in own]
    assert new and all(is_temporal(n) for n in new)
    assert own <= {id(p) for p in motion.parameters()}
    tiny.unet.conv_in.bias.data += 1  # one weight, not two
    assert torch.equal(motion.conv_in.bias, tiny.unet.conv_in.bias)
    tiny.unet.conv_in.bias.data -= 1


def test_a_source_that_knows_its_inversion_does_not_invert(tiny, motion, video):
    fusion = Fusion([Source(motion), Source()])
    expected = edit(tiny, video, fusion=fusion)
    sources, _ = inverted_sources(
        tiny, [Source(motion), Source(attention="own")], video, SOURCE, N_STEPS
    )
    counts, remove = counted(motion, tiny.unet)
    found = edit(tiny, video, fusion=Fusion(sources))
    remove()
    assert torch.equal(found, expected) and counts == [N_STEPS, N_STEPS]
    with pytest.raises(InputError, match="invert this clip"):
        edit(tiny, video[:2], fusion=Fusion(sources))
    with pytest.raises(InputError, match="use the same num_inference_steps"):
        edit(tiny, video, fusion=Fusion(sources), num_inference_steps=5)


# Long clips.


def test_windows_cover_the_clip():
    assert windows_of(16, 16, 4) == () and windows_of(16, None, 4) == ()
    for n in range(9, 60):
        for overlap in (0, 3, 7):
            windows = windows_of(n, 8, overlap)
            seen = [f for w in windows for f in range(w.start, w.stop)]
            assert sorted(set(seen)) == list(range(n)) and {w.stop - w.start for w in windows} == {
                8
            }
            gaps = [b.start - a.start for a, b in zip(windows, windows[1:], strict=False)]
            assert all(0 < gap <= 8 - overlap for gap in gaps)


def test_windows_fade_into_each_other(tiny):
    shares = shares_of(windows_of(30, 8, 5))
    torch.testing.assert_close(shares.sum(0), torch.ones(30))
    assert shares.diff(dim=1).abs().max() < 0.3  # three windows see most frames

    class Numbered(SourceBackbone):
        """Window i predicts i for each of its frames."""

        def _adapted(self, x, t, text, patches, frames, shown):
            return torch.full_like(x, self.windows.index(frames))

    backbone = Numbered(tiny.unet, windows=windows_of(14, 8, 2))
    found = backbone(torch.zeros(1, 14, 1, 1, 1), 0, torch.zeros(1, 1, 1)).flatten()
    # Frame 6 is the last but one of window 0 and the first of window 1: weights 3 : 1.
    assert found.tolist() == [0] * 6 + [0.25, 0.75] + [1] * 6


def test_a_clip_longer_than_the_positional_encoding(tiny, motion, video):
    assert max_frames(motion) == 16 and max_frames(tiny.unet) is None
    long = video[torch.arange(18) % 3]
    counts, remove = counted(motion, tiny.unet)
    with pytest.raises(InputError, match="given 18 frames and its positional .* reaches 16"):
        edit(tiny, long, fusion=Fusion([Source(motion), Source()]))
    assert counts == [0, 0]
    found = edit(tiny, long, fusion=Fusion([Source(motion, window=16), Source()]))
    assert len(found) == 18 and counts[0] == 2 * 2 * N_STEPS  # two windows, there and back
    remove()
    # Windows of a model that sees each frame alone change nothing.
    alone = [Source(window=5, overlap=2, attention="own"), Source()]
    windowed = edit(tiny, long, fusion=Fusion(alone, constant(1, 0)))
    torch.testing.assert_close(windowed, edit(tiny, long), rtol=0, atol=1e-5)


# Adapters and ControlNets of a source.


def test_a_source_has_its_own_adapter(tiny, video):
    unet = copy.deepcopy(tiny.unet)
    settings = AdapterSettings(rank=2, n_shared=0, uses_frame_tokens=False, interval=(0, 1))
    adapter = TemporalAdapter.attach(unet, settings)
    with torch.no_grad():
        for name, p in unet.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    plain = edit(tiny, video)

    def run(**kwargs) -> torch.Tensor:
        sources = [Source(), Source(unet, adapter=adapter, **kwargs)]
        return edit(tiny, video, fusion=Fusion(sources, constant(0, 1)))

    torch.testing.assert_close(run(adapter_scale=0.0), plain, rtol=0, atol=1e-5)
    assert not torch.allclose(run(), plain, atol=1e-3)


def test_a_source_without_the_pipeline_s_adapter_is_told(checkpoint, motion, video, tmp_path):
    """The adapter of `load_adapter` has no effect on a video model."""
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    settings = AdapterSettings(n_shared=0, uses_frame_tokens=False, interval=(0, 1))
    other = tiny_unet()
    generator = torch.Generator().manual_seed(0)
    TemporalAdapter.attach(other, settings, generator=generator).save_pretrained(tmp_path)
    fusion = Fusion([Source(motion), Source()], constant(1, 0))
    bare = edit(pipe, video, fusion=fusion)
    pipe.load_adapter(tmp_path)
    with pytest.warns(UserWarning, match=r"not on Source 0 \(UNetMotionModel\): load one"):
        found = edit(pipe, video, fusion=fusion)
    torch.testing.assert_close(found, bare, rtol=0, atol=1e-6)


def test_a_source_has_its_own_controlnet(tiny, video):
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(
        tiny.unet, conditioning_embedding_out_channels=(4, 8)
    ).eval()
    shown = Control(controlnet, pictures=video)
    fusion = Fusion([Source(), Source(controls=[shown])], constant(0, 1))
    torch.testing.assert_close(
        edit(tiny, video, fusion=fusion), edit(tiny, video), atol=1e-5, rtol=0
    )
    for block in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
        torch.nn.init.normal_(block.weight, std=0.2)
    assert not torch.allclose(edit(tiny, video, fusion=fusion), edit(tiny, video), atol=1e-3)
    fusion.sources[1].controls = [replace(shown, pictures=video[:2])]
    with pytest.raises(InputError, match="control pictures of shape"):
        edit(tiny, video, fusion=fusion)


# What is refused, before the first step.


def wrong_vae(**changes) -> AutoencoderKL:
    config = dict(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, scaling_factor=3.5,
    )  # fmt: skip
    return AutoencoderKL(**config | changes)


THREE = dict(
    block_out_channels=(8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
)  # fmt: skip


@pytest.mark.parametrize(
    "source, message",
    [
        (lambda: Source(tiny_unet(in_channels=9)), "reads latents of 9 channels"),
        (lambda: Source(tiny_unet(out_channels=8)), "makes latents of 8 channels"),
        (lambda: Source(tiny_unet(cross_attention_dim=20)), "text of width 20 and gets 16"),
        (lambda: Source(vae=wrong_vae(scaling_factor=0.18)), "scaling_factor 0.18"),
        (lambda: Source(vae=wrong_vae(**THREE)), "fuse models of one spatial size"),
        (lambda: Source(guidance_scale=-1.0), "guidance_scale is -1.0"),
        (lambda: Source(attention="all"), "Unknown attention 'all'"),
        (lambda: Source(window=0), "positive window"),
        (lambda: Source(window=2, overlap=2), "overlap smaller"),
        (
            lambda: Source(window=2, overlap=1, attention="anchors"),
            "attention needs the whole",
        ),
        (lambda: Source(text_encoder=torch.nn.Identity()), "give both, or none"),
    ],
)
def test_sources_that_do_not_fit(tiny, video, source, message):
    counts, remove = counted(tiny.unet)
    with pytest.raises(InputError, match=message):
        edit(tiny, video, fusion=Fusion([Source(), source()]))
    assert counts == [0]
    remove()


def test_fusions_that_do_not_fit(tiny, video):
    with pytest.raises(InputError, match="1 sources and 2 fusion weights"):
        Fusion([Source()])
    with pytest.raises(InputError, match="Unknown image_start 'zero'"):
        Fusion([Source(), Source()], image_start="zero")
    counts, remove = counted(tiny.unet)
    with pytest.raises(InputError, match="tau is 4 and the edit has 3 steps"):
        edit(tiny, video, fusion=Fusion([Source(), Source()], FusionSchedule(tau=4)))
    late = FusionSchedule(lambda p: [1, 0] if p < 0.5 else [1, 1])
    with pytest.raises(InputError, match="at progress 0.5 .*sum to 1"):
        edit(tiny, video, fusion=Fusion([Source(), Source()], late), num_inference_steps=4)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_motion_unet(tiny.unet, "/nowhere/motion")
    with pytest.raises(InputError, match="made for another UNet"):
        load_motion_unet(tiny_unet(block_out_channels=(16, 16)), tiny_motion_adapter())
    adapted = tiny_unet()
    adapted.add_adapter(LoraConfig(target_modules=["attn1.to_q"]))
    with pytest.raises(InputError, match="carries a LoRA or a temporal adapter"):
        load_motion_unet(adapted, tiny_motion_adapter())
    assert counts == [0]
    remove()
