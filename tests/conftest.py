"""Shapes in signatures are checked here, and only here; what needs weights skips without them."""

import ast
import gc
import itertools
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

# Before anything imports torch or a hub client: no test draws a window or touches the network.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Small tensors are not faster on several threads, and far slower where these wait for a busy core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
from jaxtyping import _import_hook, install_import_hook

ARRAYS = {"Float", "Int", "Integer", "Bool", "Num", "UInt8", "Shaped", "Complex"}


class OuterFunctions(_import_hook.JaxtypingTransformer):
    """Checks every function but those inside functions, whose checks each call would build anew.

    A function without arrays is checked by beartype alone: binding the letters of shapes costs
    twenty times as much. Both rules together halve the time of the whole suite; `sparing` saves a
    sixth of what is left.
    """

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if any(isinstance(parent, ast.FunctionDef) for parent in self._parents):
            return node
        node = super().visit_FunctionDef(node)
        checker = node.decorator_list.pop()
        if not names_of(node.args, node.returns) & ARRAYS:
            checker = checker.keywords[0].value
        sparingly = ast.parse("jaxtyping.sparing()", mode="eval").body
        sparingly.args.append(checker)
        node.decorator_list.append(ast.fix_missing_locations(ast.copy_location(sparingly, node)))
        return node


def names_of(*nodes: ast.AST | None) -> set[str]:
    return {n.id for x in nodes if x for n in ast.walk(x) if isinstance(n, ast.Name)}


def sparing(checker: Callable) -> Callable:
    """Let a checker see a function's first calls in each test, and then one in EVERY.

    The calls of a loop over steps and layers are alike. EVERY is a prime number, so that the calls
    that are seen are not always of one layer.
    """

    def decorate(function: Callable) -> Callable:
        checked, seen = checker(function), [0, 0]  # number of the test, calls in it

        @wraps(function)
        def call(*args, **kwargs):
            if seen[0] != TESTS[0]:
                seen[:] = TESTS[0], 0
            n = seen[1]
            seen[1] = n + 1
            is_checked = n < FIRST or n % EVERY == 0
            return (checked if is_checked else function)(*args, **kwargs)

        return call

    return decorate


TESTS, FIRST, EVERY = [0], 3, 37
jaxtyping.sparing = sparing  # a name that every checked module can reach
_import_hook.JaxtypingTransformer = OuterFunctions

# An int is welcome where a float is: `guidance_scale=3`, as everywhere in Python's typing.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(["vala_research", "theory"], CHECKER)

# Imports make a million objects and hardly any garbage: see `pytest_collection_finish`.
gc.disable()

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first, so that at the end no worker waits for another one's last file."""

    def is_short(item: pytest.Item) -> bool:
        folder, name = item.path.parts[-2:]
        return "notebook" not in name and folder not in ("miniature", "theory")

    items.sort(key=is_short)
    if config.getoption("family") == "sdxl":
        alone = (ROOT / "tests" / "editing" / "sd_alone.txt").read_text().splitlines()
        for item in items:
            if f"{item.path.name}::{item.originalname}" in alone:
                item.add_marker(pytest.mark.skip(reason="asks for Stable Diffusion 1"))


def pytest_runtest_setup() -> None:
    TESTS[0] += 1


def pytest_collection_finish() -> None:
    """What was imported stays: the collector of garbage need not walk it again and again."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def miniature() -> str:
    """Folder of the miniature's checkpoint; the test skips while its weights are not there."""
    return _weights("pipeline")


@pytest.fixture(scope="session")
def miniature_clip() -> str:
    """Folder of the miniature's CLIPModel; the test skips while its weights are not there."""
    return _weights("clip")


@pytest.fixture(scope="session")
def pipe(miniature):
    """The bare miniature, in float32 on the CPU, without progress bars."""
    from vala_research import VideoEditPipeline
    from vala_research.editing.defaults import EditDefaults
    from vala_research.editing.extras import BARE

    pipe = VideoEditPipeline.from_pretrained("miniature", **BARE)
    pipe.edit_defaults = EditDefaults(guidance_scale=2.0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest tests/editing --family sdxl`: the tests of the pipeline on Stable Diffusion XL."""
    parser.addoption("--family", default="sd", choices=("sd", "sdxl"), help="of `checkpoint`")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, pytestconfig) -> Path:
    """Folder of a tiny random checkpoint of the Stable Diffusion class; no test writes in it."""
    from tiny_models import tiny_checkpoint, tiny_sdxl_checkpoint

    folder = tmp_path_factory.mktemp("models") / "tiny"
    is_xl = pytestconfig.getoption("family") == "sdxl"
    return tiny_sdxl_checkpoint(folder) if is_xl else tiny_checkpoint(folder)


@pytest.fixture(scope="module")
def tiny(checkpoint):
    """That checkpoint as a VideoEditPipeline, without progress bars."""
    from vala_research import VideoEditPipeline

    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    """Three frames of smooth colour, f c h w."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 4, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(16, 24), mode="bilinear")


@pytest.fixture
def ticking(monkeypatch):
    """`ticking(seconds)` lets every step of the recipe take so long, on any machine."""
    from vala_research.miniature import training

    def tick(seconds: float) -> None:
        looks = itertools.count()
        clock = SimpleNamespace(monotonic=lambda: seconds * next(looks))
        monkeypatch.setattr(training, "time", clock)

    return tick


def _weights(part: str) -> str:
    from vala_research import miniature_path

    folder = miniature_path(part)
    if not any(Path(folder).rglob("*.safetensors")):
        pytest.skip(f"no weights in {folder}: run `make miniature`")
    return folder
