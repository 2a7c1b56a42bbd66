"""Metrics agree with closed forms, and wrong conventions are shown to move them."""

import json
import math

import pytest
import torch

from vala_research import InputError
from vala_research.evaluation.clip_scores import ClipScorer
from vala_research.evaluation.metrics import (
    attribute_success,
    clip_frames,
    clip_text,
    estimate_flow,
    frame_accuracy,
    inversion_psnr,
    psnr,
    ssim,
    warp_error,
)
from vala_research.evaluation.statistics import FEWEST, paired_gain, summarise


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def moving(dx, dy, n=4, size=48):
    """A smooth random texture that moves by whole pixels, its exact flow and validity."""
    picture = torch.nn.functional.interpolate(
        noise(1, 3, 24, 24), size=(96, 96), mode="bicubic", antialias=True
    )[0].clamp(0, 1)
    # A point at p in frame t is at p + (dx, dy) in frame t + 1: the window moves the other way.
    starts = [(24 - k * dy, 24 - k * dx) for k in range(n)]
    frames = torch.stack([picture[:, t : t + size, s : s + size] for t, s in starts])
    flow = torch.tensor([float(dx), float(dy)])[:, None, None].expand(n - 1, 2, size, size)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = (x + dx >= 0) & (x + dx < size) & (y + dy >= 0) & (y + dy < size)
    return frames, flow.contiguous(), inside.expand(n - 1, 1, size, size)


# --- PSNR and SSIM ----------------------------------------------------------------------------


def test_psnr_is_the_mean_over_frames_of_decibels():
    reference = torch.full((2, 3, 8, 8), 0.5)
    frames = reference + torch.tensor([0.1, 0.01])[:, None, None, None]
    # 20 dB and 40 dB; fp32 rounding of 0.51 - 0.5 is 6e-6 relative: 1e-3 dB is ample.
    assert psnr(frames, reference) == pytest.approx(30.0, abs=1e-3)
    pooled = -10 * math.log10((0.1**2 + 0.01**2) / 2)  # logarithm of the mean: 22.97 dB
    assert abs(psnr(frames, reference) - pooled) > 5
    assert psnr(frames, frames) == math.inf


def test_psnr_agrees_with_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio

    a, b = noise(1, 3, 16, 16), noise(1, 3, 16, 16, seed=1)
    expected = peak_signal_noise_ratio(b[0].numpy(), a[0].numpy(), data_range=1)
    assert psnr(a, b) == pytest.approx(expected, rel=1e-5)  # fp32 means of 768 numbers


def test_ssim():
    frames = moving(1, 0)[0]
    assert ssim(frames, frames) == pytest.approx(1, abs=1e-6)  # fp32 rounding
    slightly, badly = (frames + s * (noise(*frames.shape) - 0.5) for s in (0.05, 0.5))
    assert 1 > ssim(slightly, frames) > ssim(badly, frames) + 0.1
    assert ssim(1 - frames, frames) < 0  # inverted structure


def test_inversion_psnr_names_both_references():
    source = noise(2, 3, 8, 8) * 0.8
    found = inversion_psnr(source + 0.1, source, source + 0.09)
    assert found["to_source"] == pytest.approx(20, abs=1e-3)
    assert found["to_vae"] == pytest.approx(40, abs=1e-2)  # fp32: 0.01 is known to 1e-5


# --- motion -----------------------------------------------------------------------------------


def test_warp_error_vanishes_on_an_exact_translation():
    frames, flow, valid = moving(3, 1)
    error = warp_error(frames, flow, valid)
    # Whole-pixel flow, but the grid's normalisation rounds by about 1e-5 pixel: squared, 1e-9.
    assert error < 1e-9
    for name, wrong in {
        "axes swapped": flow.flip(1),
        "backwards": -flow,
        "no motion": torch.zeros_like(flow),
        "half a pixel off, as confused align_corners": flow + 0.5,
    }.items():
        assert warp_error(frames, wrong, valid) > 1e-4, name
    everything = torch.ones_like(valid)
    assert warp_error(frames, flow, everything) > 1e-4  # the mask matters at the border


def test_warp_error_samples_between_pixels():
    """A linear ramp is reproduced by bilinear sampling at any fraction of a pixel."""
    x = torch.arange(32.0).expand(1, 1, 32, 32) / 64
    frames = torch.cat([x, x - 0.4 / 64])  # moved right by 0.4 pixel
    flow = torch.tensor([0.4, 0.0])[None, :, None, None].expand(1, 2, 32, 32)
    valid = torch.ones(1, 1, 32, 32)
    valid[..., -1] = 0
    assert warp_error(frames, flow, valid) < 1e-9  # fp32 positions, as above
    assert warp_error(frames, 0 * flow, valid) > 3e-5  # (0.4 / 64)^2 = 3.9e-5


