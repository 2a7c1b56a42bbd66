"""What stands in the generated tables of notebooks/README.md (see `pages.py`)."""

from __future__ import annotations

from dataclasses import replace

from vala_research.evaluation.gpu.policies import OF_BOTH, OF_IMAGES
from vala_research.experiments.page_cells import Column, Line, PageTable
from vala_research.sprites.motions import MOTIONS

PSNR = Column("PSNR, dB", "psnr")
RIGHT = Column("attributes right, %", "success", digits=1)
PATH, JITTER = Column("path error", "path_error"), Column("jitter", "jitter")
WARP = Column("E_warp x 1000", "warp_error")


def gain(title: str, metric: str, digits: int = 2, with_p: bool = False) -> Column:
    """A column of gains; with_p: every p-value, and not only those below .05."""
    return Column(title, metric, "gain and p" if with_p else "gain", digits)


def lines(*settings: str | tuple[str, str], baseline: str = "") -> list[Line]:
    """A line per setting, on one baseline; a pair: the setting, and its label on the page."""
    pairs = [(s, s) if isinstance(s, str) else s for s in settings]
    return [Line(label, setting, baseline) for setting, label in pairs]


def in_each_motion(first: str | tuple[str, str], *others: str | tuple[str, str]) -> list[Line]:
    """Such lines for each motion, of the other settings on the first one."""
    (own,) = lines(first)
    return [
        replace(line, label=f"{motion}: {line.label}", where={"motion": motion})
        for motion in MOTIONS
        for line in (own, *lines(*others, baseline=own.setting))
    ]


def beside(names: dict[str, str]) -> list[Line]:
    """A line per host: with on without; and one for all of them."""
    each = [Line(label, f"{name}, with", f"{name}, without") for name, label in names.items()]
    with_, without = (tuple(f"{name}, {way}" for name in names) for way in ("with", "without"))
    return [*each, Line("**mean**", with_, without)]


DEFAULT, FORMER = "default", "image model alone"
KINDS = ("shape", "colour", "background", "pattern", "several")
DEFAULT_EDIT = PageTable(
    "01_default_edit", "kind",
    [Line(kind, DEFAULT, where={"kind": kind}) for kind in KINDS],
    [
        Column("object there, %", "presence", digits=1),
        Column("all right, %", "success", digits=1), PATH, JITTER,
        Column("size error, %", "size_error", digits=1),
        Column("PSNR, dB", "psnr", digits=1),
        Column("image model alone: all right, %", "success", digits=1, setting=FORMER),
        Column("path error", "path_error", setting=FORMER),
        Column("jitter", "jitter", setting=FORMER),
        Column("PSNR, dB", "psnr", digits=1, setting=FORMER),
    ],
)  # fmt: skip

SEARCHED = lines(
    "no motion modules", "no adapter", "no ControlNet", ("no parts", "none of the three"),
    ("image model alone, anchors", "former default: none, 50 steps, anchors"),
    ("fusion, .7 video", "fused: .7 motion UNet, .3 image UNet"),
    ("ControlNet x 1", "ControlNet x 1 (start 1.5)"), "ControlNet x 2",
    ("steps 5", "5 steps (start 15)"), ("steps 10", "10 steps"), ("steps 25", "25 steps"),
    ("steps 50", "50 steps"), ("guidance 1", "guidance 1 (start 2)"), "guidance 1.5",
    "guidance 3", "guidance 7.5", "exact inversion", "strength 0.6",
    "source prompt as negative prompt",
    ("features injected, .3", "features injected for 30% of the steps"),
    ("prompt-to-prompt, .3", "prompt-to-prompt for 30% of the steps"),
    ("prompt-to-prompt, .6", "prompt-to-prompt for 60% of the steps"),
    ("attention anchors", "attention `anchors`"), ("attention extended", "attention `extended`"),
    ("attention sparse_causal", "attention `sparse_causal`"), baseline="start",
)  # fmt: skip
COMBINED = lines(
    "guidance 1.5", "guidance 1.5, 10 steps", "guidance 1.5, ControlNet x 1.25",
    "guidance 1.5, ControlNet x 1", "guidance 1.5, ControlNet x 1.25, 10 steps",
    "guidance 1.25, ControlNet x 1.25, 10 steps", "guidance 1.5, ControlNet x 1.25, 8 steps",
    "guidance 1.5, ControlNet x 1.25, 10 steps, fused", baseline="start",
)  # fmt: skip
SEARCH = (
    Column("evaluations", "evaluations", digits=0), Column("all right, %", "success", digits=1),
    PATH, JITTER, PSNR, gain("gain on the start, dB", "psnr"),
)  # fmt: skip

