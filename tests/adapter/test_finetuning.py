"""Training: the right loss, only the adapter learns, and a killed run ends as an unbroken one."""

import csv
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from fresh_processes import started
from safetensors.torch import load_file
from tiny_models import tiny_unet

from vala_research import InputError, VideoEditPipeline
from vala_research.adapter.batches import Encoders, TrainingControl, numbered_batches
from vala_research.adapter.loss import Batch, LossSettings, Noising, adapter_loss, draw_noising
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter, hook_sites
from vala_research.adapter.training import TrainingSettings, train
from vala_research.methods.temporal import frame_similarity

QUICK = TrainingSettings(
    max_steps=3, learning_rate=1e-2, warmup_steps=2, accumulation=2, checkpoint_every=2
)
BARE = AdapterSettings(n_shared=0, uses_frame_tokens=False)
D_VISION = 6


class Clips(list):
    """Smooth random clips of the size that the tiny checkpoint reads."""

    def __init__(self, n: int = 5, n_frames: int = 3, size: int = 16):
        rng = torch.Generator().manual_seed(0)
        coarse = torch.rand(n, n_frames * 3, 4, 4, generator=rng)
        frames = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
        names = ("a red circle", "a blue square moves")
        super().__init__(
            {"frames": x.unflatten(0, (n_frames, 3)), "caption": names[i % 2], "name": f"clip {i}"}
            for i, x in enumerate(frames)
        )


def see(frames: torch.Tensor) -> torch.Tensor:
    """Stands for an image encoder: four tokens a frame, f 4 D_VISION."""
    return frames.flatten(1)[:, : 4 * D_VISION].unflatten(1, (4, D_VISION))


@pytest.fixture
def fresh(checkpoint):
    """A pipeline of its own with a new adapter: `fresh(settings)`."""

    def make(settings: AdapterSettings = BARE):
        pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
        pipe.set_progress_bar_config(disable=True)
        d_vision = D_VISION if settings.uses_frame_tokens else None
        generator = torch.Generator().manual_seed(1)
        return pipe, TemporalAdapter.attach(pipe.unet, settings, d_vision, generator)

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{p.name} {k}": v for p in sorted(folder.glob("*.safetensors"))
        for k, v in load_file(p).items()
    }  # fmt: skip


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# The loss.


def batch_of(n_clips: int = 2, n_frames: int = 3) -> Batch:
    rng = torch.Generator().manual_seed(2)
    z_0 = torch.randn(n_clips, n_frames, 4, 8, 8, generator=rng)
    return Batch(z_0, torch.randn(n_clips, 12, 16, generator=rng))


@pytest.fixture
def scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(num_train_timesteps=1000)