def test_warp_error_value():
    """Brightness rising by 0.1 a frame: 0.01 whatever the share of valid pixels."""
    frames = torch.stack([torch.full((3, 8, 8), 0.1 * k) for k in range(3)])
    valid = noise(2, 1, 8, 8) > 0.7
    assert warp_error(frames, torch.zeros(2, 2, 8, 8), valid) == pytest.approx(0.01, rel=1e-4)


def test_estimated_flow_is_close_to_the_true_one():
    frames, flow, valid = moving(2, -1)
    found, trusted = estimate_flow(frames)
    error = (found - flow).norm(dim=1, keepdim=True)[trusted & valid]
    # DIS is good to a fraction of a pixel on smooth texture; swapped axes would be 4.2 off.
    assert error.median() < 0.3
    assert (trusted & valid).float().mean() > 0.6
    assert warp_error(frames, found, trusted) < 0.1 * warp_error(frames, 0 * found, trusted)


# --- CLIP -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIPModel of the miniature's kind: 56 pixels, patches of 8, words as tokens."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    words = "a red blue circle square moves".split()
    vocabulary = {c: i for i, c in enumerate(["<|startoftext|>", "<|endoftext|>"])}
    for piece in [c for w in words for c in w] + [c + "</w>" for w in words for c in w]:
        vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2, "projection_dim": 8}  # fmt: skip
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**tower, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 24}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config={**tower, "image_size": 56, "patch_size": 8},
            projection_dim=8,
        )
    )
    for weight in model.parameters():  # std 0.02 would make all scores equal
        torch.nn.init.normal_(weight, std=0.3)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_clip_scores_are_cosines(clip_folder):
    scorer = ClipScorer.from_pretrained(clip_folder)
    frames = noise(5, 3, 40, 64)
    images, texts = scorer.images(frames), scorer.texts(["a red circle", "a blue square moves"])
    assert images.shape == (5, 8) and texts.shape == (2, 8)
    # Prompts of different lengths are padded together: alone, each gives the same vector.
    alone = scorer.texts(["a red circle"])
    assert torch.allclose(alone[0], texts[0], atol=1e-5)  # fp32, another batch
    assert not torch.allclose(texts[0], texts[1], atol=0.05)
    cosines = images @ images.T
    assert torch.allclose(cosines.diagonal(), torch.ones(5), atol=1e-5)
    assert clip_text(frames, "a red circle", scorer) == pytest.approx(
        100 * (images @ texts[0]).mean().item(), abs=1e-3
    )
    assert clip_text(frames, "a red circle", clip_folder) == pytest.approx(
        clip_text(frames, "a red circle", scorer), abs=1e-3
    )


def test_clip_frames_names_its_pairs(clip_folder):
    scorer = ClipScorer.from_pretrained(clip_folder)
    a, b = noise(1, 3, 56, 56), noise(1, 3, 56, 56, seed=1) * 0.2
    frames = torch.cat([a, a, b])
    far = (scorer.images(a) @ scorer.images(b).T).item()
    assert far < 0.99
    # Cosines 1, far, far; consecutive pairs are the first and the last.
    assert clip_frames(frames, scorer) == pytest.approx(100 * (1 + far) / 2, abs=1e-3)
    assert clip_frames(frames, scorer, "all") == pytest.approx(100 * (1 + 2 * far) / 3, abs=1e-3)
    assert clip_frames(a.repeat(3, 1, 1, 1), scorer) == pytest.approx(100, abs=1e-3)


def test_frame_accuracy(clip_folder):
    scorer = ClipScorer.from_pretrained(clip_folder)
    frames, (p, q) = noise(6, 3, 56, 56), ("a red circle", "a blue square")
    one, other = frame_accuracy(frames, p, q, scorer), frame_accuracy(frames, q, p, scorer)
    assert one + other == 1 and frame_accuracy(frames, p, p, scorer) == 1  # no ties in noise


def test_clip_pixels_are_prepared_as_its_own_processor_does(clip_folder):
    """Pillow's bicubic in bytes against torch's antialiased in floats: within two 8-bit steps."""
    import numpy as np
    from PIL import Image

    from vala_research.frames import fit_to_size

    picture = moving(0, 0, n=1)[0]
    found = fit_to_size(picture, (28, 28))[0]
    image = Image.fromarray((picture[0].permute(1, 2, 0) * 255).round().byte().numpy())
    expected = np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)) / 255
    assert (found.permute(1, 2, 0) - torch.from_numpy(expected)).abs().max() < 2 / 255
    config = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (clip_folder / "preprocessor_config.json").write_text(json.dumps(config))
    assert ClipScorer.from_pretrained(clip_folder).std == (0.25,) * 3
    (clip_folder / "preprocessor_config.json").unlink()


