"""Editors of other papers: identities that they must keep on a tiny random model; 15 s."""

from functools import partial

import pytest
import torch

from vala_research import InputError
from vala_research.diffusion.attending import CROSS_FRAME
from vala_research.diffusion.grid_shuffle import GridShuffle
from vala_research.diffusion.layered_attention import LayeredAttention
from vala_research.diffusion.noise_start import NoiseStart
from vala_research.diffusion.token_flow import TokenFlow
from vala_research.diffusion.token_merging import Chunks, TokenMerging, Turn, drawn_chunks
from vala_research.diffusion.trajectory_attention import TrajectoryAttention
from vala_research.editing.defaults import EditDefaults
from vala_research.editing.hosts import HOSTS

N = 4
STILL = torch.zeros(N - 1, 2, 32, 32)
CLOSE = partial(torch.testing.assert_close, atol=2e-4, rtol=0)


class OneChunk(TokenMerging):
    """All frames in one chunk, whose first one has no random length."""

    def at(self, t, n_frames, n_sites):
        return Chunks(settings=self, turns=(Turn(slice(0, n_frames), 0, False),), n_sites=n_sites)


@pytest.fixture(scope="module")
def clip():
    return torch.rand(N, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def still(clip):
    return clip[:1].expand(N, -1, -1, -1)


def edited(pipe, frames, attention, seed=0, **more):
    call = dict(num_inference_steps=2, guidance_scale=3.0, output_type="pt") | more
    generator = torch.Generator().manual_seed(seed)
    return pipe(frames, "a green square", "a red circle", attention=attention,
                generator=generator, **call).frames[0]  # fmt: skip


@pytest.fixture(scope="module")
def by_frame(tiny, clip, still):
    return {"clip": edited(tiny, clip, "own"), "still": edited(tiny, still, "own")}


ALONE = {
    "grids of one frame": GridShuffle(side=1),
    "chunks of one frame": TokenMerging(chunk=1, global_ratio=None),
    "own attention in every layer": LayeredAttention(
        policies={}, others="own", norms_frames=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_frames_that_never_meet_are_edited_one_by_one(name, tiny, clip, by_frame):
    CLOSE(edited(tiny, clip, ALONE[name]), by_frame["clip"])


EQUAL = {
    "all tokens merged": TokenMerging(local_ratio=1, global_ratio=1),
    "one key frame": TokenFlow(batch=N),
    "layers": LayeredAttention(),
    "paths": TrajectoryAttention(flow=STILL),
    "paths of outputs": TrajectoryAttention(flow=STILL, queries="output"),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
def test_a_still_clip_is_edited_as_one_frame(name, tiny, still, by_frame):
    CLOSE(edited(tiny, still, EQUAL[name]), by_frame["still"])


def test_key_frames_alone_are_extended_attention(tiny, clip):
    """The inversion is frame by frame, so it is given to the edit that is compared."""
    inverted = tiny.invert(clip, "a red circle", 2, attention="own", return_inversion=True)
    again = dict(latents=inverted, source_prompt="a red circle", prompt="a green square",
                 num_inference_steps=2, guidance_scale=3.0, output_type="pt")  # fmt: skip
    extended = tiny(attention="extended", **again).frames[0]
    CLOSE(tiny(attention=TokenFlow(batch=1, keyframes="uniform"), **again).frames[0], extended)
    CLOSE(tiny(attention=OneChunk(local_ratio=0, max_downsample=9), **again).frames[0], extended)


def test_random_key_frames_are_drawn_at_every_step_or_once():
    def drawn(redraws):
        flow = TokenFlow(batch=4, redraws=redraws).of_clip(torch.zeros(12, 1, 2, 2), None, None)
        return {tuple(flow.at(t, 12, 4).seen[:3]) for t in range(0, 1000, 100)}

    assert len(drawn(True)) > 5 and len(drawn(False)) == 1
    assert len(drawn(None)) > 5
    assert all(a // 4 == i for i, a in enumerate(*drawn(False)))


def test_key_frames_that_were_chosen_can_be_drawn_anew(clip):
    """At every step one of the frames that each of them serves: here, of each of two shots."""
    z_0 = torch.cat([clip[:1].expand(2, -1, -1, -1), 1 - clip[:1].expand(4, -1, -1, -1)])

    def drawn(redraws):
        flow = TokenFlow(batch=3, keyframes="uniform", redraws=redraws).of_clip(z_0, None, None)
        return {tuple(flow.at(t, 6, 4).seen[:2]) for t in range(0, 1000, 5)}

    assert drawn(None) == drawn(False) == {(1, 4)}
    assert drawn(True) == {(a, b) for a in (0, 1) for b in (2, 3, 4, 5)}


@pytest.mark.parametrize("name", CROSS_FRAME)
def test_every_editor_changes_the_edit_and_repeats_itself(name, tiny, clip, by_frame):
    clip = torch.nn.functional.interpolate(clip, size=32)
    first = edited(tiny, clip, name)
    assert first.shape == (N, 3, 32, 32) and torch.isfinite(first).all()
    assert (first - by_frame["clip"]).abs().max() > 1e-3
    assert torch.equal(first, edited(tiny, clip, name))
    CLOSE(edited(tiny, clip, name, frames_per_chunk=1), first)


@pytest.mark.parametrize("name", ["token_flow", "token_merging", "grid_shuffle"])
def test_what_is_drawn_follows_the_generator(name, tiny, clip):
    assert not torch.equal(edited(tiny, clip, name), edited(tiny, clip, name, seed=1))


def test_injection_reaches_the_editors(tiny, clip):
    for name in ("token_flow", "token_merging", "layered", "trajectories"):
        plain, injected = (edited(tiny, clip, name, injection=i) for i in (0.0, 1.0))
        assert not torch.equal(plain, injected), name


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_edits(host, tiny, clip):
    """A host fills what the call leaves open, and nothing else."""
    if HOSTS[host].wants_control:
        with pytest.warns(UserWarning, match="ControlNet"):
            first = edited(tiny, clip, None, host=host)
    else:
        first = edited(tiny, clip, None, host=host)
    assert torch.isfinite(first).all()
    own = HOSTS[host].over(tiny.edit_defaults)
    again = edited(tiny, clip, own.attention, injection=own.injection, inversion=own.inversion)
    assert torch.equal(first, again)
    if host != "text2video_zero":
        plain = dict(host=host, injection=0.0, inversion="ddim")
        assert torch.equal(edited(tiny, clip, "own", **plain), edited(tiny, clip, "own"))


def test_a_checkpoint_with_values_of_its_own_keeps_steps_and_guidance():
    field, own = EditDefaults(), EditDefaults(num_inference_steps=10, guidance_scale=1.5)
    host = HOSTS["flatten"]
    assert (host.over(field).num_inference_steps, host.over(field).guidance_scale) == (50, 10.0)
    assert (host.over(own).num_inference_steps, host.over(own).guidance_scale) == (10, 1.5)


def test_noise_moves_with_a_motion_field(tiny, clip):
    """Nothing of the clip is kept; the first frame's noise is the same with and without motion."""
    plain = dict(inversion="noise", output_type="latent", num_inference_steps=1)
    repeated = edited(tiny, clip, "own", **plain)
    CLOSE(repeated[1], repeated[0])
    assert torch.equal(repeated, edited(tiny, 1 - clip, "own", **plain))
    moved = edited(tiny, clip, "own", **plain | {"inversion": NoiseStart(motion=(0.25, 0))})
    CLOSE(moved[0], repeated[0])
    assert (moved[1] - repeated[1]).abs().max() > 1e-2
    field = edited(tiny, clip, "first", inversion=NoiseStart((0.25, 0), share=0.5))
    assert torch.isfinite(field).all()
    with pytest.raises(InputError, match="noise"):
        edited(tiny, clip, "token_flow", inversion="noise")
    with pytest.raises(InputError, match="inverts nothing"):
        tiny.invert(clip, "a red circle", 2, "noise")


def test_chunks_hold_every_frame_once():
    for seed in range(20):
        chunks = drawn_chunks(11, 4, torch.Generator().manual_seed(seed))
        frames = [frame for chunk in chunks for frame in range(11)[chunk]]
        assert sorted(frames) == list(range(11)) and max(c.stop - c.start for c in chunks) <= 4


@pytest.mark.parametrize(
    ("attention", "sentence"),
    [
        ("token_flw", "token_flow"),
        ("host:tokenflow", "Unknown host"),
        (lambda: TokenFlow(batch=0), "batch of TokenFlow"),
        (lambda: TokenFlow(keyframes="vala", mixing="batches"), "mixing"),
        (lambda: GridShuffle(side=0), "grids"),
        (lambda: TokenMerging(local_ratio=2), "ratio"),
        (lambda: LayeredAttention(others="dense"), "attention of a layer"),
        (lambda: TrajectoryAttention(flow=STILL[:1]), "optical flow has 1 fields"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(attention, sentence, tiny, clip):
    with pytest.raises(InputError, match=sentence):
        if attention == "host:tokenflow":
            edited(tiny, clip, None, host="tokenflow")
        edited(tiny, clip, attention if isinstance(attention, str) else attention())
