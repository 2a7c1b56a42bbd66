"""On Colab: one click, no parameter, and its torch and Jupyter stay; pip's dry run takes 10 s."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vala_research.experiments import colab

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest itself brings tomli there
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What Colab ships of all that the library needs, directly or not, and of Jupyter.
COLAB = json.loads((Path(__file__).parent / "colab_packages.json").read_text())
# What the cell replaces, and what it adds. None of it is loaded when a notebook starts on Colab.
REPLACED = {"diffusers", "safetensors", "huggingface-hub", "hf-xet", "click"}
# A kernel that runs has loaded these, or others of Colab's packages are built for them.
KEPT = {
    "torch", "torchvision", "triton", "numpy", "ipykernel", "ipywidgets", "ipython", "tornado",
    "jupyter-client", "matplotlib", "pandas", "pillow", "scipy", "scikit-learn", "transformers",
}  # fmt: skip
OFFLINE = ("Failed to establish a new connection", "Temporary failure", "Connection refused")


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def asked() -> list[str]:
    """Requirements of the extra that the cell installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + project["optional-dependencies"]["colab"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_its_badge_and_the_cell(path):
    content = json.loads(path.read_text())
    assert colab.prepared(path.stem, json.loads(path.read_text())) == content
    source = ["".join(cell["source"]) for cell in content["cells"]]
    assert source[0].count(f"/blob/main/notebooks/{path.name})") == 1
    assert source[2] == colab.install_cell()  # before the first import of the library
    assert not any("repository" in text for text in source[1:2])  # no parameter to type


def test_badge_and_cell_follow_the_one_address(monkeypatch):
    monkeypatch.setattr(colab, "REPOSITORY", "someone/fork")
    content = colab.prepared("00_quickstart", json.loads(NOTEBOOKS[0].read_text()))
    text = json.dumps(content)
    assert text.count("someone/fork") == 2 and "vala-research/" not in text


def test_direct_requirements_accept_what_colab_ships():
    versions = {normal(name): version for name, version in COLAB["installed"].items()}
    refused = {
        normal(r.name)
        for r in map(Requirement, asked())
        if normal(r.name) in versions
        and not r.specifier.contains(versions[normal(r.name)].split("+")[0])
    }
    assert refused <= REPLACED


@pytest.fixture(scope="module")
def would_install(tmp_path_factory) -> dict[str, str]:
    """What pip would install in an environment with Colab's packages: name -> version."""
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (site,) = folder.glob("env/lib/*/site-packages")
    for name, version in COLAB["installed"].items():
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        needs = [f"Requires-Dist: {need}" for need in COLAB["requires"].get(name, ())]
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *needs]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        (info / "RECORD").write_text("")
    report = folder / "report.json"
    pip = [sys.executable, "-m", "pip", "--python", folder / "env/bin/python"]
    done = subprocess.run(
        [*pip, "install", "--dry-run", "--quiet", "--report", report, *asked()],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode and any(sign in done.stderr for sign in OFFLINE):
        pytest.skip("pip reaches no index")
    assert done.returncode == 0, done.stderr
    entries = json.loads(report.read_text())["install"]
    return {normal(e["metadata"]["name"]): e["metadata"]["version"] for e in entries}


def test_the_cell_leaves_colabs_packages(would_install):
    shipped = {normal(name) for name in COLAB["installed"]}
    assert shipped & would_install.keys() <= REPLACED
    assert KEPT <= shipped and not KEPT & would_install.keys()


def test_the_dry_run_sees_a_package_that_must_be_replaced(would_install):
    """Colab's diffusers is older than ours needs: an empty report would prove nothing."""
    (need,) = (r for r in map(Requirement, asked()) if r.name == "diffusers")
    assert need.specifier.contains(would_install["diffusers"])
    assert not need.specifier.contains(COLAB["installed"]["diffusers"])
