"""The blind study: pairs, page, answers, preferences; no model, about 8 s."""

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from vala_research import InputError, write_clip
from vala_research.cli.app import app
from vala_research.evaluation.study import answers, preferences
from vala_research.evaluation.study.page import write_study
from vala_research.evaluation.study.panel import Session, study_panel
from vala_research.evaluation.study.trials import (
    IDENTICAL,
    PAIR,
    QUESTIONS,
    REPEAT,
    Study,
    draw_study,
    read_pairs,
)

HEADER = "prompt,a,video_a,b,video_b,source,group\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three clips of one size, and a csv of five pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    for i, name in enumerate(("source", "plain", "ours")):
        generator = torch.Generator().manual_seed(i)
        write_clip(folder / f"{name}.mp4", torch.rand(3, 3, 32, 32, generator=generator), 8.0)
    line = '"a <b>star</b> </script> {},",plain,plain.mp4,ours,ours.mp4,source.mp4,{}\n'
    lines = [line.format(i, "host" if i < 3 else "") for i in range(5)]
    (folder / "pairs.csv").write_text(HEADER + "".join(lines))
    return folder


@pytest.fixture(scope="module")
def study(folder) -> Study:
    return draw_study(read_pairs(folder / "pairs.csv"), checks=0.4, seed=1)


def test_trials_hold_pairs_and_checks_and_orders_hold_all_trials(study):
    kinds = [trial.kind for trial in study.trials]
    assert [kinds.count(k) for k in (PAIR, IDENTICAL, REPEAT)] == [5, 2, 2]
    assert len(set(study.orders)) > 40
    sides = np.array([dict(order)[0] for order in study.orders])
    assert 0.25 < sides.mean() < 0.75  # of the first pair
    for order in study.orders:
        assert sorted(i for i, _ in order) == list(range(9))
        for i, trial in enumerate(study.trials):
            if trial.kind == REPEAT:  # the other side
                assert trial.first == study.trials[trial.pair].first
                assert dict(order)[i] != dict(order)[trial.pair]


def test_the_same_seed_draws_the_same_study(folder, study):
    pairs = read_pairs(folder / "pairs.csv")
    assert draw_study(pairs, 0.4, 1) == study != draw_study(pairs, 0.4, 2)
    assert [t.kind for t in draw_study(pairs, 0).trials] == [PAIR] * 5
    with pytest.raises(InputError, match="checks is 1.5"):
        draw_study(pairs, 1.5)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("prompt,a,b\nx,y,z\n", "no column video_a, video_b"),
        (HEADER, "lists no pair"),
        (HEADER + "p,plain,plain.mp4,ours,,,\n", "line 2 lacks its video_b"),
        (HEADER + "p,plain,plain.mp4,ours,gone.mp4,,\n", "gone.mp4, which is not there"),
        (HEADER + "p,plain,plain.mp4,ours,short,,\n", "3 frames of 32x32 with 2 of 32x32"),
        (HEADER + "p,plain,plain.mp4,plain,ours.mp4,,\n", "compares plain with itself"),
    ],
)
def test_bad_pairs_are_one_sentence(folder, lines, message):
    if not (folder / "short").exists():
        write_clip(folder / "short", torch.rand(2, 3, 32, 32), 8.0)
    (folder / "bad.csv").write_text(lines)
    with pytest.raises(InputError, match=message):
        read_pairs(folder / "bad.csv")