POLICIES = lines(
    ("first", "`first` frame, instead of itself"),
    ("sparse_causal", "first and previous, instead (`sparse_causal`)"),
    ("extended", "every frame (`extended`)"), "uniform 2 key frames", "random 2 key frames",
    "k-means 2 key frames", "VALA 2 key frames", ("VALA 2 site anchors", "**VALA 2 site anchors**"),
    "VALA 2 site anchors, contrastive", "VALA 2 site anchors, refined", "VALA 4 site anchors",
    "VALA 256 token anchors", baseline="own",
)  # fmt: skip

MOVING = in_each_motion(
    ("own", "nothing (`own`)"), ("extended", "every frame (`extended`)"), "uniform 2 key frames",
    "VALA 2 key frames", "VALA 2 site anchors", "VALA 4 site anchors",
)  # fmt: skip
CHOICES = in_each_motion(
    ("random key frames", "random at every step"),
    ("random key frames, drawn once", "random, drawn once"), ("uniform key frames", "uniform"),
    ("k-means key frames", "k-means"), ("VALA key frames", "**VALA**"),
    ("frame by frame", "none: frame by frame"),
)  # fmt: skip
STEADINESS = (
    JITTER, gain("reduced by", "jitter"), WARP, gain("reduced by", "warp_error"), PSNR,
    gain("gain", "psnr"), RIGHT,
)  # fmt: skip

FUSED = lines(
    "image only", "video only", "image only, anchors", "fused",
    ("fused, half and half", "**fused, half and half**"), "fused, image from noise",
    "fused, anchors",
)  # fmt: skip
FUSIONS = [
    Line("video model against image model", "video only", "image only"),
    Line("fused against image model", "fused", "image only"),
    Line("fused against video model", "fused", "video only"),
    Line("half and half against image model", "fused, half and half", "image only"),
    Line("half and half against video model", "fused, half and half", "video only"),
]

EDITORS = {
    "text2video_zero": "Text2Video-Zero", "token_flow": "TokenFlow",
    "vid2vid_zero": "vid2vid-zero", "vid_to_me": "VidToMe",
}  # fmt: skip
PAIRED = (
    Column("PSNR, dB: without", "psnr", "baseline"), gain("gain", "psnr"),
    Column("attributes right, %: without", "success", "baseline", 1), gain("gain", "success", 1),
)  # fmt: skip
WAYS = (
    Column("PSNR to the true edit, dB", "psnr"), RIGHT, PATH, JITTER,
    Column("E_warp x 1000", "warp_error", digits=1),
    Column("background, dB", "background", digits=1),
)  # fmt: skip


