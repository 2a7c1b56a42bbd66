"""Edits by differences in the pipeline; tiny random weights, 20 s."""

import pytest
import torch

from vala_research import InputError
from vala_research.diffusion.difference import DifferenceEdit
from vala_research.diffusion.schedule import Schedule
from vala_research.diffusion.word_masks import edited_places, word_map
from vala_research.editing.fusion import Fusion
from vala_research.editing.source import Source
from vala_research.methods.fusion import FusionSchedule


def edit(pipe, video, inversion="flow_edit", prompt="a blue star", seed=0, **given):
    given = dict(num_inference_steps=4, attention="own", guidance_scale=3.0) | given
    return pipe(video, prompt, "a red star", inversion=inversion, output_type="latent",
                generator=torch.Generator().manual_seed(seed), **given).frames[0]  # fmt: skip


FREE = DifferenceEdit(1.0, source_guidance=3.0)


def test_equal_prompts_and_guidance_change_nothing(tiny, video):
    """The difference of a network to itself is zero: the clip comes back, by any seed."""
    z_0 = tiny.encode(video)
    for seed in (0, 1):
        same = edit(tiny, video, FREE, prompt="a red star", seed=seed)
        assert torch.allclose(same, z_0, atol=1e-5)
    aligned = edit(tiny, video, DifferenceEdit(1.0, zeta=0.01), prompt="a red star")
    assert torch.allclose(aligned, z_0, atol=1e-5)
    assert (edit(tiny, video, FREE) - z_0).abs().max() > 1e-3


def test_the_seed_decides_and_more_draws_average_it(tiny, video):
    one, again, other = (edit(tiny, video, FREE, seed=s) for s in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    many = DifferenceEdit(1.0, n_avg=6, source_guidance=3.0)
    spread = (edit(tiny, video, many) - edit(tiny, video, many, seed=1)).norm()
    assert spread < (one - other).norm()


def test_it_is_the_formula_written_by_hand(tiny, video):
    """One step of four, from the network's own predictions."""
    z_0 = tiny.encode(video)
    schedule = Schedule.from_scheduler(tiny.scheduler, 4)
    step = list(schedule)[-1]
    a, b = step.alpha_bar_t**0.5, (1 - step.alpha_bar_t) ** 0.5
    noise = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(0))
    prompts = ("", "a blue star", "a red star")
    text = torch.cat([tiny.encode_prompt(p, "cpu", 1, False)[0] for p in prompts])
    z = a * z_0 + b * noise

    def clean(row: int, scale: float):
        none, said = (tiny.unet(z, step.t, text[[i]].expand(len(z), -1, -1)).sample
                      for i in (0, row))  # fmt: skip
        return (z - b * (none + scale * (said - none))) / a

    with torch.no_grad():
        expected = z_0 + clean(1, 3.0) - clean(2, 2.0)
    final = b / (a + b), (1 - step.alpha_bar_s) ** 0.5
    ratio = final[1] / (step.alpha_bar_s**0.5 + final[1]) / final[0]
    expected = z_0 + (1 - ratio) * (expected - z_0)
    made = edit(tiny, video, DifferenceEdit(0.25, source_guidance=2.0))
    assert torch.allclose(made, expected, atol=1e-4)


def test_a_mask_keeps_what_lies_outside(tiny, video):
    h, w = tiny.encode(video).shape[-2:]
    mask = torch.zeros(h, w)
    mask[:, : w // 2] = 1
    kept = edit(tiny, video, DifferenceEdit(1.0, mask=mask))
    z_0 = tiny.encode(video)
    assert torch.equal(kept[..., w // 2 :], z_0[..., w // 2 :])
    assert (kept[..., : w // 2] - z_0[..., : w // 2]).abs().max() > 1e-3


def test_the_last_steps_may_sample_plainly(tiny, video):
    plain = edit(tiny, video, DifferenceEdit(1.0, n_min=0.5))
    assert torch.isfinite(plain).all() and not torch.equal(plain, edit(tiny, video, FREE))


def test_evaluations_are_as_estimated(tiny, video, monkeypatch):
    """Frames through the network, counted."""
    seen = []
    handle = tiny.unet.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    ways = {
        DifferenceEdit(1.0, source_guidance=3.0): 4, DifferenceEdit(1.0): 3,
        DifferenceEdit(0.5, n_avg=2, source_guidance=2.0): 8, DifferenceEdit(1.0, zeta=0.01): 3,
        DifferenceEdit(1.0, n_min=0.5): 4,
    }  # fmt: skip
    try:
        for way in ways:
            seen.clear()
            edit(tiny, video, way)
            counted = sum(seen)
            expected = tiny.estimate(3, 16, 24, num_inference_steps=4, guidance_scale=3.0,
                                     inversion=way, attention="own").n_evaluations  # fmt: skip
            assert counted == expected, way
    finally:
        handle.remove()


def test_several_prompts_sources_and_anchors(tiny, video):
    """A list of prompts is one edit each; two equal sources are one source."""
    two = tiny(video, ["a blue star", "a red star"], "a red star", inversion=FREE, attention="own",
               num_inference_steps=4, guidance_scale=3.0, output_type="latent",
               generator=torch.Generator().manual_seed(0)).frames  # fmt: skip
    assert len(two) == 2 and torch.allclose(two[1], tiny.encode(video), atol=1e-5)
    fused = Fusion([Source(), Source()], FusionSchedule("constant", (0.5, 0.5), 0.0))
    alone, together = edit(tiny, video, FREE), edit(tiny, video, FREE, fusion=fused)
    assert torch.allclose(alone, together, atol=1e-5)
    assert torch.isfinite(edit(tiny, video, FREE, attention="anchors")).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(injection=0.5), "invert nothing, so no features"),
        (dict(inversion=DifferenceEdit(0.1)), "n_max is 0.1: none of 4 steps edits"),
        (dict(inversion=DifferenceEdit(1.0, mask=torch.ones(2, 4, 6))), "The mask has the shape"),
    ],
)
def test_bad_input_is_one_sentence_before_any_network_runs(tiny, video, given, said):
    with pytest.raises(InputError, match=said):
        edit(tiny, video, **{"inversion": "flow_edit"} | given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(n_max=1.5), "n_max.* is 1.5: give a finite number from 0 to 1"),
        (dict(n_min=0.8), "n_min is 0.8 and n_max 0.66"),
        (dict(n_avg=0), "n_avg.* is 0: give a whole number"),
        (dict(zeta=-1), "zeta is -1"),
    ],
)
def test_bad_settings_are_one_sentence(given, said):
    with pytest.raises(InputError, match=said):
        DifferenceEdit(**given)


