"""LoRAs and textual inversions of an edit, loaded as diffusers loads them, from safetensors alone.

The mixins are diffusers' own. A file is checked first; one that fails changes nothing.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.utils import convert_unet_state_dict_to_peft, logging
from torch import Tensor, nn

from vala_research import InputError
from vala_research.diffusion.checkpoint import PICKLES, read_weights
from vala_research.diffusion.loading import reason_of, silenced
from vala_research.diffusion.patching import lora_layers, one_call_at_a_time
from vala_research.diffusion.records import refuse_transformer

LORA = "give a LoRA of Stable Diffusion 1.x, 2.x or XL that fits this model."
USUAL = ("pytorch_lora_weights.safetensors", "learned_embeds.safetensors")
EMBEDDING = "give a textual inversion for this model's text encoder."


class LoraMixin(StableDiffusionLoraLoaderMixin):
    """LoRAs of a pipeline's UNet and text encoder, in the layouts of diffusers and kohya."""

    @one_call_at_a_time
    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: Any, adapter_name: str | None = None,
        hotswap: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Load a LoRA as in diffusers, beside a temporal adapter and other LoRAs.

        pretrained_model_name_or_path_or_dict: a .safetensors file, its folder, a hub id, or the
            tensors themselves. Only a hub id reaches the hub.
        kwargs: those of diffusers, such as `weight_name`.
        Raises InputError; then the LoRAs that were there stay as they are.
        """
        refuse_transformer(self.unet, "A LoRA of load_lora_weights")
        given, what = checked_source(pretrained_model_name_or_path_or_dict, "LoRA", kwargs)
        known = self._lora_names()
        active = [(layer, layer.active_adapters) for layer in self._lora_layers()]
        if adapter_name in known and not hotswap:
            raise InputError(f"A LoRA named {adapter_name!r} is loaded: choose another name.")
        try:
            # A file is checked. Of tensors in memory, diffusers says what it leaves out.
            with explained(what, LORA, is_quiet=isinstance(given, str)):
                if isinstance(given, str):
                    tensors, *_ = self.lora_state_dict(given, **kwargs)
                    check_lora(tensors, self.unet, what)
                super().load_lora_weights(given, adapter_name, hotswap, **kwargs)
        except InputError:
            if added := sorted(self._lora_names() - known):
                self.delete_adapters(added)
            for layer, names in active:
                layer.set_adapter(names)
            raise

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save like every pipeline. Refused while a LoRA is loaded, which no saved model holds."""
        if self._lora_layers():
            raise InputError(
                "The model has a LoRA loaded: keep it with pipe.save_lora_weights or "
                "pipe.fuse_lora, and save the model after pipe.unload_lora_weights()."
            )
        super().save_pretrained(*args, **kwargs)

    def _lora_names(self) -> set[str]:
        return {name for names in self.get_list_adapters().values() for name in names}

    def _lora_layers(self) -> list[nn.Module]:
        networks = [x for x in (self.unet, self.text_encoder) if x is not None]
        return [layer for network in networks for layer in lora_layers(network)]