TABLES = {
    "default edit": DEFAULT_EDIT,
    "default search": PageTable(
        "02_default_search", "setting",
        [Line("**start**: the default", "start"), *SEARCHED], SEARCH,
    ),
    "default combinations": PageTable(
        "02_default_search_combinations", "setting", [Line("start", "start"), *COMBINED], SEARCH,
    ),
    "attention policies": PageTable(
        "12_vala_editing_quality", "attends to, besides itself",
        [Line("nothing (`own`)", "own"), *POLICIES],
        [Column("cost", "cost"), WARP, gain("reduced by", "warp_error"), JITTER,
         gain("reduced by", "jitter"), PSNR, gain("gain", "psnr"), PATH, RIGHT],
    ),
    "attention policies, long": PageTable(
        "12_vala_editing_quality_long", "motion: attends to, besides itself", MOVING,
        STEADINESS,
    ),
    "key frames": PageTable(
        "14_vala_key_frames_in_token_flow", "motion: key frames", CHOICES,
        [WARP, gain("reduced by", "warp_error"), JITTER, gain("reduced by", "jitter"), PSNR,
         gain("gain", "psnr"), RIGHT],
    ),
    "fusion": PageTable(
        "20_fldm_fusion", "setting", FUSED,
        [JITTER, PATH, WARP, RIGHT, Column("PSNR to the true edit, dB", "psnr"),
         Column("CLIP-T", "clip_t"), Column("CLIP-F", "clip_f")],
    ),
    "fusion gains": PageTable(
        "20_fldm_fusion", "comparison", FUSIONS,
        [gain("jitter lower by, pixels", "jitter", with_p=True),
         gain("E_warp x 1000 lower by", "warp_error", with_p=True),
         gain("path error lower by, pixels", "path_error", with_p=True),
         gain("PSNR, dB", "psnr", with_p=True)],
    ),
    "long clips": PageTable(
        "24_fldm_long_clips", "frames",
        [Line(f"{n}", "fused", "image only", {"frames": n}) for n in (8, 16, 24, 48)],
        [Column("PSNR, dB: image model", "psnr", "baseline"), Column("fused", "psnr"),
         gain("gain", "psnr"),
         Column("jitter: image model", "jitter", "baseline"), JITTER,
         gain("lower by", "jitter"),
         Column("E_warp x 1000: image model", "warp_error", "baseline"), WARP,
         gain("lower by", "warp_error")],
    ),
    "adapter gains": PageTable(
        "35_ge_adapter_gains", "host (attention)",
        beside({name: f"`{name}`" for name in ("own", "sparse_causal", "anchors")}),
        [gain("PSNR to the true edit, dB", "psnr"),
         gain("E_warp x 1000 along the true edit's flow, reduced by", "warp_error_truth"),
         gain("along the source's flow", "warp_error"),
         gain("path error, reduced by", "path_error"), gain("jitter, reduced by", "jitter")],
    ),
    "hosts": PageTable(
        "36_ge_hosts", "editor", beside(EDITORS),
        [*PAIRED, gain("path error lower by", "path_error"), gain("jitter lower by", "jitter"),
         gain("E_warp x 1000 lower by", "warp_error")],
    ),
    "bilateral hosts": PageTable(
        "37_ge_bilateral_hosts", "editor", beside(EDITORS),
        [gain("reconstruction, dB", "inversion_psnr", 1), gain("PSNR to the true edit, dB", "psnr"),
         gain("attributes right, %", "success", 1), gain("E_warp x 1000 lower by", "warp_error")],
    ),
    "controls": PageTable(
        "38_ge_controls", "",
        [Line("no ControlNet", "none, without"), Line("depth", "depth, without", "none, without"),
         Line("depth, with the adapter", "depth, with", "depth, without")],
        [PATH, gain("lower by", "path_error"), Column("size error, %", "size_error", digits=1),
         gain("lower by", "size_error", 1), Column("right shape, %", "shape", digits=1),
         gain("gain", "shape", 1), PSNR, gain("gain", "psnr")],
    ),
    "flow editing": PageTable("50_flow_editing", "base, way", lines(
        "image, inversion", "image, FlowEdit", "image, FlowAlign", "image, anchors, inversion",
        "image, anchors, FlowEdit", "motion, inversion", "motion, FlowEdit", "motion, FlowAlign",
    ), WAYS),
    "flow anchors": PageTable(
        "51_flow_anchors", "a frame attends to",
        [Line("all frames (native)", "all frames"), *lines(
            "own", "own and 2 key frames", ("own and 1 anchor", "own and 1 site anchor"),
            ("own and 2 anchors", "own and 2 site anchors"),
            ("own and 4 anchors", "own and 4 site anchors"), baseline="all frames",
        )],
        STEADINESS,
    ),
    "flow fusion": PageTable("52_flow_fusion", "denoised by", lines(
        "image", "motion", "flow", "image + motion", "image + flow, path of diffusion",
        "flow + image, path of flow",
    ), WAYS),
    "graphics card, edits": PageTable(
        "gpu_edits", "clip of 512 pixels", lines("8 frames", "16 frames", "32 frames"),
        [Column("seconds per step, inversion and guided edit", "step"),
         Column("50 + 50 steps, seconds", "seconds", digits=1),
         Column("TFLOP/s", "tflops", digits=0), Column("peak memory, GiB", "peak_gib"),
         Column("`pipe.estimate`, GiB", "estimated_gib")],
    ),
    "graphics card, policies": PageTable(
        "gpu_policies", "network: a frame attends to",
        [Line(f"{network}: {policy}", policy, where={"kind": network})
         for network, policies in (
             ("image model", OF_BOTH | OF_IMAGES), ("video transformer", OF_BOTH))
         for policy in policies],
        [Column("seconds", "seconds", digits=3), Column("over all frames", "time"),
         Column("FLOPs, over all frames", "flops"), Column("TFLOP/s", "tflops", digits=0),
         Column("peak memory, GiB", "peak_gib", digits=1)],
    ),
    "flow editing, wan": PageTable("50_flow_editing_wan", "base, way", lines(
        "wan, inversion", "wan, FlowEdit", "wan, FlowAlign", "wan, anchors, inversion",
        "wan, anchors, FlowEdit",
    ), WAYS),
}  # fmt: skip