@pytest.mark.parametrize("h, w", [(480, 854), (240, 426), (426, 240), (50, 162)])
def test_a_picture_that_is_no_square_is_scaled_as_by_clips_processor(h, w):
    """The longer side is rounded down: rounded to the nearest, edges move by half a pixel."""
    from transformers import CLIPImageProcessor

    from vala_research.frames import fit_to_size

    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    stripes = torch.stack([x % 16 < 8, y % 16 < 8, x % 40 < 9]).mul(255).byte()
    processor = CLIPImageProcessor(do_normalize=False)
    expected = processor(stripes.permute(1, 2, 0).numpy(), return_tensors="pt").pixel_values
    found = fit_to_size(stripes[None] / 255, (224, 224))
    assert (found - expected).abs().max() < 1 / 255


def test_unknown_clip(tmp_path):
    with pytest.raises(InputError, match="no CLIPModel"):
        clip_text(noise(2, 3, 16, 16), "a", tmp_path)
    with pytest.raises(InputError, match="consecutive or all"):
        clip_frames(noise(2, 3, 16, 16), tmp_path, "some")


# --- attributes, statistics, bad input ----------------------------------------------------------


def test_attribute_success_asks_for_all_at_once():
    rows = [{"shape": "circle", "colour": c, "pattern": "plain"} for c in ("red", "red", "blue")]
    frames = noise(3, 3, 8, 8)
    target = {"shape": "circle", "colour": "red"}
    assert attribute_success(frames, target, lambda _: rows) == pytest.approx(2 / 3)
    assert attribute_success(frames, {"shape": "star", "colour": "red"}, lambda _: rows) == 0
    for bad in ({}, {"size": "big"}):
        with pytest.raises(InputError, match="target"):
            attribute_success(frames, bad, lambda _: rows)


def test_attribute_success_of_a_true_edit():
    from vala_research.sprites.render import render
    from vala_research.sprites.scene import random_scene

    scene = random_scene(torch.Generator().manual_seed(3))
    frames = render(scene, n_frames=4).frames
    from vala_research.sprites.reader import read_attributes

    target = read_attributes(frames)[0]
    assert attribute_success(frames, target) == 1
    assert attribute_success(frames, {**target, "colour": "no such colour"}) == 0


def test_intervals_cover_the_mean():
    """Of 60 samples of 20 normals, 95% intervals miss the mean in about 3; 10 is 4 sigma off."""
    values = torch.randn(60, 20, generator=torch.Generator().manual_seed(0)).double().numpy()
    found = [summarise(row) for row in values[:60]]
    assert sum(not s.low <= 0 <= s.high for s in found) <= 10
    assert summarise(values[0]) == summarise(values[0])  # seeded
    # Normal theory: half width 1.96 / sqrt(20) = 0.44, one sample's to a third.
    assert (found[0].high - found[0].low) / 2 == pytest.approx(0.44, rel=0.4)
    assert summarise([2.0] * FEWEST).low == summarise([2.0]).mean == 2
    for few in range(1, FEWEST):
        assert all(map(math.isnan, (summarise(range(few)).low, summarise(range(few)).high)))


def test_paired_gain_sees_what_unpaired_intervals_hide():
    clips = torch.linspace(10, 30, 32).double().numpy()  # clips differ by 20 dB
    gain = paired_gain(clips + 0.5 + 0.1 * noise(32).numpy(), clips)
    assert 0.5 < gain.low < gain.mean < gain.high < 0.6 and gain.p_value < 0.01 and gain.n == 32
    none = paired_gain(clips + noise(32).numpy() - 0.5, clips)
    assert none.low < 0 < none.high and none.p_value > 0.05
    with pytest.raises(InputError, match="one pair per clip"):
        paired_gain([1.0, 2.0], [1.0])


def test_bad_input():
    frames, flow, valid = moving(1, 0)
    nan = frames.clone()
    nan[0, 0, 0, 0] = float("nan")
    for call in (
        lambda: psnr(frames, frames[:2]),
        lambda: psnr(frames[:0], frames[:0]),
        lambda: psnr(nan, frames),
        lambda: ssim(frames, nan),
        lambda: ssim(frames[..., :5], frames[..., :5]),
        lambda: psnr(frames[0], frames[0]),
        lambda: warp_error(frames, flow[:1], valid),
        lambda: warp_error(frames, flow, valid & False),
        lambda: warp_error(frames, flow * float("nan"), valid),
        lambda: warp_error(frames[:1], flow[:0], valid[:0]),
        lambda: estimate_flow(frames[:1]),
        lambda: clip_frames(frames[:1], "nowhere"),
        lambda: summarise([]),
        lambda: summarise([1.0, float("inf")]),
    ):
        with pytest.raises(InputError):
            call()
