"""Prompt-to-prompt: which words are shared, whose maps act, and how edits compose; tiny, 10 s."""

import pytest
import torch
from einops import rearrange
from test_ip_adapter import folder, picture  # noqa: F401
from test_stretches import limit
from tiny_models import D_TEXT, N_TOKENS, tiny_motion_adapter, tiny_motion_unet, tiny_unet

from vala_research import InputError, VideoEditPipeline
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.injection import Injection, attention_patches
from vala_research.diffusion.patching import Patch, is_cross_attention
from vala_research.diffusion.word_maps import SharedWords, mixed, places_of, word_patch
from vala_research.editing.fusion import Fusion
from vala_research.editing.source import Source
from vala_research.editing.words import shared_words
from vala_research.methods.fusion import FusionSchedule
from vala_research.sprites.edits import demo_scenes
from vala_research.sprites.render import render

SOURCE, TARGET = "a red circle moves", "a blue square moves slowly"
MILD = dict(num_inference_steps=2, guidance_scale=2.0, attention="own")
NONE, FULL = Injection(0, 0), Injection(0, 0, words=1.0)


def edit(pipe, video, prompt=TARGET, **given) -> torch.Tensor:
    call = MILD | dict(source_prompt=SOURCE, output_type="latent") | given
    return pipe(video, prompt, **call).frames[0]


def far(a, b) -> float:
    return (a - b).abs().max().item()


# Alignment. Numbers stand for token ids, 0 for the padding.


@pytest.mark.parametrize(
    ("source", "target", "pairs"),
    [
        ("1 2 3 4 0 0", "1 2 3 4 0 0", {(i, i) for i in range(6)}),
        ("1 2 3 4 0 0", "1 9 3 4 0 0", {(i, i) for i in range(6)}),  # a swap
        ("1 2 3 0 0 0", "1 2 9 3 0 0", {(0, 0), (1, 1), (2, 3), (3, 4), (4, 5)}),  # an insertion
        ("1 2 9 3 0 0", "1 2 3 0 0 0", {(0, 0), (1, 1), (3, 2), (4, 3), (5, 4)}),  # a deletion
        ("1 2 3 0 0 0", "1 8 9 3 0 0", {(0, 0), (2, 3), (3, 4), (4, 5)}),  # one word by two
        ("1 2 3", "4 5 6", {(0, 0), (1, 1), (2, 2)}),  # all different, swapped one by one
    ],
)
def test_alignment(source, target, pairs):
    words = SharedWords.of(*([int(i) for i in prompt.split()] for prompt in (source, target)))
    found = {(i + n, j + n) for i, j, size in words.blocks for n in range(size)}
    assert found == pairs
    # An adapter's two tokens before the text are shared, and move the others.
    columns = [
        pair for a, b in words.columns(words.n_tokens + 2)
        for pair in zip(range(a.start, a.stop), range(b.start, b.stop), strict=True)
    ]  # fmt: skip
    assert set(columns) == {(0, 0), (1, 1)} | {(i + 2, j + 2) for i, j in pairs}


def test_long_prompts_are_aligned_in_full():
    ids = [i % 3 for i in range(300)]  # tokens that repeat often are no junk
    assert SharedWords.of(ids, ids).blocks == ((0, 0, 300),)


def test_a_word_of_several_vectors_has_one_place_for_each(checkpoint):
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    pipe.tokenizer.add_tokens(["<dog>", "<dog>_1"])
    words = Source(
        tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder, prompt="a <dog> moves",
        source_prompt="a red circle moves",
    )  # fmt: skip
    pairs = {(i, j) for i, j, _ in shared_words(words).blocks}
    assert pairs and all(i == j for i, j in pairs)


# One layer.


def by_hand(attn, x, text):
    """Maps f head n m and values f head m d, of one branch."""
    q, k, v = (
        rearrange(y, "f n (h d) -> f h n d", h=attn.heads)
        for y in (attn.to_q(x), attn.to_k(text), attn.to_v(text))
    )
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1), v


