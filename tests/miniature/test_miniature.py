"""The recipe resumes and folds exactly; the committed checkpoint is what its card says."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from vala_research import InputError, VideoEditPipeline, miniature_path
from vala_research.evaluation import benchmark, metrics
from vala_research.evaluation.cases import edit_cases
from vala_research.evaluation.clip_scores import ClipScorer
from vala_research.evaluation.edit_rows import ATTRIBUTES, edit_row
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.miniature import abilities, batches, card, configuration
from vala_research.miniature.feeding import Batches
from vala_research.miniature.training import Stage, train
from vala_research.sprites import edits, scene
from vala_research.sprites.captions import WORDINGS, vocabulary
from vala_research.sprites.render import render
from vala_research.sprites.scene import random_scene, split_generator

# The recipe.


class Line(nn.Module):
    """y = w x, fitted to y = 3 x."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)

    def forward(self, x, progress=1.0):
        return {"loss": (self.model(x) - 3 * x).square().mean()}


def draw(batch, generator, progress):
    return (torch.randn(batch, 1, generator=generator),)


def test_workers_make_different_batches_and_know_the_progress():
    def sample(size, generator, progress):
        return torch.rand(size, generator=generator), torch.tensor(progress)

    feed = Batches(sample, 3)
    made = feed.on(torch.device("cpu"), seed=1, n_workers=2)
    first = [next(made) for _ in range(4)]
    assert len({tuple(x.tolist()) for x, _ in first}) == 4
    assert all(len(x) == 3 and progress == 0 for x, progress in first)
    feed.progress.fill_(0.5)
    assert any(progress == 0.5 for _, (_, progress) in zip(range(20), made, strict=False))
    made.close()


def test_training_learns_logs_and_resumes(tmp_path, ticking):
    ticking(0.005)  # seconds a step
    stage, accelerator = Stage("line", 1.0, 8, 0.05, ema=0.9), Accelerator(cpu=True)
    model = Line()
    ema = train(stage, model, draw, tmp_path, 1 / 60, accelerator)
    assert ema["model.weight"].item() == pytest.approx(3, abs=0.2)
    saved = load_file(tmp_path / "line.safetensors")
    assert saved["adam.0.step"] == 200 and saved["adam.0.exp_avg_sq"] > 0
    steps = [int(r["step"]) for r in csv.DictReader((tmp_path / "line.csv").open())]
    # A finished stage is not trained again: the same EMA comes back, and no update is made.
    again = Line()
    assert torch.equal(train(stage, again, draw, tmp_path, 1 / 60, accelerator)["model.weight"],
                       ema["model.weight"])  # fmt: skip
    assert torch.equal(again.model.weight, saved["live.model.weight"])
    # More minutes go on from where it stopped.
    train(stage, again, draw, tmp_path, 1.5 / 60, accelerator)
    later = [int(r["step"]) for r in csv.DictReader((tmp_path / "line.csv").open())]
    assert steps == [200] and later == [200, 300]
    assert not list(tmp_path.glob("*.tmp"))
    assert {f.name for f in tmp_path.iterdir()} == {"line.csv", "line.safetensors"}