@pytest.fixture(scope="module")
def page(study, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    path, key = write_study(study, folder)
    assert Study.load(folder) == study and key.name == "study.json"
    return path.read_text()


def test_the_page_needs_no_network_and_names_nobody(page):
    assert not re.search(r"(src|href)=.http|https?://|@import|url\(", page)
    for name in ("plain", "ours", ".mp4"):
        assert name not in page.replace("video/mp4", "")
    assert page.count("</script>") == 1 and page.count("data:video/mp4;base64,") == 3


def in_node(page: str, code: str) -> dict:
    """What the page's functions give, where there is a node to run them."""
    if shutil.which("node") is None:
        pytest.skip("no node")
    script = page.partition("<script>")[2].rpartition("</script>")[0]
    done = subprocess.run(
        ["node", "-e", f"{script}\n;{code}"], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_page_asks_in_the_order_that_the_analysis_knows(page, study):
    """Also a name of other letters. What it saves is read; an unfinished rater goes on."""
    code = """
    let state = blank(STUDY, "Jos\u00e9 \u96ea");
    const n = STUDY.orders[0].length, open = [firstOpen(STUDY, state)];
    for (let place = 0; place < n; place++) {
      for (const q of Object.keys(STUDY.questions)) answer(STUDY, state, place, q, "left", 0.5);
      if (place === 2) open.push(firstOpen(STUDY, state));
    }
    open.push(firstOpen(STUDY, state));
    console.log(JSON.stringify({state, open, n}));
    """
    found = in_node(page, code)
    assert found["open"] == [0, 3, found["n"]] and found["n"] == len(study.trials)
    assert found["state"]["order"] == study.order_of("José 雪")
    rows = pd.DataFrame(answers.answer_rows(found["state"], study))
    assert len(rows) == len(study.trials) * len(QUESTIONS) and (rows.side == "left").all()
    assert (rows.seconds == 2.0).all()


def answered(study: Study, rater: str, prefers: str, careless: bool = False) -> dict:
    """A rater who always prefers one editor; a careless one always answers left."""
    number, given = study.order_of(rater), {}
    for i, swapped in study.orders[number]:
        trial = study.trials[i]
        is_first = (study.pairs[trial.pair].a if trial.first == "a" else
                    study.pairs[trial.pair].b) == prefers  # fmt: skip
        side = "left" if careless or is_first != swapped else "right"
        if trial.kind == IDENTICAL and not careless:
            side = "same"
        given[str(i)] = {"swapped": swapped, "choices": dict.fromkeys(QUESTIONS, side)}
    return {"study": study.name, "rater": rater, "order": number, "answers": given}


@pytest.fixture
def given(study, tmp_path):
    """Seven raters prefer ours, two plain, one does not look."""
    files = {f"r{i}": answered(study, f"r{i}", "ours" if i < 7 else "plain") for i in range(9)}
    files["left"] = answered(study, "left", "ours", careless=True)
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_preferences_are_found_and_careless_raters_left_out(study, given):
    rows = answers.read_answers(given, study)
    checks = answers.failed_checks(rows).set_index("rater")
    assert checks.loc["left", "share"] == 1 and checks.share.drop("left").max() == 0
    assert checks.loc["left", "changed"] == 2 and checks.changed.drop("left").max() == 0
    left, excluded = answers.kept(rows)
    assert excluded == ["left"] and set(left.kind) == {PAIR}
    table = preferences.shares(left).set_index(["group", "question"])
    assert list(table.loc["host"].index) == list(QUESTIONS)
    line = table.loc[("host", "overall")]
    assert (line.n, line.raters, line.share) == (27, 9, pytest.approx(7 / 9))
    assert line.low < 7 / 9 < line.high and line.p == pytest.approx(0.0059, abs=1e-4)
    assert line.by_rater == pytest.approx(5 / 9) and line.by_rater_p > 0.05  # nine raters
    found = preferences.strengths(left).set_index("editor")
    odds = found.strength["ours"] - found.strength["plain"]
    assert odds == pytest.approx(np.log((35 + 0.5) / (10 + 0.5)), abs=1e-6)
    assert found.low["ours"] <= found.strength["ours"] <= found.high["ours"]
    # By hand: 14 of 72 ordered couples differ in each of 5 pairs; 35 and 10 answers in all.
    assert preferences.agreement(left) == pytest.approx(1 - 5 * 9 * 28 / 72 * 44 / (45**2 - 1325))
    assert preferences.agreement(left[left.rater.isin([f"r{i}" for i in range(7)])]) == 1
    assert preferences.raters_needed(left, 0.5) > preferences.raters_needed(left, 1.0)
    assert len(preferences.figure(preferences.shares(left)).axes) == 2


def test_three_editors_have_their_order():
    """Strengths of a known ratio are found from exact counts; who never met is no game."""
    wins = np.array([[0, 30, 40], [10, 0, 20], [5, 10, 0]], float)
    met = ~np.eye(3, dtype=bool)
    found = preferences.fitted(wins, met)
    assert found[0] > found[1] > found[2] and found.sum() == pytest.approx(0)
    chances = 1 / (1 + np.exp(found[None] - found[:, None]))
    expected = ((wins + wins.T + met) * chances * met).sum(1)
    assert expected == pytest.approx((wins + 0.5 * met).sum(1), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x | {"study": "other"}, "answers another study"),
        (lambda x: x | {"rater": "r1"}, "both of r1"),
        (lambda x: {"rater": "r0"}, "no answers of a rater"),
        (lambda x: x | {"answers": {"99": x["answers"]["0"]}}, "does not fit the study"),
        (lambda x: x | {"order": (x["order"] + 1) % 48}, "shown in another order|does not fit"),
        (lambda x: x | {"answers": {"0": x["answers"]["0"] | {"choices": {"text": "up"}}}},
         "text is answered by up"),
    ],
)  # fmt: skip
def test_bad_answers_are_one_sentence(study, given, change, message):
    path = given / "r0.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=message):
        answers.read_answers(given, study)


