"""What filtering every step of an inversion costs: bias a step, reconstruction, edits.

GE-Adapter (arXiv 2501.04606) 3.2, its figures 5 and 7 and Table 2. The bias of a step has a bound
that no image exceeds (`bias_bound`); what a latent loses so, no sampling gives back.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from vala_research import InputError
from vala_research.diffusion.bilateral_inversion import RELEASED, BilateralInversion
from vala_research.diffusion.inversion import Inversion
from vala_research.evaluation.benchmark import EditSetting, edit_row, truth_row
from vala_research.evaluation.cases import ClipCase, EditCase
from vala_research.evaluation.figures import COLOURS, STYLE
from vala_research.evaluation.metrics import inversion_psnr, ssim
from vala_research.methods.bilateral import bias_bound, neighbour_mass

Clips = Mapping[str, tuple[Float[Tensor, "f c h w"], str]]  # name -> frames, caption
HOSTS = ("own", "first", "sparse_causal", "extended", "anchors")
WAYS = {"ddim": None, "bilateral": BilateralInversion(), "along frames": RELEASED}


def there_and_back(
    pipe, frames: Tensor, caption: str, steps: int, attention,
    settings: BilateralInversion | None = None,
) -> tuple[Inversion, Float[Tensor, "f c h w"]]:  # fmt: skip
    """The inversion with that filter, None for plain DDIM, and the reconstruction from it."""
    way = {"inversion": "ddim"}
    if settings is not None:
        way = {"inversion": "bilateral", "bilateral_settings": settings}
    found = pipe.invert(frames, caption, steps, attention=attention, return_inversion=True, **way)
    return found, pipe.reconstruct(found, caption, steps)


def bias_rows(found: Inversion, settings: BilateralInversion) -> list[dict]:
    """One row a step of the inversion: what its filter moved, and the most it could have.

    step: from 1, the clean latents'. deviation: of the latent that is filtered. sigma: the filter's
    intensity. bias: measured max |B(z) - z|; bound: `bias_bound`, both in the latent's unit.
    Raises InputError for a filter along frames, which works inside the network, and where no
    trajectory was kept.
    """
    if settings.place != "latent" or not found.trajectory:
        raise InputError("The bias of a step needs a filter of the latent and a kept trajectory.")
    mass = neighbour_mass(settings.kernel_size, settings.sigma_spatial)
    starts = found.trajectory[:0:-1]  # what each step started from, in the order of inversion
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
    found = {f"clip {case.index}": case for case in reversed(cases)}
    return {
        name: (found[name].material(n_frames, size).frames, found[name].source_prompt)
        for name in reversed(found)
    }


def bias_curves(
    pipe, clips: Clips, steps: int, settings: BilateralInversion, attention: str = "own"
) -> list[dict]:
    """`bias_rows` of each clip, named by it."""
    return [
        {"clip": name} | row
        for name, (frames, caption) in clips.items()
        for row in bias_rows(
            there_and_back(pipe, frames, caption, steps, attention, settings)[0], settings
        )
    ]


def filter_rows(
    pipe,
    clips: Clips,
    steps: Iterable[int] = (3, 5, 10, 25, 50),
    windows: Iterable[int] = (0, 3, 5, 7),
    settings: BilateralInversion = BilateralInversion(),
    attention: str = "own",
) -> list[dict]:
    """Reconstruction and bias, one row a clip, number of steps and window; window 0 is plain DDIM.

    to_vae, to_source: PSNR in dB, ssim to the VAE round trip; more is better. deviation: of the
    noisiest latent, about 1 for the noise that sampling expects. bias, bound: of the step that
    comes nearest to its bound; share: bias / bound there (nan without a filter).
    """
    rows, steps, windows = [], list(steps), list(windows)
    for name, (frames, caption) in tqdm(clips.items(), "clips", disable=None):
        round_trip = pipe.decode(pipe.encode(frames))
        for n in steps:
            for k in windows:
                filter_ = replace(settings, kernel_size=k) if k else None
                found, again = there_and_back(pipe, frames, caption, n, attention, filter_)
                row = {"clip": name, "steps": n, "window": k}
                row |= inversion_psnr(again, frames, round_trip)
                row["ssim"] = ssim(again, round_trip)
                row["deviation"] = float(found.latents.std(correction=0))
                rows.append(row | _nearest(found, filter_))
    return rows


def _nearest(found: Inversion, settings: BilateralInversion | None) -> dict:
    if settings is None or settings.place != "latent":
        return dict.fromkeys(("bias", "bound", "share"), float("nan"))
    row = max(bias_rows(found, settings), key=lambda r: r["bias"] / r["bound"] if r["bound"] else 0)
    return {"bias": row["bias"], "bound": row["bound"],
            "share": row["bias"] / row["bound"] if row["bound"] else 0.0}  # fmt: skip


def host_rows(
    pipe,
    cases: Sequence[EditCase | ClipCase],
    hosts: Iterable[str] = tuple(HOSTS),
    ways: Mapping[str, BilateralInversion | None] = WAYS,
    n_frames: int = 8,
    size: int = 64,
    steps: int = 25,
    guidance_scale: float = 2.0,
    clip_scorer=None,
) -> Iterator[dict]:
    """Edits, one row a case, host (attention) and way: its name is the setting, its clip the index.

    Columns: those of `edit_row`, and inversion_psnr of the reconstruction to the VAE round trip.
    """
    hosts = list(hosts)
    for case in tqdm(cases, "edits", disable=None):
        material = case.material(n_frames, size)
        z_0, known = pipe.encode(material.frames), truth_row(material, clip_scorer)
        round_trip = pipe.decode(z_0)
        for host in hosts:
            policy = EditSetting(attention=host).policy(z_0, case.index)
            for way, settings in ways.items():
                found, again = there_and_back(
                    pipe, material.frames, case.source_prompt, steps, policy, settings
                )
                frames = pipe(
                    None, case.prompt, case.source_prompt, num_inference_steps=steps,
                    guidance_scale=guidance_scale, attention=policy, latents=found,
                    output_type="pt",
                ).frames[0].cpu()  # fmt: skip
                row = {"host": host, "setting": way, "kind": case.kind, "index": case.index}
                psnr = inversion_psnr(again, material.frames.to(again), round_trip)["to_vae"]
                edited = edit_row(frames, case, material, clip_scorer)
                yield row | known | edited | {"inversion_psnr": psnr}


def cost_figure(rows: list[dict], biases: list[dict]) -> Figure:
    """Left: reconstruction against steps, a line a window; right: bias a step under its bound."""
    windows = sorted({r["window"] for r in rows})
    steps = sorted({r["steps"] for r in rows})
    with rc_context(STYLE):
        fig = Figure(figsize=(6.4, 2.5))
        left, right = fig.subplots(1, 2)
        for k, colour in zip(windows, COLOURS, strict=False):
            means = []
            for n in steps:
                found = [r["to_vae"] for r in rows if (r["window"], r["steps"]) == (k, n)]
                means.append(sum(found) / len(found))
            label = f"{k} x {k}" if k else "no filter"
            left.plot(steps, means, "o-", color=colour, label=label)
        left.set(xlabel="diffusion steps", ylabel="PSNR to the VAE round trip (dB)", xscale="log",
                 title="what comes back")  # fmt: skip
        left.set_xticks(steps, [str(n) for n in steps])
        left.minorticks_off()
        left.legend(title="window", title_fontsize=7)
        for clip, colour in zip(dict.fromkeys(r["clip"] for r in biases), COLOURS, strict=False):
            line = [r for r in biases if r["clip"] == clip]
            x = [r["step"] for r in line]
            right.plot(x, [r["bound"] for r in line], "--", color=colour, lw=1)
            right.plot(x, [r["bias"] for r in line], "o-", color=colour, ms=3)
        right.plot([], [], "--", color="#555555", lw=1, label="bound b(S) sigma, any latent")
        right.plot([], [], "o-", color="#555555", ms=3, label="measured, one colour a clip")
        right.set(xlabel="step of the inversion", ylabel="max |B(z) - z|", ylim=(0, None),
                  title="what the filter moves")  # fmt: skip
        right.locator_params(axis="x", integer=True)
        right.legend(loc="upper right")
    return fig


def window_frames(
    pipe,
    frames: Float[Tensor, "f c h w"],
    caption: str,
    steps: int,
    windows: Iterable[int] = (0, 3, 5, 7),
    settings: BilateralInversion = BilateralInversion(),
    attention: str = "own",
) -> dict[str, Float[Tensor, "f c h w"]]:
    """Reconstructions by window, for `figures.strip`; the source comes first."""
    shown = {"source": frames.cpu()}
    for k in windows:
        filter_ = replace(settings, kernel_size=k) if k else None
        _, again = there_and_back(pipe, frames, caption, steps, attention, filter_)
        shown[f"window {k} x {k}" if k else "no filter"] = again.float().cpu()
    return shown