def moved(adapter: TemporalAdapter) -> TemporalAdapter:
    """Away from the start, where B = 0."""
    rng = torch.Generator().manual_seed(3)
    for p in adapter.trainable():
        p.data.add_(0.3 * torch.randn(p.shape, generator=rng))
    return adapter


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_loss_is_equation_19(scheduler, prediction_type):
    """Beside plain diffusers and hooks of our own, with t on either side."""
    scheduler.register_to_config(prediction_type=prediction_type)
    adapter, batch = moved(TemporalAdapter.attach(tiny_unet(), BARE)), batch_of()
    s = LossSettings(lambda_diffusion=0.3, lambda_temporal=0.7)
    seen = set()
    for seed in range(6):
        rng = torch.Generator().manual_seed(seed)
        noising = draw_noising(tuple(batch.z_0.shape), 1000, s, rng)
        found = adapter_loss(adapter, scheduler, batch, noising, s)
        t = noising.t[:, 0]
        assert bool((t >= 500).all()) == noising.is_temporal  # one side for all clips
        seen.add(noising.is_temporal)
        z, eps, t = batch.z_0.flatten(0, 1), noising.eps.flatten(0, 1), noising.t.flatten()
        noisy, features, hooks = scheduler.add_noise(z, eps, t), {}, []
        for name in hook_sites(adapter.unet):
            module = adapter.unet.get_submodule(name)
            hooks.append(module.register_forward_hook(
                lambda m, i, out, k=name, f=features: f.__setitem__(k, out)))  # fmt: skip
        with adapter.active(noising.is_temporal):
            out = adapter.unet(noisy, t, batch.text.repeat_interleave(3, 0)).sample
        [h.remove() for h in hooks]
        velocity = scheduler.get_velocity(z, eps, t)
        wanted = {"epsilon": eps, "v_prediction": velocity, "sample": z}[prediction_type]
        diffusion = (out - wanted).square().mean()
        expected = 0.3 * diffusion
        if noising.is_temporal:
            clips = [c for x in features.values() for c in x.unflatten(0, (2, 3))]
            s_t = torch.stack([frame_similarity(c) for c in clips])  # two similarities a clip
            temporal = (s_t[:, 1] - s_t[:, 0]).square().mean() / 2
            expected = expected + 0.7 * temporal
            assert torch.allclose(found["temporal"], temporal, rtol=1e-4)
            assert torch.allclose(found["similarity"], s_t.mean(), rtol=1e-5)
        else:
            assert "temporal" not in found
        assert torch.allclose(found["diffusion"], diffusion, rtol=1e-5)
        assert torch.allclose(found["loss"], expected, rtol=1e-4)
    assert seen == {True, False}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_velocity_weighting_is_the_error_of_v(scheduler, prediction_type):
    """Whatever the network predicts, turned into a v by the scheduler's own formula."""
    scheduler.register_to_config(prediction_type=prediction_type)
    adapter, batch = moved(TemporalAdapter.attach(tiny_unet(), BARE)), batch_of()
    eps = torch.randn(batch.z_0.shape, generator=torch.Generator().manual_seed(4))
    t = torch.full(batch.z_0.shape[:2], 300)  # alpha_bar = 0.39: no weight is cut off at 100
    noising = Noising(t, eps, True)
    found = adapter_loss(adapter, scheduler, batch, noising, LossSettings(weighting="velocity"))
    z, eps, t = batch.z_0.flatten(0, 1), eps.flatten(0, 1), t.flatten()
    a = scheduler.alphas_cumprod[300]
    noisy = scheduler.add_noise(z, eps, t)
    out = adapter.unet(noisy, t, batch.text.repeat_interleave(3, 0)).sample
    if prediction_type == "epsilon":
        out = scheduler.get_velocity((noisy - (1 - a).sqrt() * out) / a.sqrt(), out, t)
    elif prediction_type == "sample":
        out = scheduler.get_velocity(out, (noisy - a.sqrt() * out) / (1 - a).sqrt(), t)
    wanted = (out - scheduler.get_velocity(z, eps, t)).square().mean()
    assert torch.allclose(found["diffusion"], wanted, rtol=1e-4)
    with pytest.raises(InputError, match="weighting"):
        LossSettings(weighting="snr")


def test_flicker_weight_is_that_of_the_repaired_loss(scheduler):
    """It adds w mean(1 - s) to the temporal loss of every clip and site, and nothing else."""
    adapter, batch = moved(TemporalAdapter.attach(tiny_unet(), BARE)), batch_of()
    noising = Noising(torch.full((2, 3), 700), torch.randn(batch.z_0.shape), True)
    losses = (LossSettings(flicker_weight=w) for w in (0.0, 0.3))
    paper, mended = (adapter_loss(adapter, scheduler, batch, noising, s) for s in losses)
    more = 0.3 * (1 - paper["similarity"])
    assert torch.allclose(mended["temporal"], paper["temporal"] + more, rtol=1e-4)
    assert torch.allclose(mended["loss"], paper["loss"] + more, rtol=1e-4)
    assert torch.equal(mended["similarity"], paper["similarity"])


