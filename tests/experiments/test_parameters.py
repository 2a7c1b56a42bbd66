"""Papermill knows every parameter; what it or a person writes becomes a value or one sentence.

No network runs: 5 s in all.
"""

import json
import logging
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import papermill
import pytest

from vala_research import InputError
from vala_research.experiments import default_edit, default_search, quickstart
from vala_research.experiments.contract import OF_EVERY_NOTEBOOK
from vala_research.experiments.fldm import explorer, fusion, long_clips, many_sources, schedules
from vala_research.experiments.ge import (
    activation_range,
    adapter_gains,
    bilateral_inversion,
    prompt_tokens,
    temporal_adapter,
)
from vala_research.experiments.parameters import elements, given_names
from vala_research.experiments.theory import gradient_descent
from vala_research.experiments.vala import editing_quality, efficiency, inversion_fidelity

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PUBLISHED = {  # experiments that edit by a published model, and the names of size and guidance
    editing_quality: 512, fusion: 512, schedules: 512, long_clips: 512, many_sources: 512,
    explorer: 512, prompt_tokens: 512, activation_range: 512, adapter_gains: 512,
    bilateral_inversion: 0, inversion_fidelity: 0,  # 0: the model's own size
}  # fmt: skip


def settings_of(notebook: Path) -> type:
    numbered = {"00": quickstart, "01": default_edit, "02": default_search}
    for number, experiment in numbered.items():
        if notebook.stem.startswith(number):
            return experiment.Settings
    _, paper, name = notebook.stem.split("_", 2)
    return import_module(f"vala_research.experiments.{paper}.{name}").Settings


def text_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_papermill_knows_every_parameter(notebook, caplog):
    """Each field of the settings, once; all but the common ones are None: the preset decides."""
    with caplog.at_level(logging.WARNING):
        known = papermill.inspect_notebook(str(notebook))
    assert "Unable to parse" not in caplog.text
    own = {f.name for f in fields(settings_of(notebook))} - {"preset_name"}
    if notebook.stem.startswith("24"):
        own -= {"n_frames"}  # `lengths` says it
    assert set(known) == own | OF_EVERY_NOTEBOOK
    assert {known[name]["default"] for name in own} == {"None"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_and_the_readme_tell_the_same_presets(notebook):
    """No preset `paper` was run but that of 45; README lists whose `sprites` made the numbers."""
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)$", text_of(notebook), re.M))
    assert set(rows) == set(settings_of(notebook).PRESETS)
    number = notebook.stem[:2]
    assert ("not run" in rows["paper"]) == (number != "45")
    for page in ("README.md", "notebooks/README.md"):
        words = " ".join((ROOT / page).read_text().split())
        listed = re.search(r"`sprites` presets of notebooks ([\d, toand]+) made", words)[1]
        ran = set()
        for low, high in re.findall(r"(\d+)(?: to (\d+))?", listed):
            ran |= {f"{i:02}" for i in range(int(low), int(high or low) + 1)}
        assert ("sprites" in rows and "not run" not in rows["sprites"]) == (number in ran), page


def test_half_precision_is_promised_where_it_is_used():
    """Settings whose models load in float32 say so in their notebook."""
    for notebook in NOTEBOOKS:
        name = settings_of(notebook).__module__
        code = Path(import_module(name).__file__).read_text()
        if "quiet_pipeline(settings.model)" in code:
            assert "half precision" not in text_of(notebook), notebook.stem


@pytest.mark.parametrize("experiment", PUBLISHED, ids=lambda m: m.__name__.rpartition(".")[2])
def test_published_models_edit_at_their_size_and_guidance(experiment):
    paper, smoke = (experiment.Settings.preset(name) for name in ("paper", "smoke"))
    assert (paper.size, paper.guidance) == (PUBLISHED[experiment], 7.5) and smoke.guidance == 2


def test_the_quickstart_edits_as_the_model_says():
    for preset in ("smoke", "paper"):
        s = quickstart.Settings.preset(preset)
        assert s.size == 0
        assert {s.attention, s.inversion, s.injection, s.steps, s.guidance} == {None}


