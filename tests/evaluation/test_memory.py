"""Live bytes are counted exactly; an edit's growth is linear in the frames, whatever it attends."""

import os
import signal

import pytest
import torch

from vala_research import InputError
from vala_research.evaluation import memory
from vala_research.evaluation.memory import (
    MEBIBYTE,
    LiveTensors,
    edit_memory,
    in_fresh_process,
    measured_edit,
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


@pytest.mark.parametrize("attention, granularity", [("anchors", "token"), ("extended", "site")])
def test_live_memory_is_linear_in_the_frames(tiny, attention, granularity):
    """What anchors add a frame is K floats a site, on latents and on both layers' grids, and their
    summaries; attending to all frames adds nothing."""
    growth = {}
    for name in ("own", attention):
        rows = [measured_edit(tiny, n, name, granularity, 32, 1, 2) for n in (4, 6, 8)]
        first, second = slopes(rows, "live")
        assert first > 0 and second == pytest.approx(first, rel=0.02)
        growth[name] = second
    anchors = 4 * 8 * (16 * 16 + 8 * 8 + 4 * 4 + 4) / MEBIBYTE if attention == "anchors" else 0
    assert growth[attention] - growth["own"] == pytest.approx(anchors, abs=1e-4)


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


def killed(_settings):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_an_input_error(monkeypatch):
    monkeypatch.setattr(memory, "_measured", killed)
    with pytest.raises(InputError, match="edit of 4 frames failed"):
        edit_memory([4])
