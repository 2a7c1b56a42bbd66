"""The house stays as it was drawn: what lies where, who imports whom, what is pinned."""

import ast
import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from packaging.requirements import Requirement

from vala_research import InputError, VideoEditPipeline

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest itself brings tomli there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
TOP = {
    "notebooks", "vala_research", "theory", "tests", "environment.yml", "README.md",
    "pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "CITATION.cff",
}  # fmt: skip
GENERATED = {"runs", "figures", "build", "dist"}  # ignored by git
MEBIBYTE = 2**20
# Where the name on the index differs from the name one imports.
IMPORTED_AS = {
    "opencv-python-headless": "cv2", "scikit-image": "skimage", "pillow": "PIL", "pyyaml": "yaml",
    "import-linter": "importlinter", "scikit-learn": "sklearn", "scikit-video": "skvideo",
}  # fmt: skip
PYTHON_FILES = sorted(p for d in ("vala_research", "theory") for p in (ROOT / d).rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CARDS = sorted((ROOT / "vala_research/assets").glob("*/README.md"))
PAGES = [ROOT / "README.md", ROOT / "notebooks/README.md", ROOT / "theory/README.md", *CARDS]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for: the core, and the extras named."""
    table = project()
    lines = [*table["dependencies"]]
    for extra in extras:
        lines += table["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def tracked() -> list[Path]:
    """Files git knows; the test skips in an unpacked archive, which has no git."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def imports(source: str) -> set[str]:
    """Top-level packages that a Python file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_top_level_holds_only_what_the_house_lists():
    top = {p.relative_to(ROOT).parts[0] for p in tracked()}
    assert {name for name in top if not name.startswith(".")} <= TOP
    stray = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - TOP - GENERATED
    assert not {name for name in stray if not name.endswith(".egg-info")}


def test_no_file_is_larger_than_16_mib():
    assert not [p for p in tracked() if p.is_file() and p.stat().st_size > 16 * MEBIBYTE]


def test_importing_the_package_is_instant_and_loads_no_torch():
    code = (
        "import time; a = time.perf_counter(); import vala_research; b = time.perf_counter();"
        "import sys; print(b - a, 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        for _ in range(3)  # the best of three: other work may slow any one of them
    ]
    assert not [r.stderr for r in runs if r.returncode]
    seconds, *loaded = zip(*(r.stdout.split() for r in runs), strict=True)
    assert min(map(float, seconds)) < 0.5
    assert set(sum(loaded, ())) == {"False"}


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_torchvision_and_no_pickles(path):
    source = path.read_text()
    assert not imports(source) & {"torchvision", "pickle", "dill", "joblib"}
    calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)}
    assert not calls & {"torch.load", "torch.jit.load", "np.load", "numpy.load"}


def test_every_import_is_declared():
    declared = {
        IMPORTED_AS.get(r.name.lower(), r.name.replace("-", "_")) for r in requirements("test")
    }
    ours, used = {"vala_research", "theory"}, set()
    for path in PYTHON_FILES:
        used |= imports(path.read_text()) - sys.stdlib_module_names - ours
    assert used <= declared, f"add to pyproject.toml: {sorted(used - declared)}"


def test_every_dependency_has_both_bounds():
    for requirement in requirements("notebooks", "test", "batch"):
        operators = {s.operator for s in requirement.specifier}
        assert operators == {">=", "<"}, requirement


def test_constraints_pin_every_direct_dependency_within_its_bounds():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {}
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "+" not in specifier.version, pin
        assert pin.url is None, pin
        versions[pin.name.lower().replace("_", "-")] = specifier.version
    assert versions["torch"] == "2.13.0"
    for requirement in requirements("notebooks", "test", "batch"):
        name = requirement.name.lower().replace("_", "-")
        assert requirement.specifier.contains(versions[name]), requirement


def test_environment_yml_and_pyproject_do_not_drift():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    # conda brings python alone: what a package needs is said once, in pyproject.toml.
    assert conda == [f"python{project()['requires-python']}", "pip"]
    constraints, package = pip["pip"]
    assert constraints == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", package)[1].split(",")
    assert set(extras) <= set(project()["optional-dependencies"])


def test_citation_and_package_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    import vala_research

    assert citation["version"] == vala_research.__version__
    assert citation["license"] == project()["license"] == "Apache-2.0"


def test_arrows_run_one_way():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_thin_and_stripped(path):
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    lines = [line.strip() for source in code for line in source.splitlines()]
    assert len(cells) <= 10
    assert len([line for line in lines if line and not line.startswith("#")]) <= 40
    assert not [s for s in code if re.search(r"^\s*(def|class) ", s, re.M)]
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1
    assert not [c for c in cells if c.get("outputs") or c.get("execution_count")]


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda p: p.stem)
def test_every_notebook_has_an_experiment_of_its_name(path):
    """The contract: presets of settings, a run, and pure functions of its rows."""
    place = path.stem.partition("_")[2]
    if not path.stem.startswith("0"):  # those of a paper
        place = place.replace("_", ".", 1)
    module = import_module(f"vala_research.experiments.{place}")
    for function in ("run", "table", "figure", "claims"):
        assert callable(getattr(module, function)), function
    smoke = module.Settings.preset("smoke")
    assert smoke.preset_name == "smoke" and "paper" in module.Settings.PRESETS
    with pytest.raises(InputError, match="Unknown preset 'best': choose one of"):
        module.Settings.preset("best")
    with pytest.raises(InputError, match="Unknown parameter 'n_clip'"):
        module.Settings.preset("smoke", n_clip=3)


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_import_no_private_name(path):
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 250
    names = {
        alias.name
        for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        for alias in node.names if (node.module or "").startswith(("vala_research", "theory"))
    }  # fmt: skip
    assert not [name for name in names if name.startswith("_") and not name.endswith("__")]


def test_calls_of_the_pipeline_take_few_arguments_of_our_own():
    theirs = set(inspect.signature(StableDiffusionPipeline.__call__).parameters)
    for call in (VideoEditPipeline.__call__, VideoEditPipeline.invert,
                 VideoEditPipeline.reconstruct, VideoEditPipeline.estimate):  # fmt: skip
        own = [name for name in inspect.signature(call).parameters if name not in theirs]
        assert len(own) <= 12, own


def test_tests_execute_no_cell_of_a_notebook():
    for path in (ROOT / "tests").rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "exec"]


def anchors(page: Path) -> set[str]:
    """Names by which a link reaches the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(path):
    for target in re.findall(r"\]\(([\w./#-]+)\)", path.read_text()):
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), target


