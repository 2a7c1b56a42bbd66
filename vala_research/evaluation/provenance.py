"""Record where a number comes from: parameters, seed, code, versions, device, model, files."""

import dataclasses
import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import vala_research

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "av", "opencv-python-headless",
            "scikit-image", "matplotlib")  # fmt: skip


def record(
    params: Mapping,
    *,
    paper: str | None = None,
    figure: str | None = None,
    notebook: str | None = None,
    model: str | os.PathLike | None = None,
    device: str | None = None,
    inputs: Iterable[str | os.PathLike] = (),
) -> dict[str, Any]:
    """Collect all that is needed to make the number again, as plain JSON values.

    paper, figure, notebook: what is reproduced, and where. model, device: by default the parameters
    of these names. inputs: files to record by hash.

    The result's `model.revision` is the hash of a local folder. It is None for a hub id, whose
    revision belongs into the parameters.
    """
    params = jsonable(dict(params))
    model = params.get("model") if model is None else str(model)
    return {
        "paper": paper,
        "figure": figure,
        "notebook": notebook,
        "parameters": params,
        "seed": params.get("seed"),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **_code(),
        "versions": _versions(),
        "device": device or params.get("device") or "cpu",
        "model": {"name": model, "revision": model_revision(model)},
        "inputs": {str(path): file_hash(Path(path)) for path in inputs},
    }


def file_hash(path: Path) -> str:
    """sha256 of a file, or of the names and hashes of a folder's files."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n".encode())
        return digest.hexdigest()
    if not path.is_file():
        raise vala_research.InputError(f"{path} does not exist: inputs are files or folders.")
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def model_revision(model: str | None) -> str | None:
    """Hash of the files of a local model ("miniature" is one); None if there is no such folder."""
    if model is None:
        return None
    folder = Path(vala_research.miniature_path() if model == "miniature" else model)
    return file_hash(folder) if folder.is_dir() else None


def revision(name: str, part: str = "pipeline") -> str:
    """What a network is, whatever it is called: hash of its files, or commit of its hub id.

    name: "miniature" (then `part` says which, see `miniature_path`), "miniature_flow", a file, a
    folder or a hub id. Any other name is returned.
    """
    own = {"miniature": part, "miniature_flow": "flow"}
    path = Path(vala_research.miniature_path(own[name]) if name in own else name)
    if name and path.exists():
        return file_hash(path)
    return _commit(name) if name.count("/") == 1 else name


def _commit(name: str) -> str:
    """The commit of a hub id that would be loaded now: the newest, or offline the one kept here."""
    from huggingface_hub import HfApi, constants

    try:
        return f"{name} {HfApi().model_info(name, timeout=10).sha}"
    except Exception:  # whatever keeps the hub from answering
        folder = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
        head = folder / "refs" / "main"
        return f"{name} {head.read_text().strip()}" if head.is_file() else name


def code_version() -> str:
    """The package's version, and the hash of its source files."""
    return f"{vala_research.__version__} {_source_hash()}"


@cache
def _source_hash() -> str:
    package, digest = Path(vala_research.__file__).parent, hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()


def _code() -> dict[str, str | bool | None]:
    """Commit that this package runs from, and whether the checkout's files differ from it.

    Outputs of notebooks make no difference. A package that pip installed from a repository has the
    commit that pip noted.
    """
    package = Path(vala_research.__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    # Installed into an environment inside some other repository, the commit is not ours.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": _installed_commit(), "dirty": None}
    root = Path((git("rev-parse", "--show-toplevel") or "").strip())
    lines = (git("status", "--porcelain", "-z") or "").split("\0")
    changed = [line[3:] for line in lines if line and not _is_run_only(root / line[3:], git)]
    return {"commit": (git("rev-parse", "HEAD") or "").strip(), "dirty": bool(changed)}


def _is_run_only(path: Path, git) -> bool:
    """Whether a changed file is a notebook whose sources are those of the commit."""
    if path.suffix != ".ipynb" or not path.is_file():
        return False
    committed = git("show", f"HEAD:./{os.path.relpath(path, Path(vala_research.__file__).parent)}")
    if committed is None:
        return False
    try:
        return notebook_sources(committed) == notebook_sources(path.read_text("utf-8"))
    except (ValueError, KeyError):
        return False


def notebook_sources(notebook: str, kind: str = "") -> list[str]:
    """Sources of a notebook's cells, by its JSON; kind: of "code" or "markdown" cells alone."""
    cells = json.loads(notebook)["cells"]
    return ["".join(cell["source"]) for cell in cells if kind in ("", cell["cell_type"])]


def _installed_commit() -> str | None:
    """The commit that pip recorded when it installed from a repository."""
    with suppress(PackageNotFoundError, ValueError):
        said = json.loads(distribution("vala-research").read_text("direct_url.json") or "{}")
        return said.get("vcs_info", {}).get("commit_id")
    return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "vala_research": vala_research.__version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def jsonable(value: Any, finite: bool = True) -> Any:
    """Turn settings, arrays and tensors into plain values.

    finite: turn infinities and NaN into strings, since JSON has no numbers for them.
    """
    if isinstance(value, Mapping):
        return {str(k): jsonable(v, finite) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable(dataclasses.asdict(value), finite)
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return jsonable(value.tolist(), finite)
    if isinstance(value, (list, tuple, set)):
        return [jsonable(v, finite) for v in value]
    if isinstance(value, float) and finite and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
