"""Ablations of an adapter: variants, their training, and what they bring, paired by clip."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_checkpoint

from vala_research.adapter.loss import LossSettings
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.training import TrainingSettings
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.benchmark import edited_frames, run_edits
from vala_research.evaluation.cases import Material, edit_cases
from vala_research.evaluation.comparison_tables import per_clip
from vala_research.experiments.ge import (
    activation_range,
    adapter_gains,
    paper_tables,
    prompt_tokens,
)
from vala_research.experiments.ge.adapter_variants import (
    ADAPTERS,
    Variant,
    perceptual_measure,
    train_variants,
)
from vala_research.sprites.render import render
from vala_research.sprites.scene import WORLD, random_scene

TRAINING = TrainingSettings(
    max_steps=1, accumulation=1, warmup_steps=1, learning_rate=1e-2,
    loss=LossSettings(temporal_from=0.0),
)  # fmt: skip
LORA = AdapterSettings(n_shared=0, uses_frame_tokens=False, interval=(0.0, 1.0), scale=1.0)
BASE = Variant(LORA, TRAINING)
LORA_NAME = "trained 0.5-1"


class Clips(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        frames = render(random_scene(torch.Generator().manual_seed(i)), 3, 32).frames
        return {"frames": frames, "caption": "a shape"}


def test_variants_differ_in_what_their_names_say():
    variants = prompt_tokens.token_variants(BASE, (2, 18))
    tokens = {n: (v.adapter.n_shared, v.adapter.uses_frame_tokens) for n, v in variants.items()}
    assert tokens == {
        "no tokens": (0, False), "shared removed": (0, True), "shared alone": (18, False),
        "unshared enhanced": (18, True), "2 shared": (2, True), "18 shared": (18, True),
    }  # fmt: skip
    unpooled, pooled = variants["unshared enhanced"].adapter, variants["18 shared"].adapter
    assert unpooled.pooling == "none" != pooled.pooling
    ranges = activation_range.range_variants(BASE, (0.5, 0.9))
    assert [v.training.loss.temporal_from for v in ranges.values()] == [0.5, 0.9]
    assert all(v.training == TRAINING and v.adapter.rank == LORA.rank for v in variants.values())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny model, and two adapters trained for one step on it."""
    folder = tmp_path_factory.mktemp("study")
    model = str(tiny_checkpoint(folder / "model"))
    variants = {
        LORA_NAME: BASE,
        "shared": Variant(AdapterSettings(n_shared=2, uses_frame_tokens=False), TRAINING),
    }
    folders = train_variants(model, variants, Clips(), folder / ADAPTERS)
    return model, folders, variants


def test_training_again_leaves_what_is_trained(trained):
    model, folders, variants = trained
    files = [Path(folder) / "pytorch_lora_weights.safetensors" for folder in folders.values()]
    before = [load_file(file) for file in files]
    root = Path(folders[LORA_NAME]).parent
    assert train_variants(model, variants, Clips(), root) == folders
    for old, file in zip(before, files, strict=True):
        now = load_file(file)
        assert any(x.any() for n, x in now.items() if "lora_B" in n)  # trained at all
        assert all(torch.equal(now[n], old[n]) for n in old)


def test_rows_are_those_of_the_adapter_named(trained):
    """With scale 0 an adapter changes nothing; at its own it does; afterwards none is loaded."""
    model, folders, _ = trained
    pipe = quiet_pipeline(model)
    asked = adapter_gains.Settings(hosts="own", adapter=folders[LORA_NAME], steps=2, guidance=1.0)
    settings = adapter_gains.edit_settings(asked)
    off = adapter_gains.edit_settings(replace(asked, scale=0.0))["own, with"]
    cases = edit_cases(WORLD, "test", 1, ["colour"])
    rows = pd.DataFrame(run_edits(pipe, cases, settings | {"off": off}, 3, 32))
    psnr = rows.set_index("setting").psnr
    assert psnr["off"] == psnr["own, without"] != psnr["own, with"]
    assert pipe.adapter is None


