"""A run resumes from its rows, finds no stale one and loses none. No network runs: 2 s in all."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from vala_research import InputError, write_clip
from vala_research.evaluation import comparison, provenance
from vala_research.evaluation.cases import edit_cases, folder_cases
from vala_research.evaluation.comparison import Run, compare
from vala_research.evaluation.edit_settings import EditSetting, row_order
from vala_research.evaluation.kept_rows import KeptRows, described, key_of
from vala_research.sprites.scene import WORLD

OWN, FIRST, EXTENDED = (EditSetting(name) for name in ("own", "first", "extended"))
ALL = {"own": OWN, "first": FIRST, "extended": EXTENDED}
RUN = Run(clip_model="", n_processes=1)


def column(frames, material) -> dict[str, float]:
    return {"more": 1.0}


def other_column(frames, material) -> dict[str, float]:
    return {"other": 1.0}


@pytest.fixture
def edited(monkeypatch) -> list:
    """What is edited, (setting, kind, clip), by an editor that makes up its rows."""
    done: list = []

    def run_edits(_pipe, cases, settings, n_frames, size, measure, clip_scorer=None):
        for i, name in row_order(len(cases), settings):
            done.append((name, cases[i].kind, cases[i].index))
            yield {"setting": name, "kind": cases[i].kind, "index": cases[i].index,
                   "psnr": len(done) / 3}  # fmt: skip

    monkeypatch.setattr(comparison, "run_edits", run_edits)
    monkeypatch.setattr(comparison, "_loaded", lambda *_: (None, None))
    return done


def cases(n: int, *kinds: str) -> list:
    return edit_cases(WORLD, "validation", n, kinds or ("colour",))


def test_no_row_is_lost_to_other_settings_clips_or_kinds(edited, tmp_path):
    """Three settings on two clips, then one on three, then another kind: all rows stay."""
    out = tmp_path / "rows.csv"
    before = compare(cases(2), ALL, out, RUN)
    more = compare(cases(3), {"own": OWN}, out, RUN)
    assert len(edited) == 7 and set(more.setting) == {"own"} and len(more) == 3
    assert set(compare(cases(3, "shape"), {"own": OWN}, out, RUN).kind) == {"shape"}
    assert len(edited) == 10 == len(pd.read_csv(out))
    pd.testing.assert_frame_equal(compare(cases(2), ALL, out, RUN), before)
    assert len(edited) == 10


def test_two_runs_at_once_lose_nothing(edited, tmp_path, monkeypatch):
    """Another run writes to the same file while this one edits."""
    out, run_edits = tmp_path / "rows.csv", comparison.run_edits

    def meanwhile(*args, **kwargs):
        monkeypatch.setattr(comparison, "run_edits", run_edits)
        compare(cases(2), {"first": FIRST}, out, RUN)
        yield from run_edits(*args, **kwargs)

    monkeypatch.setattr(comparison, "run_edits", meanwhile)
    compare(cases(2), {"own": OWN}, out, RUN)
    assert sorted(pd.read_csv(out).setting) == ["first", "first", "own", "own"]


def test_many_writers_add_under_a_lock(tmp_path):
    def add(i: int) -> None:
        KeptRows(tmp_path / "rows.csv").add({f"{i}": {"x": i}, "shared": {"x": -1}})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    rows = KeptRows(tmp_path / "rows.csv").read()
    assert rows.pop("shared") == {"x": -1} and {k: v["x"] for k, v in rows.items()} == {
        f"{i}": i for i in range(24)
    }


def test_a_killed_run_goes_on(edited, tmp_path, monkeypatch):
    """What was edited before the end is not edited again, even within one clip."""
    out, run_edits = tmp_path / "rows.csv", comparison.run_edits

    def killed(*args, **kwargs):
        for i, row in enumerate(run_edits(*args, **kwargs)):
            if i == 2:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(comparison, "run_edits", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(cases(1), ALL, out, RUN)
    monkeypatch.setattr(comparison, "run_edits", run_edits)
    rows = compare(cases(1), ALL, out, RUN)
    assert list(rows.setting) == [*ALL] and edited[-1] == ("extended", "colour", 0)
    assert len(edited) == 4  # the third was cut off and is made again


@pytest.mark.parametrize(
    "change",
    [
        {"n_frames": 9}, {"size": 32}, {"dtype": torch.float16}, {"clip_model": "miniature"},
        {"model": "another/model"}, {"setting": replace(OWN, num_inference_steps=7)},
        {"setting": replace(OWN, adapter="miniature")}, {"measure": other_column},
        {"measure": partial(column, lpips_weights="a/b")}, {"version": "9.9"}, {"case": 1},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_whatever_changes_makes_another_row(edited, tmp_path, monkeypatch, change):
    """The old row is kept and not shown; with the old value it is found again."""
    out, change = tmp_path / "rows.csv", dict(change)
    monkeypatch.setattr(provenance, "_commit", lambda name: name)  # asks no hub
    (one, two), setting = cases(2), {"own": OWN}
    compare([one], setting, out, RUN, column)
    if "version" in change:
        monkeypatch.setattr("vala_research.__version__", change.pop("version"))
    case = [two if change.pop("case", 0) else one]
    changed, measure = {"own": change.pop("setting", OWN)}, change.pop("measure", column)
    rows = compare(case, changed, out, replace(RUN, **change), measure)
    assert len(edited) == 2 == len(pd.read_csv(out)) and rows.psnr.tolist() == [2 / 3]


def test_the_number_of_processes_changes_no_row(edited, tmp_path):
    for n in (1, None):
        compare(cases(1), {"own": OWN}, tmp_path / "rows.csv", replace(RUN, n_processes=n))
    assert len(edited) == 1


def test_prompts_and_contents_of_a_clip_belong_to_a_row(edited, tmp_path):
    """A changed prompt, a second edit of one kind, and another clip under the same name."""
    clip, out = tmp_path / "mine.mp4", tmp_path / "rows.csv"
    write_clip(clip, torch.zeros(2, 3, 16, 16), 8.0)

    def rows_of(*prompts: str) -> pd.DataFrame:
        lines = ["clip,source_prompt,prompt", *(f"mine.mp4,a,{prompt}" for prompt in prompts)]
        (tmp_path / "edits.csv").write_text("\n".join(lines) + "\n")
        return compare(folder_cases(tmp_path), {"own": OWN}, out, RUN)

    first = rows_of("a star").psnr.tolist()
    assert rows_of("a ring").psnr.tolist() != first == rows_of("a star").psnr.tolist()
    assert len(rows_of("a star", "a ring")) == 2 and len(edited) == 2
    write_clip(clip, torch.ones(2, 3, 16, 16), 8.0)
    assert rows_of("a star").psnr.tolist() == [1.0] and len(edited) == 3


def test_other_weights_under_the_same_name_are_another_network(edited, tmp_path):
    model, out = tmp_path / "model", tmp_path / "rows.csv"
    model.mkdir()
    for weights in (b"old", b"new", b"new"):
        (model / "weights").write_bytes(weights)
        for setting in (OWN, replace(OWN, adapter=str(model))):
            compare(cases(1), {"own": setting}, out, replace(RUN, model="miniature"))
        compare(cases(1), {"own": OWN}, out, replace(RUN, model=str(model)))
    assert len(edited) == 1 + 2 + 2


def test_a_row_comes_back_as_it_was_made(tmp_path):
    """Text that looks like a number, numpy's floats, NaN, and columns that a row lacks."""
    row = {"setting": "1", "kind": "nan", "index": 3, "x": np.float64(0.1) + 0.2, "y": float("nan")}
    kept = KeptRows(tmp_path / "rows.csv")
    kept.add({"a": row})
    kept.add({"b": {"setting": "b", "z": True, "host": "a, \"b\""}, "a": {"x": 0}})
    rows = kept.read()
    assert rows["b"] == {"setting": "b", "z": True, "host": "a, \"b\""}
    assert rows["a"].pop("y") != row.pop("y") and rows["a"] == row


def test_rows_of_an_earlier_version_are_kept_and_not_used(edited, tmp_path):
    out = tmp_path / "rows.csv"
    out.write_text("setting,kind,index,psnr\nown,colour,0,99\n")
    out.with_suffix(".settings.json").write_text("{}")
    assert compare(cases(1), {"own": OWN}, out, RUN).psnr.tolist() == [1 / 3]
    assert pd.read_csv(out).psnr.tolist() == [99, 1 / 3]
    out.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="holds no rows"):
        compare(cases(1), {"own": OWN}, out, RUN)


def test_a_description_holds_values_and_no_addresses():
    def closed(x: float):
        return lambda frames, material: {"x": x}

    assert described(closed(1.0)) == described(closed(1.0)) != described(closed(2.0))
    assert key_of(a=cases(1)) == key_of(a=cases(1)) != key_of(a=cases(1, "shape"))
    assert "0x" not in str(described([OWN, cases(1), torch.float16, partial(column, a=1)]))
