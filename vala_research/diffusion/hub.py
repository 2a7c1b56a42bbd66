"""Download what a checkpoint's parts need from a hub repository: never a pickle, never code."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from vala_research import InputError
from vala_research.diffusion.loading import reason_of
from vala_research.diffusion.variants import check_safetensors, variant_of, weights_of

TEXTS = (".json", ".txt")  # configurations, and a tokenizer's words
NOT_OURS = ("variant", "proxies")  # options of diffusers that no download takes


@dataclass(frozen=True)
class Extras:
    """Parts that a checkpoint may have beside the usual ones.

    file: its file that names them, beside its index. parts: reads from its folder their names.
    """

    file: str
    parts: Callable[[Path], Collection[str]]


def fetch_file(name: str, file: str, **hub: Any) -> Path:
    """Download one file of a repository. Its folder is one commit's, which the commit names.

    hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`, as in diffusers.
    """
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, file, **{k: v for k, v in hub.items() if k not in NOT_OURS}))


def fetch_parts(
    name: str, folder: Path, parts: Collection[str], extras: Extras | None = None, **hub: Any
) -> None:
    """Download parts of a repository into the folder of `fetch_file`.

    Of a part, its texts and the weights of one variant are fetched. Whatever the repository lacks
    is left out. Without the network, nothing is fetched.
    parts: names of folders. extras: of further ones. hub: as in `fetch_file`, and `variant`.
    Raises InputError for pickled weights, and where several variants are left to choose from.
    """
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import HTTPError

    if hub.get("local_files_only"):
        return
    hub["revision"] = folder.name
    try:
        there = list_repo_files(name, revision=folder.name, token=hub.get("token"))
    except (HTTPError, OSError):
        if not any((folder / part).is_dir() for part in parts):
            raise
        return  # the folder holds what was fetched before
    if extras is not None and extras.file in there:
        fetch_file(name, extras.file, **hub)
        parts = [*parts, *extras.parts(folder)]

    wanted = []
    for part in parts:
        inside = [x.name for x in map(PurePosixPath, there) if str(x.parent) == part]
        chosen = _chosen(inside, hub.get("variant"), f"The {part} of {name!r}")
        wanted += [f"{part}/{file}" for file in chosen]
    if hub.get("force_download") or not all((folder / file).is_file() for file in wanted):
        given = {k: v for k, v in hub.items() if k not in NOT_OURS}
        snapshot_download(name, allow_patterns=[escape(file) for file in wanted], **given)


def _chosen(files: Collection[str], variant: str | None, what: str) -> list[str]:
    """The files of a part to fetch."""
    if "config.json" in files:  # a network
        check_safetensors(files, what)
    weights = weights_of(files, variant_of(files, variant, what))
    return [file for file in files if file in weights or file.endswith(TEXTS)]


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Within the block, turn what a download raises into one sentence, InputError."""
    from huggingface_hub import errors as e

    try:
        yield
    except (InputError, MemoryError):
        raise
    except (e.RepositoryNotFoundError, e.HFValidationError) as error:
        raise InputError(
            f"The hub has no model {name!r} open to you: check the spelling, or log in if it "
            "is gated."
        ) from error
    except Exception as error:
        absent = (e.LocalEntryNotFoundError, ConnectionError, TimeoutError)
        is_silent = isinstance(error, e.HTTPError) and not isinstance(error, e.HfHubHTTPError)
        if is_silent or isinstance(error, absent):
            raise InputError(
                f"The model {name!r} is not on this machine and the hub cannot be reached: connect "
                "to the network, or download it elsewhere and give its folder, or use 'miniature'."
            ) from error
        raise InputError(
            f"The model {name!r} cannot be downloaded as a Stable Diffusion checkpoint in "
            f"safetensors ({reason_of(error)}): choose one whose repository holds "
            "model_index.json and .safetensors weights, and give `variant` if it has one alone."
        ) from error
