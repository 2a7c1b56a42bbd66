"""What diffusers promises of every pipeline, in the forms of a pipeline that edits videos.

Costs about 35 s of one core.
"""

import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    ConsistencyDecoderVAE,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.utils import logging
from tiny_models import D_TEXT, N_TOKENS, SD_SCHEDULE, tiny_unet

from vala_research import InputError, VideoEditPipeline

SOURCE, TARGET = "a blue square", "a red circle"
BETAS = {k: v for k, v in SD_SCHEDULE.items() if k != "clip_sample"}


def edit(pipe, video, prompt=TARGET, **kwargs):
    kwargs = {"num_inference_steps": 3, "attention": "own", "output_type": "pt"} | kwargs
    return pipe(video, prompt, kwargs.pop("source_prompt", SOURCE), **kwargs).frames


@pytest.fixture(scope="module")
def known(tiny, video):
    """The edit that other forms of the same call must give."""
    return edit(tiny, video)


@pytest.fixture
def own(tiny):
    """A pipeline of the same networks, to change."""
    pipe = VideoEditPipeline(**tiny.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Construction.


def test_is_made_of_another_pipeline_and_makes_one(tiny, checkpoint, video, known):
    plain = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    for pipe in (VideoEditPipeline(**plain.components), VideoEditPipeline.from_pipe(plain)):
        pipe.set_progress_bar_config(disable=True)
        assert pipe.unet is plain.unet and set(pipe.components) == set(plain.components)
        assert torch.equal(edit(pipe, video), known)
    assert StableDiffusionPipeline.from_pipe(tiny).unet is tiny.unet
    assert VideoEditPipeline.from_pipe(tiny, safety_checker=None).vae is tiny.vae
    types = VideoEditPipeline._get_signature_types()
    rare = {"text_encoder_2", "tokenizer_2", "force_zeros_for_empty_prompt", "transformer",
            "transformer_2", "boundary_ratio", "text_encoder_3", "tokenizer_3"}  # fmt: skip
    assert set(types) == set(tiny.components) | rare and all(types.values())


def test_what_is_saved_is_read_by_diffusers(tiny, video, known, tmp_path):
    tiny.save_pretrained(tmp_path)
    for entry in (str(tmp_path), "pipeline"):
        pipe = DiffusionPipeline.from_pretrained(
            tmp_path, custom_pipeline=entry, trust_remote_code=True
        )
        pipe.set_progress_bar_config(disable=True)
        assert type(pipe) is VideoEditPipeline and torch.equal(edit(pipe, video), known)
    plain = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(plain.unet.conv_in.weight, tiny.unet.conv_in.weight)


def test_a_part_may_be_left_out_where_it_is_not_needed(tiny, video, known):
    words = {"prompt": TARGET, "negative_prompt": "", "source_prompt": SOURCE}
    given = {f"{n}_embeds": tiny.encode_prompt([text]) for n, text in words.items()}
    pipe = VideoEditPipeline(**{**tiny.components, "text_encoder": None, "tokenizer": None})
    pipe.set_progress_bar_config(disable=True)
    made = edit(pipe, video, None, source_prompt="", **given)
    assert torch.equal(made, known)
    with pytest.raises(InputError, match="no text encoder for source_prompt.*source_prompt_embeds"):
        edit(pipe, video, None, **{k: v for k, v in given.items() if "source" not in k})


def test_prompts_are_encoded_as_in_diffusers_and_without_the_other_parts(tiny, video, known):
    plain = StableDiffusionPipeline(**tiny.components, requires_safety_checker=False)
    both = [TARGET, "a"]
    for asked in [
        (TARGET, "cpu", 1, True), (both, "cpu", 2, True), (both, "cpu", 2, True, ["red", "blue"]),
        (TARGET, "cpu", 3, False), (TARGET, "cpu", 1, True, "red"),
        (None, "cpu", 2, True, None, *plain.encode_prompt(both, "cpu", 1, True)),
    ]:  # fmt: skip
        ours, theirs = tiny.encode_prompt(*asked), plain.encode_prompt(*asked)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine is other is None or torch.allclose(mine, other, atol=1e-6)
    text = {name: part if "te" in name[:4] or "tok" in name else None
            for name, part in tiny.components.items()}  # fmt: skip
    encoded = VideoEditPipeline(**text).encode_prompt(TARGET, source_prompt=SOURCE)
    names = ("prompt_embeds", "negative_prompt_embeds", "source_prompt_embeds")
    pipe = VideoEditPipeline(**{**tiny.components, "text_encoder": None, "tokenizer": None})
    pipe.set_progress_bar_config(disable=True)
    given = dict(zip(names, encoded, strict=True))
    assert torch.allclose(edit(pipe, video, None, source_prompt="", **given), known, atol=1e-5)
    with pytest.raises(InputError, match="no text encoder for prompt"):
        pipe.encode_prompt(TARGET)
    with pytest.raises(InputError, match="2 prompts and 3 negative prompts"):
        tiny.encode_prompt(both, negative_prompt=["a"] * 3)


def test_no_pickle_is_saved_and_the_loaded_parts_are_told(own, video, known, tmp_path):
    with pytest.warns(UserWarning, match="would write pickles.*safetensors are written"):
        own.save_pretrained(tmp_path, safe_serialization=False)
    logger = logging.get_logger("diffusers.pipelines.pipeline_utils")
    told, level = [], logger.level
    logger.setLevel("INFO")
    logger.addFilter(tell := lambda record: told.append(record.getMessage()) or False)
    try:
        again = VideoEditPipeline.from_pretrained(tmp_path)
    finally:
        logger.removeFilter(tell)
        logger.setLevel(level)
    parts = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    assert sorted(line.split()[1] for line in told) == sorted(parts)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(edit(again, video), known)


REFUSED = {
    "latent consistency": {"time_cond_proj_dim": 8},
    "has one text encoder and needs two": dict(
        addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=34,
    ),
    "classes or noise levels": {"num_class_embeds": 4},
    "reads pictures": {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": D_TEXT},
    f"reads text of width 8 and gets {D_TEXT}": {"cross_attention_dim": 8},
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_networks_that_cannot_run_are_refused_in_words(tiny, video, reason):
    unet = tiny_unet(**REFUSED[reason])
    with pytest.raises(InputError, match=reason):
        VideoEditPipeline(**{**tiny.components, "unet": unet})
    swapped = VideoEditPipeline(**tiny.components)
    swapped.unet = unet
    with pytest.raises(InputError, match=reason) as caught:
        edit(swapped, video)
    assert "Source 0" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_tiny_autoencoder_replaces_the_vae(own, video, tmp_path):
    torch.manual_seed(0)
    small = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    layers = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    own.vae = vae = AutoencoderTiny(**small, **layers).eval()
    z = own.encode(video)
    assert torch.allclose(z, vae.encode(2 * video - 1).latents)
    assert torch.allclose(own.decode(z), (vae.decode(z).sample / 2 + 0.5).clamp(0, 1))
    own.save_pretrained(tmp_path)
    again = VideoEditPipeline.from_pretrained(tmp_path)
    assert type(again.vae) is AutoencoderTiny and torch.equal(again.encode(video), z)


def test_a_vae_with_another_decoder_replaces_the_vae(own, video):
    torch.manual_seed(0)
    own.vae = ConsistencyDecoderVAE(
        encoder_block_out_channels=(8, 16), encoder_down_block_types=("DownEncoderBlock2D",) * 2,
        encoder_norm_num_groups=4, encoder_out_channels=4, decoder_add_attention=False,
        decoder_block_out_channels=(8, 16), decoder_norm_num_groups=4,
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
    ).eval()  # fmt: skip
    z = own.encode(video)
    torch.manual_seed(1)  # it draws
    frames = own.decode(z)
    torch.manual_seed(1)
    latents = z / own.vae.config.scaling_factor
    assert torch.equal(frames, (own.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1))


def test_a_compiled_unet_edits_under_injection(own, video):
    asked = {"injection": 0.5, "attention": "extended"}
    expected = edit(own, video, **asked)
    own.unet = torch.compile(own.unet)
    with torch.compiler.set_stance("force_eager"):  # nothing is compiled: the names are at stake
        assert torch.equal(edit(own, video, **asked), expected)


# The call.


def test_forms_of_one_video(tiny, video):
    once = {"num_inference_steps": 1}
    known = edit(tiny, video, **once)
    array = video.permute(0, 2, 3, 1).numpy()
    frames = [PIL.Image.fromarray((255 * x).round().astype("uint8")) for x in array]
    forms = [video[None], array[None], [video], (array,), np.asarray(video)[None]]
    for form in forms:
        made = edit(tiny, form, **once)
        assert torch.allclose(made, known, atol=1e-4)  # other strides, other rounding
    pictures = edit(tiny, frames, **once)
    assert torch.equal(edit(tiny, [frames], **once), pictures)
    for output_type in ("pil", "np", "pt"):
        first = tiny(video, TARGET, attention="own", output_type=output_type, **once)
        again = edit(tiny, first.frames, **once)
        assert torch.equal(again, edit(tiny, first, **once))
    for two in (torch.stack([video, video]), [video, video], [frames, frames]):
        with pytest.raises(InputError, match="holds 2 clips: a call edits one"):
            edit(tiny, two)


def test_a_list_of_prompts_inverts_once(tiny, video, known, monkeypatch):
    assert torch.equal(edit(tiny, video, [TARGET], source_prompt=[SOURCE]), known)
    inverted = []
    from vala_research.editing.stream import Stream

    invert = Stream.invert
    monkeypatch.setattr(Stream, "invert", lambda *a: inverted.append(1) or invert(*a))
    seen = []
    both = edit(
        tiny, video, ["a grey square", TARGET], negative_prompt=["red", ""],
        callback_on_step_end=lambda _p, i, _t, _d: seen.append(i) or {},
    )  # fmt: skip
    assert inverted == [1] and seen == [0, 1, 2] * 2 and len(both) == 2
    assert torch.equal(both[1:], known)
    assert torch.equal(both[:1], edit(tiny, video, "a grey square", negative_prompt="red"))
    one = [torch.Generator().manual_seed(i) for i in range(2)]
    asked = {"generator": one, "negative_prompt": ["red", ""]}
    assert torch.equal(edit(tiny, [video] * 2, ["a grey square", TARGET], **asked), both)
    with pytest.raises(InputError, match="holds 2 clips"):
        edit(tiny, [video, video.flip(0)], ["a", "b"])
    with pytest.raises(InputError, match="generator is a list of 2: a call edits one clip"):
        edit(tiny, video, generator=one)
    pil = tiny(video, ["a", TARGET], num_inference_steps=1, attention="own").frames
    assert [len(clip) for clip in pil] == [3, 3]
    for wrong in ([], None):
        with pytest.raises(InputError, match="prompt"):
            edit(tiny, video, wrong)
    with pytest.raises(InputError, match="2 prompts and 3 negative prompts"):
        edit(tiny, video, ["a", "b"], negative_prompt=["c"] * 3)


def test_embeddings_stand_in_place_of_prompts(tiny, video, known):
    prompt, negative = tiny.encode_prompt([TARGET]), tiny.encode_prompt([""])
    assert torch.equal(edit(tiny, video, None, prompt_embeds=prompt), known)
    given = {"prompt_embeds": prompt, "negative_prompt_embeds": negative}
    assert torch.equal(edit(tiny, video, None, **given), known)
    assert not torch.equal(edit(tiny, video, None, prompt_embeds=negative), known)
    with pytest.raises(InputError, match="prompt and prompt_embeds are both given"):
        edit(tiny, video, TARGET, prompt_embeds=prompt)
    with pytest.raises(InputError, match="embeddings have shapes"):
        edit(tiny, video, None, prompt_embeds=prompt[:, :5])


@pytest.mark.parametrize(
    "asked",
    [{"guidance_rescale": 0.7}, {"guidance_scale": 0.5}, {"guidance_scale": 3.0}],
    ids=str,
)
def test_sampling_is_that_of_diffusers(tiny, checkpoint, asked):
    """From the same noise: what StableDiffusionPipeline itself makes, frame by frame."""
    plain = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    z = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    kwargs = {"num_inference_steps": 3, "guidance_scale": 4.0, "latents": z, **asked}
    theirs = plain(TARGET, height=16, width=24, output_type="pt", **kwargs).images
    ours = tiny(None, TARGET, output_type="pt", attention="own", **kwargs).frames[0]
    assert torch.allclose(ours, theirs, atol=1e-5)
    usual = kwargs | {"guidance_scale": 4.0, "guidance_rescale": 0.0}
    usual = tiny(None, TARGET, output_type="pt", attention="own", **usual).frames[0]
    assert not torch.allclose(ours, usual, atol=1e-5)


def test_clip_skip_leaves_layers_of_the_text_encoder_out(tiny, video, known):
    assert torch.allclose(edit(tiny, video, clip_skip=0), known, atol=1e-5)
    text = tiny.text_encoder
    ids = tiny.tokenizer(
        [TARGET, "", SOURCE], padding="max_length", max_length=N_TOKENS, return_tensors="pt"
    ).input_ids
    first = text(ids, output_hidden_states=True).hidden_states[-2]
    rows = text.final_layer_norm(first).detach()
    names = ("prompt_embeds", "negative_prompt_embeds", "source_prompt_embeds")
    given = dict(zip(names, rows[:, None], strict=True))
    expected = edit(tiny, video, None, source_prompt="", **given)
    assert torch.equal(edit(tiny, video, clip_skip=1), expected)
    assert not torch.allclose(expected, known, atol=1e-5)
    with pytest.raises(InputError, match="clip_skip is 2"):
        edit(tiny, video, clip_skip=2)


def test_strength_keeps_what_it_does_not_reach(tiny, video):
    asked = {"num_inference_steps": 4, "inversion": "exact", "source_prompt": TARGET}
    steps = []
    part = edit(
        tiny, video, strength=0.5, guidance_scale=1.0,
        callback_on_step_end=lambda _p, i, t, _d: steps.append(t) or {}, **asked,
    )  # fmt: skip
    assert len(steps) == 2 == tiny.num_timesteps and max(steps) < 500
    # The prompts are equal, so half a way there and back is the clip itself.
    assert torch.allclose(part[0], tiny.decode(tiny.encode(video)), atol=1e-3)
    z = tiny.invert(video, TARGET, 4, "exact", "own", strength=0.5)
    again = tiny.reconstruct(z, TARGET, 4, "own", strength=0.5)
    assert torch.allclose(again, part[0], atol=1e-3)
    n = tiny.estimate(3, 16, 24, 4, 1.0, strength=0.5).n_evaluations
    assert n == 3 * (2 + 2)
    with pytest.raises(InputError, match="strength is 0"):
        edit(tiny, video, strength=0.0)


def test_cross_attention_kwargs_reach_the_network(own, video, known):
    assert torch.equal(edit(own, video, cross_attention_kwargs={}), known)
    asked, forward = [], own.unet.forward

    def spy(*args, **kwargs):
        asked.append(kwargs.pop("cross_attention_kwargs"))
        return forward(*args, **kwargs)

    own.unet.forward = spy
    try:
        edit(own, video, cross_attention_kwargs={"scale": 0.5})
    finally:
        del own.unet.forward
    assert asked == [{"scale": 0.5}] * 6  # in the inversion too
    with pytest.raises(InputError, match="cross_attention_kwargs holds 'gligen'"):
        edit(own, video, cross_attention_kwargs={"gligen": 1})


def test_a_callback_reads_and_sets_the_state_of_the_call(tiny, video):
    read = []

    def more(pipe, i, t, tensors):
        read.append((pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.interrupt))
        pipe._guidance_scale += 1.0
        return tensors

    made = edit(tiny, video, guidance_scale=0.0, callback_on_step_end=more)
    assert read == [(0.0, False, False), (1.0, False, False), (2.0, True, False)]
    assert tiny.guidance_scale == 3.0 and tiny.num_timesteps == 3
    assert not torch.equal(made, edit(tiny, video, guidance_scale=0.0))
    assert tiny.guidance_scale == 0.0  # the next call has its own

    # After the cut-off of diffusers, no step is guided.
    scales = []

    def watch(pipe, i, t, tensors):
        tensors = cut(pipe, i, t, tensors)
        scales.append(pipe.guidance_scale)
        return tensors

    cut = SDCFGCutoffCallback(cutoff_step_ratio=0.4)
    edit(tiny, video, guidance_scale=4.0, callback_on_step_end=watch,
         callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])  # fmt: skip
    assert scales == [4.0, 0.0, 0.0]
    direct = edit(tiny, video, guidance_scale=4.0, callback_on_step_end=cut)
    assert not torch.equal(direct, edit(tiny, video, guidance_scale=4.0))


# Schedulers.

SWAPPED = [
    EulerDiscreteScheduler(**BETAS),
    DPMSolverMultistepScheduler(**BETAS),
    UniPCMultistepScheduler(**BETAS),
    DPMSolverMultistepScheduler(use_karras_sigmas=True, **BETAS),
    PNDMScheduler(skip_prk_steps=True, **BETAS),
]


@pytest.mark.parametrize("scheduler", SWAPPED, ids=lambda s: type(s).__name__)
def test_a_swapped_scheduler_is_said_once_to_be_ddim(own, video, scheduler, tmp_path):
    own.scheduler = scheduler
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = edit(own, video)
    (warning,) = [w for w in caught if "deterministic DDIM" in str(w.message)]
    name = type(scheduler).__name__
    assert f"{name}: deterministic DDIM over this scheduler's levels is run" in str(warning.message)
    assert ("use_karras_sigmas" in str(warning.message)) == scheduler.config.get(
        "use_karras_sigmas", False
    )
    own.save_pretrained(tmp_path)
    again = VideoEditPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(edit(again, video), made)


def test_the_schedulers_of_stable_diffusion_do_not_warn(tiny, video):
    for scheduler in (DDIMScheduler(**SD_SCHEDULE), PNDMScheduler(skip_prk_steps=True, **BETAS)):
        pipe = VideoEditPipeline(**{**tiny.components, "scheduler": scheduler})
        pipe.set_progress_bar_config(disable=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            edit(pipe, video, num_inference_steps=1)


def test_an_overflow_of_the_vae_is_named_when_it_encodes(tiny, video):
    pipe = VideoEditPipeline(**tiny.components)
    bias = pipe.vae.encoder.conv_in.bias
    kept = bias.data.clone()
    bias.data.fill_(float("inf"))
    try:
        with pytest.raises(FloatingPointError, match="VAE.*encoding in torch.float32.*bfloat16"):
            edit(pipe, video)
    finally:
        bias.data.copy_(kept)
