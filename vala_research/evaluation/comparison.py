"""Compare editors on the same clips: paired, with intervals, one process per core, resumable.

`benchmark.run_edits` makes the rows. This file collects them and sums them up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from vala_research import InputError
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.benchmark import EditSetting, Measure, run_edits
from vala_research.evaluation.cases import ClipCase, EditCase
from vala_research.evaluation.clip_scores import ClipScorer
from vala_research.evaluation.statistics import paired_gain, summarise
from vala_research.files import check_output, write_json, written_whole


@dataclass(frozen=True)
class Metric:
    """How a metric is called, printed and compared.

    axis: its name on an axis, with the unit of `factor` times the value. sign: 1 when larger is
    better, -1 when smaller is.
    """

    name: str
    axis: str
    factor: float = 1
    sign: int = 1


METRICS = {
    "psnr": Metric("PSNR", "PSNR to the true edit, dB"),
    "success": Metric("success", "attribute success, %", 100),
    "warp_error": Metric("E_warp", "E_warp x 1000", 1000, -1),
    "warp_error_truth": Metric("E_warp", "E_warp x 1000, true edit's flow", 1000, -1),
    "clip_f": Metric("CLIP-F", "CLIP-F"),
    "clip_t": Metric("CLIP-T", "CLIP-T"),
    "inversion_psnr": Metric("reconstruction", "reconstruction, dB"),
    "lpips": Metric("LPIPS", "LPIPS of neighbours", 1, -1),
    "lpips_miniature": Metric("LPIPS (miniature)", "LPIPS (miniature) x 1000", 1000, -1),
    "fid": Metric("FID", "FID to the source", 1, -1),
    "fid_miniature": Metric("FID (miniature)", "FID (miniature) x 1000", 1000, -1),
}


@dataclass(frozen=True)
class Run:
    """What all edits of a comparison share.

    model: "miniature", a folder or a hub id. n_frames, size: of each clip; size is the side in
    pixels. clip_model: folder or hub id of the CLIPModel that scores (None: no CLIP columns).
    dtype: of the networks. n_processes: None is one per core, or one on a GPU.
    """

    model: str | Path = "miniature"
    n_frames: int = 8
    size: int = 64
    clip_model: str | None = None
    dtype: torch.dtype | None = None
    n_processes: int | None = None


def compare(
    cases: Iterable[EditCase | ClipCase],
    settings: dict[str, EditSetting],
    output: str | Path,
    run: Run = Run(),
    measure: Measure | None = None,
) -> pd.DataFrame:
    """Make the rows of `run_edits`, kept in `output` (csv) clip by clip; a cut-off run resumes.

    measure: makes further columns, see `run_edits`. Metrics that the rows lack are left out of
    their tables. Raises InputError when `output` holds rows of other settings under these names.
    """
    output, settings = check_output(output, makes_parents=True), dict(settings)
    described = {
        name: f"{run.model} {run.n_frames} x {run.size} px {s!r}" for name, s in settings.items()
    }
    rows = _known_rows(output, described)
    done = {(r["setting"], r["kind"], r["index"]) for r in rows}
    clips: dict[int, list] = {}
    for case in cases:
        clips.setdefault(case.index, []).append(case)
    jobs = []
    for clip in clips.values():
        names = [n for n in settings if any((n, c.kind, c.index) not in done for c in clip)]
        if names:
            asked = {name: settings[name] for name in names}
            jobs.append((clip, asked, run.n_frames, run.size, measure))
            rows = [r for r in rows if r["index"] != clip[0].index or r["setting"] not in names]
    loading = (str(run.model), run.clip_model, run.dtype)
    for part in _on_every_core(jobs, loading, run.n_processes):
        rows += part
        _keep(output, rows, described)
    names, kinds = (
        list(settings),
        list(dict.fromkeys(c.kind for clip in clips.values() for c in clip)),
    )
    wanted = [r for r in rows if r["index"] in clips and r["kind"] in kinds]
    wanted.sort(key=lambda r: (names.index(r["setting"]), kinds.index(r["kind"]), r["index"]))
    return pd.DataFrame(wanted)


def _known_rows(output: Path, described: dict[str, str]) -> list[dict]:
    """Rows of an earlier run of the same settings."""
    if not output.exists():
        return []
    made = json.loads(output.with_suffix(".settings.json").read_text())
    if differing := [n for n in described if made.get(n, described[n]) != described[n]]:
        raise InputError(
            f"{output} holds rows of other settings named {', '.join(differing)}: choose another "
            "output, or delete it."
        )
    return [r for r in pd.read_csv(output).to_dict("records") if r["setting"] in described]


def _keep(output: Path, rows: list[dict], described: dict[str, str]) -> None:
    write_json(output.with_suffix(".settings.json"), described, indent=1)
    with written_whole(output) as unfinished:
        pd.DataFrame(rows).to_csv(unfinished, index=False)


def _on_every_core(jobs: list[tuple], arguments: tuple, n_processes: int | None):
    """Yield the rows of each job as it is finished; in this process if one process is asked for."""
    n_processes = n_processes or (1 if torch.cuda.is_available() else os.cpu_count())
    bar = tqdm(total=len(jobs), desc="clips", disable=None)
    if min(n_processes, len(jobs)) <= 1:
        loaded = _loaded(*arguments) if jobs else None
        for job in jobs:
            yield list(run_edits(loaded[0], *job, clip_scorer=loaded[1]))
            bar.update()
        return
    with ProcessPoolExecutor(n_processes, get_context("spawn"), _load, arguments) as pool:
        for future in as_completed([pool.submit(_edit_clip, *job) for job in jobs]):
            yield future.result()
            bar.update()


def _loaded(model: str, clip_model: str | None, dtype: torch.dtype | None) -> tuple:
    """A pipeline and a CLIP model."""
    pipe = quiet_pipeline(model, dtype)
    return pipe, ClipScorer.from_pretrained(clip_model) if clip_model else None


def _load(*arguments) -> None:
    """The pipeline and the CLIP model of a worker, which has one core to itself."""
    global LOADED
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    LOADED = _loaded(*arguments)


def _edit_clip(*job) -> list[dict]:
    pipe, scorer = LOADED
    return list(run_edits(pipe, *job, clip_scorer=scorer))


def per_clip(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One value per clip (row) and setting (column): the mean over the clip's edits.

    The edits of one clip are not independent. So intervals count clips.
    """
    order = list(dict.fromkeys(rows.setting))
    return rows.pivot_table(metric, "index", "setting")[order]


def comparison_table(
    rows: pd.DataFrame, baseline: str, metrics: Iterable[str] = tuple(METRICS)
) -> pd.DataFrame:
    """One row per setting and metric: mean, 95% interval, paired gain on the baseline, p-value.

    gain: positive is better, whatever the metric's direction. Its interval and its p-value (two
    sided, not corrected for the number of comparisons) are of the difference on the same clips.
    """
    table = []
    for metric in (m for m in metrics if m in rows):
        values = per_clip(rows, metric)
        if baseline not in values:
            raise InputError(f"No rows of {baseline!r}: choose one of {', '.join(values)}.")
        for name in values:
            s = summarise(values[name].to_numpy())
            line = {"setting": name, "metric": metric, "mean": s.mean, "low": s.low,
                    "high": s.high, "n": s.n}  # fmt: skip
            if name != baseline:
                sign = METRICS[metric].sign if metric in METRICS else 1
                g = paired_gain(*(sign * values[x].to_numpy() for x in (name, baseline)))
                line |= {"gain": g.mean, "gain_low": g.low, "gain_high": g.high, "p": g.p_value}
            table.append(line)
    return pd.DataFrame(table)