@pytest.mark.parametrize("kind", ["image", "motion"])
def test_each_cross_attention_has_the_source_s_columns(kind):
    """Text of every frame, with one token of an adapter before it; the negative branch is plain."""
    unet = (tiny_unet() if kind == "image" else tiny_motion_unet()).double()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 2, 4, 8, 8, generator=generator).double()
    text = torch.randn(3, 2, N_TOKENS + 1, D_TEXT, generator=generator).double()
    words = SharedWords.of([1, 2, 3, 4, *[0] * 8], [1, 2, 9, 8, 3, 5, *[0] * 6])
    seen = []

    def checked(name, attn, forward):
        def check(x, encoder_hidden_states, **kwargs):
            out = forward(x, encoder_hidden_states, **kwargs)
            rows = (y.unflatten(0, (3, -1)) for y in (x, encoder_hidden_states))
            maps, values = zip(
                *(by_hand(attn, *row) for row in zip(*rows, strict=True)), strict=True
            )

            # 1 2 are shared, 3 follows 9 8, 5 stands in the place of 4, then comes the padding.
            new, source = maps[1].clone(), maps[2]
            new[..., 0:3], new[..., 5:7], new[..., 7:13] = (
                source[..., 0:3], source[..., 3:5], source[..., 5:11],
            )  # fmt: skip
            assert torch.equal(mixed(maps[1], source, words), new)
            assert far(new.sum(-1), torch.ones(1)) > 1e-3, "rows are not normalised again"
            for branch, own in enumerate((maps[0], new, source)):
                heads = rearrange(own @ values[branch], "f h n d -> f n (h d)")
                assert far(out.unflatten(0, (3, -1))[branch], attn.to_out[0](heads)) < 1e-12
            seen.append(name)
            return out

        return check

    patches = [
        *attention_patches(unet, "own", 3, 2, words=words),
        Patch(is_cross_attention, forward=checked),
    ]
    plain, whole, parts = (
        Backbone(unet, size)(z, 501, text, given)
        for size, given in ((None, []), (None, patches), (1, patches))
    )
    assert far(whole, parts) < 1e-10
    assert far(whole[[0, 2]], plain[[0, 2]]) < 1e-10 < 1e-6 < far(whole[1], plain[1])
    layers = {n for n, _ in unet.named_modules() if n.endswith("transformer_blocks.0.attn2")}
    assert set(seen) == {n for n in layers if "motion_modules" not in n}
    assert len(seen) == 3 * len(set(seen)), "once for the clip, then once per frame"


def test_equal_branches_change_no_bit():
    unet, generator = tiny_unet(), torch.Generator().manual_seed(0)
    z = torch.randn(1, 2, 4, 8, 8, generator=generator).expand(2, -1, -1, -1, -1)
    text = torch.randn(1, N_TOKENS, D_TEXT, generator=generator).expand(2, -1, -1)
    words = SharedWords.of([0] * N_TOKENS, [0] * N_TOKENS)
    plain = Backbone(unet)(z, 501, text, [])
    assert far(Backbone(unet)(z, 501, text, [word_patch(words, 2)]), plain) < 1e-6


# Edits.


def test_equal_prompts_and_zero_change_nothing_and_other_prompts_do(tiny, video):
    plain = edit(tiny, video)
    assert torch.equal(edit(tiny, video, injection=NONE), plain)
    assert torch.equal(edit(tiny, video, injection=Injection(0, 0, words=0.2)), plain), "0 of 2"
    assert not tiny.unet.conv_in.__dict__.get("forward")
    none, half, full = (
        edit(tiny, video, injection=Injection(0, 0, words=w), guidance_scale=7.5)
        for w in (0, 0.5, 1.0)
    )
    assert far(none, half) > 1e-4 and far(half, full) > 1e-4

    # At the same prompt and latent the maps are equal. One number does not touch the words.
    same = dict(prompt=SOURCE, guidance_scale=1.0, latents=tiny.invert(video, SOURCE, 2))
    assert far(edit(tiny, None, **same, injection=FULL), edit(tiny, None, **same)) < 1e-5
    both = edit(tiny, video, injection=0.5)
    assert torch.equal(both, edit(tiny, video, injection=Injection(0.5, 0.5)))
    assert far(both, edit(tiny, video, injection=Injection(0.5, 0.5, words=0.5))) > 1e-4


