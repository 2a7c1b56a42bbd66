"""`vala train`: an adapter from a folder of clips, and one sentence for what cannot be trained."""

import csv
import json
import os
import platform
import signal
import sys
import time

import psutil
import pytest
import torch
from diffusers import ControlNetModel
from fresh_processes import started
from safetensors.torch import load_file
from test_cli import refused, vala
from tiny_datasets import sprite_clip
from tiny_models import tiny_checkpoint, tiny_unet

from vala_research import VideoEditPipeline
from vala_research.adapter.state import Log
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.cli.app import main
from vala_research.diffusion.control_pictures import canny_edges

QUICK = ["--steps", 2, "--accumulation", 1, "--warmup", 1, "--learning-rate", 1e-2, "--size", 16]
BARE = [*QUICK, "--n-shared", 0, "--no-frame-tokens"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def clips(tmp_path):
    """Two clips with captions, and one that is no video."""
    folder = tmp_path / "clips"
    for name, seed in (("a red circle moves", 0), ("a blue square", 1)):
        path = sprite_clip(folder / f"{name.replace(' ', '_')}.mp4", seed)
        path.with_suffix(".txt").write_text(name)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def test_train_writes_an_adapter_that_an_edit_loads(tmp_path, clips, model):
    out = tmp_path / "adapter"
    status, printed, err = vala("train", clips, "-o", out, "--model", model, *BARE)
    assert status == 0, err
    assert "2 of 3 clips used; 1 skipped" in printed and "broken" in printed
    assert "2 steps of 1 x 1 samples of 3 frames of 16x16" in printed
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert [r["step"] for r in rows] == ["1", "2"] and all(r["similarity"] for r in rows)
    pipe = VideoEditPipeline.from_pretrained(model)
    pipe.load_adapter(out)
    assert max(p.abs().max() for n, p in pipe.adapter.lora_parameters() if "lora_B" in n) > 0


def test_the_same_command_goes_on(tmp_path, clips, model):
    """Two steps, then the command for three: the log has three, and the third is new."""
    out = tmp_path / "adapter"
    command = ["train", clips, "-o", out, "--model", model, *BARE]
    assert vala(*command)[0] == 0
    first = (out / "log.csv").read_text()
    assert vala(*command)[0] == 0
    assert (out / "log.csv").read_text() == first
    command[command.index("--steps") + 1] = 3
    assert vala(*command)[0] == 0
    assert (out / "log.csv").read_text().startswith(first)
    assert len((out / "log.csv").read_text().splitlines()) == 4


def test_frame_tokens_of_the_miniature(tmp_path, clips, miniature, miniature_clip):
    """The miniature reads its own CLIP model's tokens, 128 wide."""
    out = tmp_path / "adapter"
    command = ["--steps", 1, "--accumulation", 1, "--n-shared", 2, "--size", 32]
    status, _, err = vala("train", clips, "-o", out, *command)
    assert status == 0, err
    pipe = VideoEditPipeline.from_pretrained("miniature")
    pipe.load_adapter(out)
    assert pipe.adapter.tokens.projection.in_features == 128


def test_nan_is_a_failed_run(tmp_path, clips, model):
    """A network that overflows: exit status 1, and no adapter."""
    broken = tmp_path / "broken"
    pipe = VideoEditPipeline.from_pretrained(model)
    pipe.unet.conv_out.bias.data.fill_(float("nan"))
    pipe.save_pretrained(broken)
    out = tmp_path / "adapter"
    status, _, err = vala("train", clips, "-o", out, "--model", broken, *BARE)
    assert status == 1 and "not finite" in err[-1]
    assert not (out / "adapter.json").exists()


def test_bad_input_is_refused_before_anything_is_written(tmp_path, clips, model):
    out = ["-o", tmp_path / "adapter", "--model", model, *BARE]
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "train", tmp_path / "nowhere", *out, naming="not a folder")
    refused(tmp_path, "train", tmp_path / "empty", *out, naming="empty")
    refused(tmp_path, "train", clips, *out, "--frames", 2, naming="at least 3")
    refused(tmp_path, "train", clips, *out, "--frames", 100, naming="No clip can be used")
    refused(tmp_path, "train", clips, *out, "--strict", naming="broken")
    refused(tmp_path, "train", clips, *out, "--size", 17, naming="multiples of 2")
    refused(tmp_path, "train", clips, *out, "--variant", "new", naming="variant")
    refused(tmp_path, "train", clips, *out, "--device", "tpu", naming="tpu")
    refused(tmp_path, "train", clips, "-o", tmp_path / "a.safetensors", naming="folder")
    pickle = tmp_path / "old.bin"
    torch.save({}, pickle)
    refused(tmp_path, "train", clips, *out, "--start-from", pickle, naming="pickle")


