"""The quickstart's panel, without a browser: what its controls do; tiny random weights, 15 s."""

from datetime import datetime

import pytest
import torch
from tiny_models import tiny_checkpoint

from vala_research import InputError, VideoEditPipeline, read_clip, write_clip
from vala_research.evaluation.panel import uploaded_file
from vala_research.experiments.edit_panel import DEMO, EditPanel
from vala_research.experiments.quickstart import Settings

pytest.importorskip("ipywidgets")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return VideoEditPipeline.from_pretrained(tiny_checkpoint(tmp_path_factory.mktemp("m") / "m"))


@pytest.fixture
def panel(model, tmp_path) -> EditPanel:
    settings = Settings.preset("smoke", size=32, steps=2, n_frames=3, attention="own")
    return EditPanel(model, settings, tmp_path / "out")


def test_the_button_edits_and_shows_strip_video_and_time(panel):
    shown = []
    panel.said.observe(lambda change: shown.append(change["new"]), names="value")
    panel.buttons["edit"].click()
    assert bytes(panel.picture.value).startswith(b"\x89PNG") and "done in" in panel.said.value
    for words in ("inverting the clip: step 2 of 2", "sampling the edit: step 2 of 2"):
        assert words in shown
    assert panel.video.layout.display is None and not panel.buttons["edit"].disabled
    video = read_clip(panel.output / "side_by_side.mp4").frames
    assert video.shape[0] == 3 and video.shape[-1] == 2 * 256


def test_the_edit_is_that_of_the_pipeline_and_is_kept(panel, model):
    panel.controls["clip"].value = next(iter(panel.cases))
    panel.buttons["edit"].click()
    (edited,) = panel.kept.values()
    case = next(iter(panel.cases.values()))
    own = model(case.material(3, 32).frames, case.prompt, case.source_prompt, attention="own",
                num_inference_steps=2, output_type="pt").frames[0]  # fmt: skip
    assert torch.equal(edited, own)
    panel.buttons["edit"].click()
    assert len(panel.kept) == 1
    panel.controls["host"].value = "rave"
    panel.buttons["edit"].click()
    assert len(panel.kept) == 2, panel.said.value


def test_a_clip_of_the_menu_brings_its_prompts(panel):
    before = panel.controls["prompt"].value
    panel.controls["clip"].value = name = list(panel.cases)[2]
    assert panel.controls["prompt"].value == panel.cases[name].prompt != before
    panel.controls["clip"].value = DEMO
    assert panel.controls["prompt"].value == before


def test_an_upload_and_a_path_are_read(panel, tmp_path):
    clip = write_clip(tmp_path / "mine.mp4", torch.rand(2, 3, 32, 32), 8.0)
    panel.controls["path"].value = str(clip)
    assert len(panel.source()[1]) == 2
    upload = {"name": "../up.mp4", "type": "video/mp4", "size": 1, "content": clip.read_bytes()}
    panel.controls["upload"].set_trait("value", ({**upload, "last_modified": datetime.now()},))
    name, frames, _ = panel.source()
    assert name == str(panel.output / "uploads/up.mp4") and len(frames) == 2


def test_files_of_both_versions_of_the_upload_widget_are_read():
    """Colab has ipywidgets 7, whose value is a dict by name."""
    assert uploaded_file(({"name": "a.gif", "content": memoryview(b"1")},)) == ("a.gif", b"1")
    assert uploaded_file({"a.gif": {"metadata": {}, "content": b"1"}}) == ("a.gif", b"1")


def test_a_notebook_shows_the_widget(panel):
    names = ("_repr_mimebundle_", "_ipython_display_")  # of ipywidgets 8 and of 7
    shown = [name for name in names if hasattr(panel.widget, name)]
    assert shown
    assert [name for name in names if hasattr(panel, name)] == shown
    for name in shown:
        assert getattr(panel, name).__self__ is panel.widget


def test_an_error_is_one_sentence_and_takes_the_old_picture_away(panel):
    panel.buttons["edit"].click()
    panel.controls["path"].value = "nowhere.mp4"
    panel.buttons["edit"].click()
    assert "nowhere.mp4" in panel.said.value and "Traceback" not in panel.said.value
    assert not panel.picture.value and panel.video.layout.display == "none"
    panel.buttons["save figure"].click()
    assert panel.said.value == "there is no picture to save"


def test_the_picture_is_saved_and_the_command_shown(panel):
    panel.buttons["edit"].click()
    panel.buttons["save figure"].click()
    assert (panel.output / "strip.png").read_bytes() == panel.picture.value
    panel.buttons["papermill command"].click()
    assert "notebooks/00_quickstart.ipynb" in panel.said.value and "-p steps 2" in panel.said.value


def test_the_miniature_has_adapter_controls_at_its_own_values(miniature, tmp_path):
    from vala_research.editing.pipeline import quiet_pipeline

    pipe = quiet_pipeline("miniature", is_bare=False)
    panel = EditPanel(pipe, Settings.preset("smoke"), tmp_path)
    own = pipe.adapter.settings.interval
    assert panel.controls["adapter_interval"].value == pytest.approx(own)
    assert panel.controls["steps"].value == pipe.edit_defaults.num_inference_steps


def test_without_ipywidgets_the_error_says_what_to_install(model, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InputError, match="pip install ipywidgets"):
        EditPanel(model, Settings.preset("smoke"), tmp_path)