def test_words_pull_an_edit_towards_the_source(pipe):
    """A prompt of the same length has all columns of the source: only values of words differ."""
    scene, _ = demo_scenes()
    clip, source = render(scene, 3, 64).frames, scene.caption
    known = pipe.encode(clip)
    inverted = pipe.invert(clip, source, 2, "exact", return_inversion=True, attention="own")
    call = dict(latents=inverted, source_prompt=source, guidance_scale=1.0)
    prompt = source.replace(scene.colour, "green")
    assert prompt != source
    plain, full = (edit(pipe, None, prompt, **call, injection=x) for x in (NONE, FULL))
    assert 0 < far(full, known) < far(plain, known)


@pytest.mark.parametrize("inversion", ["ddim", "exact"])
def test_the_source_is_read_from_a_known_trajectory(tiny, video, inversion):
    known = tiny.invert(video, SOURCE, 2, inversion, return_inversion=True, attention="own")
    assert known.trajectory
    read = edit(tiny, None, latents=known, injection=FULL)
    assert far(read, edit(tiny, video, inversion=inversion, injection=FULL)) < 1e-5
    # Without it the source branch samples itself, which an exact inversion lets it do exactly.
    sampled = far(edit(tiny, None, latents=known.latents, injection=FULL), read)
    assert sampled < 1e-4 if inversion == "exact" else sampled > 0


def test_stretches_windows_and_chunks_do_not_change_an_edit(tiny, video, monkeypatch):
    clip = torch.cat([video, video.flip(0), video.flip(-1)])  # nine frames
    whole = edit(tiny, clip, injection=FULL)
    assert far(edit(tiny, clip, injection=FULL, frames_per_chunk=2), whole) < 1e-5
    windows = Fusion(
        [Source(window=5, overlap=2), Source()], FusionSchedule("constant", (1.0, 0.0))
    )
    assert far(edit(tiny, clip, injection=FULL, fusion=windows), whole) < 1e-5
    limit(monkeypatch, 4, 2)
    assert far(edit(tiny, clip, injection=FULL), whole) < 1e-5
    assert far(edit(tiny, clip), whole) > 1e-4


def test_every_source_and_every_prompt_has_its_own_words(tiny, video):
    prompts = [TARGET, "a red square"]
    alone = [edit(tiny, video, prompt, injection=FULL) for prompt in prompts]
    call = MILD | dict(source_prompt=SOURCE, output_type="latent", injection=FULL)
    together = tiny(video, prompts, **call).frames
    assert all(far(a, b) < 1e-5 for a, b in zip(alone, together, strict=True))

    own = Source(prompt=prompts[1])
    fusion = Fusion([own, Source()], FusionSchedule("constant", (1.0, 0.0)))
    assert far(edit(tiny, video, injection=FULL, fusion=fusion), alone[1]) < 1e-5


def test_motion_modules_and_an_adapter_s_tokens(checkpoint, video):
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    settings = AdapterSettings(rank=2, n_shared=3, uses_frame_tokens=False, interval=(0, 1))
    for with_motion in (False, True):
        if with_motion:
            pipe.load_motion_adapter(tiny_motion_adapter())
        pipe.adapter = TemporalAdapter.attach(pipe.unet, settings)
        same = dict(prompt=SOURCE, guidance_scale=1.0, latents=pipe.invert(video, SOURCE, 2))
        assert far(edit(pipe, None, **same, injection=FULL), edit(pipe, None, **same)) < 1e-5
        assert far(edit(pipe, video, injection=FULL), edit(pipe, video)) > 1e-4
        pipe.unload_adapter()