def test_a_frozen_controlnet_sees_outlines(tmp_path, clips, model):
    """It is used, it is not trained, and a run does not go on without it."""
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(
        VideoEditPipeline.from_pretrained(model).unet, conditioning_embedding_out_channels=(8, 8)
    )
    for p in controlnet.parameters():
        p.data += 0.05 * torch.randn_like(p)
    controlnet.save_pretrained(tmp_path / "net")
    kept = (tmp_path / "net" / "diffusion_pytorch_model.safetensors").read_bytes()
    out, command = tmp_path / "adapter", ["train", clips, "--model", model, *BARE]
    given = ["--controlnet", tmp_path / "net"]
    status, _, err = vala(*command, *given, "-o", out)
    assert status == 0, err
    assert vala(*command, "-o", tmp_path / "without")[0] == 0
    log = [(tmp_path / name / "log.csv").read_text() for name in ("adapter", "without")]
    assert log[0] != log[1]
    assert (tmp_path / "net" / "diffusion_pytorch_model.safetensors").read_bytes() == kept
    status, _, err = vala(*command, "-o", out)
    assert status == 2 and "ControlNet True and not False" in err[-1]
    refused(tmp_path, *command, "--controlnet", tmp_path, "-o", tmp_path / "b",
            naming="cannot be loaded")  # fmt: skip
    ControlNetModel.from_unet(tiny_unet()).save_pretrained(tmp_path / "coarse")
    refused(tmp_path, *command, "--controlnet", tmp_path / "coarse", "-o", tmp_path / "b",
            naming="8 times smaller")  # fmt: skip
    other = tiny_unet(cross_attention_dim=24)
    ControlNetModel.from_unet(other).save_pretrained(tmp_path / "other")
    refused(tmp_path, *command, "--controlnet", tmp_path / "other", "-o", tmp_path / "b",
            naming="cross_attention_dim")  # fmt: skip


def test_outlines_are_where_the_colour_changes():
    frames = torch.zeros(2, 3, 32, 32)
    frames[1, :, :, 16:] = 1
    edges = canny_edges(frames)
    assert edges.shape == frames.shape and edges.dtype == frames.dtype
    assert not edges[0].any() and set(edges.unique().tolist()) == {0, 1}
    assert set(edges[1, 0].nonzero()[:, 1].tolist()) <= {15, 16}
    assert edges[1, 0].any(1)[2:-2].all() and torch.equal(edges[:, 0], edges[:, 2])


def called(*arguments: str) -> None:
    """`vala`, in the process that it is called in."""
    sys.argv = ["vala", *arguments]
    main()