def test_a_longer_stretch_moves_an_edit_further(trained):
    model, folders, _ = trained
    asked = activation_range.Settings(acting=(0.0, 0.5), trained=(0.5,), steps=4, guidance=1.0)
    settings = activation_range.edit_settings(asked, Path(folders[LORA_NAME]).parents[1])
    (case,) = edit_cases(WORLD, "test", 1, ["colour"])
    pipe = quiet_pipeline(model)
    moved = activation_range.distances(edited_frames(pipe, case, settings, 3, 32))
    assert moved["without"] == 0 < moved[f"{LORA_NAME}, acting 0.5-1"]
    assert moved[f"{LORA_NAME}, acting 0.5-1"] < moved[f"{LORA_NAME}, acting 0-1"]


def test_the_table_of_hosts_against_plain_means():
    ways = [(h, w, i) for h in ("a", "b, c") for w in ("without", "with") for i in range(6)]
    rows = pd.DataFrame(
        [
            {"setting": f"{h}, {w}", "kind": "k", "index": i,
             "psnr": 10 * (h == "a") + i**2 + (w == "with") * (1 + i),
             "warp_error": 1.0 + 0.1 * i + (w == "with") * (-0.5 if h == "a" else 0.1 * i)}
            for h, w, i in ways
        ]
    )  # fmt: skip
    table = adapter_gains.table(rows).set_index(["setting", "metric"])
    assert table.gain["a", "psnr"] == pytest.approx(3.5)
    assert table.gain["a", "warp_error"] == pytest.approx(0.5)
    assert table.gain["b, c", "warp_error"] == pytest.approx(-0.25)
    assert table.gain[adapter_gains.ALL_HOSTS, "warp_error"] == pytest.approx(0.125)
    # An edit that lost its object on one side counts on neither, whatever the other host.
    lost = rows.assign(jitter=4.0 - rows.setting.str.endswith(" with"))
    lost.loc[lost["setting"].eq("a, with") & (lost["index"] < 2), "jitter"] = float("nan")
    lost.loc[lost["setting"].eq("a, without") & (lost["index"] < 2), "jitter"] = 99.0
    jitter = adapter_gains.table(lost).set_index(["setting", "metric"]).xs("jitter", level=1)
    assert jitter.gain[["a", "b, c", adapter_gains.ALL_HOSTS]].tolist() == pytest.approx([1, 1, 1])
    assert jitter.n_gain[["a", "b, c", adapter_gains.ALL_HOSTS]].tolist() == [4, 6, 6]
    baseline = table.loc["without"]
    assert baseline.gain.isna().all()
    assert baseline["mean"]["psnr"] == pytest.approx(
        per_clip(rows, "psnr")[["a, without", "b, c, without"]].mean().mean()
    )


def test_perceptual_columns_name_the_miniature():
    clip = render(random_scene(torch.Generator().manual_seed(0)), 4, 32)
    material = Material(clip.frames, clip.flow, clip.flow_valid)
    same = perceptual_measure(clip.frames, material)
    assert set(same) == {"lpips_miniature", "fid_miniature"}
    assert same["fid_miniature"] == pytest.approx(0, abs=1e-5)
    still = perceptual_measure(clip.frames[:1].expand(4, -1, -1, -1), material)
    assert abs(still["lpips_miniature"]) < 1e-6 < same["lpips_miniature"]
    assert still["fid_miniature"] > 1e-3


def test_the_papers_table_has_both_rows_of_every_host():
    rows = paper_tables.adapter_table()
    assert len(rows) == 8 and set(rows.adapter) == {"with", "without"}
    fid = rows[rows["host of the paper"] == "Vid2Vid"].set_index("adapter").FID
    assert fid["with"] > fid["without"]  # it worsens, by the paper's own table
    filtered = paper_tables.filter_table()
    assert len(filtered) == 8 and set(filtered["nearest here"]) == {"none", "first", "extended"}
