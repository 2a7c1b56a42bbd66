"""A checkpoint from the hub is that of its folder. A stand-in for the hub; tiny, about 10 s."""

import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from test_control import strong
from test_motion_adapter import LORA, edit, opened
from tiny_models import tiny_motion_adapter, tiny_unet

from vala_research import InputError
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.controlnet import ControlSettings
from vala_research.editing.defaults import EditDefaults
from vala_research.editing.extras import EXTRAS

NAME, COMMIT = "someone/model", "0123456789" * 4
OWN = EditDefaults(2, 2.0, control=ControlSettings(in_inversion=False))
PLAIN = [
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "text_encoder/model.safetensors", "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]  # fmt: skip
FULL = sorted([
    *PLAIN, "edit_defaults.json", "controlnet/config.json",
    "controlnet/diffusion_pytorch_model.safetensors", "motion_adapter/config.json",
    "motion_adapter/diffusion_pytorch_model.safetensors", "temporal_adapter/adapter.json",
    "temporal_adapter/prompt_tokens.safetensors",
    "temporal_adapter/pytorch_lora_weights.safetensors",
])  # fmt: skip
UNWANTED = ("v1.ckpt", "unet/diffusion_pytorch_model.bin", "unet/code.py", "controlnet/model.bin",
            "motion_adapter/diffusion_pytorch_model.bin", "temporal_adapter/code.py", "README.md",
            "safety_checker/model.safetensors")  # fmt: skip


@dataclass
class Hub:
    """One repository, in a folder. Downloads go to a cache in the hub's layout."""

    repository: Path
    cache: Path
    asked: list[str] = field(default_factory=list)  # files
    calls: list[tuple[str, dict]] = field(default_factory=list)  # functions and their options

    def hf_hub_download(self, name, file, **options):
        self.calls.append(("file", options))
        return self._copy(name, file, options)

    def list_repo_files(self, name, **options):
        self.calls.append(("list", options))
        files = (p for p in self.repository.rglob("*") if p.is_file())
        return [p.relative_to(self.repository).as_posix() for p in files]

    def snapshot_download(self, name, allow_patterns, **options):
        self.calls.append(("folder", options))
        for file in self.list_repo_files(name, **options):
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                self._copy(name, file, options)
        self.calls.pop()  # its listing is its own

    def _copy(self, name, file, options):
        if name != NAME or not (self.repository / file).is_file():
            raise EntryNotFoundError(file)
        place = Path(options.get("cache_dir") or self.cache) / f"models--{name.replace('/', '--')}"
        target = place / "snapshots" / COMMIT / file
        target.parent.mkdir(parents=True, exist_ok=True)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / (options.get("revision") or "main")).write_text(COMMIT)
        shutil.copy(self.repository / file, target)
        self.asked.append(file)
        return str(target)

    def use(self, monkeypatch):
        for name in ("hf_hub_download", "list_repo_files", "snapshot_download"):
            monkeypatch.setattr(huggingface_hub, name, getattr(self, name))
        return self


@pytest.fixture(scope="module")
def full(checkpoint, tmp_path_factory):
    """Folders of a checkpoint with all extras: as saved, and as uploaded while it was saved."""
    pipe = opened(checkpoint)
    pipe.controlnet, pipe.edit_defaults = strong(pipe.unet), OWN
    pipe.load_motion_adapter(tiny_motion_adapter())
    pipe.adapter = TemporalAdapter.attach(pipe.unet, LORA)
    for p in pipe.adapter.trainable():
        p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    place = tmp_path_factory.mktemp("full")
    card, diffusers = SimpleNamespace(save=lambda where: None), "diffusers.pipelines.pipeline_utils"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{diffusers}.create_repo", lambda name, **_: SimpleNamespace(repo_id=name))
        patch.setattr(f"{diffusers}.load_or_create_model_card", lambda *_, **__: card)
        patch.setattr(f"{diffusers}.populate_model_card", lambda card: card)
        to = place / "uploaded"
        patch.setattr(type(pipe), "_upload_folder", lambda _, x, *__, **___: copytree(x, to))
        pipe.save_pretrained(place / "saved", push_to_hub=True, repo_id=NAME)
    for file in UNWANTED:
        (to / file).parent.mkdir(exist_ok=True)
        (to / file).write_bytes(b"raise SystemExit")
    return place


@pytest.fixture
def hub(full, tmp_path, monkeypatch):
    """The hub holds the full checkpoint."""
    return Hub(full / "uploaded", tmp_path / "cache").use(monkeypatch)


@pytest.fixture
def copied(full, tmp_path, monkeypatch):
    """The hub holds a copy of it, to change."""
    copy = copytree(full / "uploaded", tmp_path / "copy")
    return Hub(copy, tmp_path / "cache").use(monkeypatch)


def raising(error):
    def fails(*_, **__):
        raise error

    return fails


def weights(pipe):
    networks = {"unet": pipe.unet, "controlnet": pipe.controlnet, "vae": pipe.vae}
    return {f"{k}.{n}": x for k, net in networks.items() for n, x in net.state_dict().items()}


def same(pipe, other):
    ours, theirs = weights(pipe), weights(other)
    is_same = ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    return is_same and pipe.edit_defaults == other.edit_defaults