def test_two_processes_train_what_one_does(tmp_path, clips, model, one_thread, monkeypatch):
    """Each takes every other batch, and gradients are averaged: weights and log of one process.

    All compute on one thread. Adam divides a small gradient by its own size, and so enlarges
    what rounding changes in it: the weights are compared by norm, not each by itself. A process
    that trained alone ends .065 of the norm away, another number of threads 1e-6.
    """
    command = ["train", clips, "--model", model, *BARE, "--device", "cpu"]

    def trained(name: str) -> tuple[torch.Tensor, list[dict]]:
        weights = load_file(tmp_path / name / "pytorch_lora_weights.safetensors")
        log = csv.DictReader((tmp_path / name / "log.csv").open())
        return torch.cat([weights[k].flatten() for k in sorted(weights)]), list(log)

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, accumulation in (("one", 2), ("alone", 1)):
        assert vala(*command, "--accumulation", accumulation, "-o", tmp_path / name)[0] == 0

    # As torch.distributed.run starts them: it keeps the store, and gives each process its rank.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = [*map(str, command), "--accumulation", "1", "-o", str(tmp_path / "two")]
    shared = dict(
        WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port),
        TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0",
        ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
    )  # fmt: skip
    logs = [tmp_path / f"rank-{rank}.log" for rank in range(2)]
    both = [started(called, *given, log=log, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
            for rank, log in enumerate(logs)]  # fmt: skip
    while any(p.exitcode is None for p in both) and not any(p.exitcode for p in both):
        time.sleep(0.02)  # where one fails, the other would wait for it
    codes = [process.exitcode for process in both]
    for process in both:
        process.kill()
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    (one, log), (two, other), (alone, _) = map(trained, ("one", "two", "alone"))
    assert (two - one).norm() < 1e-4 * one.norm()
    assert (alone - one).norm() > 1e-2 * one.norm()
    for row, same in zip(log, other, strict=True):
        assert all(float(same[k]) == pytest.approx(float(row[k]), rel=1e-3) for k in row)


def test_another_run_in_the_folder_is_refused(tmp_path, clips, model):
    """What decides the samples or the weights belongs to the run; the log and the state stay."""
    out = tmp_path / "adapter"
    command = ["train", clips, "-o", out, "--model", model, *BARE]
    more = [*command, "--steps", 3]
    assert vala(*command)[0] == 0
    kept = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for option, value, naming in (
        ("--frames", 4, "frames 3 and not 4"), ("--size", 32, "size [16, 16] and not [32, 32]"),
        ("--start-from", out, "start-from"),
    ):  # fmt: skip
        status, _, err = vala(*more, option, value)  # the last of two counts
        assert status == 2 and naming in err[-1], (option, err)
    sprite_clip(clips / "a_red_circle_moves.mp4", seed=5)
    status, _, err = vala(*more)
    assert status == 2 and "holds a training with data" in err[-1]
    assert kept == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_sigterm_is_one_sentence_and_the_command_goes_on(tmp_path, clips, model, monkeypatch):
    out, add = tmp_path / "adapter", Log.add

    def add_and_end(log, row) -> None:
        add(log, row)
        signal.raise_signal(signal.SIGTERM)

    command = ["train", clips, "-o", out, "--model", model, *BARE, "--steps", 3]
    monkeypatch.setattr(Log, "add", add_and_end)
    status, _, err = vala(*command)
    assert status == 143 and err[-1].startswith("vala: SIGTERM ended the training")
    assert "after step 2 of 3" in err[-1]  # it came while step 1 was written
    monkeypatch.undo()
    assert vala(*command)[0] == 0
    assert len((out / "log.csv").read_text().splitlines()) == 4


def test_numbers_and_places_are_checked_before_the_model_loads(tmp_path, clips):
    """No model of that name exists, and no refusal says so."""
    command = ["train", clips, "-o", tmp_path / "out", "--model", "./nowhere"]
    for option, values in {
        "--learning-rate": ("inf", "nan", "-1", "1e9"), "--lambda-temporal": ("nan", "inf"),
        "--lambda-diffusion": ("-inf", "nan"), "--flicker-weight": ("inf",),
        "--temporal-from": ("nan", "2"), "--caption-dropout": ("nan", "-1"),
        "--rank": (0, 10**9, 10**30), "--n-shared": (-1, 10**12), "--batch": (0, 10**12),
        "--accumulation": (0, 10**12), "--workers": (-1, 10**6), "--warmup": (-1, 10**12),
        "--steps": (0, 10**12), "--checkpoint-every": (0,), "--seed": (10**30,),
    }.items():  # fmt: skip
        for value in values:
            status, _, err = vala(*command, option, value)
            assert status == 2 and len(err) == 1 and "nowhere" not in err[0], (option, value, err)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter.json").write_text("{}")
    refused(tmp_path, *command[:3], adapter, *command[4:], naming="an adapter and no training")
    (adapter / "adapter.json").unlink()
    start = psutil.Process().create_time()
    owner = {"process": os.getpid(), "host": platform.node(), "start": start}
    (adapter / ".lock").write_text(json.dumps(owner))
    refused(tmp_path, *command[:3], adapter, *command[4:], naming="Another run trains")


def test_the_vision_encoder_of_a_foreign_adapter_is_not_downloaded(tmp_path, clips, model):
    foreign = tmp_path / "foreign"
    unet = VideoEditPipeline.from_pretrained(model).unet
    TemporalAdapter.attach(unet, d_vision=4, vision_encoder="someone/spy").save_pretrained(foreign)
    refused(tmp_path, "train", clips, "-o", tmp_path / "out", "--model", model, "--start-from",
            foreign, naming="hf download someone/spy")  # fmt: skip
