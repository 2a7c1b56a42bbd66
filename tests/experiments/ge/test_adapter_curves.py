"""Curves of an adapter: right numbers on known features, and the recipe that makes them."""

import json
from dataclasses import replace

import pytest
import torch

from vala_research.adapter.loss import LossSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.adapter.validation import losses_of_checkpoints
from vala_research.evaluation.cases import EditCase, Material, edit_cases
from vala_research.experiments.ge.temporal_adapter import similarity_of_steps, training_curve
from vala_research.methods.temporal import frame_similarity
from vala_research.miniature.adapter import (
    ADAPTER,
    PAPER_TRAINING,
    TRAINING,
    SpriteEdits,
    SpriteGroups,
    build_adapter,
)
from vala_research.sprites.reader import read_attributes
from vala_research.sprites.render import render
from vala_research.sprites.scene import WORLD


def test_similarity_of_steps_is_that_of_the_latents(pipe):
    """The last step's latents are the edit's own; every step has its row."""
    cases = edit_cases(WORLD, "validation", 1, ["colour"])
    edit = dict(num_inference_steps=3, attention="own")
    rows = similarity_of_steps(pipe, cases, 2, 64, **edit)
    assert [r["step"] for r in rows] == [0, 1, 2] and rows[0]["t"] > rows[2]["t"]
    frames = cases[0].material(2, 64).frames
    prompts = cases[0].prompt, cases[0].source_prompt
    z = pipe(frames, *prompts, output_type="latent", **edit).frames[0]
    assert rows[-1]["latents"] == pytest.approx(frame_similarity(z).item(), abs=1e-6)
    assert all(0 < r["features"] < 1 for r in rows)
    still = similarity_of_steps(pipe, [Still(**vars(cases[0]))], 2, 64, **edit)
    assert all(r["features"] == pytest.approx(1, abs=1e-5) for r in still)


class Still(EditCase):
    """A case whose frames are all the first one."""

    def material(self, n_frames: int, size: int) -> Material:
        found = super().material(n_frames, size)
        return replace(found, frames=found.frames[:1].repeat(n_frames, 1, 1, 1))


def test_the_recipe_runs_and_its_curves_start_at_the_bare_model(tmp_path, checkpoint):
    """Step 0 has the LoRA off, so it does not depend on what was trained; step 2 does."""
    begun = replace(TRAINING, max_steps=2, checkpoint_every=2, learning_rate=1e-2)
    few = dict(n_held_out=2, n_clips=2, model=str(checkpoint))
    rows = build_adapter(tmp_path / "a", begun, **few)
    assert [r["step"] for r in rows] == [0, 2]
    assert rows[0]["similarity"] != rows[1]["similarity"]
    other = build_adapter(tmp_path / "b", replace(begun, seed=1), **few)
    assert other[0] == rows[0] and other[1] != rows[1]
    assert training_curve(tmp_path / "a").step.tolist() == [0, 2]
    (tmp_path / "a" / "curves.csv").unlink()
    assert training_curve(tmp_path / "a").step.tolist() == [1, 2]  # the log's


def test_the_papers_recipe_sees_clips_as_they_are(tmp_path, checkpoint):
    begun = replace(PAPER_TRAINING, max_steps=1, checkpoint_every=1)
    rows = build_adapter(tmp_path, begun, n_held_out=1, model=str(checkpoint), as_paper=True)
    assert [r["step"] for r in rows] == [0, 1]
    assert json.loads((tmp_path / "adapter.json").read_text())["settings"]["interval"] == [0.5, 1.0]


def test_checkpoints_of_an_untrained_adapter_are_the_bare_model(pipe, tmp_path):
    adapter = TemporalAdapter.attach(pipe.unet, ADAPTER)
    adapter.save_pretrained(tmp_path / "step-000001")
    adapter.detach()
    dataset = SpriteGroups("validation", 3, n=1)
    first, second = losses_of_checkpoints(pipe, tmp_path, dataset, 1, LossSettings())
    names = ("diffusion", "temporal", "similarity")
    assert [first[k] for k in names] == pytest.approx([second[k] for k in names], rel=1e-5)


def test_sprite_groups_are_scenes_of_their_split():
    a, b = SpriteGroups("train", 3, n=2), SpriteGroups("validation", 3, n=2)
    assert a[0]["frames"].shape == (3, 3, 64, 64) and len(a) == 2
    assert torch.equal(a[1]["frames"], a[1]["frames"])
    assert not torch.equal(a[0]["frames"], b[0]["frames"])
    with pytest.raises(IndexError):
        a[2]


def test_sprite_edits_show_the_true_edit_and_bring_the_noise_of_their_clip(pipe):
    """The caption says what is seen; some samples are the clip itself, most are not."""
    edits = SpriteEdits(pipe, "validation", n_clips=2, n_frames=3, n=24, steps=2)
    frames = [render(scene, 3, 64).frames for scene in edits.sources]
    again = pipe.invert(frames[1], edits.sources[1].caption, 2, "ddim", "sparse_causal")
    assert torch.equal(edits[1]["noise"], again) and edits[3]["noise"] is edits[1]["noise"]
    kept = []
    for i, sample in enumerate(edits[i] for i in range(24)):
        seen = read_attributes(sample["frames"])[0]
        assert seen["colour"] in sample["caption"] and seen["shape"] in sample["caption"]
        kept.append(torch.equal(sample["frames"], frames[i % 2]))
        assert kept[-1] == (sample["caption"] == edits.sources[i % 2].caption)
    assert 0 < sum(kept) < 12
    with pytest.raises(IndexError):
        edits[24]
