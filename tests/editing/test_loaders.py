"""LoRAs beside the temporal adapter, and textual inversions; tiny models, about 10 s."""

import itertools
from copy import deepcopy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging
from safetensors.torch import load_file, save_file
from tiny_models import D_TEXT, N_TOKENS

from vala_research import InputError, VideoEditPipeline
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter

RANK, ALPHA = 2, 3.0
SITES = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.2",
)
TEXT_SITE = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture
def plain(checkpoint):
    """The tiny pipeline in float64."""
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.double()
    return pipe


def drawn(*shape, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def style(unet, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Matrices A and B of a LoRA, by site."""
    weights = {site: unet.get_submodule(site).weight for site in SITES}
    return {
        site: (drawn(RANK, w.shape[1], seed=seed), drawn(w.shape[0], RANK, seed=seed + 1))
        for site, w in weights.items()
    }


def kohya(matrices: dict, path) -> str:
    """A file in the layout of kohya's trainer: alpha beside each pair."""
    tensors = {}
    for site, (a, b) in matrices.items():
        name = "lora_unet_" + site.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA, dtype=torch.float64)
    save_file(tensors, path)
    return str(path)


def in_diffusers(matrices: dict, path, prefix: str = "unet.") -> str:
    """A file in diffusers' layout, whose alpha is the rank."""
    tensors = {f"{prefix}{s}.lora_A.weight": a for s, (a, _) in matrices.items()}
    tensors |= {f"{prefix}{s}.lora_B.weight": b for s, (_, b) in matrices.items()}
    save_file(tensors, path)
    return str(path)


@pytest.fixture(scope="module")
def temporal(checkpoint, tmp_path_factory):
    """Folder of a temporal adapter whose LoRA is no longer zero."""
    unet = VideoEditPipeline.from_pretrained(str(checkpoint)).unet
    settings = AdapterSettings(n_shared=0, uses_frame_tokens=False, alpha=8, interval=(0, 1))
    adapter = TemporalAdapter.attach(unet, settings, generator=torch.Generator().manual_seed(0))
    for i, (name, p) in enumerate(adapter.lora_parameters()):
        if ".lora_B." in name:
            p.data.copy_(drawn(*p.shape, seed=i))
    folder = tmp_path_factory.mktemp("adapter")
    adapter.save_pretrained(folder)
    return folder


def predicted(unet) -> torch.Tensor:
    inputs = drawn(3, 4, 8, 8, seed=1), 500, drawn(3, N_TOKENS, D_TEXT, seed=2)
    with torch.no_grad():
        return unet(*inputs).sample


def summed(unet, temporal, factor: float, *styles: tuple[dict, float]) -> torch.Tensor:
    """The prediction of a UNet whose weights are explicit sums."""
    unet = deepcopy(unet)
    lora = load_file(temporal / "pytorch_lora_weights.safetensors")
    for key, b in lora.items():
        if ".lora_B." in key:
            a = lora[key.replace("lora_B", "lora_A")].double()
            layer = unet.get_submodule(key.removeprefix("unet.").partition(".lora_")[0])
            layer.weight.data += factor * 8 / 4 * b.double() @ a
    for matrices, scale in styles:
        for site, (a, b) in matrices.items():
            unet.get_submodule(site).weight.data += scale * b @ a
    return predicted(unet)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-9 * b.abs().max())


STEPS = {
    "adapter": lambda pipe, files: pipe.load_adapter(files["temporal"]),
    "one": lambda pipe, files: pipe.load_lora_weights(files["one"], adapter_name="one"),
    "two": lambda pipe, files: pipe.load_lora_weights(files["two"], adapter_name="two"),
}


@pytest.mark.parametrize("order", list(itertools.permutations(STEPS)), ids="-".join)
def test_style_and_temporal_adapter_add_up_in_any_order(plain, temporal, tmp_path, order):
    one, two = style(plain.unet, 10), style(plain.unet, 20)
    files = {
        "temporal": temporal, "one": kohya(one, tmp_path / "one.safetensors"),
        "two": in_diffusers(two, tmp_path / "two.safetensors"),
    }  # fmt: skip
    unet, k = deepcopy(plain.unet), ALPHA / RANK
    for name in order:
        STEPS[name](plain, files)
    plain.set_adapters(["one", "two"], [0.5, 0.25])
    both = summed(unet, temporal, 1, (one, 0.5 * k), (two, 0.25))
    assert same(predicted(plain.unet), both)
    assert not same(both, summed(unet, temporal, 0, (one, 0.5 * k), (two, 0.25)))

    # The temporal adapter weaker, and off: exactly the style.
    with plain.adapter.active(True, 0.3):
        assert same(predicted(plain.unet), summed(unet, temporal, 0.3, (one, k / 2), (two, 0.25)))
    with plain.adapter.active(False):
        off = predicted(plain.unet)
    assert same(off, summed(unet, temporal, 0, (one, k / 2), (two, 0.25)))


