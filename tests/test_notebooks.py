"""Every notebook runs from its parameters alone, and its own assertions hold."""

import json
import resource
from pathlib import Path
from types import SimpleNamespace

import papermill
import pytest
import torch
from tiny_models import tiny_checkpoint

from vala_research import read_clip, write_clip
from vala_research.evaluation.metrics import psnr

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def run(name: str, folder: Path, **parameters) -> float:
    """Processor seconds of the kernel, whatever else the machine does; its cells raise here."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb", folder / "run.ipynb", parameters, cwd=NOTEBOOKS,
        progress_bar=False, kernel_name="python3",
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_quickstart_on_the_miniature(tmp_path, miniature):
    """The claim itself is asserted inside, on the demo clip against its true edit."""
    out = tmp_path / "out"
    seconds = run("00_quickstart", tmp_path, steps=20, n_frames=8, output=str(out))
    assert seconds < 240  # 40 on an idle machine
    assert len(read_clip(out / "edited.mp4").frames) == 8
    record = json.loads((out / "quickstart.json").read_text())
    assert record["parameters"]["steps"] == 20 and record["model"]["name"] == "miniature"


def test_quickstart_on_any_clip_and_model(tmp_path):
    """A random checkpoint of Stable Diffusion's class and a clip from disk, by parameters alone."""
    model = tiny_checkpoint(tmp_path / "model")
    frames = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    clip = write_clip(tmp_path / "mine.mp4", frames, 8.0)
    out = tmp_path / "out"
    parameters = dict(
        clip=str(clip), source_prompt="a red circle", prompt="a blue circle", model=str(model),
        size=32, steps=2, n_frames=2, attention="sparse_causal", seed=3, output=str(out),
    )  # fmt: skip
    run("00_quickstart", tmp_path, **parameters)
    record = json.loads((out / "quickstart.json").read_text())
    assert record["parameters"]["attention"] == "sparse_causal" and record["seed"] == 3
    assert record["parameters"]["n_frames"] == 2
    assert read_clip(out / "edited.mp4").frames.shape == (2, 3, 32, 32)
    assert {p.name for p in out.iterdir()} == {
        "edited.mp4", "quickstart.pdf", "quickstart.png", "quickstart.csv", "quickstart.json",
    }  # fmt: skip


def test_every_notebook_has_a_test():
    tests = "".join(p.read_text() for p in Path(__file__).parent.rglob("test_notebook*.py"))
    missing = [p.stem for p in NOTEBOOKS.glob("*.ipynb") if f'"{p.stem}' not in tests]
    assert not missing, f"run them by papermill: {missing}"


def test_the_quickstart_claim_can_fail():
    """The notebook's own assertion refuses an edit that is the source, or worse."""
    cells = json.loads((NOTEBOOKS / "00_quickstart.ipynb").read_text())["cells"]
    (claim,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))
    source, truth = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5)
    names = dict(psnr=psnr, is_known=True, truth=truth, source=SimpleNamespace(frames=source))
    exec(claim, names | {"edited": truth * 0.9})
    for wrong in (source, 1 + truth):
        with pytest.raises(AssertionError):
            exec(claim, names | {"edited": wrong})
