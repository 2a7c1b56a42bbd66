"""Compare editors on the same clips: paired, with intervals, one process per core, resumable.

`benchmark.run_edits` makes the rows, this file collects them, `comparison_tables` sums them up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.benchmark import Measure, run_edits
from vala_research.evaluation.cases import ClipCase, EditCase
from vala_research.evaluation.clip_scores import ClipScorer
from vala_research.evaluation.edit_settings import EditSetting, row_order
from vala_research.evaluation.kept_rows import KeptRows, key_of
from vala_research.evaluation.provenance import revision


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

    A row is found again only if all that it depends on is the same (`row_keys`). `output` keeps all
    rows that were ever made; those of these cases and settings are returned.
    measure: makes further columns, see `run_edits`. Metrics that the rows lack are left out of
    their tables.
    """
    kept, cases, settings = KeptRows(output), list(cases), dict(settings)
    keys = row_keys(cases, settings, run, measure)
    known = kept.read()

    # One job per clip and set of missing settings: the edits of a job share their inversions.
    jobs: dict[tuple, list[int]] = {}
    for i, case in enumerate(cases):
        names = tuple(name for name in settings if keys[i, name] not in known)
        if names:
            jobs.setdefault((case.index, names), []).append(i)
    asked = [
        ([cases[i] for i in places], {name: settings[name] for name in names},
         run.n_frames, run.size, measure)
        for (_, names), places in jobs.items()
    ]  # fmt: skip
    order = [
        [keys[places[k], name] for k, name in row_order(len(places), job[1])]
        for places, job in zip(jobs.values(), asked, strict=True)
    ]
    loading = (str(run.model), run.clip_model, run.dtype)
    for number, first, rows in _on_every_core(asked, loading, run.n_processes):
        made = order[number][first : first + len(rows)]
        kept.add(dict(zip(made, rows, strict=True)))

    # In the order of settings, kinds and clips.
    known, kinds = kept.read(), list(dict.fromkeys(case.kind for case in cases))
    places = sorted(range(len(cases)), key=lambda i: (kinds.index(cases[i].kind), cases[i].index))
    return pd.DataFrame([known[keys[i, name]] for name in settings for i in places])


def row_keys(
    cases: Sequence[EditCase | ClipCase],
    settings: dict[str, EditSetting],
    run: Run = Run(),
    measure: Measure | None = None,
) -> dict[tuple[int, str], str]:
    """The key of every row, by number of the case and name of the setting.

    A row depends on: case (its prompts and its clip's contents), setting (with the contents of
    adapter and motion modules), contents or commit of model and CLIP model, frames, size, dtype,
    measure, and the package's code.
    """
    networks = cache(revision)
    shared = key_of(
        model=networks(str(run.model)), clip_model=networks(run.clip_model or ""),
        n_frames=run.n_frames, size=run.size, dtype=str(run.dtype or torch.float32),
        measure=measure,
    )  # fmt: skip
    of_cases = [key_of(case=case) for case in cases]
    of_settings = {name: key_of(name=name, s=s.identity(networks)) for name, s in settings.items()}
    return {
        (i, name): key_of(parts=(shared, case, setting))
        for i, case in enumerate(of_cases)
        for name, setting in of_settings.items()
    }


def _on_every_core(jobs: list[tuple], arguments: tuple, n_processes: int | None):
    """Yield number of the job, number of the first row, and rows, as they are made.

    In this process if one process is asked for; then row by row.
    """
    n_processes = n_processes or (1 if torch.cuda.is_available() else os.cpu_count())
    bar = tqdm(total=len(jobs), desc="clips", disable=None)
    if min(n_processes, len(jobs)) <= 1:
        loaded = _loaded(*arguments) if jobs else None
        for number, job in enumerate(jobs):
            rows = run_edits(loaded[0], *job, clip_scorer=loaded[1])
            yield from ((number, first, [row]) for first, row in enumerate(rows))
            bar.update()
        return
    with ProcessPoolExecutor(n_processes, get_context("spawn"), _load, arguments) as pool:
        numbers = {pool.submit(_edit_clip, *job): number for number, job in enumerate(jobs)}
        for future in as_completed(numbers):
            yield numbers[future], 0, future.result()
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