def test_modules_and_notebooks_that_the_readme_names_exist():
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    for row in rows:
        folder = ""
        for name in re.findall(r"`([\w/]+\.py)`", row):  # a bare name lies beside the one before
            folder = name.rpartition("/")[0] or folder
            assert (ROOT / "vala_research" / folder / Path(name).name).exists(), name
    named = {n for row in rows for n in re.findall(r"`(\d\d_\w+)`", row)}
    assert named and named <= {path.stem for path in NOTEBOOKS}


def test_no_machine_paths():
    home = re.compile(r"(?<![\w.])/(home|root|Users|work)/\w+")
    text = {".py", ".toml", ".yml", ".yaml", ".md", ".txt", ".cff", ".ipynb", ".json"}
    files = [p for p in tracked() if p.suffix in text and p.stat().st_size < MEBIBYTE]
    assert not [p.name for p in files if home.search(p.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("again", [False, True])
def test_shapes_are_checked_in_every_test(again):
    """At its first calls, however often the function ran before, and then now and then."""
    from jaxtyping import TypeCheckError

    from vala_research.methods.keyframes import unit_tokens

    with pytest.raises(TypeCheckError):
        unit_tokens([[1.0]])
    right = torch.ones(1, 2, 3)
    for _ in range(100):
        unit_tokens(right)
    caught = 0
    for _ in range(100):
        try:
            unit_tokens(torch.ones(2, 3))
        except TypeCheckError:
            caught += 1
        except InputError:
            pass
    assert 1 < caught < 10