def test_noise_of_the_samples_takes_the_place_of_what_is_drawn(fresh, scheduler):
    pipe, adapter = fresh(BARE)
    clips, encoders = Clips(2), Encoders(pipe)
    z_0 = encoders.batch(clips, [True, True]).z_0
    noise = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(6))
    given = [c | {"noise": x} for c, x in zip(clips, noise, strict=True)]
    batch, s = encoders.batch(given, [True, True]), LossSettings()
    assert torch.equal(batch.frames([0, 2]).noise, noise[:, [0, 2]])
    drawn = draw_noising(tuple(z_0.shape), 1000, s, torch.Generator().manual_seed(0))
    losses = [
        adapter_loss(adapter, scheduler, x, n, s)["diffusion"].item()
        for x, n in (
            (batch, drawn),
            (replace(batch, noise=None), replace(drawn, eps=noise)),
            (replace(batch, noise=None), drawn),
        )
    ]
    assert losses[0] == losses[1] != losses[2]
    with pytest.raises(InputError, match="noise has shape"):
        encoders.batch([c | {"noise": noise[0, :2]} for c in clips], [True, True])


def test_below_the_interval_only_tokens_learn(scheduler):
    settings = AdapterSettings(n_shared=2, uses_frame_tokens=False)
    adapter, batch = moved(TemporalAdapter.attach(tiny_unet(), settings)), batch_of()
    for temporal_from, lora_learns in ((0.0, True), (1.0, False)):
        s = LossSettings(temporal_from=temporal_from)
        rng = torch.Generator().manual_seed(0)
        noising = draw_noising(tuple(batch.z_0.shape), 1000, s, rng)
        adapter_loss(adapter, scheduler, batch, noising, s)["loss"].backward()
        lora = [p.grad for _, p in adapter.lora_parameters()]
        assert any(g is not None and g.abs().max() > 0 for g in lora) == lora_learns
        assert adapter.tokens.shared.grad.abs().max() > 0
        for p in adapter.trainable():
            p.grad = None


def test_without_tokens_every_timestep_has_the_lora_on():
    """Below the interval nothing would learn."""
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        noising = draw_noising((2, 3, 4, 8, 8), 1000, LossSettings(), rng, always_temporal=True)
        assert noising.is_temporal and noising.t.min() >= 500


def test_timesteps_are_uniform():
    """Each tenth of 0..T-1 has a tenth of the draws; the two sides, half each."""
    s, ts = LossSettings(), []
    for seed in range(4000):
        rng = torch.Generator().manual_seed(seed)
        noising = draw_noising((1, 1, 1, 1, 1), 1000, s, rng)
        assert noising.is_temporal == bool(noising.t >= 500)
        ts.append(noising.t.item())
    shares = torch.histc(torch.tensor(ts).float(), 10, 0, 1000) / len(ts)
    assert (shares - 0.1).abs().max() < 0.02  # 4 standard deviations


def test_released_variant_repeats_a_pair_at_the_next_timestep(scheduler):
    """Frames i, j at t and at t + 1, noise of their own; at batch size 1 its loss teaches nothing.

    Triples of the same frames teach every B upstream of a hook.
    """
    s = LossSettings(variant="released", lambda_diffusion=0.0, temporal_from=0.0)
    pair = batch_of(1, 2).frames([0, 1, 0, 1])
    assert torch.equal(pair.z_0[:, 0], pair.z_0[:, 2])
    noising = draw_noising(tuple(pair.z_0.shape), 1000, s, torch.Generator().manual_seed(5))
    t = noising.t[0].tolist()
    assert t == [t[0], t[0], t[0] + 1, t[0] + 1] and noising.eps.std(1).min() > 0

    def gradient(settings, batch, noising):
        adapter = moved(TemporalAdapter.attach(tiny_unet(), BARE))
        adapter_loss(adapter, scheduler, batch, noising, settings)["loss"].backward()
        return max(p.grad.abs().max().item() for p in adapter.trainable() if p.grad is not None)

    assert gradient(s, pair, noising) == 0
    triples, clip = replace(s, variant="triples"), batch_of(1, 3)
    noising = draw_noising(tuple(clip.z_0.shape), 1000, triples, torch.Generator().manual_seed(5))
    assert gradient(triples, clip, noising) > 0


