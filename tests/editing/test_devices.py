"""Every mode of the pipeline on a pretended device: the CPU's result, few waits, no float64.

Tiny random networks, 2 steps, 3 frames; about 10 seconds of one processor.
"""

import copy

import pytest
import torch
from fake_gpu import GPU, FakeGpu, GpuTensor, on_gpu

from vala_research.diffusion.attention import Keyframes
from vala_research.diffusion.bilateral_inversion import BilateralInversion
from vala_research.diffusion.fixed_point import ExactSettings
from vala_research.diffusion.null_text import NullTextSettings
from vala_research.editing.fusion import Fusion
from vala_research.editing.source import Source
from vala_research.methods.anchors import AnchorSettings
from vala_research.methods.fusion import FusionSchedule

STEPS = 2
# Waits of every edit: one per step of inversion and sampling, and whether the decoded frames are
# finite.
PLAIN = 2 * STEPS + 1
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
    "chunks": (dict(frames_per_chunk=1, attention="own"), PLAIN),
    "injection": (dict(injection=0.5, frames_per_chunk=2, attention="own"), PLAIN),
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


def test_anchors_are_fetched_once(tiny, on_device, video):
    gpu = agreed(tiny, on_device, call(video, attention="anchors"))
    fit = {where: n for where, n in gpu.waits.items() if where[0].startswith("methods/")}
    assert list(fit.values()) == [1], fit


def test_a_fusion_waits_once_per_step_for_all_sources_and_windows(tiny, on_device, video):
    def fusion() -> Fusion:
        sources = [Source(window=2, overlap=1), Source(attention="first")]
        return Fusion(sources, FusionSchedule("constant", (0.5, 0.5)))

    gpu = agreed(tiny, on_device, call(video, attention="own", fusion=fusion()))
    assert gpu.waits.total() <= 2 * STEPS + STEPS + 1, gpu.waits


def test_frames_go_to_the_device_chunk_by_chunk(tiny, on_device, video):
    gpu = agreed(tiny, on_device, call(video, attention="own", frames_per_chunk=1))
    pixels = [shape for _, *shape in gpu.copies if len(shape) == 4 and shape[1] == 3]
    assert pixels == [[1, *video.shape[1:]]]


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
