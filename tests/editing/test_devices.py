"""Every mode of the pipeline on a pretended device: the CPU's result, few waits, no float64.

Tiny random networks, 2 steps, 3 frames; about 20 seconds of one processor.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from fake_gpu import GPU, FakeGpu, GpuTensor, on_gpu
from tiny_models import tiny_unet
from transformers import CLIPVisionConfig, CLIPVisionModel

from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.adapter.vision import VisionEncoder
from vala_research.diffusion.attention import Keyframes
from vala_research.diffusion.backbone import device_of
from vala_research.diffusion.bilateral_inversion import BilateralInversion
from vala_research.diffusion.fixed_point import ExactSettings
from vala_research.diffusion.injection import Injection
from vala_research.diffusion.inversion import invert
from vala_research.diffusion.null_text import NullTextSettings
from vala_research.diffusion.schedule import Schedule
from vala_research.diffusion.token_flow import TokenFlow
from vala_research.editing.adapting import activation_of
from vala_research.editing.fusion import Fusion
from vala_research.editing.source import Source
from vala_research.methods.anchors import AnchorSettings, select_keyframes
from vala_research.methods.contrastive import refined
from vala_research.methods.fusion import FusionSchedule
from vala_research.methods.prompt_tokens import PromptTokens
from vala_research.methods.von_mises_fisher import concentration, normaliser_and_length

STEPS = 2
# Waits of every edit: one per step of inversion and sampling, and two for whether what the VAE
# encoded and decoded is finite.
PLAIN = 2 * STEPS + 2
MODES = {
    "own": (dict(attention="own"), PLAIN),
    "first": (dict(attention="first"), PLAIN),
    "sparse_causal": (dict(attention="sparse_causal"), PLAIN),
    "extended": (dict(attention="extended"), PLAIN),
    "anchors": (dict(attention="anchors"), PLAIN + 1),
    "token anchors": (dict(attention=AnchorSettings(4, granularity="token")), PLAIN + 1),
    "refined anchors": (dict(attention=AnchorSettings(2, refinement_steps=2)), PLAIN + 1),
    "key frames": (dict(attention=Keyframes("vala", 2)), PLAIN + 1),
    "best key frames": (dict(attention=Keyframes("optimal", 2)), PLAIN + 2),
    "injection": (dict(injection=0.5, frames_per_chunk=2, attention="own"), PLAIN),
    "words": (dict(injection=Injection(0, 0, words=1.0), attention="own"), PLAIN),
    "bilateral": (dict(inversion="bilateral", attention="own"), PLAIN),
    "bilateral, along frames": (
        dict(inversion=BilateralInversion(place="frames", kernel_size=3), attention="own"), PLAIN
    ),
    # One fetch per update, and the last look at each step.
    "null text": (
        dict(inversion=NullTextSettings(n_iterations=2), attention="own"), PLAIN + STEPS * 4
    ),
    # One fetch per evaluation: at most 4 of them in each step.
    "exact": (dict(inversion=ExactSettings(max_iterations=4), attention="own"), PLAIN + 3 * STEPS),
    # Editors of other papers.
    "token_flow": (dict(attention="token_flow", injection=0.5), PLAIN),
    "vala token_flow": (dict(attention=TokenFlow(2, "vala")), PLAIN + 1),
    "token_merging": (dict(attention="token_merging", injection=0.5), PLAIN),
    "grid_shuffle": (dict(attention="grid_shuffle"), PLAIN),
    "trajectories": (dict(attention="trajectories"), PLAIN + 1),
    "layered": (dict(attention="layered"), PLAIN),
    "noise": (dict(inversion="noise", attention="first"), STEPS + 2),
    "motion_field": (dict(inversion="motion_field", attention="first"), STEPS + 2),
}  # fmt: skip


def call(clip: torch.Tensor, **more) -> dict:
    words = dict(prompt="a blue square", source_prompt="a red circle")
    return words | dict(
        video=clip, num_inference_steps=STEPS, output_type="pt", guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
    ) | more  # fmt: skip


def device_copy(pipe):
    """The same pipeline on the pretended device."""
    moved = type(pipe)(**copy.deepcopy(pipe.components))
    moved.set_progress_bar_config(disable=True)
    return on_gpu(moved)


@pytest.fixture(scope="module")
def on_device(tiny):
    with FakeGpu():
        return device_copy(tiny)


def agreed(tiny, on_device, arguments: dict, tolerance: float = 1e-5) -> FakeGpu:
    """Edit on both; compare. Returns what the device saw."""
    expected = tiny(**arguments).frames
    with FakeGpu() as gpu:
        found = on_device(**arguments | dict(generator=torch.Generator().manual_seed(0))).frames
    assert isinstance(found, GpuTensor)
    # The same operations by the same processor; only the filter divides by its deviation first.
    torch.testing.assert_close(found.inner, expected, atol=tolerance, rtol=0)
    return gpu


@pytest.mark.parametrize("name", MODES)
def test_a_device_gives_the_result_of_the_cpu_and_waits_once_per_step(
    name, tiny, on_device, video
):
    """float64 on the device raises: MPS has none."""
    arguments, n_waits = MODES[name]
    gpu = agreed(tiny, on_device, call(video, **arguments))
    assert gpu.waits.total() <= n_waits, gpu.waits
    if "anchors" in name:  # their features are fetched, and nothing else
        assert [n for where, n in gpu.waits.items() if where[0].startswith("methods/")] == [1]


def test_a_fusion_waits_once_per_step_for_all_sources_and_windows(tiny, on_device, video):
    def fusion() -> Fusion:
        sources = [Source(window=2, overlap=1), Source(attention="first")]
        return Fusion(sources, FusionSchedule("constant", (0.5, 0.5)))

    gpu = agreed(tiny, on_device, call(video, attention="own", fusion=fusion()))
    assert gpu.waits.total() <= 2 * STEPS + STEPS + 2, gpu.waits


def test_frames_go_to_the_device_chunk_by_chunk(tiny, on_device, video):
    gpu = agreed(tiny, on_device, call(video, attention="own", frames_per_chunk=1))
    assert gpu.waits.total() <= PLAIN, gpu.waits
    pixels = [shape for _, *shape in gpu.copies if len(shape) == 4 and shape[1] == 3]
    assert pixels == [[1, *video.shape[1:]]]


def test_a_temporal_adapter_acts_on_the_device(tiny, checkpoint, on_device, video, tmp_path):
    """Its LoRA and its prompt tokens come from files that are read on the CPU."""
    settings = AdapterSettings(n_shared=2, uses_frame_tokens=False, interval=(0, 1))
    adapter = TemporalAdapter.attach(
        type(tiny).from_pretrained(str(checkpoint)).unet, settings, None,
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    for name, p in adapter.lora_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(p.data, std=0.3, generator=torch.Generator().manual_seed(1))
    adapter.save_pretrained(tmp_path / "adapter")
    arguments = call(video, attention="own")
    bare = tiny(**arguments).frames
    try:
        tiny.load_adapter(tmp_path / "adapter")
        with FakeGpu():
            on_device.load_adapter(tmp_path / "adapter")
        gpu = agreed(tiny, on_device, arguments)
        assert gpu.waits.total() <= PLAIN, gpu.waits
        assert (tiny(**arguments).frames - bare).abs().max() > 1e-3
    finally:
        tiny.unload_adapter()
        with FakeGpu():
            on_device.unload_adapter()


def test_an_overflow_is_named_though_it_is_read_later(tiny, video):
    broken = copy.deepcopy(tiny)
    broken.unet.conv_out.bias.data.fill_(torch.inf)
    with FakeGpu():
        moved = device_copy(broken)
        for inversion in ("ddim", "exact", "bilateral", NullTextSettings(n_iterations=1)):
            with pytest.raises(FloatingPointError, match="network returned NaN"):
                moved(**call(video, attention="own", inversion=inversion))


def test_a_clip_on_the_device_and_pictures_from_it(tiny, on_device, video):
    expected = tiny(**call(video, attention="own", output_type="np")).frames
    with FakeGpu():
        found = on_device(**call(video.to(GPU), attention="own", output_type="np")).frames
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected))


def test_exact_inversion_of_any_network_is_solved_on_the_cpu():
    """Fetched once per evaluation, whatever the network is; the latents stay on the device."""
    schedule = Schedule((0.9, 0.5, 0.1), 1.0, "epsilon", (2, 1, 0))
    z = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = invert(lambda z, t: z.tanh(), z, schedule, "exact")
    with FakeGpu() as gpu:
        inverted = invert(lambda z, t: z.tanh(), z.to(GPU), schedule, "exact")
    assert isinstance(inverted.latents, GpuTensor)
    assert torch.equal(inverted.latents.inner, expected.latents)
    assert torch.equal(inverted.trajectory[1].inner, expected.trajectory[1])
    assert gpu.waits.total() == inverted.n_evaluations + 1  # and z_0 itself


@pytest.mark.parametrize("method", ["vala", "uniform", "kmeans", "kmedoids", "optimal"])
def test_key_frames_are_those_of_the_cpu(method):
    features = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(1))
    expected = select_keyframes(features, 2, method)
    with FakeGpu() as gpu:
        assert select_keyframes(features.to(GPU), 2, method) == expected
    assert gpu.waits.total() <= 2, gpu.waits


def test_concentrations_have_the_precision_of_the_device():
    length = torch.tensor([0.1, 0.9])
    kappa = concentration(4, length)
    assert kappa.dtype == torch.float64
    with FakeGpu():
        found = concentration(4, length.to(GPU))
        log_c, mean = normaliser_and_length(4, found)
    assert found.dtype == log_c.dtype == torch.float32 and isinstance(mean, GpuTensor)
    torch.testing.assert_close(mean.inner, length, atol=1e-5, rtol=0)


def test_a_generator_may_lie_on_another_device_than_what_it_draws():
    def drawn() -> list[torch.Tensor]:
        tokens = PromptTokens(2, 3, 4, generator=torch.Generator().manual_seed(2))
        x = torch.linspace(-1, 1, 2 * 3 * 4).view(2, 3, 4).cos().to(tokens.shared.device)
        r = refined(x, x[..., :2], x[0, 0, :2] + 2, 0.1, 1, torch.Generator().manual_seed(3))
        return [tokens.shared.detach(), tokens.projection.weight.detach(), r]

    expected = drawn()
    frames = select_keyframes(torch.ones(4, 1, 2), 2, "random", torch.Generator().manual_seed(4))
    with FakeGpu(), torch.device(GPU):
        for x, y in zip(drawn(), expected, strict=True):
            torch.testing.assert_close(x.inner, y)
        on_device = torch.ones(4, 1, 2)
        again = select_keyframes(on_device, 2, "random", torch.Generator().manual_seed(4))
    assert again == frames


def test_tokens_are_not_lost_where_the_unet_has_no_weights():
    """Under sequential offload the UNet says "meta", and computes where its hooks say."""
    unet = tiny_unet().to("meta")
    adapter = TemporalAdapter.attach(unet, AdapterSettings(n_shared=2), d_vision=8)
    assert adapter.tokens.shared.device.type == "cpu"
    assert device_of(unet).type == "meta"
    unet.conv_in._hf_hook = SimpleNamespace(execution_device="cpu")
    assert device_of(unet).type == "cpu"


@pytest.mark.parametrize("is_offloaded", [False, True])
def test_the_vision_encoder_goes_back_under_offload(is_offloaded, video):
    config = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = CLIPVisionModel(CLIPVisionConfig(image_size=8, patch_size=4, **config)).eval()
    hooks = {"_hf_hook": None} if is_offloaded else {}
    schedule = Schedule((0.9, 0.5, 0.1), 1.0, "epsilon", (2, 1, 0))
    adapter = TemporalAdapter.attach(tiny_unet(), AdapterSettings(interval=(0, 1)), d_vision=8)
    encoder = VisionEncoder(model, "tiny")
    expected = encoder.tokens(video)
    with FakeGpu():
        pipe = SimpleNamespace(
            vision_encoder=encoder, _execution_device=GPU, unet=SimpleNamespace(**hooks)
        )
        found = activation_of(Source(adapter=adapter), pipe, schedule, video, None)
        assert model.device.type == ("cpu" if is_offloaded else GPU.type)
        assert isinstance(found.vision, GpuTensor)
    torch.testing.assert_close(found.vision.inner, expected)
