"""A training's folder: one run at a time, the same data, nothing lost at SIGTERM or a full disk.

Costs about 20 s of one core.
"""

import json
import os
import platform
import signal
import threading
import time
from dataclasses import replace

import psutil
import pytest
import torch
from safetensors import SafetensorError
from test_finetuning import QUICK, Clips, fresh, same, see, weights
from tiny_datasets import frames_folder, sprite_clip

from vala_research import InputError
from vala_research.adapter import state
from vala_research.adapter.run import LOCK, Stopped, locked, stop_asked
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.training import TrainingSettings, train
from vala_research.data.datasets import ClipGroups, GroupSampling
from vala_research.data.manifests import Entry

__all__ = ["fresh"]  # a fixture
ONE = replace(QUICK, accumulation=1, max_steps=1)


# One run at a time.


def owner(**changes) -> str:
    me = psutil.Process()
    mine = {"process": me.pid, "host": platform.node(), "start": me.create_time()}
    return json.dumps(mine | changes)


def test_a_folder_has_one_run_at_a_time(tmp_path):
    with locked(tmp_path):
        told = (tmp_path / LOCK).read_text()
        assert json.loads(told)["process"] == os.getpid()
        with pytest.raises(InputError, match=f"process {os.getpid()} on"), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).read_text() == told
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_of_many_at_a_time_one_runs(tmp_path):
    """Also where all of them find a dead owner."""
    (tmp_path / LOCK).write_text(owner(process=2**22 + 1))
    start, inside, refused = threading.Barrier(8), [], []

    def enter() -> None:
        start.wait()
        try:
            with locked(tmp_path):
                inside.append(1)
                time.sleep(0.5)
        except InputError:
            refused.append(1)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 7)