def test_the_source_is_guided_in_the_published_ratio_unless_told():
    assert DifferenceEdit().source_scale(13.5) == pytest.approx(3.5)
    assert DifferenceEdit().source_scale(2.0) == 1.0  # no guidance below 1
    assert DifferenceEdit(source_guidance=0.5).source_scale(13.5) == 0.5


def test_latents_of_an_inversion_are_refused_and_nothing_is_inverted(tiny, video):
    inverted = tiny.invert(video, "a red star", num_inference_steps=4, return_inversion=True)
    with pytest.raises(InputError, match="start from the clip itself: give no latents"):
        edit(tiny, None, latents=inverted)
    with pytest.raises(InputError, match="inverts nothing"):
        tiny.invert(video, "a red star", num_inference_steps=4, inversion="flow_edit")


# --- masks from cross-attention -------------------------------------------------------------------


def test_the_words_that_differ():
    ids = [0, 5, 6, 7, 1, 1], [0, 5, 8, 9, 7, 1]
    assert edited_places(*ids, special=[0, 1]) == ([2], [2, 3])
    assert edited_places(ids[0], ids[0], [0, 1]) == ([], [])


def test_a_mask_of_words_keeps_what_lies_outside(tiny, video):
    """Where the mask is 0 the latents are the clip's; it changes nothing else of the edit."""
    way = DifferenceEdit(1.0, mask="words")
    found = edit(tiny, video, way)
    z = tiny.encode(video)
    kept = (found == z).all(1)
    assert 0.1 < kept.float().mean() < 0.95
    plain = edit(tiny, video, DifferenceEdit(1.0))
    assert not torch.allclose(plain, found, atol=1e-4)
    # Nothing differs between equal prompts: everything may change, and nothing does.
    same = tiny(video, "a red circle", "a red circle", inversion=way, num_inference_steps=3,
                guidance_scale=1.0, output_type="latent").frames[0]  # fmt: skip
    assert torch.allclose(same, z, atol=1e-5)


def test_maps_are_those_of_the_layer(tiny):
    """Of one site: softmax of q k' over the words, mean over heads."""
    attn = tiny.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn2
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, attn.to_q.in_features, generator=generator)
    text = torch.randn(5, attn.to_k.in_features, generator=generator)
    scores = attn.get_attention_scores(
        attn.head_to_batch_dim(attn.to_q(x)[None]), attn.head_to_batch_dim(attn.to_k(text)[None])
    )
    assert torch.allclose(word_map(attn, x, text), scores.mean(0), atol=1e-6)


def test_masks_of_several_prompts_and_bad_ones(tiny, video):
    way = DifferenceEdit(1.0, mask="words")
    both = tiny(video, ["a blue circle", "a red square"], "a red circle", inversion=way,
                num_inference_steps=2, generator=torch.Generator().manual_seed(0),
                output_type="latent").frames  # fmt: skip
    alone = tiny(video, "a red square", "a red circle", inversion=way, num_inference_steps=2,
                 generator=torch.Generator().manual_seed(0), output_type="latent").frames[0]
    assert both[1].shape == alone.shape and (both[1] == tiny.encode(video)).all(1).any()
    with pytest.raises(InputError, match="mask is 'cat'"):
        DifferenceEdit(mask="cat")
    embeds = tiny.encode_prompt(["a blue circle"])
    with pytest.raises(InputError, match="embeddings have none"):
        tiny(video, prompt_embeds=embeds, source_prompt="a red circle", inversion=way)