def test_styles_are_changed_fused_and_unloaded_beside_the_adapter(plain, temporal, tmp_path):
    one, two, k = style(plain.unet, 10), style(plain.unet, 20), ALPHA / RANK
    files = kohya(one, tmp_path / "1.safetensors"), in_diffusers(two, tmp_path / "2.safetensors")
    unet = deepcopy(plain.unet)
    plain.load_lora_weights(files[0], adapter_name="one")
    plain.load_adapter(temporal)
    plain.load_lora_weights(files[1], adapter_name="two")
    plain.set_adapters("two")
    assert same(predicted(plain.unet), summed(unet, temporal, 1, (two, 1)))
    plain.fuse_lora(lora_scale=0.5)
    assert same(predicted(plain.unet), summed(unet, temporal, 1, (two, 0.5)))
    plain.unfuse_lora()
    plain.set_adapters("one")
    plain.fuse_lora(adapter_names=["one"])
    plain.unload_lora_weights()
    assert same(predicted(plain.unet), summed(unet, temporal, 1, (one, k)))
    plain.unload_adapter()
    assert same(predicted(plain.unet), summed(unet, temporal, 0, (one, k)))
    plain.load_adapter(temporal)
    plain.load_lora_weights(files[1])
    assert same(predicted(plain.unet), summed(unet, temporal, 1, (one, k), (two, 1)))


def test_an_edit_without_the_adapter_s_steps_is_the_style_alone(plain, temporal, tmp_path, video):
    plain.unet.float()
    call = dict(source_prompt="a red circle", num_inference_steps=3, output_type="pt")
    plain.load_lora_weights(in_diffusers(style(plain.unet, 10), tmp_path / "a.safetensors"))
    alone = plain(video, "a blue square", **call).frames
    plain.load_adapter(temporal)
    changed = plain(video, "a blue square", **call, adapter_scale=1.0).frames
    assert not torch.allclose(changed, alone, atol=1e-3)
    assert torch.equal(plain(video, "a blue square", **call, adapter_scale=0.0).frames, alone)
    with pytest.warns(UserWarning, match="none of the 3 steps"):
        off = plain(video, "a blue square", **call, adapter_interval=(0.95, 1)).frames
    assert torch.equal(off, alone)


def test_a_file_is_read_as_by_diffusers_text_encoder_included(plain, checkpoint, tmp_path):
    a, b = drawn(RANK, D_TEXT, seed=3).float(), drawn(D_TEXT, RANK, seed=4).float()
    tensors = load_file(kohya(style(plain.unet, 10), tmp_path / "unet.safetensors"))
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        name = "lora_te_text_model_encoder_layers_0_self_attn_" + projection
        tensors |= {f"{name}.lora_down.weight": 1 * a, f"{name}.lora_up.weight": 1 * b}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, tmp_path / "both.safetensors")
    theirs = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    theirs.unet.double()
    bare = theirs.encode_prompt(["a red circle"], "cpu", 1, False)[0]
    for pipe in (plain, theirs):
        pipe.load_lora_weights(str(tmp_path / "both.safetensors"))
    assert torch.equal(predicted(plain.unet), predicted(theirs.unet))
    text = theirs.encode_prompt(["a red circle"], "cpu", 1, False)[0]
    assert torch.equal(plain.encode_prompt(["a red circle"]), text) and not torch.equal(text, bare)