@pytest.mark.parametrize(
    "experiment", [editing_quality, fusion, long_clips, many_sources, adapter_gains]
)
def test_the_preset_paper_asks_for_clips(experiment, tmp_path):
    with pytest.raises(InputError, match="'paper' edits clips of your own: give clips, a folder"):
        experiment.run(experiment.Settings.preset("paper"), tmp_path)


@pytest.mark.parametrize("experiment", [prompt_tokens, activation_range])
def test_the_preset_paper_asks_for_clips_before_it_trains(experiment, tmp_path):
    settings = experiment.Settings.preset("paper", data=str(tmp_path))
    with pytest.raises(InputError, match="edits clips of your own"):
        experiment.run(settings, tmp_path)


@pytest.mark.parametrize(
    ("written", "known", "read"),
    [
        ("10,25", (), ["10", "25"]), ("10, 25", (), ["10", "25"]), ("10;25", (), ["10", "25"]),
        (10, (), [10]), ([10, 25], (), [10, 25]), ((), (), []), ("", (), []), (" a ", (), ["a"]),
        ("exact, quick", ("exact, quick", "exact"), ["exact, quick"]),
        ("ddim,exact, quick, exact", ("ddim", "exact", "exact, quick"),
         ["ddim", "exact, quick", "exact"]),
        ("fused, half;fused", (), ["fused, half", "fused"]),
    ],
)  # fmt: skip
def test_a_list_is_a_list_or_a_text_with_commas(written, known, read):
    assert elements(written, known) == read


def test_every_experiment_reads_lists_alike():
    """As papermill gives them, and as text, list and tuple."""
    for steps in ("10,25", [10, 25], (10, 25), "10; 25"):
        assert inversion_fidelity.Settings.preset("smoke", steps=steps).steps == (10, 25)
    assert inversion_fidelity.Settings.preset("smoke", steps=10).steps == (10,)
    ways = inversion_fidelity.Settings.preset("smoke", methods="ddim,exact, quick").methods
    assert ways == ("ddim", "exact, quick")
    assert schedules.Settings.preset("smoke", taus=0.5).taus == (0.5,)
    assert schedules.Settings.preset("smoke", taus="0;0.5").taus == (0.0, 0.5)
    assert fusion.Settings.preset("smoke", shown="fused, half and half;fused").shown == (
        "fused, half and half", "fused",
    )  # fmt: skip
    assert gradient_descent.Settings.preset("smoke", steps="1,1.9").steps == (1.0, 1.9)
    shown = {"policies_shown": "own, VALA {n} site anchors", "n_anchors": 3}
    named = editing_quality.edit_settings(editing_quality.Settings.preset("smoke", **shown))
    assert list(named) == ["own", "VALA 3 site anchors"]


def test_values_typed_by_papermill_become_the_fields_types():
    """`-p prompt 2024` arrives as int, `-p steps 4.0` as float, `-p is_fresh true` as text."""
    settings = quickstart.Settings.preset("smoke", prompt=2024, steps=4.0, guidance=3, clip=7)
    assert (settings.prompt, settings.steps, settings.clip) == ("2024", 4, "7")
    assert isinstance(settings.steps, int) and isinstance(settings.guidance, float)
    assert quickstart.Settings.preset("smoke", prompt=1.5, seed="3").seed == 3
    assert efficiency.Settings.preset("smoke", is_fresh="true").is_fresh is True
    assert efficiency.Settings.preset("smoke", is_fresh="False").is_fresh is False
    assert adapter_gains.Settings.preset("smoke", scale=None).scale is None
    assert adapter_gains.Settings.preset("smoke", scale=1).scale == 1.0


