"""Every notebook is tested; the quickstart runs from its parameters alone, and its claim holds."""

import atexit
import json
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import psutil
import pytest
import torch
from jupyter_client import AsyncKernelManager
from tiny_models import tiny_checkpoint

from vala_research import InputError, read_clip, write_clip
from vala_research.evaluation.figures import COLUMN, PAGE, is_laid_out, save_figure
from vala_research.evaluation.metrics import psnr
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.batches.redraw import figure_of, records
from vala_research.experiments.quickstart import SCENE, Settings, claims, figure, table
from vala_research.sprites.render import render

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


KERNEL = AsyncKernelManager(kernel_name="python3")  # one per worker: it imports torch once


def run(name: str, folder: Path, **parameters) -> float:
    """Processor seconds of the kernel, whatever else the machine does; its cells raise here."""
    before = kernel_seconds()
    papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb", folder / "run.ipynb", parameters, cwd=NOTEBOOKS,
        progress_bar=False, kernel_name="python3", km=KERNEL,
    )  # fmt: skip
    seconds = kernel_seconds() - before
    check_outputs(folder / "run.ipynb")
    if "output" in parameters:
        check_redrawn(Path(parameters["output"]), folder / "redrawn.png")
    client = KERNEL.blocking_client()
    client.start_channels()
    client.execute_interactive("%reset -f")  # the next notebook knows nothing of this one
    client.stop_channels()
    return seconds


def check_outputs(path: Path) -> None:
    """Each published figure is displayed as a png; no library warns of what is not used."""
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    shown = sum("image/png" in output.get("data", {}) for output in outputs)
    published = sum(cell.source.count("publish(") for cell in cells)
    assert shown >= published, f"{path}: {published} figures, {shown} of them displayed"
    bare = [o for o in outputs if "<Figure size" in o.get("data", {}).get("text/plain", "")]
    assert all("image/png" in o.data for o in bare), f"{path}: a figure is printed as text"
    red = "".join(o.text for o in outputs if o.get("name") == "stderr")
    assert "torchvision" not in red and "[transformers]" not in red, f"{path}: {red}"


def check_redrawn(output: Path, target: Path) -> None:
    """Each figure that is drawn from rows is drawn from its csv again, bit by bit."""
    for path, record in records(output):
        if "drawing" in record:
            figure = figure_of(path, record)
            is_placed = not is_laid_out(figure)
            save_figure(figure, target)
            assert target.read_bytes() == path.with_suffix(".png").read_bytes(), path
            if is_placed:
                continue
            assert figure.get_size_inches()[0] in (COLUMN, PAGE), path
            if path.with_name(f"{path.stem}_claims.csv").exists():
                assert figure.get_suptitle().replace("\n", " ") == record["title"] != "", path


def kernel_seconds() -> float:
    """Processor seconds that the kernel has used, its processes included."""
    if not KERNEL.has_kernel:
        atexit.register(lambda: psutil.Process(KERNEL.provisioner.pid).kill())
        return 0.0
    times = psutil.Process(KERNEL.provisioner.pid).cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def test_quickstart_on_the_miniature(tmp_path, miniature):
    """The notebook itself asserts the claim, on the demo clip against its true edit."""
    out = tmp_path / "out"
    seconds = run("00_quickstart", tmp_path, steps=10, n_frames=4, output=str(out))
    assert seconds < 240  # 20 on an idle machine
    assert len(read_clip(out / "edited.mp4").frames) == 4
    record = json.loads((out / "quickstart.json").read_text())
    assert record["parameters"]["steps"] == 10 and record["model"]["name"] == "miniature"


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
        "edited.mp4", "quickstart.pdf", "quickstart.png", "quickstart.csv", "quickstart.tex",
        "quickstart.json", "quickstart_claims.csv",
    }  # fmt: skip


def test_every_notebook_has_a_test():
    tests = "".join(p.read_text() for p in Path(__file__).parent.rglob("test_notebook*.py"))
    missing = [p.stem for p in NOTEBOOKS.glob("*.ipynb") if f'"{p.stem}' not in tests]
    assert not missing, f"run them by papermill: {missing}"


def planted(gain: float | None, kept: float = 8.0) -> pd.DataFrame:
    """The quickstart's table; gain: of the edit on the source, in dB (None: no true edit)."""
    rows = [{"frames": "edit", "reference": "source", "PSNR": kept}]
    if gain is not None:
        for frames, value in (("source", 8.0), ("edit", 8.0 + gain)):
            rows.append({"frames": frames, "reference": "true edit", "PSNR": value})
    return pd.DataFrame(rows)


def test_the_quickstart_claim_can_fail():
    """An edit that is the source, or worse, is refused; so is one that changes nothing."""
    assert_claims(claims(planted(20.0)))
    assert_claims(claims(planted(None)))
    for wrong in (planted(0.0), planted(-3.0), planted(None, kept=60.0)):
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(claims(wrong))


def test_the_quickstart_table_measures_the_edit():
    """An edit that is the true edit; the source under any other prompt has no true edit."""
    settings = Settings.preset("smoke")
    source = render(SCENE, 16, 64).frames[:4]
    truth = settings.truth(source)
    to = table(source, truth, truth).set_index(["frames", "reference"]).PSNR
    assert to["edit", "true edit"] > 60 > to["source", "true edit"]
    assert to["edit", "source"] == pytest.approx(psnr(truth, source), abs=1e-3)
    assert Settings.preset("smoke", prompt="a red star").truth(source) is None


@pytest.mark.parametrize("where", ["prompt", "source_prompt", "negative_prompt"])
def test_a_prompt_of_invalid_bytes_is_one_sentence(tiny, video, where):
    """A shell hands on such bytes as lone surrogates."""
    prompts = {"prompt": "a star", where: "a \udcff star"}
    with pytest.raises(InputError, match="is not UTF-8 text"):
        tiny(video, num_inference_steps=1, attention="own", **prompts)


def test_the_quickstart_takes_a_clip_of_one_frame():
    """It has no flow; all else is measured, drawn and claimed."""
    settings = Settings.preset("smoke", n_frames=1)
    source = render(SCENE, 16, 64).frames[:1]
    truth = settings.truth(source)
    for known in (truth, None):
        rows = table(source, truth, known)
        assert rows["E_warp x 1000"].isna().all() and rows.PSNR.notna().all()
        assert figure(settings, source, truth, known)._repr_png_().startswith(b"\x89PNG")
        assert_claims(claims(rows))