def test_a_repository_is_loaded_as_its_folder(full, hub, video, monkeypatch):
    pipe, local = opened(NAME, cache_dir=hub.cache), opened(full / "saved")
    assert same(pipe, local) and pipe.edit_defaults.attention == "own"
    assert all(x in " ".join(weights(pipe)) for x in (".lora_A.", "motion_modules", "controlnet"))
    assert torch.equal(edit(pipe, video), edit(local, video))
    assert sorted(hub.asked) == FULL

    # A second time only two small files are asked for, which name the commit and the extras.
    hub.asked.clear()
    assert same(opened(NAME, cache_dir=hub.cache), local)
    assert hub.asked == ["model_index.json", "edit_defaults.json"]

    # Offline, by the hub's own functions; and while the hub is silent.
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    for error in (AssertionError("the hub was asked"), HTTPError("no connection")):
        is_local = isinstance(error, AssertionError)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", raising(error))
        assert same(opened(NAME, cache_dir=hub.cache, local_files_only=is_local), local)


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_is_left_out_or_given_is_not_fetched(full, hub, extra):
    others = {k: None for k in EXTRAS if k != extra}
    opened(NAME, cache_dir=hub.cache, **others)
    folder = EXTRAS[extra]
    wanted = (folder, "edit_defaults.json")
    assert sorted(hub.asked) == [x for x in FULL if x in PLAIN or x.split("/")[0] in wanted]

    # What another call left out is not in the cache: one sentence says so.
    first = [x for x in EXTRAS if x != extra][0]
    with pytest.raises(InputError, match=f"{EXTRAS[first]} folder, which is not .*{first}=None"):
        opened(NAME, cache_dir=hub.cache, local_files_only=True)

    # One's own in its place.
    hub.asked.clear()
    given = {"controlnet": strong(tiny_unet()), "motion_adapter": tiny_motion_adapter(),
             "adapter": full / "saved" / "temporal_adapter"}  # fmt: skip
    opened(NAME, cache_dir=hub.cache, force_download=True, **given)
    assert sorted(set(hub.asked)) == sorted([*PLAIN, "edit_defaults.json"])


def test_options_hold_for_every_download(copied, tmp_path):
    motion = copied.repository / "motion_adapter"
    plain = load_file(motion / "diffusion_pytorch_model.safetensors")
    half = {name: (x + 1).half() for name, x in plain.items()}
    save_file(half, motion / "diffusion_pytorch_model.fp16.safetensors")
    options = dict(revision="second", token="secret", cache_dir=tmp_path / "other")
    pipe = opened(NAME, variant="fp16", **options)
    assert [name for name, _ in copied.calls] == ["file", "list", "file", "folder"]
    first, *later = (given for _, given in copied.calls)
    assert first == options
    for given in later:
        assert given["revision"] == COMMIT and given["token"] == "secret"
        assert given.get("cache_dir", tmp_path / "other") == tmp_path / "other"
    assert not copied.cache.exists()

    # The variant is fetched where there is one, and loaded.
    found = [x.split("/")[1] for x in copied.asked if x.startswith("motion_adapter/")]
    assert sorted(found) == ["config.json", "diffusion_pytorch_model.fp16.safetensors"]
    plain = opened(copied.repository)
    assert same(opened(copied.repository, variant="fp16"), pipe) and not same(plain, pipe)


def test_a_plain_repository_needs_nothing_more(checkpoint, tmp_path, monkeypatch):
    hub = Hub(checkpoint, tmp_path / "cache").use(monkeypatch)
    pipe = opened(NAME, cache_dir=hub.cache)
    assert sorted(hub.asked) == sorted(PLAIN) and pipe.edit_defaults == EditDefaults()
    assert [name for name, _ in hub.calls] == ["file", "list", "folder"]
    assert pipe.controlnet is pipe.adapter is pipe.image_unet is None


def test_what_is_named_and_lacking_is_one_sentence(copied):
    shutil.rmtree(copied.repository / "motion_adapter")
    for name in (NAME, str(copied.repository)):
        with pytest.raises(InputError, match="names a motion_adapter folder, which") as caught:
            opened(name)
        assert "\n" not in str(caught.value) and repr(name) in str(caught.value)
    assert opened(NAME, motion_adapter=None).image_unet is None


@pytest.mark.parametrize("part", ["unet", "controlnet"])
def test_pickles_alone_are_refused_and_not_fetched(copied, part):
    (copied.repository / part / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=f"The {part} of 'someone/model' has pickled weights only"):
        opened(NAME, cache_dir=copied.cache)
    assert not any(x.startswith(part) for x in copied.asked)


def test_without_the_file_of_defaults_nothing_is_brought(copied):
    (copied.repository / "edit_defaults.json").unlink()
    pipe = opened(NAME, cache_dir=copied.cache)
    assert sorted(copied.asked) == sorted(PLAIN) and pipe.edit_defaults == EditDefaults()


def test_a_download_that_breaks_off_is_one_sentence(hub, monkeypatch):
    for error, message in [
        (HTTPError("no connection"), "'someone/model' is not on .* hub cannot be reached"),
        (LocalEntryNotFoundError("no"), "hub cannot be reached"),
        (RuntimeError("strange"), r"cannot be downloaded .*\(strange\)"),
    ]:
        for function in ("snapshot_download", "list_repo_files"):
            with monkeypatch.context() as patch:
                patch.setattr(huggingface_hub, function, raising(error))
                with pytest.raises(InputError, match=message) as caught:
                    opened(NAME, cache_dir=hub.cache)
            assert "\n" not in str(caught.value)