@pytest.mark.parametrize(
    "left",
    [owner(process=2**22 + 1), owner(start=1.0), "", "[]", '{"process": "x"}', "[" * 10**5],
    ids=["dead", "another process of that number", "empty", "list", "text", "nested"],
)
def test_a_dead_owner_s_lock_is_taken_over(tmp_path, left):
    (tmp_path / LOCK).write_text(left)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_an_owner_on_another_machine_may_be_alive(tmp_path):
    (tmp_path / LOCK).write_text(owner(host="elsewhere"))
    with pytest.raises(InputError, match="on elsewhere.*delete"), locked(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()


def test_a_second_trainer_is_refused_and_the_log_is_whole(fresh, tmp_path):
    pipe, adapter = fresh()
    train(pipe, adapter, Clips(), tmp_path, ONE)
    before = (tmp_path / "log.csv").read_text()
    (tmp_path / LOCK).write_text(owner())
    with pytest.raises(InputError, match="Another run trains"):
        train(pipe, adapter, Clips(), tmp_path, replace(ONE, max_steps=5))
    assert (tmp_path / "log.csv").read_text() == before


# The same run goes on, another does not.


@pytest.fixture
def entries(tmp_path):
    videos = [sprite_clip(tmp_path / f"{i}.mp4", i) for i in range(2)]
    pictures = frames_folder(tmp_path / "pictures", 3)
    return [Entry(str(i), path, ("a circle",)) for i, path in enumerate([*videos, pictures])]


TRIPLES = GroupSampling()


def test_the_identity_of_data_is_what_decides_the_samples(entries):
    def of(sampling=TRIPLES, size=16, entries=entries, **given):
        return ClipGroups(entries, sampling, size, **given).identity()

    assert json.loads(json.dumps(of())) == of()
    assert of(n_samples=99) == of()  # more steps of the same run
    others = [
        of(GroupSampling(n_frames=4)), of(GroupSampling(stride=2)), of(GroupSampling(seed=1)),
        of(size=(16, 32)), of(size=None), of(entries=entries[:2]), of(entries=entries[::-1]),
        of(entries=[*entries[:2], replace(entries[2], captions=("a square",))]),
    ]  # fmt: skip
    first = sorted(entries[2].path.iterdir())[0]
    first.write_bytes(sorted(entries[2].path.iterdir())[1].read_bytes())
    others.append(of())
    middle = sorted(entries[2].path.iterdir())[3]
    content = middle.read_bytes()
    middle.write_bytes(content[:400] + bytes([content[400] ^ 1]) + content[401:])
    others.append(of())
    sprite_clip(entries[0].path, seed=7)
    others.append(of())
    assert len({json.dumps(x) for x in others}) == len(others)


def test_a_run_goes_on_with_its_own_data_and_model_only(fresh, tmp_path):
    pipe, adapter = fresh()
    train(pipe, adapter, Clips(), tmp_path, ONE)
    before, more = weights(tmp_path), replace(ONE, max_steps=2)

    def refused(match: str, dataset, **given) -> None:
        with pytest.raises(InputError, match=f"holds a training with {match}"):
            train(pipe, adapter, dataset, tmp_path, more, **given)

    refused("first sample", Clips(n_frames=4))
    refused("first sample", Clips(size=32))
    refused("start-from", Clips(), more={"start-from": "another"})
    for weight in (pipe.unet.conv_in.weight, pipe.vae.decoder.conv_in.bias):
        kept = weight.data.clone()
        weight.data += 1
        refused("weights of the model", Clips())
        weight.data.copy_(kept)
    assert same(before, weights(tmp_path))
    train(pipe, adapter, Clips(), tmp_path, more)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3


def test_what_no_training_wrote_is_not_written_over(fresh, tmp_path):
    pipe, adapter = fresh()
    own = tmp_path / "own"
    own.mkdir()
    (own / "log.csv").write_text("day,weather\n1,rain\n")
    with pytest.raises(InputError, match="no training's log"):
        train(pipe, adapter, Clips(), own, QUICK)
    assert (own / "log.csv").read_text() == "day,weather\n1,rain\n"
    adapter.save_pretrained(tmp_path / "adapter")
    kept = weights(tmp_path / "adapter")
    with pytest.raises(InputError, match="an adapter and no training"):
        train(pipe, adapter, Clips(), tmp_path / "adapter", QUICK)
    assert same(kept, weights(tmp_path / "adapter"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        train(pipe, adapter, Clips(), tmp_path / "file" / "below", QUICK)


# Ends.


class Terminated(Clips):
    """Clips; when the first is read, SIGTERM comes."""

    def __getitem__(self, i: int) -> dict:
        if i == 0:
            signal.raise_signal(signal.SIGTERM)
        return super().__getitem__(i)


def test_sigterm_saves_the_step_and_the_run_goes_on(fresh, tmp_path):
    """It ends as an unbroken run, bit for bit."""
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    settings = replace(ONE, max_steps=2, checkpoint_every=9)
    pipe, adapter = fresh(AdapterSettings(n_shared=2))
    with pytest.raises(Stopped, match="after step 1 of 2, which is saved: repeat"):
        train(pipe, adapter, Terminated(), broken, settings, vision=see)
    assert {p.name for p in broken.iterdir()} == {"log.csv", "state.safetensors"}  # no lock
    for folder in (broken, whole):
        pipe, adapter = fresh(AdapterSettings(n_shared=2))
        train(pipe, adapter, Clips(), folder, settings, vision=see)
    assert same(weights(whole), weights(broken))
    assert (whole / "log.csv").read_text() == (broken / "log.csv").read_text()


def test_the_handler_of_sigterm_is_restored():
    before, heard = signal.getsignal(signal.SIGTERM), []
    signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with stop_asked() as is_asked:
            assert not is_asked()
            signal.raise_signal(signal.SIGTERM)
            assert is_asked() and not heard
        signal.raise_signal(signal.SIGTERM)
        assert heard
    finally:
        signal.signal(signal.SIGTERM, before)
    assert issubclass(Stopped, SystemExit)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("full")])
def test_a_full_disk_is_one_sentence_and_keeps_the_checkpoint(fresh, tmp_path, monkeypatch, error):
    pipe, adapter = fresh()
    train(pipe, adapter, Clips(), tmp_path, ONE)
    before = weights(tmp_path)

    def full(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(state, "write_tensors", full)
    with pytest.raises(InputError, match="cannot be written at step 2 .*repeat the command"):
        train(pipe, adapter, Clips(), tmp_path, replace(ONE, max_steps=2))
    monkeypatch.undo()
    assert same(before, weights(tmp_path))


def test_weights_that_are_not_finite_are_never_saved(fresh, tmp_path):
    pipe, adapter = fresh()
    adapter.save_pretrained(tmp_path / "adapter")
    kept = weights(tmp_path / "adapter")
    adapter.trainable()[0].data.view(-1)[0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        adapter.save_pretrained(tmp_path / "adapter")
    assert same(kept, weights(tmp_path / "adapter"))
    with pytest.raises((FloatingPointError, InputError), match="not finite|NaN"):
        train(pipe, adapter, Clips(), tmp_path / "run", ONE)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


# Numbers.


FLOATS = ("learning_rate", "max_norm", "weight_decay")
WHOLE = ("max_steps", "batch_size", "warmup_steps", "accumulation", "n_workers", "checkpoint_every")
WEIGHTS = ("lambda_diffusion", "lambda_temporal", "flicker_weight", "temporal_from")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), -1.0, 1e300])
def test_numbers_that_are_no_settings_are_refused(wrong):
    for name in FLOATS:
        with pytest.raises(InputError, match=name.replace("learning_rate", "learning rate")):
            TrainingSettings(**{name: wrong})
    for name in WEIGHTS:
        with pytest.raises(InputError, match=name):
            replace(QUICK.loss, **{name: wrong})
    with pytest.raises(InputError, match="beta"):
        TrainingSettings(betas=(0.9, wrong))
    with pytest.raises(InputError, match="scale"):
        AdapterSettings(scale=1e4 * wrong)


@pytest.mark.parametrize("wrong", [-1, 10**30])
def test_whole_numbers_out_of_range_are_refused(wrong):
    for name in WHOLE:
        with pytest.raises(InputError, match=name):
            TrainingSettings(**{name: wrong})
    for name in ("rank", "alpha", "n_shared"):
        with pytest.raises(InputError, match=name):
            AdapterSettings(**{name: wrong})
    with pytest.raises(InputError, match="seed"):
        TrainingSettings(seed=wrong * 10**20)


def test_a_state_that_is_damaged_inside_is_refused(fresh, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    pipe, adapter = fresh()
    train(pipe, adapter, Clips(), tmp_path, ONE)
    file = tmp_path / "state.safetensors"
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["facts"])
    tensors = load_file(file)
    name = next(k for k in tensors if k.endswith("exp_avg"))
    wrong = [
        (facts | {"step": -1}, tensors), (facts | {"step": "2"}, tensors),
        (facts, tensors | {name: torch.zeros(1)}), (facts, tensors | {name: tensors[name] / 0}),
        (facts, {k: v for k, v in tensors.items() if k != name}), ([], tensors),
    ]  # fmt: skip
    for told, held in wrong:
        save_file(held, file, {"facts": json.dumps(told)})
        with pytest.raises(InputError, match="not a training's state"):
            train(pipe, adapter, Clips(), tmp_path, replace(ONE, max_steps=5))
    save_file(tensors, file, {"facts": "[" * 10**5})
    with pytest.raises(InputError, match="not a training's state"):
        train(pipe, adapter, Clips(), tmp_path, ONE)
