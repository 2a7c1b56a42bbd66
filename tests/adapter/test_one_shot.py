"""One-shot tuning: an adapter learns one clip, and is not trained twice; tiny, 5 s."""

from dataclasses import replace

import pytest
import torch

from vala_research import InputError, VideoEditPipeline
from vala_research.adapter.one_shot import TUNING, one_clip, tune
from vala_research.adapter.state import LOG

CAPTION = "a red circle"


@pytest.fixture
def pipe(checkpoint):
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def losses(folder) -> list[float]:
    lines = (folder / LOG).read_text().splitlines()
    place = lines[0].split(",").index("loss")
    return [float(line.split(",")[place]) for line in lines[1:]]


def test_the_clip_is_learnt_and_the_pipeline_left_as_it_was(pipe, video, tmp_path):
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    training = replace(TUNING, max_steps=40, learning_rate=0.05)  # a random network learns slowly
    folder = tune(pipe, video, CAPTION, tmp_path / "tuned", training)
    still = tune(pipe, video, CAPTION, tmp_path / "still", replace(training, learning_rate=1e-12))
    found = losses(folder)
    later = list(zip(found, losses(still), strict=True))[-15:]  # of alike draws
    assert len(found) == 40 and sum(tuned < same for tuned, same in later) >= 13
    after = pipe.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)

    plain = pipe(video, "a blue circle", CAPTION, num_inference_steps=2, output_type="pt").frames
    pipe.load_adapter(folder)
    tuned = pipe(video, "a blue circle", CAPTION, num_inference_steps=2, output_type="pt").frames
    assert (tuned - plain).abs().max() > 1e-3
    with pytest.raises(InputError, match="adapter"):
        tune(pipe, video, CAPTION, tmp_path / "again", training)

    # Done is done: the weights stay as they are.
    pipe.unload_adapter()
    assert tune(pipe, video, CAPTION, folder, training) == folder
    assert losses(folder) == found


def test_a_clip_of_two_frames_and_another_clip_are_refused(pipe, video, tmp_path):
    with pytest.raises(InputError, match="at least 3"):
        tune(pipe, video[:2], CAPTION, tmp_path / "short")
    folder = tune(pipe, video, CAPTION, tmp_path / "tuned", replace(TUNING, max_steps=1))
    with pytest.raises(InputError):
        tune(pipe, video.flip(0), CAPTION, folder, replace(TUNING, max_steps=2))


def test_the_data_set_is_one_clip(video):
    data = one_clip(video, CAPTION)
    assert len(data) == 1 and data[0]["frames"] is video and data[0]["caption"] == CAPTION
    with pytest.raises(IndexError):
        data[1]