def test_an_ip_adapter_keeps_its_part(checkpoint, folder, video):  # noqa: F811
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(str(folder), subfolder="models", weight_name="ip.safetensors")
    seen = [edit(pipe, video, injection=FULL, ip_adapter_image=picture(i)) for i in range(2)]
    assert far(*seen) > 1e-4
    assert far(seen[0], edit(pipe, video, ip_adapter_image=picture(0))) > 1e-4
    pipe.set_ip_adapter_scale(0.0)
    unseen = edit(pipe, video, injection=FULL, ip_adapter_image=picture(0))
    pipe.unload_ip_adapter()
    assert far(unseen, edit(pipe, video, injection=FULL)) < 1e-5


# Sentences.


def test_weights_scale_the_columns_of_their_words(tiny, video):
    """Each token of the words, at each repetition, also behind an adapter's tokens."""
    words = SharedWords.of([1, 2, 0], [1, 3, 0], ((1, 2.0),))
    edit_map, source = torch.rand(2, 5, 4), torch.rand(2, 5, 4)
    expected = source.clone()
    expected[..., 2] *= 2
    torch.testing.assert_close(mixed(edit_map, source, words), expected)
    assert places_of([7, 8], [7, 8, 9, 7, 8, 7]) == [0, 1, 3, 4] and places_of([], [1]) == []

    # In an edit: a weight of 1 changes nothing, others do, and each prompt has its own places.
    def weighted(factor: float, **given) -> torch.Tensor:
        weights = {"blue square": factor}
        return edit(tiny, video, injection=Injection(0, 0, words=1.0, weights=weights), **given)

    assert torch.equal(weighted(1.0), edit(tiny, video, injection=FULL))
    assert min(far(weighted(0.0), weighted(1.0)), far(weighted(3.0), weighted(1.0))) > 1e-3
    other = "slowly a blue square moves"
    call = MILD | dict(source_prompt=SOURCE, output_type="latent")
    how = Injection(0, 0, words=1.0, weights={"blue square": 3.0})
    both = tiny([video] * 2, [TARGET, other], injection=how, **call).frames
    torch.testing.assert_close(both[1], weighted(3.0, prompt=other), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "words", "message"),
    [
        ({"zebra": 2.0}, 1.0, "'zebra' is weighted and not in"),
        ({"blue": 2.0}, 0.0, "words is 0"),
        ({"blue": float("nan")}, 1.0, "weight of the word 'blue' is nan"),
    ],
)
def test_bad_weights_are_refused(tiny, video, weights, words, message):
    with pytest.raises(InputError, match=message):
        edit(tiny, video, injection=Injection(0, 0, words=words, weights=weights))


def test_what_has_no_words_is_refused(tiny, video):
    embeds = dict(
        zip(("prompt_embeds", "negative_prompt_embeds"), tiny.encode_prompt(TARGET), strict=True)
    )
    call = MILD | dict(source_prompt=SOURCE, output_type="latent", **embeds)
    tiny(video, **call, injection=0.5)
    with pytest.raises(InputError, match="prompt_embeds has none: give prompt, or set words to 0"):
        tiny(video, **call, injection=FULL)
    source = tiny.encode_prompt([SOURCE])
    with pytest.raises(InputError, match="source_prompt_embeds has none: give source_prompt, or"):
        edit(tiny, video, source_prompt="", source_prompt_embeds=source, injection=FULL)
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"injection \(words\) is .*from 0 to 1"):
            Injection(words=bad)
    noise = Fusion([Source(), Source()], FusionSchedule("constant", (0.5, 0.5)), "noise")
    with pytest.raises(InputError, match="no features of the clip to inject"):
        edit(tiny, video, fusion=noise, injection=FULL)


def test_the_estimate_counts_the_source_branch(tiny, video):
    seen = []
    hook = tiny.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    half = Injection(0, 0, words=0.5)
    edit(tiny, video, injection=half)
    hook.remove()
    call = dict(MILD, injection=half)
    assert tiny.estimate(*video.shape[:1], *video.shape[2:], **call).n_evaluations == sum(seen)