def test_a_folder_without_answers_or_careful_raters(study, tmp_path):
    with pytest.raises(InputError, match="holds no answers"):
        answers.read_answers(tmp_path, study)
    (tmp_path / "x.json").write_text(json.dumps(answered(study, "x", "ours", careless=True)))
    with pytest.raises(InputError, match="All 1 raters failed"):
        answers.kept(answers.read_answers(tmp_path, study))


def test_the_panel_saves_every_answer_and_goes_on(study, tmp_path):
    """Clicks, as a rater makes them; the answers are those of the page."""
    box = study_panel(study, tmp_path, "Ann")
    bar, _, clips, *lines, buttons = box.children
    back, ahead = buttons.children
    assert bar.value == 0 and ahead.disabled and all(len(clip.value) for clip in clips.children)
    for line in lines:
        line.children[1].value = "right"
    assert not ahead.disabled
    ahead.click()
    lines[0].children[1].value = "same"
    session = Session(study, tmp_path, "Ann")  # another day
    assert session.place == 1 and session.open_question(1) == "quality"
    while session.place < len(session.order):
        for question in QUESTIONS:
            session.answer(question, "same")
        session.place += 1
    rows = answers.read_answers(tmp_path, study)
    assert len(rows) == len(study.trials) * len(QUESTIONS)
    assert "Thank you" in study_panel(study, tmp_path, "Ann").children[1].value
    with pytest.raises(InputError, match="no name"):
        Session(study, tmp_path, " ")
    with pytest.raises(InputError, match="another study"):
        Session(draw_study(study.pairs, 0.0, 5), tmp_path, "Ann")


def test_the_clips_of_a_screen_are_on_their_sides(study, tmp_path):
    session = Session(study, tmp_path, "Bob")
    for place, (number, swapped) in enumerate(session.order):
        session.place, trial = place, study.trials[number]
        left, right = (path.rpartition("/")[2] for path in session.clips())
        assert (left == right) == (trial.kind == IDENTICAL)
        first = "plain.mp4" if trial.first == "a" else "ours.mp4"
        if trial.kind != IDENTICAL:
            assert (right if swapped else left) == first


def test_the_command_line(folder, given, study, tmp_path):
    runner, out = CliRunner(), tmp_path / "study"
    made = runner.invoke(app, ["study", "make", str(folder / "pairs.csv"), "-o", str(out),
                               "--checks", "0.4", "--seed", "1"])  # fmt: skip
    assert made.exit_code == 0 and "9 screens" in made.output
    assert Study.load(out) == study
    done = runner.invoke(app, ["study", "analyse", str(given), "--study", str(out),
                               "-o", str(tmp_path / "results")])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "9 raters, 1 left out" in done.output
    written = {path.name for path in (tmp_path / "results").iterdir()}
    kinds = ("pdf", "png", "csv", "tex", "json")
    assert written == {"strengths.csv", *(f"preferences.{kind}" for kind in kinds)}
    refused = runner.invoke(app, ["study", "analyse", str(given), "--study", str(tmp_path), "-o",
                                  str(tmp_path / "x")])  # fmt: skip
    assert refused.exit_code == 2 and "no study.json" in refused.output