def test_the_scale_of_a_call_acts_on_both_networks_and_is_undone(plain, tmp_path, video):
    def edit(**asked):
        once = {"num_inference_steps": 1, "attention": "own", "output_type": "pt"}
        return plain(video, "a red circle", guidance_scale=1.0, **once, **asked).frames

    def scaled(scale):
        return edit(cross_attention_kwargs={"scale": scale})

    bare = edit()
    text = {TEXT_SITE: (drawn(RANK, D_TEXT, seed=3).float(), drawn(D_TEXT, RANK, seed=4).float())}
    file = in_diffusers(style(plain.unet, 10), tmp_path / "unet.safetensors")
    tensors = load_file(in_diffusers(text, tmp_path / "text.safetensors", "text_encoder."))
    plain.load_lora_weights(load_file(file) | tensors, adapter_name="style")
    full, words = edit(), plain.encode_prompt(["a red circle"])
    half, none = scaled(0.5), scaled(0.0)
    assert torch.equal(edit(), full) and not same(full, bare)
    plain.set_adapters("style", 0.5)
    assert same(half, edit()) and not same(half, full) and same(none, bare)
    known = plain.encode_prompt(["a red circle"])
    assert torch.equal(scaled(0.0), none) and same(edit(), half)  # set_adapters still holds
    plain.set_adapters("style", 1.0)
    assert not torch.equal(known, words)
    found, _ = plain.encode_prompt("a red circle", lora_scale=0.5)
    assert torch.allclose(found, known)

    # Without a text encoder, the UNet's part is loaded. A LoRA is no part of a saved model.
    plain.unload_lora_weights()
    alone = VideoEditPipeline(**{**plain.components, "text_encoder": None, "tokenizer": None})
    alone.load_lora_weights(file)
    assert alone.get_list_adapters() == {"unet": ["default_0"]}
    with pytest.raises(InputError, match="has a LoRA loaded.*unload_lora_weights"):
        alone.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_diffusers_says_what_it_leaves_out_of_tensors(plain, tmp_path):
    tensors = load_file(in_diffusers(style(plain.unet, 10), tmp_path / "a.safetensors"))
    lost = next(name for name in tensors if ".lora_A." in name)
    part = {name: x for name, x in tensors.items() if name != lost}
    logger, told = logging.get_logger("diffusers.utils.peft_utils"), []
    logger.addFilter(tell := lambda record: told.append(record.getMessage()) or False)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()
    try:
        plain.load_lora_weights(part | {f"{lost}.cat": torch.ones(1)})
    finally:
        logging.set_verbosity(verbosity)
        logger.removeFilter(tell)
    assert "lora_A" in "".join(told) and ".cat" in "".join(told)
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match="is not complete.*lora_B.weight without the other"):
        plain.load_lora_weights(tmp_path / "part.safetensors")


