"""An adapter in the pipeline: on at its steps and no others, both ways, and gone completely."""

import json
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapter import BARE, trained
from tiny_models import N_TOKENS

from vala_research import InputError, VideoEditPipeline
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.storage import DESCRIPTION
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.adapter.vision import VisionEncoder
from vala_research.diffusion.injection import Injection
from vala_research.diffusion.loading import load_vision_tower
from vala_research.diffusion.null_text import NullTextSettings

SOURCE, TARGET = "a red circle", "a blue square"
N_STEPS = 4  # at t = 751, 501, 251, 1
D_VISION = 128  # of the miniature's vision encoder
STRONG = dict(adapter_interval=(0, 1), adapter_scale=1.0)


@pytest.fixture(scope="module")
def folders(checkpoint, miniature_clip, tmp_path_factory):
    """Adapters of the tiny checkpoint: with tokens, and of a LoRA alone."""
    top, found = tmp_path_factory.mktemp("adapters"), {}
    wide = AdapterSettings(n_shared=2, interval=(0.5, 1.0), scale=0.8)
    for name, settings in {"tokens": wide, "lora": BARE}.items():
        unet = VideoEditPipeline.from_pretrained(str(checkpoint)).unet
        generator = torch.Generator().manual_seed(0)
        adapter = TemporalAdapter.attach(unet, settings, D_VISION, generator, "miniature")
        for key, p in adapter.lora_parameters():
            if ".lora_B." in key:
                torch.nn.init.normal_(p.data, std=0.3, generator=generator)
        adapter.save_pretrained(found.setdefault(name, top / name))
    return found


@pytest.fixture
def host(tiny):
    """The tiny pipeline, without an adapter before and after."""
    yield tiny
    tiny.unload_adapter()


def edit(pipe, video, prompt=TARGET, **kwargs) -> torch.Tensor:
    settings = {"source_prompt": SOURCE, "num_inference_steps": N_STEPS, "output_type": "pt"}
    return pipe(video, prompt, **{**settings, **kwargs}).frames[0]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * (a - b).double().square().mean().clamp_min(1e-30).log10().item()


@contextmanager
def watched(pipe):
    """Every call of the UNet: (t, tokens a frame, scale of the LoRA)."""
    calls, forward = [], pipe.unet.forward

    def watch(z, t, encoder_hidden_states, **kwargs):
        scale = 0.0 if pipe.adapter is None else pipe.adapter.lora.strength
        calls.append((int(t), encoder_hidden_states.shape[1], scale))
        return forward(z, t, encoder_hidden_states=encoder_hidden_states, **kwargs)

    pipe.unet.forward = watch
    try:
        yield calls
    finally:
        del pipe.unet.forward


def test_it_acts_on_its_steps_and_no_others_in_inversion_as_in_edit(host, video, folders):
    host.load_adapter(folders["tokens"])
    on, off = N_TOKENS + 2 + 25, N_TOKENS  # two shared tokens and 50 / 2 of the frame
    with watched(host) as calls:
        edit(host, video)
    both = [(751, on, 0.8), (501, on, 0.8), (251, off, 0.0), (1, off, 0.0)]
    assert calls == both[::-1] + both
    with watched(host) as calls:
        edit(host, video, adapter_interval=(0.2, 0.3), adapter_scale=0.5)
    both = [(751, off, 0.0), (501, off, 0.0), (251, on, 0.5), (1, off, 0.0)]
    assert calls == both[::-1] + both
    host.adapter.settings = replace(host.adapter.settings, token_interval=(0, 1))
    with watched(host) as calls:
        edit(host, video)
    assert {(n, scale) for _, n, scale in calls} == {(on, 0.8), (on, 0.0)}


@pytest.mark.parametrize("name", ["tokens", "lora"])
def test_nothing_remains_where_it_does_not_act(host, video, folders, name):
    before = edit(host, video)
    host.load_adapter(folders[name])
    changed = edit(host, video, **STRONG)
    assert psnr(changed, before) < 40
    assert torch.equal(edit(host, video, adapter_scale=0.0), before)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        none = edit(host, video, adapter_interval=(0.9, 1.0))
    said = [w for w in caught if "adapter" in str(w.message)]
    assert len(said) == 1
    assert "none of the 4 steps lies in its interval from 0.9 to 1" in str(said[0].message)
    assert torch.equal(none, before)
    host.unload_adapter()
    assert torch.equal(edit(host, video), before)
    assert host.adapter is None and host.vision_encoder is None


def test_the_estimate_knows_its_weights(host, folders):
    """LoRA, tokens and the image encoder, and the bare model's again without them."""
    bare = host.estimate(3, 16, 16).peak_bytes
    own = sum(p.numel() for p in host.unet.parameters())
    host.load_adapter(folders["tokens"])
    modules = (host.adapter.tokens, host.vision_encoder.model)
    more = sum(p.numel() for m in modules for p in m.parameters())
    lora = sum(p.numel() for p in host.unet.parameters()) - own
    assert host.estimate(3, 16, 16).peak_bytes - bare == 4 * (lora + more) and min(lora, more) > 0
    host.unload_adapter()
    assert host.estimate(3, 16, 16).peak_bytes == bare


