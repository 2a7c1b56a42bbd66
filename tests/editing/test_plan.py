"""A plan makes its video model once per pipeline, and keeps no pipeline in memory."""

import gc
import weakref

from tiny_models import tiny_motion_adapter, tiny_unet

from vala_research import VideoEditPipeline
from vala_research.editing.plan import Plan


def test_models_are_made_once_and_die_with_their_pipeline(checkpoint, tmp_path):
    tiny_motion_adapter().save_pretrained(tmp_path)
    plan = Plan(motion=str(tmp_path))
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    video = plan.built(pipe)[0].unet
    assert plan.built(pipe)[0].unet is video  # made once

    pipe.unet = tiny_unet(1)
    assert plan.built(pipe)[0].unet is not video  # of the UNet that the pipeline has now

    networks = [weakref.ref(network) for network in (pipe.unet, video)]
    del pipe, video
    gc.collect()
    assert [network() for network in networks] == [None, None]