def test_controlnet_residuals_change_the_prediction(scheduler):
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(tiny_unet(), conditioning_embedding_out_channels=(8,))
    batch, s = batch_of(1), LossSettings(temporal_from=0.0)
    batch = replace(batch, condition=torch.rand(1, 3, 3, 8, 8))
    adapter = moved(TemporalAdapter.attach(tiny_unet(), BARE))
    noising = draw_noising(tuple(batch.z_0.shape), 1000, s, torch.Generator().manual_seed(5))

    def diffusion(controlnet=None):
        return adapter_loss(adapter, scheduler, batch, noising, s, controlnet)["diffusion"].item()

    assert diffusion(controlnet) == diffusion()  # its outputs start at zero
    for p in controlnet.controlnet_mid_block.parameters():
        torch.nn.init.normal_(p)
    assert diffusion(controlnet) != diffusion()


# The training.


def test_training_writes_adapter_log_and_checkpoints(fresh, tmp_path):
    settings = AdapterSettings(n_shared=2)
    pipe, adapter = fresh(settings)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items() if "lora" not in k}
    start = [p.detach().clone() for p in adapter.trainable()]
    train(pipe, adapter, Clips(), tmp_path / "out", QUICK, vision=see)
    assert all(torch.equal(pipe.unet.state_dict()[k], v) for k, v in before.items())
    assert all(not torch.equal(a, b) for a, b in zip(start, adapter.trainable(), strict=True))
    rows = list(csv.DictReader((tmp_path / "out" / "log.csv").open()))
    assert [r["step"] for r in rows] == ["1", "2", "3"]
    assert [float(r["lr"]) for r in rows] == [0.005, 0.01, 0.01]
    with_loss = [r for r in rows if r["temporal"]]
    assert with_loss and all(r["similarity"] for r in with_loss)
    assert {p.name for p in (tmp_path / "out").glob("step-*")} == {"step-000002", "step-000003"}
    other, untrained = fresh()
    untrained.detach()
    loaded = TemporalAdapter.load(tmp_path / "out", other.unet, is_trainable=True)
    pairs = zip(loaded.trainable(), adapter.trainable(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_temporal_loss_falls(fresh, tmp_path):
    """Learning learns: a training that ascends, or does not move, fails."""
    pipe, adapter = fresh()
    s = replace(
        QUICK, max_steps=20, warmup_steps=1, accumulation=1, batch_size=2, learning_rate=3e-2,
        loss=LossSettings(lambda_diffusion=0.0, temporal_from=0.0), checkpoint_every=1000,
    )  # fmt: skip
    train(pipe, adapter, Clips(4), tmp_path, s)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    losses = torch.tensor([float(r["temporal"]) for r in rows])
    assert losses[-10:].median() < 0.7 * losses[:10].median()


def test_a_controlled_training_runs(fresh, tmp_path):
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(tiny_unet(), conditioning_embedding_out_channels=(8, 8))
    pipe, adapter = fresh()
    control = TrainingControl(controlnet, lambda frames: 1 - frames)
    train(pipe, adapter, Clips(), tmp_path, QUICK, control=control)
    assert (tmp_path / "adapter.json").exists()


def test_batches_are_a_function_of_their_number():
    """By number or as a stream, from the start or from the middle, in one process or two."""
    clips = Clips(5)
    names = [[s["name"] for s in b] for _, b in numbered_batches(clips, range(6), 2)]
    assert names[:3] == [["clip 0", "clip 1"], ["clip 2", "clip 3"], ["clip 4", "clip 0"]]
    late = list(numbered_batches(clips, range(3, 6), 2))
    assert [n for n, _ in late] == [3, 4, 5]
    assert [[s["name"] for s in b] for _, b in late] == names[3:]
    second = list(numbered_batches(clips, range(1, 6, 2), 2))
    assert [[s["name"] for s in b] for _, b in second] == names[1::2]

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            worker = torch.utils.data.get_worker_info()  # workers share it, as they share shards
            for i in range(worker.id if worker else 0, 12, worker.num_workers if worker else 1):
                yield clips[i % 5]

    streamed = numbered_batches(Stream(), range(3, 9), 2)
    assert [[s["name"] for s in b] for _, b in [next(streamed) for _ in range(3)]] == names[3:]
    with pytest.raises(InputError, match="stream of samples ended"):
        next(streamed)
    shared = numbered_batches(Stream(), range(3, 5), 2, n_workers=2)
    assert [s["name"] for s in next(shared)[1]] == names[3]


def trained(
    model: Path, folder: Path, settings: TrainingSettings, dtype: torch.dtype, n_threads: int
) -> None:
    """Train with prompt tokens, in a process of its own."""
    torch.set_num_threads(n_threads)
    pipe = VideoEditPipeline.from_pretrained(str(model), dtype)
    generator = torch.Generator().manual_seed(1)
    adapter = TemporalAdapter.attach(pipe.unet, AdapterSettings(n_shared=2), D_VISION, generator)
    torch.manual_seed(7)  # whatever else is drawn must not matter
    train(pipe, adapter, Clips(), folder, settings, vision=see)


def test_a_killed_run_ends_bit_for_bit_as_an_unbroken_one(checkpoint, fresh, tmp_path):
    """SIGKILL at random moments, also while a checkpoint is written; then the same command."""

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = replace(QUICK, max_steps=8)

    def run(folder: Path) -> None:
        pipe, adapter = fresh(AdapterSettings(n_shared=2))
        train(pipe, adapter, Clips(), folder, settings, vision=see)

    run(whole)
    rng, n_kills = random.Random(), 0  # other moments in every run of this test
    for _ in range(2):
        process = started(
            trained, checkpoint, broken, settings, torch.float32, torch.get_num_threads()
        )
        target = rng.uniform(_last_step(broken) + 1, 6)
        while process.is_alive() and _last_step(broken) < target:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        n_kills += process.exitcode == -signal.SIGKILL
    assert n_kills, "it was never killed"
    run(broken)
    assert same(weights(whole), weights(broken))
    assert (whole / "log.csv").read_text() == (broken / "log.csv").read_text()
    assert len((whole / "log.csv").read_text().splitlines()) == 9
    snapshots = [sorted(p.name for p in f.glob("step-*")) for f in (whole, broken)]
    assert snapshots[0] == snapshots[1]


def _last_step(folder: Path) -> int:
    log = folder / "log.csv"
    return log.read_text().count("\n") - 1 if log.exists() else -1


def test_the_comparison_of_runs_can_fail(fresh, tmp_path):
    """Another seed makes other weights, so equal ones above mean something."""
    for seed in (0, 1):
        pipe, adapter = fresh()
        train(pipe, adapter, Clips(), tmp_path / str(seed), replace(QUICK, seed=seed))
    assert not same(weights(tmp_path / "0"), weights(tmp_path / "1"))


def test_another_training_in_the_folder_is_refused(fresh, tmp_path):
    pipe, adapter = fresh()
    train(pipe, adapter, Clips(), tmp_path, QUICK)
    before = weights(tmp_path)
    pipe, adapter = fresh()
    with pytest.raises(InputError, match="learning_rate"):
        train(pipe, adapter, Clips(), tmp_path, replace(QUICK, learning_rate=1.0, max_steps=9))
    pipe, adapter = fresh(replace(BARE, rank=2))
    with pytest.raises(InputError, match="adapter"):
        train(pipe, adapter, Clips(), tmp_path, replace(QUICK, max_steps=9))
    (tmp_path / "state.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="not a training's state"):
        train(pipe, adapter, Clips(), tmp_path, QUICK)
    before.pop(next(k for k in before if k.startswith("state")))
    assert all(torch.equal(v, before[k]) for k, v in load_after(tmp_path).items() if k in before)


def load_after(folder: Path) -> dict[str, torch.Tensor]:
    files = [p for p in folder.glob("*.safetensors") if p.name != "state.safetensors"]
    return {f"{p.name} {k}": v for p in files for k, v in load_file(p).items()}


# Bad input, before anything is written.


@pytest.mark.parametrize(
    "dataset, settings, message",
    [
        ([], QUICK, "empty"),
        (Clips(n_frames=2), QUICK, "2 frames.*at least 3"),
        (Clips(size=17), QUICK, "multiples of 2"),
    ],
)
def test_data_that_cannot_be_trained_on(fresh, tmp_path, dataset, settings, message):
    pipe, adapter = fresh()
    with pytest.raises(InputError, match=message):
        train(pipe, adapter, dataset, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_two_frames_suffice_for_the_released_loss(fresh, tmp_path):
    pipe, adapter = fresh()
    s = replace(QUICK, loss=LossSettings(variant="released"))
    train(pipe, adapter, Clips(n_frames=2), tmp_path, s)
    assert (tmp_path / "adapter.json").exists()


def test_token_widths_that_do_not_match(fresh, tmp_path):
    pipe, adapter = fresh(AdapterSettings(n_shared=2))
    with pytest.raises(InputError, match="image encoder"):
        train(pipe, adapter, Clips(), tmp_path / "out", QUICK)
    with pytest.raises(InputError, match="7 wide"):
        train(pipe, adapter, Clips(), tmp_path / "out", QUICK,
              vision=lambda x: torch.zeros(len(x), 4, 7))  # fmt: skip
    pipe, adapter = fresh()
    pipe.text_encoder.config.hidden_size = 99
    with pytest.raises(InputError, match="99 wide"):
        train(pipe, adapter, Clips(), tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_unet_or_a_frozen_one(fresh, tmp_path):
    (pipe, adapter), (other, _) = fresh(), fresh()
    with pytest.raises(InputError, match="another UNet"):
        train(other, adapter, Clips(), tmp_path / "out", QUICK)
    for p in adapter.trainable():
        p.requires_grad_(False)
    with pytest.raises(InputError, match="frozen"):
        train(pipe, adapter, Clips(), tmp_path / "out", QUICK)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"max_steps": 0}, "max_steps"),
        ({"learning_rate": -1.0}, "learning rate"),
        ({"mixed_precision": "fp8"}, "precision"),
    ],
)
def test_settings_that_mean_nothing(change, message):
    with pytest.raises(InputError, match=message):
        replace(QUICK, **change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"variant": "new"}, "variant"),
        ({"attention": "anchors"}, "attention"),
        ({"lambda_temporal": -1.0}, "weight"),
        ({"temporal_from": 1.5}, "temporal_from"),
        ({"flicker_weight": -0.1}, "negative"),
        ({"flicker_weight": 0.1, "variant": "released"}, "triples only"),
    ],
)
def test_losses_that_mean_nothing(change, message):
    with pytest.raises(InputError, match=message):
        LossSettings(**change)


def test_mixed_precision_keeps_trained_weights_in_float32(checkpoint, tmp_path):
    """In a process of its own: accelerate holds one precision a process."""
    settings, log = replace(QUICK, max_steps=2, mixed_precision="bf16"), tmp_path / "log.txt"
    process = started(
        trained, checkpoint, tmp_path, settings, torch.bfloat16, torch.get_num_threads(), log=log
    )
    process.join()
    assert process.exitcode == 0, log.read_text()[-2000:]
    assert all(v.dtype == torch.float32 for v in weights(tmp_path).values())