def test_whitening_changes_the_latents_and_not_the_pictures():
    torch.manual_seed(0)
    vae = configuration.build_vae().double().eval()
    nn.init.normal_(vae.quant_conv.weight)
    x = torch.rand(8, 3, 32, 32, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        before = vae.encode(x).latent_dist.mode()
        picture = vae.decode(before).sample
        sites = before.permute(0, 2, 3, 1).flatten(0, 2)
        moments = {"mean": sites.mean(0), "covariance": sites.T.cov()}
        assert not torch.allclose(moments["covariance"], torch.eye(4).double(), atol=0.1)
        batches.fold_whitening(vae, moments)
        after = vae.encode(x).latent_dist.mode()
        sites = after.permute(0, 2, 3, 1).flatten(0, 2)
        # fp64, an ill-conditioned covariance: far above rounding, far below any visible change.
        torch.testing.assert_close(sites.T.cov(), torch.eye(4).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(sites.mean(0), torch.zeros(4).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(vae.decode(after).sample, picture, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_denoiser_starts_as_a_copy_that_a_group_norm_does_not_blur():
    torch.manual_seed(0)
    unet, _ = configuration.build_denoiser(configuration.build_tokenizer())
    z, text = torch.randn(8, 4, 16, 16), torch.randn(8, 32, 128)
    assert (unet(z, 900, text).sample - z).square().mean() < 1e-5
    # Without the constants that pin its variance, the last norm rescales every sample by itself.
    for channels in (slice(i, i + 4) for i in range(0, 16, 4)):
        unet.conv_in.bias[channels] = 0.0
        unet.conv_norm_out.weight[channels] = 0.5**0.5
    assert (unet(z, 900, text).sample - z).square().mean() > 1e-3


def test_exported_weights_can_be_trained_on(tmp_path, miniature):
    from vala_research.miniature.__main__ import export, start_from

    start_from(Path(miniature).parent, tmp_path)
    names = {f.name for f in tmp_path.iterdir()}
    assert names == {f"{n}.safetensors" for n in ("vae", "clip", "unet", "whitening")}
    export(tmp_path, tmp_path / "again", tmp_path / "clip")
    for part in ("vae", "unet", "text_encoder"):
        (old,) = (Path(miniature) / part).glob("*.safetensors")
        (new,) = (tmp_path / "again" / part).glob("*.safetensors")
        before, after = load_file(old), load_file(new)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before if "quant_conv" not in k)


def test_every_word_of_the_world_is_one_token_and_captions_are_tokenised_alike():
    tokenizer = configuration.build_tokenizer()
    for word in vocabulary():
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    scenes = [configuration.training_scene(i) for i in range(8)]
    captions = batches.Captions(tokenizer, scenes)
    ids = captions.ids(torch.arange(8), torch.Generator().manual_seed(0))
    for row in ids:
        text = tokenizer.decode(row, skip_special_tokens=True)
        assert tokenizer(text, padding="max_length").input_ids == row.tolist()
    empty = captions.ids(torch.arange(8), torch.Generator().manual_seed(0), dropout=1.0)
    assert (empty == torch.tensor(tokenizer("", padding="max_length").input_ids)).all()
    assert len(WORDINGS[False]) > 1


def test_training_scenes_keep_their_held_out_pairs():
    pairs = {(s.shape, s.colour) for s in map(configuration.training_scene, range(300))}
    assert not pairs & scene.WORLD.held_out
    assert {s for s, _ in pairs} >= set(scene.WORLD.shapes)


def test_edit_cases_change_what_they_name():
    for case in edit_cases(scene.WORLD, "validation", 6):
        a, b = case.source.attributes, case.target.attributes
        assert {k for k in a if a[k] != b[k]} == set(edits.EDITS[case.kind])
        assert case.source.motion == case.target.motion
    with pytest.raises(InputError, match="Unknown edit 'mood'"):
        edit_cases(scene.WORLD, "test", 1, ["mood"])


# The committed checkpoint.


def test_plain_diffusers_and_transformers_load_it(miniature):
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

    plain = StableDiffusionPipeline.from_pretrained(miniature_path(), safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    frame = plain(
        "a red circle on a plain blue background", num_inference_steps=5, output_type="np",
        generator=torch.Generator().manual_seed(0), height=64, width=64,
    ).images[0]  # fmt: skip
    assert frame.shape == (64, 64, 3) and frame.std() > 0.05
    clip = CLIPModel.from_pretrained(miniature_path("clip"))
    tokens = clip.vision_model(torch.zeros(1, 3, 56, 56)).last_hidden_state
    assert tokens.shape[1] == 50


def test_it_is_small_safe_and_anonymous(miniature):
    files = [f for part in ("pipeline", "clip") for f in Path(miniature_path(part)).rglob("*.*")]
    weights = [f for f in files if f.suffix == ".safetensors"]
    assert sum(f.stat().st_size for f in weights) <= 25e6
    assert max(f.stat().st_size for f in weights) <= 16 * 2**20
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".md", ".csv"}
    assert not any("_name_or_path" in f.read_text() for f in files if f.suffix == ".json")
    with pytest.raises(InputError, match="no part 'motor'"):
        miniature_path("motor")


def test_the_card_says_what_was_measured(miniature):
    folder = Path(miniature_path())
    quality = json.loads((folder / "quality.json").read_text())
    text = (folder / "README.md").read_text()
    assert f"{quality['vae']['sprites_psnr']:.1f} dB" in text
    assert {e["kind"] for e in quality["edits"]} == set(edits.EDITS)
    assert card.card_text(quality) == text
    # Where the object is has its columns as soon as that is measured.
    placed = dict(presence=0.9, path_error=1.25, size_error=0.1, jitter=0.5)
    quality["edits"] = [e | placed for e in quality["edits"]]
    lines = card.card_text(quality).splitlines()
    header = next(line for line in lines if "CLIP-F | s |" in line)
    assert header.endswith("| present | path | size | jitter |")
    edited = [line for line in lines if line.endswith("| 0.90 | 1.2 | 0.10 | 0.5 |")]
    assert len(edited) == len(quality["edits"])


def test_the_vae_round_trip_is_above_30_db(pipe):
    world = scene.WORLD
    scenes = [random_scene(split_generator("test", i), world=world) for i in range(16)]
    frames = torch.cat([render(s, 1).frames for s in scenes])
    assert metrics.psnr(pipe.decode(pipe.encode(frames)), frames) >= 30
    # The check can fail: a rotated latent basis is not decoded.
    broken = pipe.decode(pipe.encode(frames).roll(1, dims=1))
    assert metrics.psnr(broken, frames) < 20


def test_exact_inversion_reaches_the_round_trip(pipe):
    """>= 60 dB against the VAE round trip in fp32; plain DDIM with as few steps does not."""
    rows = abilities.reconstruction_quality(pipe, scene.WORLD, 1, n_frames=1, steps=[6])
    by_method = {row["inversion"]: row for row in rows}
    assert by_method["exact"]["to_vae"] >= 60
    assert by_method["ddim"]["to_vae"] < 60


def test_prompts_are_followed(pipe):
    """The card's accuracy holds on other scenes: validation, not test; chance of all four: 1/1280.

    The draw is fixed; at a true rate of .95, 24 prompts would fall below .8 once in 170 draws.
    """
    found = abilities.prompt_accuracy(pipe, scene.WORLD, 24, steps=8, split="validation")
    assert found["all"] >= 0.8
    assert min(found[k] for k in ATTRIBUTES) >= 0.8


EASY = {"colour", "background", "pattern"}


@pytest.fixture(scope="module")
def card_rows(pipe):
    """Three validation clips, each edited in every way with the card's setting.

    Three clips, for a pattern put on a plain ground has a phase of its own, right or wrong. Edits
    that keep the shape need no more than a third of the card's steps.
    """
    rows = []
    for n_steps, kinds in ((8, EASY), (card.SETTING.num_inference_steps, set(edits.EDITS) - EASY)):
        cases = edit_cases(scene.WORLD, "validation", 3, sorted(kinds))
        setting = replace(card.SETTING, num_inference_steps=n_steps)
        rows += benchmark.run_edits(pipe, cases, {"card": setting}, n_frames=2)
    return rows


@pytest.mark.parametrize("kind", edits.EDITS)
def test_every_kind_of_edit_comes_nearer_to_the_true_edit(card_rows, kind):
    """The edited attributes are the target's."""
    rows = [row for row in card_rows if row["kind"] == kind]
    assert len(rows) == 3 and sum(row["gain"] for row in rows) / len(rows) > 0.5
    assert all(row[k] == 1 for row in rows for k in edits.EDITS[kind])


def test_the_default_edit_draws_a_new_object_in_the_place_of_the_old(miniature):
    """Nothing is said but the prompts. A validation clip; the image model alone fails here."""
    case = edit_cases(scene.WORLD, "validation", 3, ["several"])[2]
    material = case.material(8, 64)
    pipe = VideoEditPipeline.from_pretrained("miniature")
    pipe.set_progress_bar_config(disable=True)
    edited = pipe(material.frames, case.prompt, case.source_prompt, output_type="pt").frames[0]
    row = edit_row(edited, case, material)
    assert (row["presence"], row["success"]) == (1, 1) and row["psnr"] > 18
    assert row["path_error"] < 2.5 and row["jitter"] < 1.5


def test_rows_hold_what_the_card_sums_up(pipe):
    cases = edit_cases(scene.WORLD, "test", 1, ["colour"])
    short = {"now": EditSetting(num_inference_steps=5)}
    scorer = ClipScorer.from_pretrained(miniature_path("clip"))
    rows = list(benchmark.run_edits(pipe, cases, short, n_frames=2, clip_scorer=scorer))
    assert rows[0]["gain"] == pytest.approx(rows[0]["psnr"] - rows[0]["source_psnr"])
    assert 0 < rows[0]["clip_f"] <= 100 + 1e-4 and rows[0]["peak_mib"] > 100
    lines = card.summary(pd.DataFrame(rows * 3))
    assert lines[0]["n"] == 3 and lines[0]["kind"] == "colour"
    assert lines[0]["clip_f"] == pytest.approx(rows[0]["clip_f"])


def test_the_pool_holds_the_scenes_asked_for(tmp_path):
    """Any number, also one that is no multiple of what a process renders at a time."""
    pool = batches.frame_pool(tmp_path, 7)
    assert pool["scene"].tolist() == [i for i in range(7) for _ in range(2)]
    assert pool["pixels"].shape == (14, 3, 64, 64) and pool["mask"].shape == (14, 1, 16, 16)
    with pytest.raises(InputError, match="holds 7 scenes"):
        batches.frame_pool(tmp_path, 8)


def test_training_timesteps_cover_all_and_favour_the_middle():
    """12% below t = 150, 66% up to 650, 22% above, and both ends are reached."""
    latents = torch.zeros(4, 4, 16, 16)
    pool = {"mask": torch.zeros(4, 1, 16, 16), "scene": torch.zeros(4, dtype=torch.long)}

    captions = batches.Captions(
        configuration.build_tokenizer(), [configuration.training_scene(0)]
    )
    sample = batches.latent_sampler(latents, pool, captions)
    generator = torch.Generator().manual_seed(0)
    t = torch.cat([sample(8, generator, 0.0)[2] for _ in range(2000)])
    shares = [(t < 150).float().mean(), ((t >= 150) & (t < 650)).float().mean()]
    assert shares[0] == pytest.approx(0.12, abs=0.01) and shares[1] == pytest.approx(0.66, abs=0.01)
    assert t.min() < 5 and 995 <= t.max() <= 999