def test_a_wrong_lora_is_one_sentence_and_changes_nothing(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    good = in_diffusers(style(plain.unet, 10), tmp_path / "good.safetensors")
    plain.load_lora_weights(good, adapter_name="good")
    plain.set_adapters("good", 0.5)
    before = predicted(plain.unet)
    other = {s: (a[:, :5].contiguous(), b) for s, (a, b) in style(plain.unet, 10).items()}
    deeper = {"down_blocks.7.attentions.0.proj_in": (drawn(2, 8, seed=1), drawn(8, 2, seed=2))}
    nan = {s: (a * float("nan"), b) for s, (a, b) in style(plain.unet, 10).items()}
    text = {TEXT_SITE: (drawn(2, 5, seed=1), drawn(5, 2, seed=1))}
    save_file({"weight": torch.zeros(2)}, tmp_path / "no.safetensors")
    for name in ("a.bin", "a.pt", "b.ckpt", "damaged.safetensors", "what.txt"):
        (tmp_path / name).write_bytes(b"abc")
    for given, message in [
        (in_diffusers(other, tmp_path / "o.safetensors"), "made for another model"),
        (in_diffusers(deeper, tmp_path / "d.safetensors"), "another model.*which is not here"),
        (in_diffusers(nan, tmp_path / "n.safetensors"), "not finite"),
        (in_diffusers(text, tmp_path / "t.safetensors", "text_encoder."), "cannot be loaded"),
        (tmp_path / "no.safetensors", "holds no weights for a UNet"),
        (tmp_path / "a.bin", "is a pickle"), (tmp_path / "a.pt", "is a pickle"),
        (tmp_path / "b.ckpt", "is a pickle"), (tmp_path / "what.txt", "is no .safetensors"),
        (tmp_path / "damaged.safetensors", "not readable as safetensors"),
        (tmp_path / "nowhere.safetensors", "does not exist"), ("./a", "does not exist"),
        ("nowhere/lora.safetensors", "does not exist"), (tmp_path, "several .safetensors"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message) as caught:
            plain.load_lora_weights(given)
        assert "\n" not in str(caught.value)
        assert torch.equal(predicted(plain.unet), before), given
        assert plain.get_list_adapters() == {"unet": ["good"]}
    plain.load_lora_weights({"lora_foo": torch.ones(2)})  # nothing that diffusers knows
    assert torch.equal(predicted(plain.unet), before)
    part = in_diffusers(style(plain.unet, 10) | deeper, tmp_path / "part.safetensors")
    with pytest.warns(UserWarning, match="leaves 2 of its weights unused"):
        plain.load_lora_weights(part, adapter_name="part")
    with pytest.raises(InputError, match="is a pickle"):
        plain.load_lora_weights(tmp_path, weight_name="a.bin")
    with pytest.raises(InputError, match="would read pickles"):
        plain.load_lora_weights(good, use_safetensors=False)
    with pytest.raises(InputError, match="choose another name"):
        plain.load_lora_weights(good, adapter_name="good")


def test_the_adapter_is_loaded_into_a_model_that_is_offloaded(plain, temporal):
    accelerate = pytest.importorskip("accelerate")
    plain.load_adapter(temporal)
    expected = predicted(plain.unet)
    plain.unload_adapter()
    accelerate.cpu_offload(plain.unet, torch.device("cpu"))
    assert plain.unet.conv_in.weight.is_meta
    plain.load_adapter(temporal)
    assert same(predicted(plain.unet), expected)


# Textual inversion.


@pytest.fixture
def words(checkpoint):
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_every_vector_of_an_embedding_is_read_as_in_diffusers(words, checkpoint, tmp_path):
    vectors, file = drawn(3, D_TEXT, seed=5).float(), tmp_path / "learned_embeds.safetensors"
    save_file({"<cat>": vectors}, file)
    theirs = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    for pipe, given in ((words, file), (theirs, str(file))):
        pipe.load_textual_inversion(given)
    prompt = "a red <cat>"
    found = words.encode_prompt([prompt])
    assert torch.equal(found, theirs.encode_prompt([prompt], "cpu", 1, False)[0])

    # The embeddings themselves, after "a red".
    seen = []
    table = words.text_encoder.get_input_embeddings()
    hook = table.register_forward_hook(lambda m, args, out: seen.append(out))
    words.encode_prompt([prompt])
    hook.remove()
    assert torch.equal(seen[0][0, 3:6], vectors)


def test_learned_words_are_known_and_their_vectors_counted(words, tmp_path, recwarn):
    save_file({"<cat>": drawn(3, D_TEXT, seed=5).float()}, tmp_path / "a.safetensors")
    words.load_textual_inversion(tmp_path, token="<dog>")
    words.encode_prompt(["a red <dog>"])
    assert not [w for w in recwarn if "vocabulary" in str(w.message)]
    with pytest.warns(UserWarning, match="cut off"):
        words.encode_prompt(["a <dog> <dog> <dog> <dog>"])


def test_a_wrong_textual_inversion_changes_nothing(words, tmp_path):
    n, before = len(words.tokenizer), words.encode_prompt(["a red circle"])
    save_file({"<cat>": torch.zeros(2, D_TEXT + 1)}, tmp_path / "wide.safetensors")
    save_file({"<cat>": torch.full((2, D_TEXT), float("nan"))}, tmp_path / "nan.safetensors")
    save_file({"<cat>": torch.zeros(2, D_TEXT)}, tmp_path / "known.safetensors")
    (tmp_path / "a.pt").write_bytes(b"abc")
    for name, kwargs, message in [
        ("wide.safetensors", {}, "cannot be loaded"), ("nan.safetensors", {}, "not finite"),
        ("a.pt", {}, "is a pickle"), ("b.safetensors", {}, "does not exist"),
        ("known.safetensors", {"token": "red</w>"}, "cannot be loaded"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message) as caught:
            words.load_textual_inversion(tmp_path / name, **kwargs)
        assert "\n" not in str(caught.value)
        assert len(words.tokenizer) == n
        assert torch.equal(words.encode_prompt(["a red circle"]), before)