@pytest.mark.parametrize("name", ["tokens", "lora"])
def test_sampling_undoes_the_process_that_was_inverted(host, video, folders, name):
    host.load_adapter(folders[name])
    bound = host.decode(host.encode(video))
    found = host.invert(video, SOURCE, N_STEPS, "exact", return_inversion=True, **STRONG)
    same = host.reconstruct(found, SOURCE, N_STEPS)
    other = host.reconstruct(found, SOURCE, N_STEPS, adapter_scale=0.0)
    # As without an adapter: exact inversion gives back the round trip, another process does not.
    assert psnr(same, bound) > 90 > 45 > psnr(other, bound)
    # An edit from an inversion is the edit of the clip by that adapter, the clip given or not.
    whole = edit(host, video, inversion="exact", attention="extended", **STRONG)
    for clip in (video, None):
        again = edit(host, clip, latents=found, attention="extended")
        torch.testing.assert_close(again, whole, rtol=0, atol=1e-5)


def test_chunks_injection_and_null_text_go_with_it(host, video, folders):
    host.load_adapter(folders["tokens"])
    for more in ({}, {"injection": Injection(0.5, 0.5)}):
        whole, chunked = (edit(host, video, frames_per_chunk=n, **STRONG, **more) for n in (3, 1))
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-4)
    few = NullTextSettings(n_iterations=1, early_stop=0.0)
    found = host.invert(video, SOURCE, N_STEPS, few, return_inversion=True, **STRONG)
    assert found.null_text.embeddings.shape[1] == N_TOKENS  # the tokens are the adapter's own
    plain = host.invert(video, SOURCE, N_STEPS, return_inversion=True, **STRONG)
    bound, results = host.encode(video), []
    for inversion in (found, plain):
        frames = edit(host, None, SOURCE, latents=inversion, output_type="latent")
        results.append((frames - bound).square().mean().item())
    assert results[0] < results[1]


def test_frame_tokens_are_those_of_the_source(host, video, folders):
    host.load_adapter(folders["tokens"])
    one = edit(host, video, **STRONG)
    latents = host.invert(video, SOURCE, N_STEPS, **STRONG)
    given = {"latents": latents, "attention": "extended", **STRONG}
    same, other = (edit(host, v, **given) for v in (video, video.flip(0)))
    assert one.shape == same.shape and not torch.equal(same, other)


def test_a_callback_sees_the_text_alone(host, video, folders):
    host.load_adapter(folders["tokens"])
    seen = []
    edit(
        host, video, generator=torch.Generator(), **STRONG,
        callback_on_step_end=lambda pipe, i, t, given: seen.append(given) or {},
        callback_on_step_end_tensor_inputs=["prompt_embeds", "latents"],
    )  # fmt: skip
    assert [x["prompt_embeds"].shape[:2] for x in seen] == [(1, N_TOKENS)] * N_STEPS


# The vision encoder.


