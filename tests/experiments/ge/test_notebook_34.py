"""The notebook of attention maps runs from its parameters alone, and its assertions hold."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_notebooks import run as run_notebook

from vala_research import miniature_path
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.ge import attention_maps


def run(folder: Path, **parameters) -> dict[str, dict]:
    """What the notebook recorded of its two figures."""
    out = folder / "out"
    run_notebook("34_ge_attention_maps", folder, output=str(out), **parameters)
    names = ("ge_attention_maps", "ge_feature_maps")
    more = {"rows.csv", "ge_attention_maps_claims.csv", "ge_feature_maps_rows.csv"}
    kinds = ("pdf", "png", "csv", "tex", "json")
    assert {p.name for p in out.iterdir()} == more | {f"{n}.{k}" for n in names for k in kinds}
    return {n: json.loads((out / f"{n}.json").read_text()) for n in names}


@pytest.fixture(scope="module")
def adapter(pipe, tmp_path_factory) -> str:
    """Folder of an untrained adapter of the miniature that does something."""
    folder = tmp_path_factory.mktemp("models") / "adapter"
    generator = torch.Generator().manual_seed(0)
    settings = AdapterSettings(n_shared=2)
    made = TemporalAdapter.attach(pipe.unet, settings, 128, generator, "miniature")
    for name, p in made.lora_parameters():
        if ".lora_B." in name:
            p.data.copy_(0.05 * torch.randn(p.shape, generator=generator))
    made.save_pretrained(folder)
    made.detach()
    return str(folder)


def test_maps_with_an_adapter_of_ones_own(tmp_path, miniature, adapter):
    found = run(tmp_path, adapter=adapter, n_clips=2, token_clips=1, token_steps=1)
    record = found["ge_attention_maps"]
    assert record["parameters"]["adapter"] == adapter and record["figure"] == "8, 10"
    assert found["ge_feature_maps"]["figure"] == "3"
    rows = pd.read_csv(tmp_path / "out" / "ge_attention_maps.csv")
    layers = rows[rows.part == "layers"]
    assert len(layers) == 2 * 5 * 2 * 3  # clips, timesteps, without and with, layers
    assert set(layers.adapter) == {"without", "with"}


def test_maps_with_the_miniatures_adapter(tmp_path, miniature):
    if not list(Path(miniature_path("adapter")).glob("*.safetensors")):
        pytest.skip("no weights of the miniature's adapter")
    run(tmp_path, n_clips=2, token_clips=1, token_steps=1)


def planted(on_object=0.3, area=0.13, alike=0.95) -> pd.DataFrame:
    return pd.DataFrame([
        {"part": "layers", "t": t, "adapter": name, "layer": "up 1.0", "third_block": True,
         "cross": alike if name == "with" else 0.9, "self": 0.9, "map": 0.9, "to_adapter": 0.0,
         "on_object": on_object, "area": area, "mirrored": 0.2}
        for t in (1, 541, 981, 932, 941) for name in ("without", "with")
    ])  # fmt: skip


@pytest.mark.parametrize("wrong", [dict(on_object=0.19), dict(area=0.31), dict(alike=0.89)])
def test_its_claims_can_fail(wrong):
    """Neither maps that prefer the turned outline nor features less alike with the adapter pass."""
    settings = attention_maps.Settings()
    assert_claims(attention_maps.claims(planted(), settings))
    with pytest.raises(AssertionError, match="not confirmed"):
        assert_claims(attention_maps.claims(planted(**wrong), settings))


def test_without_a_known_object_nothing_is_claimed_of_it():
    rows = planted(alike=0.89).drop(columns=["on_object", "area", "mirrored"])
    assert not attention_maps.claims(rows, attention_maps.Settings(adapter="mine"))
