"""Writing, scoring and returning a long clip do not copy it as a whole. Cost: 1 s."""

import tracemalloc
from types import SimpleNamespace

import pytest
import torch

from vala_research import InputError
from vala_research.cli import scores
from vala_research.data import clips
from vala_research.diffusion import codec
from vala_research.editing.call import as_batch
from vala_research.evaluation import metrics
from vala_research.evaluation.clip_scores import ClipScorer
from vala_research.evaluation.memory import LiveTensors


@pytest.fixture
def clip() -> torch.Tensor:
    """A thousand frames of noise, f c h w: 3 MB."""
    return torch.rand(1000, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def peak(function, *arguments) -> int:
    """Most bytes of tensors that live at once within the call."""
    with LiveTensors() as live:
        function(*arguments)
    return live.peak


def test_a_clip_is_written_from_its_bytes(clip, tmp_path, monkeypatch):
    """They are a quarter of its floats, twice while they are joined."""
    written = []
    monkeypatch.setattr(clips, "encode", lambda path, pixels, *_: written.append(pixels))
    monkeypatch.setattr(clips, "written_whole", lambda path, is_folder: open(path, "wb"))
    assert peak(clips.write_clip, tmp_path / "o.mp4", clip, 8) < clip.nbytes
    expected = (clip * 255).round().byte().permute(0, 2, 3, 1)
    assert torch.equal(torch.from_numpy(written[0]), expected)
    clip[999, 2, 15, 15] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        clips.write_clip(tmp_path / "o.mp4", clip, 8)


def test_psnr_squares_a_few_frames_at_a_time(clip):
    edited = clip * 0.9
    assert peak(metrics.psnr, edited, clip) < clip.nbytes / 4
    expected = -10 * (edited - clip).square().mean((1, 2, 3)).log10().mean()
    assert metrics.psnr(edited, clip) == pytest.approx(expected.item(), rel=1e-6)


def test_neighbours_are_compared_without_all_pairs(clip):
    class Means(ClipScorer):
        def images(self, frames, batch=64):
            return torch.nn.functional.normalize(frames.mean((2, 3)), dim=-1)

    scorer = Means(None, None)
    assert peak(metrics.clip_frames, clip, scorer) < 4 * len(clip) ** 2 / 4
    u = scorer.images(clip)
    expected = 100 * (u @ u.T).diagonal(1).mean().item()
    assert metrics.clip_frames(clip, scorer) == pytest.approx(expected, rel=1e-6)


def test_flow_of_a_long_clip_is_estimated_part_by_part(monkeypatch):
    """The same E_warp, whatever the parts, and where pixels of a part cannot be followed."""
    coarse = torch.rand(14, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    first = torch.nn.functional.interpolate(coarse[:1], size=(24, 24), mode="bicubic").clamp(0, 1)
    source = torch.cat([first.roll(i, dims=3) for i in range(14)])
    source[9] = 1 - source[9]
    edited = (source + 0.1 * coarse.mean((2, 3), keepdim=True)).clamp(0, 1)
    whole = metrics.warp_error(edited, *metrics.estimate_flow(source))
    assert whole > 1e-4
    needed = {}
    for n in (1, 3, 13, 128):
        monkeypatch.setattr(scores, "FLOWS_AT_ONCE", n)
        assert scores.warp_error_by_source(edited, source) == pytest.approx(whole, rel=1e-5)
        needed[n] = peak(scores.warp_error_by_source, edited, source)
    assert needed[3] < needed[13] / 2


def test_the_edit_of_one_prompt_is_not_copied(clip, monkeypatch):
    pipe = SimpleNamespace(decode=lambda z, frames_per_chunk, n_pixel_frames: z)
    (returned,) = as_batch(pipe, [clip], "pt", None)
    assert returned.data_ptr() == clip.data_ptr()
    assert len(as_batch(pipe, [clip, clip], "pt", None)) == 2

    # Pictures are made chunk by chunk; their floats are not all scaled at once.
    monkeypatch.setattr(codec, "PIXELS_PER_CHUNK", 16 * 16 * 8)
    tracemalloc.start()
    (pictures,) = as_batch(pipe, [clip], "pil", None)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < clip.nbytes / 2
    assert pictures[999].getpixel((3, 2)) == tuple(
        round(value) for value in (clip[999, :, 2, 3] * 255).tolist()
    )
