"""The adapter in the editors of its paper: the notebook runs, settings are right; 40 s."""

import pandas as pd
from test_notebooks import run

from vala_research.editing.hosts import HOSTS
from vala_research.experiments.ge import hosts
from vala_research.experiments.ge.hosts import Settings


def test_notebook_of_the_hosts(tmp_path, miniature):
    out = tmp_path / "out"
    run("36_ge_hosts", tmp_path, size=32, output=str(out))
    table = pd.read_csv(out / "ge_hosts.csv")
    assert {"token_flow", "rave", "mean over hosts"} <= set(table.setting)
    rows = pd.read_csv(out / "rows.csv").set_index("setting")
    assert rows.psnr["rave, with"] != rows.psnr["rave, without"]
    # Two steps: one branch in the inversion; two in the edit, and the source in TokenFlow's.
    assert rows.evaluations["rave, with"] == 2 + 2 * 2
    assert rows.evaluations["token_flow, with"] == 2 + 3 * 2
    assert (out / "ge_hosts_strips.png").exists()


def test_every_host_is_a_setting(miniature):
    settings = hosts.edit_settings(Settings.preset("smoke", hosts=tuple(HOSTS)))
    assert len(settings) == 2 * len(HOSTS)
    for name, host in HOSTS.items():
        own, adapted = settings[f"{name}, without"], settings[f"{name}, with"]
        assert own.attention == host.attention and own.injection == host.injection
        assert bool(own.controlnet) == host.wants_control and not own.adapter and adapted.adapter
    assert settings["text2video_zero, with"].inversion == "noise"
    assert settings["vid2vid_zero, with"].inversion == "ddim"
    theirs = hosts.edit_settings(Settings.preset("smoke", hosts=tuple(HOSTS), inversion=""))
    assert theirs["vid2vid_zero, with"].inversion == "null_text"


def test_costs_are_those_of_a_step():
    """First-frame attention costs nothing; a third branch costs half as much again."""
    costs = hosts.costs(("text2video_zero", "token_flow", "flatten"), n_frames=8)
    assert costs["text2video_zero"] == 1
    assert 1.4 < costs["token_flow"] < 1.6 < costs["flatten"]
