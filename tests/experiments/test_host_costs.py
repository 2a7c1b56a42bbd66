"""What hosts cost is counted on the edits that run; tiny networks, about 10 s."""

import pytest

from vala_research.evaluation.weightless import stored_bytes, weightless
from vala_research.experiments.host_costs import OWN, cost_rows


def test_hosts_beside_an_edit_frame_by_frame(tiny):
    """No inversion is cheaper; a source branch and all frames in attention cost more."""
    pipe, _ = weightless(tiny, {})
    rows = cost_rows(pipe, [3], 16, ["text2video_zero", "flatten"]).set_index("setting")
    assert list(rows.index) == [OWN, "text2video_zero", "flatten"] and set(rows.frames) == {3}
    assert rows.flops[OWN] == 1
    assert rows.flops["text2video_zero"] < 1 < rows.flops["flatten"]
    assert rows.bytes["flatten"] > rows.bytes[OWN]
    weights = stored_bytes(pipe.vae, pipe.text_encoder, pipe.unet)
    assert (rows.bytes > weights).all() and rows.tflop["flatten"] > rows.tflop[OWN] > 0
    assert rows.flops["flatten"] == pytest.approx(rows.tflop["flatten"] / rows.tflop[OWN])
