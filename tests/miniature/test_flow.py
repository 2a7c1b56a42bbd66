"""The miniature's flow model: its recipe, and what the committed weights can do. Costs 15 s."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from transformers import CLIPTokenizer

from vala_research import InputError, VideoEditPipeline, miniature_path
from vala_research.cli.loading import model_side
from vala_research.diffusion.difference import DifferenceEdit
from vala_research.miniature import abilities, flow
from vala_research.miniature.batches import Captions
from vala_research.miniature.configuration import FLOW, build_transformer, training_scene
from vala_research.miniature.training import Stage
from vala_research.sprites import scene

# The recipe.


class Same(torch.nn.Module):
    """A network that returns what it is given, in the call of a transformer or of a UNet."""

    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(float(value)))

    def forward(self, x, t, text, return_dict=False):
        return (self.value * torch.ones_like(x),)


def loss_of(unet=None, transformer=None) -> flow.FlowLoss:
    class Words(torch.nn.Module):
        config = type("Config", (), {"eos_token_id": 1})

        def forward(self, ids):
            shape = (*ids.shape, 8)
            return type("Output", (), {"last_hidden_state": torch.ones(shape)})

    return flow.FlowLoss(transformer or Same(0.0), unet or Same(0.0), Words())


def test_the_loss_is_that_of_the_velocity():
    """|v - (n - z_0)|^2, without the teacher and without emphasis at the end."""
    z, noise = torch.randn(2, 2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    s, ids = torch.tensor([0.2, 0.9]), torch.zeros(2, 5, dtype=torch.long)
    mask = torch.zeros(2, 3, 1, 8, 8)
    found = loss_of(transformer=Same(0.5))(z, noise, s, ids, mask, 1.0)
    assert torch.allclose(found["loss"], (0.5 - (noise - z)).square().mean())


def test_the_teacher_s_velocity_is_that_of_its_noise():
    """A UNet that knows the noise knows the velocity n - z_0, at any level."""
    z, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = loss_of()

    class Knowing(torch.nn.Module):
        def forward(self, z_t, t, text):
            return type("Output", (), {"sample": noise})

    for timestep in (50, 500, 900):
        ab = float(loss.ab[timestep])
        s = torch.tensor([(1 - ab) ** 0.5 / (ab**0.5 + (1 - ab) ** 0.5)])
        z_s = (1 - s) * z + s * noise
        found = loss.taught(Knowing(), z_s, s, torch.zeros(1, 5, 8))
        assert torch.allclose(found, noise - z, atol=2e-3 / ab**0.5)


def test_text_behind_its_end_is_zero():
    text, ids = torch.ones(2, 5, 3), torch.tensor([[0, 7, 1, 1, 1], [0, 1, 1, 1, 1]])
    read = flow.read_text(text, ids, end=1)
    assert read[..., 0].tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


def test_batches_are_frames_first_and_clips_later():
    n, side = 6, 4
    pool = {"latents": torch.arange(n * 16.0).view(n, 16, 1, 1, 1).expand(-1, -1, 4, side, side),
            "mask": torch.zeros(n, 16, 1, side, side)}  # fmt: skip
    tokenizer = CLIPTokenizer.from_pretrained(miniature_path(), subfolder="tokenizer")
    captions = Captions(tokenizer, [training_scene(i) for i in range(n)])
    sample, generator = flow.sampler(pool, captions), torch.Generator().manual_seed(0)
    z, noise, s, ids, mask = sample(32, generator, 0.0)
    assert z.shape == noise.shape == (16, 1, 4, side, side) and len(s) == len(ids) == 16
    assert 0 < s.min() < 0.35 and 0.75 < s.max() < 1 and mask.shape == (16, 1, 1, side, side)
    lengths = set()
    for _ in range(20):
        z, *_ = sample(32, generator, 0.9)
        lengths.add(z.shape[1])
        steps = z[:, :, 0, 0, 0].diff(dim=1)
        if z.shape[1] > 1:  # frames of one clip, in order or backwards, perhaps every second one
            assert steps.abs().unique().tolist() in ([1.0], [2.0]) and len(steps.unique()) == 1
    assert lengths == {1, 8, 16}


def test_an_untrained_transformer_predicts_nothing_and_its_tokens_hold_the_latent():
    model = build_transformer()
    z = torch.randn(1, 4, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(z, torch.tensor([500.0]), torch.zeros(1, 3, 128)).sample.abs().max() == 0
        tokens = model.patch_embedding(z)
    assert torch.equal(tokens[:, :16], -tokens[:, 16:32]) and tokens.mean().abs() < 1e-6
    assert tokens[:, 32:].abs().eq(1).all()
    assert sum(p.numel() for p in model.parameters()) == 3_920_464


def test_a_short_training_resumes_and_exports(tmp_path, ticking):
    ticking(0.5)  # seconds a step
    stage = Stage("flow", 1.0, batch=16, lr=1e-3, weight_decay=0.0)
    flow.build(tmp_path / "run", 2 / 60, 3, stage=stage)
    flow.build(tmp_path / "run", 4 / 60, 3, stage=stage)
    flow.export(tmp_path / "run", tmp_path / "out")
    again = WanTransformer3DModel.from_pretrained(tmp_path / "out" / "transformer")
    assert again.config.num_layers == FLOW["num_layers"]
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]


# The committed weights.


@pytest.fixture(scope="module")
def pipe():
    pipe = VideoEditPipeline.from_pretrained("miniature_flow")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_plain_diffusers_loads_the_transformer(pipe):
    folder = Path(miniature_path("flow"))
    plain = WanTransformer3DModel.from_pretrained(folder / "transformer").float()
    z = torch.randn(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    text, t = pipe.encode_prompt(["a red circle on a blue background"]), torch.tensor([700.0])
    with torch.no_grad():
        assert torch.equal(plain(z, t, text).sample, pipe.transformer(z, t, text).sample)
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size < 2**23


def test_it_shares_the_miniature_s_latents_and_words(pipe):
    mini = VideoEditPipeline.from_pretrained("miniature", motion_adapter=None, adapter=None)
    frames = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pipe.encode(frames), mini.encode(frames))
    prompt = "a red circle on a blue background"
    ours, theirs = (p.encode_prompt([prompt])[0] for p in (pipe, mini))
    n = int(ours.abs().sum(-1).gt(0).sum())
    assert torch.equal(ours[:n], theirs[:n]) and n < len(ours)
    with pytest.raises(InputError, match="made for a UNet"):
        pipe.load_controlnet("miniature")


def test_an_edit_of_few_words_moves_the_clip_itself(pipe):
    """FlowEdit is its default; its inversion is plain; the command line knows its size."""
    frames = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert pipe.edit_defaults.inversion == DifferenceEdit(1.0, source_guidance=1.0)
    assert model_side(pipe) == 64
    words = "a blue star on a plain red background", "a red star on a plain red background"
    found = pipe(frames, *words, num_inference_steps=2, output_type="pt",
                 generator=torch.Generator().manual_seed(0)).frames[0]  # fmt: skip
    assert found.shape == frames.shape
    assert torch.equal(pipe.invert(frames, words[1], 2), pipe.invert(frames, words[1], 2, "ddim"))


def test_it_draws_what_prompts_say(pipe):
    asked = dict(steps=8, guidance=4.0, split="validation")
    found = abilities.prompt_accuracy(pipe, scene.WORLD, 24, **asked)
    assert found["all"] >= 0.75  # more at 25 steps, see its README


def test_it_inverts_exactly(pipe):
    rows = abilities.reconstruction_quality(pipe, scene.WORLD, 1, 2, (6,), "extended")
    found = {row["inversion"]: row["to_vae"] for row in rows}
    assert found["exact"] > 60 and found["exact"] > found["ddim"] + 15