@pytest.mark.parametrize(
    ("experiment", "given", "sentence"),
    [
        (quickstart, {"attention": "owns"}, "Unknown attention 'owns': choose one of own, first"),
        (quickstart, {"inversion": "exakt"}, "Unknown inversion 'exakt': choose one of ddim"),
        (quickstart, {"steps": "ten"}, "steps is 'ten': give a whole number"),
        (quickstart, {"steps": 2.5}, "steps is '2.5': give a whole number"),
        (quickstart, {"n_frames": True}, "n_frames is 'True': give a whole number"),
        (quickstart, {"guidance": "nan"}, "guidance is 'nan': give a number"),
        (quickstart, {"prompt": ["a"]}, "prompt is .*: give a text"),
        (quickstart, {"prompt": "a \udcff star"}, "prompt is .*not UTF-8 text"),
        (efficiency, {"is_fresh": "maybe"}, "is_fresh is 'maybe': give True or False"),
        (efficiency, {"memory_policies": "owned"}, "Unknown memory_policies 'owned'"),
        (schedules, {"taus": "0,x"}, "taus is 'x': give a number"),
        (schedules, {"schedules": "constant,fast"}, "Unknown schedules 'fast'"),
        (schedules, {"kinds": "hue"}, "Unknown kinds 'hue': choose one of"),
        (explorer, {"kind": "hue"}, "Unknown kind 'hue'"),
        (many_sources, {"rules": "fair"}, "Unknown rules 'fair'"),
        (many_sources, {"numbers": [2, 9]}, "Unknown numbers 9"),
        (adapter_gains, {"hosts": "own,token_flow_"}, "Unknown hosts 'token_flow_'"),
        (bilateral_inversion, {"hosts": ["mine"]}, "Unknown hosts 'mine'"),
        (temporal_adapter, {"attention": "mine"}, "Unknown attention 'mine'"),
        (inversion_fidelity, {"methods": "guess"}, "Unknown methods 'guess': choose one of ddim"),
    ],
)  # fmt: skip
def test_wrong_values_are_one_sentence(experiment, given, sentence):
    with pytest.raises(InputError, match=sentence):
        experiment.Settings.preset("smoke", **given)


@pytest.mark.parametrize(
    ("experiment", "given", "sentence"),
    [
        (editing_quality, {"policies_shown": "owns"}, "Unknown policy 'owns'"),
        (fusion, {"shown": "fused;fusion"}, "Unknown setting 'fusion': choose one of image only"),
        (prompt_tokens, {"configurations": "3 shared"}, "Unknown configuration '3 shared'"),
    ],
)
def test_unknown_names_stop_before_a_model_loads(experiment, given, sentence, tmp_path):
    settings = experiment.Settings.preset("smoke", model="nowhere", **given)
    with pytest.raises(InputError, match=sentence):
        experiment.run(settings, tmp_path)


OWN = 'preset = "smoke"  # "smoke": here\nsteps = None\noutput = "o"'


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([OWN], ["preset", "steps", "output"]),
        ([OWN, '# Parameters\nstesp = 3\n'], ["preset", "steps", "output", "stesp"]),
        (["# Parameters\nold = 1", OWN, "rows = 1", "%pip x"], ["preset", "steps", "output"]),
    ],
)
def test_the_parameter_cells_tell_what_was_given(cells, names):
    """Cells of a notebook before, in the same kernel, and variables of the reader do not count."""
    kernel = {"In": ["", *cells, "settings = 1"], "mine": 3, "claims": []}
    assert given_names(kernel) == names


def test_a_misspelt_parameter_is_refused():
    given = {"preset": "smoke", "steps": None, "output": "o"}
    cells = ["", OWN, "# Parameters\nstesp = 3\n"]
    assert quickstart.Settings.from_notebook(given | {"In": cells[:2], "x": 1}).n_frames == 16
    for wrong in ({"In": cells, "stesp": 3}, {"stesp": 3}):
        with pytest.raises(InputError, match="Unknown parameter 'stesp': choose one of attention"):
            quickstart.Settings.from_notebook(given | wrong)
    with pytest.raises(InputError, match="Unknown preset 'smok': choose one of smoke, paper"):
        quickstart.Settings.from_notebook(given | {"preset": "smok"})
