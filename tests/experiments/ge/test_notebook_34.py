"""The notebook of attention maps runs from its parameters alone, and its assertions hold."""

import json
from pathlib import Path

import pandas as pd
import papermill
import pytest
import torch

from vala_research import miniature_path
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"


def run(folder: Path, **parameters) -> dict[str, dict]:
    """What the notebook recorded of its two figures."""
    out = folder / "out"
    papermill.execute_notebook(
        NOTEBOOKS / "34_ge_attention_maps.ipynb", folder / "run.ipynb",
        {**parameters, "output": str(out)}, cwd=NOTEBOOKS, progress_bar=False,
        kernel_name="python3",
    )  # fmt: skip
    names = ("ge_attention_maps", "ge_feature_maps")
    assert {p.name for p in out.iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("pdf", "png", "csv", "json")
    }
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
    found = run(tmp_path, adapter=adapter, n_clips=4)
    record = found["ge_attention_maps"]
    assert record["parameters"]["adapter"] == adapter and record["figure"] == "8, 10"
    assert found["ge_feature_maps"]["figure"] == "3"
    rows = pd.read_csv(tmp_path / "out" / "ge_attention_maps.csv")
    layers = rows[rows.panel == "layers"]
    assert len(layers) == 4 * 5 * 2 * 3  # clips, timesteps, without and with, layers
    assert set(layers.adapter) == {"without", "with"}


def test_maps_with_the_miniatures_adapter(tmp_path, miniature):
    if not list(Path(miniature_path("adapter")).glob("*.safetensors")):
        pytest.skip("no weights of the miniature's adapter")
    run(tmp_path)


def test_its_claim_can_fail():
    """Neither maps that prefer the turned outline nor features less alike with the adapter pass."""
    cells = json.loads((NOTEBOOKS / "34_ge_attention_maps.ipynb").read_text())["cells"]
    (claim,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))

    def check(on_object: float, area: float = 0.13, alike: float = 0.95) -> None:
        rows = [
            {"t": t, "adapter": name, "layer": "up 1.0", "cross": alike if name == "with" else 0.9,
             "self": 0.9, "map": 0.9, "to_adapter": 0.0, "on_object": on_object, "area": area,
             "mirrored": 0.2}
            for t in (1, 541, 981, 932, 941) for name in ("without", "with")
        ]  # fmt: skip
        exec(claim, {
            "pd": pd, "rows": rows, "clip": "", "adapter": "", "maps_at": [1, 541, 981],
            "features_at": [932, 941], "third_upsampling_block": lambda unet: ["a"],
            "short_name": lambda name: "up 1.0", "pipe": type("Pipe", (), {"unet": None}),
        })  # fmt: skip

    check(0.3)
    for wrong in (dict(on_object=0.19), dict(on_object=0.3, area=0.31),
                  dict(on_object=0.3, alike=0.89)):  # fmt: skip
        with pytest.raises(AssertionError):
            check(**wrong)