def test_image_tokens_are_those_of_the_clip_model(miniature_clip):
    from vala_research.evaluation.clip_scores import ClipScorer

    encoder = VisionEncoder.from_pretrained("miniature")
    frames = torch.rand(3, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    tokens = encoder.tokens(frames)
    assert tokens.shape == (3, 50, D_VISION) and encoder.width == D_VISION
    scorer = ClipScorer.from_pretrained(miniature_clip)
    model = scorer.model.float()
    unit = model.visual_projection(model.vision_model.post_layernorm(tokens[:, 0]))
    torch.testing.assert_close(
        torch.nn.functional.normalize(unit, dim=-1), scorer.images(frames), rtol=0, atol=1e-5
    )
    with pytest.raises(InputError, match="vision encoder '/nowhere' cannot be loaded"):
        VisionEncoder.from_pretrained("/nowhere")


# Bad input.


def test_arguments_that_do_not_fit(host, video, folders, tmp_path):
    with pytest.raises(InputError, match="No adapter is loaded"):
        edit(host, video, adapter_scale=0.5)
    host.load_adapter(folders["tokens"])
    for wrong in [(0.9, 0.1), (0.5,), (0, 2)]:
        with pytest.raises(InputError, match="give two fractions"):
            edit(host, video, adapter_interval=wrong)
    with pytest.raises(InputError, match="give a finite number"):
        edit(host, video, adapter_scale=float("inf"))
    latents = host.invert(video, SOURCE, N_STEPS)
    with pytest.raises(InputError, match="latents alone do not hold.*return_inversion"):
        host.reconstruct(latents, SOURCE, N_STEPS)
    assert host.reconstruct(latents, SOURCE, N_STEPS, adapter_scale=0.0).shape == video.shape
    found = host.invert(video, SOURCE, N_STEPS, return_inversion=True)
    host.unload_adapter()
    with pytest.raises(InputError, match="an adapter that is not loaded now"):
        edit(host, None, latents=found)


def test_a_load_that_fails_leaves_what_was_loaded(host, video, folders, tmp_path):
    host.load_adapter(folders["lora"])
    before, adapter = edit(host, video, **STRONG), host.adapter
    text = json.loads((folders["tokens"] / DESCRIPTION).read_text())
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    for file in folders["tokens"].iterdir():
        (nameless / file.name).write_bytes(file.read_bytes())
    (nameless / DESCRIPTION).write_text(json.dumps(text | {"vision_encoder": None}))
    with pytest.raises(InputError, match="does not name its vision encoder"):
        host.load_adapter(nameless)
    encoder = VisionEncoder.from_pretrained("miniature")
    encoder.model.config.hidden_size = 64
    with pytest.raises(InputError, match="tokens of width 64 and the adapter reads 128"):
        host.load_adapter(nameless, encoder)
    with pytest.raises(InputError, match="vision encoder '/nowhere' cannot be loaded"):
        host.load_adapter(nameless, "/nowhere")
    with pytest.raises(InputError, match="no adapter folder"):
        host.load_adapter(tmp_path / "nowhere")
    assert host.adapter is adapter and torch.equal(edit(host, video, **STRONG), before)
    host.load_adapter(nameless, "miniature")
    assert host.adapter.settings.n_shared == 2


def test_one_of_another_backbone_is_refused(pipe, folders):
    with pytest.raises(InputError, match="another backbone"):
        pipe.load_adapter(folders["tokens"])
    assert pipe.adapter is None


def test_a_lora_of_someone_else_is_not_overwritten(host, folders):
    other = trained(host.unet)  # attached behind the pipeline's back
    try:
        with pytest.raises(InputError, match="has a LoRA already"):
            host.load_adapter(folders["lora"])
    finally:
        other.detach()


# The name of a vision encoder in an adapter's file is someone else's word.


def test_a_name_in_an_adapter_s_file_reaches_no_hub(host, folders, tmp_path, monkeypatch):
    asked = []

    def from_pretrained(name, **hub):
        asked.append((name, hub))
        raise InputError("nowhere")

    monkeypatch.setattr(VisionEncoder, "from_pretrained", from_pretrained)
    folder = shutil.copytree(folders["tokens"], tmp_path / "foreign")
    told = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps(told | {"vision_encoder": "someone/spy"}))
    for given in (None, "someone/asked-for"):
        with pytest.raises(InputError, match="nowhere"):
            host.load_adapter(folder, given)
    assert asked == [
        ("someone/spy", {"local_files_only": True}),
        ("someone/asked-for", {"local_files_only": False}),
    ]


def test_what_is_not_on_this_machine_says_how_to_get_it():
    with pytest.raises(InputError, match="downloads nothing.*`hf download someone/spy`"):
        load_vision_tower("someone/spy", local_files_only=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_encoder": ["a"]}, {"vision_encoder": ""}, {"settings": None}, {"settings": []},
        {"settings": {"rank": 10**30}}, {"settings": {"alpha": float("nan")}},
        {"settings": {"rank": 2.0}}, {"settings": {"interval": [[0], 1]}},
        {"settings": {"scale": "1"}}, {"settings": {"n_shared": None}},
        {"settings": {"blocks": ["all"]}}, {"settings": {"uses_frame_tokens": "no"}},
        {"settings": {"token_interval": [0, 10**400]}}, {"backbone": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_description_is_one_sentence(host, folders, tmp_path, changes):
    folder = shutil.copytree(folders["tokens"], tmp_path / "foreign")
    told = json.loads((folder / "adapter.json").read_text())
    if isinstance(changes.get("settings"), dict):
        changes = {"settings": told["settings"] | changes["settings"]}
    (folder / "adapter.json").write_text(json.dumps(told | changes))
    with pytest.raises(InputError) as caught:
        host.load_adapter(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 10**5 + "]" * 10**5, "[]", "", "\xff"], ids=range(4))
def test_a_description_that_is_no_json_object(host, folders, tmp_path, text):
    folder = shutil.copytree(folders["tokens"], tmp_path / "foreign")
    (folder / "adapter.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="cannot be read"):
        host.load_adapter(folder)


@pytest.mark.parametrize("name", ["pytorch_lora_weights", "prompt_tokens"])
def test_weights_that_are_no_finite_numbers_are_refused(host, folders, tmp_path, name):
    folder = shutil.copytree(folders["tokens"], tmp_path / "foreign")
    weights = load_file(folder / f"{name}.safetensors")
    first = min(weights)
    for wrong in (weights[first] * float("nan"), weights[first].long()):
        save_file(weights | {first: wrong}, folder / f"{name}.safetensors")
        with pytest.raises(InputError, match="no finite numbers"):
            host.load_adapter(folder)