class TextualInversionMixin(TextualInversionLoaderMixin):
    """New words of a pipeline's tokenizer and text encoder, of one vector or several."""

    @one_call_at_a_time
    def load_textual_inversion(
        self, pretrained_model_name_or_path: Any, token: Any = None, tokenizer: Any = None,
        text_encoder: Any = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Load embeddings as in diffusers: a .safetensors file, its folder, a hub id, or tensors.

        token: the new word; None is the one that the file names. A prompt that holds the word is
        read with all of its vectors.
        Raises InputError, before the tokenizer is changed; also for Stable Diffusion XL.
        """
        if self.text_encoder_2 is not None:
            raise InputError(
                "A textual inversion of Stable Diffusion XL has vectors for two text encoders, and "
                "only one is changed here: leave it out, or give prompt_embeds."
            )
        given = pretrained_model_name_or_path
        many = given if isinstance(given, list) else [given]
        checked = [checked_source(one, "textual inversion", kwargs) for one in many]
        sources = [source for source, _ in checked]
        with explained(" and ".join(what for _, what in checked), EMBEDDING):
            super().load_textual_inversion(
                sources if isinstance(given, list) else sources[0], token, tokenizer, text_encoder,
                **kwargs,
            )  # fmt: skip


@contextmanager
def explained(what: str, remedy: str, is_quiet: bool = True) -> Iterator[None]:
    """Within the block, turn a failure of diffusers or peft into one sentence, and keep quiet."""
    try:
        with silenced(*[logging] * is_quiet):
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{what} cannot be loaded ({reason_of(error)}): {remedy}") from error


def checked_source(given: Any, kind: str, kwargs: dict[str, Any]) -> tuple[Any, str]:
    """Check where weights come from. Returns what diffusers loads, and its name in a sentence.

    kwargs: of the call. They are changed, so that diffusers reads no pickle, and contacts no hub
    for a local file. A local folder becomes its file.
    Raises InputError for a pickle, a missing or damaged file, and what is no hub id.
    """
    if not isinstance(given, str | Path):
        return given, f"The {kind}"
    what, name = f"The {kind} {str(given)!r}", kwargs.get("weight_name")
    for file in (str(given), name or ""):
        if Path(file).suffix.lower() in PICKLES:
            raise InputError(
                f"{what} is a pickle ({Path(file).name}), which can run code when opened: convert "
                "it to safetensors."
            )
    if kwargs.get("use_safetensors", True) is False:
        raise InputError("use_safetensors=False would read pickles: leave it out.")
    kwargs["use_safetensors"] = True

    path = Path(given).expanduser()
    if path.is_dir():
        path = _only_file(path / (kwargs.pop("subfolder", None) or ""), name, what)
        kwargs.pop("weight_name", None)
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise InputError(f"{what} is no .safetensors file: give one.")
        read_weights(path.parent, path.name, what)
        kwargs["local_files_only"] = True
        return str(path), what
    is_hub_id = str(given).count("/") == 1 and not str(given).startswith((".", "/", "~"))
    if not is_hub_id or path.suffix == ".safetensors":
        raise InputError(
            f"{what} does not exist: give a .safetensors file, its folder or a hub id."
        )
    return str(given), what


def _only_file(folder: Path, name: str | None, what: str) -> Path:
    """The file of this name in a folder, or that of a usual name, or its only .safetensors file."""
    files = [folder / name] if name else [folder / usual for usual in USUAL]
    files = [file for file in files if file.is_file()]
    if not files and not name:
        files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        holds = "several .safetensors files" if files else f"no {name or '.safetensors file'}"
        raise InputError(f"{what} is a folder that holds {holds}: give the file itself.")
    return files[0]


def check_lora(tensors: dict[str, Tensor], unet: nn.Module, what: str) -> None:
    """Check names, pairs and shapes of a LoRA in diffusers' names. Raises InputError."""
    named = {k.removeprefix("unet."): x for k, x in tensors.items() if k.startswith("unet.")}
    if not named and not any(k.startswith("text_encoder.") for k in tensors):
        raise InputError(f"{what} holds no weights for a UNet or a text encoder: {LORA}")
    if any(k.startswith("text_encoder_2.") for k in tensors):
        warnings.warn(
            f"{what} holds weights for the second text encoder of Stable Diffusion XL, which are "
            "left out: the UNet and the first text encoder are changed.",
            stacklevel=4,
        )
    modules, missing = dict(unet.named_modules()), []
    named = convert_unet_state_dict_to_peft(named)
    for name, matrix in named.items():
        site, _, end = name.partition(".lora_")
        weight = getattr(modules.get(site), "weight", None)
        if weight is None:
            missing.append(name)
        elif end in ("A.weight", "B.weight"):
            axis = 1 if end == "A.weight" else 0  # inputs of A, outputs of B
            if matrix.shape[axis] != weight.shape[axis]:
                raise InputError(
                    f"{what} was made for another model (it changes {site} of {tuple(weight.shape)}"
                    f" by {tuple(matrix.shape)}): {LORA}"
                )
            if f"{site}.lora_{'B' if axis else 'A'}.weight" not in named:
                raise InputError(
                    f"{what} is not complete (it holds {name} without the other matrix): {LORA}"
                )
    if missing and len(missing) == len(named):
        raise InputError(
            f"{what} was made for another model (it changes {missing[0]}, which is not here): "
            f"{LORA}"
        )
    if missing:
        warnings.warn(
            f"{what} leaves {len(missing)} of its weights unused, such as {missing[0]}: it may be "
            "that of another model.",
            stacklevel=4,
        )
