"""The page of a blind study: one file with all clips in it, which needs no network."""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path

from vala_research.assets import ASSETS
from vala_research.data.clips import read_clip, write_clip
from vala_research.evaluation.study.trials import ANSWERS, KEY, QUESTIONS, Study
from vala_research.files import check_output, write_text

PAGE = "index.html"
LEAST_SIDE = 256  # pixels; smaller clips are enlarged by a whole number, as browsers would blur


def write_study(study: Study, folder: str | Path) -> tuple[Path, Path]:
    """Write index.html, for the raters, and study.json, which says which clip is whose.

    The page names no editor, and holds no file name. Returns both paths. Raises InputError.
    """
    folder = Path(folder)
    for name in (PAGE, KEY):
        check_output(folder / name, makes_parents=True)
    paths = list(dict.fromkeys(
        video for pair in study.pairs for video in (pair.video_a, pair.video_b, pair.source)
        if video
    ))  # fmt: skip
    videos = ["data:video/mp4;base64," + base64.b64encode(as_mp4(p)).decode() for p in paths]
    place = {path: i for i, path in enumerate(paths)}
    trials = []
    for trial in study.trials:
        pair, (first, second) = study.pairs[trial.pair], study.clips_of(trial)
        trials.append({"prompt": pair.prompt, "first": place[first], "second": place[second],
                       "source": place[pair.source] if pair.source else None})  # fmt: skip
    content = {"name": study.name, "questions": QUESTIONS, "answers": ANSWERS, "videos": videos,
               "trials": trials, "orders": study.orders}  # fmt: skip

    # No prompt can end the script.
    text = json.dumps(content).replace("<", "\\u003c")
    template = (ASSETS / "study.html").read_text(encoding="utf-8")
    page = write_text(folder / PAGE, template.replace("__STUDY__", text))
    return page, study.save(folder)


def as_mp4(video: str) -> bytes:
    """A clip as an mp4 that every browser plays."""
    clip = read_clip(video)
    factor = max(1, -(-LEAST_SIDE // min(clip.frames.shape[-2:])))
    frames = clip.frames.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    with tempfile.TemporaryDirectory() as folder:
        return write_clip(Path(folder) / "clip.mp4", frames, clip.fps).read_bytes()
