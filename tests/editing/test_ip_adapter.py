"""IP-Adapters beside plain diffusers', one picture or one per frame; tiny models, about 6 s."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from tiny_models import D_TEXT
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from vala_research import InputError, VideoEditPipeline

D_IMAGE, SIDE = 12, 32
CALL = dict(num_inference_steps=3, guidance_scale=3.0)


def drawn(*shape, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """A random IP-Adapter of the tiny checkpoint, and its image encoder."""
    unet = VideoEditPipeline.from_pretrained(str(checkpoint)).unet
    tensors = {
        "image_proj.proj.weight": drawn(4 * D_TEXT, D_IMAGE, seed=0),
        "image_proj.proj.bias": drawn(4 * D_TEXT, seed=1),
        "image_proj.norm.weight": torch.ones(D_TEXT), "image_proj.norm.bias": torch.zeros(D_TEXT),
    }  # fmt: skip
    names = [n for n in unet.attn_processors if n.endswith("attn2.processor")]
    for i, name in enumerate(names):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for j, projection in enumerate(("to_k_ip", "to_v_ip")):
            key = f"ip_adapter.{2 * i + 1}.{projection}.weight"
            tensors[key] = drawn(width, D_TEXT, seed=2 * i + j)
    top = tmp_path_factory.mktemp("ip")
    (top / "models").mkdir()
    save_file(tensors, top / "models" / "ip.safetensors")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, projection_dim=D_IMAGE, num_hidden_layers=2,
        num_attention_heads=2, image_size=SIDE, patch_size=16,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(top / "models" / "image_encoder")
    return top


@pytest.fixture
def pipes(checkpoint, folder):
    """Ours and diffusers', each with the IP-Adapter."""
    ours = VideoEditPipeline.from_pretrained(str(checkpoint))
    theirs = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
        pipe.load_ip_adapter(str(folder), subfolder="models", weight_name="ip.safetensors")
    return ours, theirs


def picture(seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (48, 40, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def test_one_picture_acts_as_in_diffusers_one_per_frame_on_its_own(pipes):
    ours, theirs = pipes
    z, images = drawn(3, 4, 8, 12, seed=5), [picture(i) for i in range(3)]

    def edit(**kwargs):
        call = CALL | {"attention": "own", "output_type": "latent", "latents": z} | kwargs
        return ours(None, "a blue square", **call).frames[0]

    alone = [
        theirs("a blue square", latents=z[i : i + 1], ip_adapter_image=image, output_type="latent",
               **CALL).images
        for i, image in enumerate(images)
    ]  # fmt: skip
    torch.testing.assert_close(edit(ip_adapter_image=images), torch.cat(alone), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        edit(ip_adapter_image=images, frames_per_chunk=1), torch.cat(alone), rtol=0, atol=1e-4
    )
    one = edit(ip_adapter_image=images[0])
    torch.testing.assert_close(one[:1], alone[0], rtol=0, atol=1e-4)
    assert (one[1:] - torch.cat(alone)[1:]).abs().max() > 1e-2

    # The embeddings in place of the picture, and pictures as a tensor.
    embeds = theirs.prepare_ip_adapter_image_embeds([images[0]], None, "cpu", 1, True)
    assert torch.equal(edit(ip_adapter_image_embeds=embeds), one)
    pixels = torch.stack([torch.tensor(list(x.tobytes())).view(48, 40, 3) for x in images]) / 255
    tensor = edit(ip_adapter_image=pixels.permute(0, 3, 1, 2))
    torch.testing.assert_close(tensor, torch.cat(alone), rtol=0, atol=1e-4)

    # Scale 0 is the model without it.
    ours.set_ip_adapter_scale(0.0)
    without = edit(ip_adapter_image=images)
    ours.unload_ip_adapter()
    assert torch.allclose(edit(), without, atol=1e-6) and not torch.allclose(one, without, atol=0.1)


def test_inversion_sees_no_picture_and_is_undone(pipes, video):
    ours, _ = pipes
    frames = ours.decode(ours.encode(video))
    found = ours.invert(video, "a red circle", 3, "exact", return_inversion=True)
    again = ours.reconstruct(found, "a red circle", 3)
    assert (again - frames).abs().max() < 1e-3
    edited = ours(
        None, "a red circle", latents=found, ip_adapter_image=picture(0), output_type="pt", **CALL
    ).frames[0]
    assert (edited - frames).abs().max() > 1e-2


def test_what_does_not_fit_is_one_sentence(pipes, checkpoint, folder, tmp_path):
    ours, _ = pipes
    bare = VideoEditPipeline.from_pretrained(str(checkpoint))
    z = drawn(3, 4, 8, 12, seed=5)
    wrong = [
        (bare, {"ip_adapter_image": picture(0)}, "No IP-Adapter is loaded"),
        (ours, {"ip_adapter_image": [picture(0), picture(1)]}, "2 pictures for 3 frames"),
        (ours, {"ip_adapter_image_embeds": [drawn(3, 1, D_IMAGE, seed=1)]}, "has 3 rows"),
        (ours, {"ip_adapter_image_embeds": ["a"]}, "no tensor rows"),
        (ours, {"ip_adapter_image": 7}, "is a int"),
    ]  # fmt: skip
    for pipe, given, message in wrong:
        with pytest.raises(InputError, match=message):
            pipe(None, "a blue square", latents=z, **CALL, **given)

    # Files. What was there stays.
    (tmp_path / "ip.bin").write_bytes(b"abc")
    save_file({"image_proj.proj.weight": drawn(4, 5, seed=1)}, tmp_path / "half.safetensors")
    loaded = dict(bare.unet.attn_processors)
    for name, more, message in [
        ("ip.bin", {}, "is a pickle"), ("no.safetensors", {}, "holds no no.safetensors"),
        ("half.safetensors", {"image_encoder_folder": None}, "cannot be loaded"),
        ("half.safetensors", {}, "image encoder 'image_encoder' of the IP-Adapter is not in"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message) as caught:
            bare.load_ip_adapter(tmp_path, weight_name=name, **more)
        assert "\n" not in str(caught.value)
        assert bare.unet.attn_processors == loaded and bare.image_encoder is None
        assert bare.unet.encoder_hid_proj is None
