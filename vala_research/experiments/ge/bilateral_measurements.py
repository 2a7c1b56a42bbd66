"""Measure an inversion whose every step is filtered: bias per step, reconstruction, edits.

GE-Adapter (arXiv 2501.04606) 3.2. The bias of a step has a bound that no latent exceeds
(`bias_bound`). Sampling does not give back what a latent loses.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vala_research import InputError
from vala_research.diffusion.attending import policy_of_clip
from vala_research.diffusion.bilateral_inversion import RELEASED, BilateralInversion
from vala_research.diffusion.inversion import Inversion
from vala_research.evaluation.cases import ClipCase, EditCase
from vala_research.evaluation.edit_rows import edit_row, truth_row
from vala_research.evaluation.metrics import inversion_psnr, ssim
from vala_research.experiments.ge.paper_tables import HOSTS
from vala_research.methods.bilateral import bias_bound, neighbour_mass

Clips = Mapping[str, tuple[Float[Tensor, "f c h w"], str]]  # name -> frames, caption
Way = str | BilateralInversion  # "ddim", or the filter
WAYS = {"ddim": "ddim", "bilateral": BilateralInversion(), "along frames": RELEASED}


def there_and_back(
    pipe, frames: Tensor, caption: str, steps: int, attention, inversion: Way = "ddim"
) -> tuple[Inversion, Float[Tensor, "f c h w"]]:
    """The inversion and the reconstruction from it."""
    inverted = pipe.invert(
        frames, caption, steps, inversion, attention=attention, return_inversion=True
    )
    return inverted, pipe.reconstruct(inverted, caption, steps)


def bias_rows(inverted: Inversion, settings: BilateralInversion) -> list[dict]:
    """One row per step of the inversion: what its filter moved, and the most it could have moved.

    step: counted from 1, the step of the clean latents. deviation: of the latent that is filtered.
    sigma: the filter's intensity. bias: max |B(z) - z|, measured. bound: `bias_bound`. Both are in
    the latent's unit.
    Raises InputError for a filter along frames, which works inside the network, and where the
    inversion kept no trajectory.
    """
    if settings.place != "latent" or not inverted.trajectory:
        raise InputError("The bias of a step needs a filter of the latent and a kept trajectory.")
    mass = neighbour_mass(settings.kernel_size, settings.sigma_spatial)
    starts = inverted.trajectory[:0:-1]  # what each step started from, in the order of inversion
    rows = []
    for i, z in enumerate(starts):
        fraction = i / max(1, len(starts) - 1)
        sigma = settings.intensity(z, fraction)
        rows.append({
            "step": i + 1, "deviation": float(z.std(correction=0)), "sigma": sigma,
            "bias": float((settings(z, fraction) - z).abs().max()),
            "bound": bias_bound(mass, sigma),
        })  # fmt: skip
    return rows


def clips_of(cases: Sequence[EditCase | ClipCase], n_frames: int, size: int) -> Clips:
    """The clips that the cases edit, each once."""
    first_cases = {f"clip {case.index}": case for case in reversed(cases)}
    return {
        name: (case.material(n_frames, size).frames, case.source_prompt)
        for name, case in reversed(first_cases.items())
    }


def bias_curves(
    pipe, clips: Clips, steps: int, settings: BilateralInversion, attention: str = "own"
) -> list[dict]:
    """`bias_rows` of each clip; column clip names it."""
    rows = []
    for name, (frames, caption) in clips.items():
        inverted, _ = there_and_back(pipe, frames, caption, steps, attention, settings)
        rows += [{"clip": name} | row for row in bias_rows(inverted, settings)]
    return rows


def filter_rows(
    pipe,
    clips: Clips,
    steps: Iterable[int] = (3, 5, 10, 25, 50),
    windows: Iterable[int] = (0, 3, 5, 7),
    settings: BilateralInversion = BilateralInversion(),
    attention: str = "own",
) -> list[dict]:
    """One row per clip, number of steps and window (0: plain DDIM): reconstruction and bias.

    to_vae, to_source: PSNR in dB to the VAE round trip and to the source; larger is better. ssim:
    to the VAE round trip; larger is better. deviation: of the noisiest latent; sampling expects
    noise of deviation 1. bias, bound: at the step that comes nearest to its bound. share:
    bias / bound there. The last three are NaN without a filter.
    """
    rows, steps, windows = [], list(steps), list(windows)
    for name, (frames, caption) in tqdm(clips.items(), "clips", disable=None):
        round_trip = pipe.decode(pipe.encode(frames))
        for n in steps:
            for k in windows:
                way = replace(settings, kernel_size=k) if k else "ddim"
                inverted, again = there_and_back(pipe, frames, caption, n, attention, way)
                row = {"clip": name, "steps": n, "window": k}
                row |= inversion_psnr(again, frames, round_trip)
                row["ssim"] = ssim(again, round_trip)
                row["deviation"] = float(inverted.latents.std(correction=0))
                rows.append(row | _nearest_step(inverted, way))
    return rows


def _nearest_step(inverted: Inversion, way: Way) -> dict:
    """bias, bound and share of the step whose bias comes nearest to its bound."""
    if isinstance(way, str) or way.place != "latent":
        return dict.fromkeys(("bias", "bound", "share"), float("nan"))
    steps = [(r["bias"] / r["bound"] if r["bound"] else 0.0, r) for r in
             bias_rows(inverted, way)]  # fmt: skip
    share, row = max(steps, key=lambda step: step[0])
    return {"bias": row["bias"], "bound": row["bound"], "share": share}


def host_rows(
    pipe,
    cases: Sequence[EditCase | ClipCase],
    hosts: Iterable[str] = HOSTS,
    ways: Mapping[str, Way] = WAYS,
    n_frames: int = 8,
    size: int = 64,
    steps: int = 25,
    guidance_scale: float = 2.0,
) -> Iterator[dict]:
    """One row per case, host (attention policy) and way of inverting (column setting): edits.

    Columns: those of `edit_row`; inversion_psnr, of the reconstruction to the VAE round trip.
    """
    hosts = list(hosts)
    for case in tqdm(cases, "edits", disable=None):
        material = case.material(n_frames, size)
        z_0, known = pipe.encode(material.frames), truth_row(material)
        round_trip = pipe.decode(z_0)
        for host in hosts:
            policy = policy_of_clip(host, z_0)
            for name, way in ways.items():
                inverted, again = there_and_back(
                    pipe, material.frames, case.source_prompt, steps, policy, way
                )
                frames = pipe(
                    material.frames, case.prompt, case.source_prompt, num_inference_steps=steps,
                    guidance_scale=guidance_scale, attention=policy, latents=inverted,
                    output_type="pt",
                ).frames[0].cpu()  # fmt: skip
                row = {"host": host, "setting": name, "kind": case.kind, "index": case.index}
                psnr = inversion_psnr(again, material.frames.to(again), round_trip)["to_vae"]
                yield row | known | edit_row(frames, case, material) | {"inversion_psnr": psnr}


def window_frames(
    pipe,
    frames: Float[Tensor, "f c h w"],
    caption: str,
    steps: int,
    windows: Iterable[int] = (0, 3, 5, 7),
    settings: BilateralInversion = BilateralInversion(),
    attention: str = "own",
) -> dict[str, Float[Tensor, "f c h w"]]:
    """Reconstructions by window, for `sheet.strip`; the source comes first."""
    rows = {"source": frames.cpu()}
    for k in windows:
        way = replace(settings, kernel_size=k) if k else "ddim"
        _, again = there_and_back(pipe, frames, caption, steps, attention, way)
        rows[f"window {k} x {k}" if k else "no filter"] = again.float().cpu()
    return rows
