"""Null text: the guided path is led back to the inverted one, by the embedding alone."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import SD_SCHEDULE

from vala_research import InputError
from vala_research.diffusion.null_text import NullTextSettings, optimise_null_text
from vala_research.diffusion.schedule import Schedule

SOURCE, N_STEPS, SCALE = "a red circle", 3, 4.0
LONG = NullTextSettings(n_iterations=8, learning_rate=0.1, early_stop=0.0)
NEVER = NullTextSettings(n_iterations=0)


def invert(pipe, video, **kwargs):
    settings = {"inversion": LONG, "guidance_scale": SCALE, "return_inversion": True}
    return pipe.invert(video, SOURCE, N_STEPS, **{**settings, **kwargs})


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().item()


def toy(settings: NullTextSettings):
    """A network whose prediction is its embedding, z ignored: every target is within reach."""
    schedule = Schedule.from_scheduler(DDIMScheduler(**SD_SCHEDULE), 4)
    trajectory = [torch.full((2, 1, 1, 3), 1.0 + i) for i in range(5)]
    predict = lambda z, t, text: text.expand(2, 1, 1, 3)  # noqa: E731
    start, text = torch.zeros(1, 3), torch.ones(1, 3)
    return optimise_null_text(predict, trajectory, schedule, start, text, SCALE, settings)


def test_distance_falls_with_the_iterations_and_stops_early():
    distances = [sum(toy(NullTextSettings(n, 0.1, 1e-6)).distances) for n in (0, 10, 500)]
    assert distances[0] > 1.2 * distances[1] and distances[2] < 1e-4 * distances[0], distances
    found = toy(NullTextSettings(500, 0.1, 1e-6))
    assert max(found.distances) < 1e-6 and found.n_backward < 4 * 500
    # The last forward pass of a step is the one whose result it keeps; one more is the prompt's.
    assert found.n_evaluations == found.n_backward + 2 * 4
    assert toy(NullTextSettings(10, 0.1, early_stop=1e9)).n_backward == 0


@pytest.mark.parametrize("attention", ["own", "extended", "anchors"])
def test_guided_reconstruction_follows_the_inversion(tiny, video, attention):
    clip = tiny.decode(tiny.encode(video))
    found = invert(tiny, video, attention=attention)
    assert found.null_text.embeddings.shape[0] == N_STEPS
    mended = tiny.reconstruct(found, SOURCE, N_STEPS, attention)
    call = dict(
        num_inference_steps=N_STEPS, guidance_scale=SCALE, attention=attention, output_type="pt"
    )
    # Reconstruction is the edit whose prompt is the source's.
    same = tiny(None, SOURCE, SOURCE, latents=found, **call).frames[0]
    assert torch.allclose(same, mended, atol=1e-5)
    untouched = invert(tiny, video, attention=attention, inversion=NEVER)
    plain = tiny(None, SOURCE, SOURCE, latents=replace(untouched, null_text=None), **call).frames[0]
    assert torch.allclose(plain, tiny.reconstruct(untouched, SOURCE, N_STEPS, attention), atol=1e-5)
    assert error(mended, clip) < 0.8 * error(plain, clip)
    # At once or in two calls; the embeddings act on other prompts too.
    once = tiny(video, "a blue square", SOURCE, inversion=LONG, **call).frames[0]
    edited = tiny(None, "a blue square", SOURCE, latents=found, **call).frames[0]
    other = tiny(None, "a blue square", SOURCE, latents=found.latents, **call).frames[0]
    assert torch.allclose(once, edited, atol=1e-5) and error(edited, other) > 1e-8


def test_chunks_change_nothing(tiny, video):
    whole, parts = (invert(tiny, video, frames_per_chunk=n).null_text for n in (None, 1))
    assert torch.allclose(whole.embeddings, parts.embeddings, atol=1e-2)  # Adam signs round-off
    assert whole.distances == pytest.approx(parts.distances, rel=1e-2)


def test_only_the_embedding_learns_and_what_was_trained_stays_so(tiny, video):
    weights = list(tiny.unet.parameters())
    before = [p.clone() for p in weights]
    weights[0].requires_grad_(False)
    wanted = [p.requires_grad for p in weights]
    try:
        invert(tiny, video)
        assert [p.requires_grad for p in weights] == wanted
    finally:
        weights[0].requires_grad_(True)
    assert all(p.grad is None for p in weights)
    assert all(torch.equal(p, q) for p, q in zip(weights, before, strict=True))


def test_counts_are_the_passes_that_are_made(tiny, video, monkeypatch):
    from vala_research.diffusion import backbone

    made, unpatched = [], backbone.Backbone.__call__

    def spy(self, z, *args, **kwargs):
        made.append(len(z))
        return unpatched(self, z, *args, **kwargs)

    monkeypatch.setattr(backbone.Backbone, "__call__", spy)
    found = invert(tiny, video)
    assert found.n_evaluations == sum(made) == N_STEPS * (1 + 1 + 9)
    assert found.n_backward == N_STEPS * 8
    # Without guidance there is nothing to mend.
    assert invert(tiny, video, guidance_scale=1.0).null_text is None


def test_bad_input(tiny, video):
    with pytest.raises(InputError, match="-1 iterations.*0 or more"):
        NullTextSettings(n_iterations=-1)
    found = invert(tiny, video, inversion=NEVER)
    with pytest.raises(InputError, match="3 steps.*edit has 2"):
        tiny.reconstruct(found, SOURCE, 2)
    with pytest.raises(InputError, match="guidance_scale"):
        invert(tiny, video, guidance_scale=-1.0)
