"""Live bytes are counted exactly; an edit's growth is linear in the frames, whatever it attends."""

import os

import pytest
import torch
from fresh_processes import killed

from vala_research import InputError
from vala_research.evaluation.memory import (
    MEBIBYTE,
    LiveTensors,
    edit_memory,
    in_fresh_process,
    measured_edit,
    measured_edits,
)
from vala_research.experiments.vala.efficiency import slopes


def test_live_tensors_by_hand():
    given = torch.ones(100)
    with LiveTensors() as live:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1
        assert live.now == 8000
        view = b[10:]
        del b
        assert live.now == 8000  # the view keeps it
        del view, a
        c = given[5:]  # was there before
        d = torch.zeros(10)
    assert (live.now, live.peak) == (40, 8000)
    assert len(c) == 95 and len(d) == 10


def test_a_quadratic_growth_would_be_seen():
    rows = []
    for n in (16, 32, 64):
        with LiveTensors() as live:
            torch.zeros(n, n)
        rows.append({"frames": n, "live": live.peak})
    first, second = slopes(rows, "live")
    assert second > 1.9 * first


def growth(pipe, attention: str, granularity: str) -> float:
    """MiB per frame, the same from 4 to 6 as from 6 to 8 frames."""
    rows = [measured_edit(pipe, n, attention, granularity, 32, 1, 2) for n in (4, 6, 8)]
    first, second = slopes(rows, "live")
    assert first > 0 and second == pytest.approx(first, rel=0.02)
    return second


def test_live_memory_is_linear_in_the_frames(tiny):
    """Anchors add per frame K floats per site, on the grids of latents and of the layers, and
    their summaries; attending to all frames adds nothing."""
    own = growth(tiny, "own", "site")
    anchors = 4 * 8 * (16 * 16 + 8 * 8 + 4) / MEBIBYTE
    assert growth(tiny, "anchors", "token") - own == pytest.approx(anchors, abs=1e-4)
    assert growth(tiny, "extended", "site") - own == pytest.approx(0, abs=1e-4)


def test_a_fresh_process_measures_the_same_tensors(checkpoint):
    settings = dict(
        attention="anchors", model=str(checkpoint), size=32, steps=1, frames_per_chunk=2
    )
    (fresh,) = edit_memory([2], **settings)
    (here,) = edit_memory([2], **settings, is_fresh=False)
    assert fresh["live"] == here["live"] and fresh["attention"] == "anchors site"
    assert fresh["peak"] > fresh["live"] > 0 and fresh["estimate"] > 0


def test_a_fresh_process_gives_back_what_it_frees(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "7")
    found = in_fresh_process(os.getenv, "MALLOC_MMAP_THRESHOLD_")
    assert found == "65536" and os.environ["MALLOC_MMAP_THRESHOLD_"] == "7"
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(ZeroDivisionError):
        in_fresh_process(divmod, 1, 0)


def test_a_killed_process_is_an_input_error():
    with pytest.raises(InputError, match="edit of 4 frames failed"):
        measured_edits(killed, [{"n_frames": 4}])
