"""IP-Adapter: pictures beside the prompt, one for the clip or one per frame.

Ye et al. 2023 (arXiv 2308.06721). The layers are diffusers' own. The inversion and the negative
branch see no picture, since sampling undoes only the process that was inverted.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import IPAdapterMixin
from diffusers.models.embeddings import ImageProjection
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from vala_research import InputError
from vala_research.diffusion.loading import load_network
from vala_research.diffusion.patching import one_call_at_a_time
from vala_research.diffusion.records import refuse_transformer
from vala_research.diffusion.video import as_frames
from vala_research.editing.loaders import checked_source, explained

ENCODER = "give image_encoder_folder, a folder with safetensors weights, or None and embeddings."
FILE = "give an IP-Adapter of Stable Diffusion 1.x that fits this model, in safetensors."
HUB = ("cache_dir", "token", "revision", "local_files_only")


class PictureMixin(IPAdapterMixin):
    """Loads IP-Adapters into a pipeline's UNet."""

    @one_call_at_a_time
    def load_ip_adapter(
        self, pretrained_model_name_or_path_or_dict: Any, subfolder: Any = "",
        weight_name: Any = None, image_encoder_folder: str | None = "image_encoder", **kwargs: Any,
    ) -> None:  # fmt: skip
        """Load an IP-Adapter, or a list of them, as in diffusers.

        pretrained_model_name_or_path_or_dict: a .safetensors file, a folder or hub id with
            `subfolder` and `weight_name`, or the tensors.
        image_encoder_folder: of the CLIP vision model, in `subfolder`, or with a slash beside it;
            None where the calls give embeddings.
        Raises InputError; then the IP-Adapters that were there stay in place.
        """
        refuse_transformer(self.unet, "An IP-Adapter")
        given, names = pretrained_model_name_or_path_or_dict, weight_name
        names = names if isinstance(names, list) else [names]
        many = given if isinstance(given, list) else [given] * len(names)
        folders = subfolder if isinstance(subfolder, list) else [subfolder] * len(many)
        if not len(many) == len(names) == len(folders):
            raise InputError(
                f"There are {len(many)} IP-Adapters, {len(names)} weight_name and {len(folders)} "
                "subfolder: give one of each per IP-Adapter."
            )
        sources, whats = [], []
        for one, name, folder in zip(many, names, folders, strict=True):
            options = kwargs | {"weight_name": name, "subfolder": folder}
            source, what = checked_source(one, "IP-Adapter", options)
            sources, whats = [*sources, source], [*whats, what]
        unet, encoder = self.unet, None
        if image_encoder_folder is not None and self.image_encoder is None:
            encoder = self._image_encoder(many[0], folders[0], image_encoder_folder, kwargs)

        before = dict(unet.attn_processors), unet.encoder_hid_proj, unet.config.encoder_hid_dim_type
        try:
            with explained(" and ".join(whats), FILE):
                super().load_ip_adapter(
                    sources, folders, [name or "one.safetensors" for name in names], None, **kwargs
                )
        except InputError:
            processors, unet.encoder_hid_proj, unet.config.encoder_hid_dim_type = before
            unet.set_attn_processor(processors)
            raise
        if encoder is not None:
            self.register_modules(image_encoder=encoder.to(self._execution_device))
            size = encoder.config.image_size
            kind = type(self.feature_extractor)
            self.register_modules(feature_extractor=kind(size=size, crop_size=size))

    def _image_encoder(self, given: Any, subfolder: str, name: str, hub: dict) -> nn.Module:
        what = f"The image encoder {name!r} of the IP-Adapter"
        if not isinstance(given, str | Path):
            raise InputError(f"{what} is not among the tensors: {ENCODER}")
        place = Path(subfolder or "", name) if "/" not in name else Path(name)
        hub = {k: v for k, v in hub.items() if k in HUB}
        path, kind = Path(given).expanduser(), CLIPVisionModelWithProjection
        if not path.exists():
            hub["subfolder"] = place.as_posix()
            return load_network(kind, str(given), what, ENCODER, self.unet.dtype, **hub)
        folder = (path if path.is_dir() else path.parent) / place
        if not folder.is_dir():
            raise InputError(f"{what} is not in {str(folder.parent)!r}: {ENCODER}")
        return load_network(kind, folder, what, ENCODER, self.unet.dtype)


@torch.no_grad()
def picture_embeds(
    pipe: Any, pictures: Any, embeds: Any, n_frames: int, guidance_scale: float
) -> list[Float[Tensor, "2 f ..."]] | None:
    """What each IP-Adapter reads: without a picture, then with it. None without an IP-Adapter.

    pictures: one per IP-Adapter, or for a single one the picture itself. In the place of a picture,
        a list, tensor or clip of n_frames pictures gives every frame its own.
    embeds: in their place, one tensor per IP-Adapter, of one row or n_frames rows. At guidance
        above 1 the negative rows stand before them, as in diffusers.
    Raises InputError.
    """
    layers = projections(pipe.unet)
    if not layers:
        if pictures is not None or embeds is not None:
            raise InputError("No IP-Adapter is loaded: call load_ip_adapter before giving images.")
        return None
    if pictures is not None and embeds is not None:
        raise InputError("ip_adapter_image and ip_adapter_image_embeds are both given: give one.")
    if embeds is not None:
        pairs = [_halves(rows, guidance_scale) for rows in _per_adapter(embeds, layers)]
    elif pictures is not None:
        many = _per_adapter(pictures, layers)
        pairs = [_encoded(pipe, one, layer) for one, layer in zip(many, layers, strict=True)]
    else:
        pairs = [_blank(pipe, layer) for layer in layers]

    found = []
    for pair in pairs:
        rows = pair.shape[1]
        if rows not in (1, n_frames):
            raise InputError(
                f"There are {rows} pictures for {n_frames} frames: give one, or one per frame."
            )
        found.append(pair.expand(2, n_frames, *pair.shape[2:]))
    return found


def projections(unet: nn.Module) -> list[nn.Module]:
    """The layers by which a UNet's IP-Adapters read pictures; none where it has none."""
    has_pictures = getattr(unet.config, "encoder_hid_dim_type", None) == "ip_image_proj"
    return list(unet.encoder_hid_proj.image_projection_layers) if has_pictures else []


def _per_adapter(given: Any, layers: list) -> list[Any]:
    """One entry per IP-Adapter. A list for a single one is an entry itself, unless it nests one."""
    if len(layers) == 1:
        is_entry = not isinstance(given, list) or len(given) != 1
        return [given] if is_entry else given
    if not isinstance(given, list) or len(given) != len(layers):
        raise InputError(f"There are {len(layers)} IP-Adapters: give a list of one entry for each.")
    return given


def _halves(rows: Any, guidance_scale: float) -> Float[Tensor, "2 rows ..."]:
    if not isinstance(rows, Tensor) or rows.ndim < 3:
        raise InputError(
            "ip_adapter_image_embeds holds no tensor rows x pictures x width: give one per "
            "IP-Adapter."
        )
    if guidance_scale <= 1:
        return torch.stack([torch.zeros_like(rows), rows])
    if len(rows) % 2:
        raise InputError(
            f"ip_adapter_image_embeds has {len(rows)} rows: at guidance above 1, give as many "
            "negative rows before the others."
        )
    return rows.unflatten(0, (2, -1))


def _encoded(pipe: Any, given: Any, layer: nn.Module) -> Float[Tensor, "2 rows ..."]:
    """Embeddings of pictures, as diffusers makes them."""
    if pipe.image_encoder is None:
        raise InputError(f"The IP-Adapter has no image encoder for pictures: {ENCODER}")
    if isinstance(given, Image):
        given = [given]
    if isinstance(given, Tensor) and given.ndim == 3:
        given = given[None]
    if isinstance(given, list) and all(isinstance(x, Image) for x in given) and given:
        inputs = pipe.feature_extractor(given, return_tensors="pt")
    else:
        inputs = pipe.feature_extractor(
            list(255 * as_frames(given).float().cpu()), return_tensors="pt",
            input_data_format="channels_first",
        )  # fmt: skip
    like = next(pipe.image_encoder.parameters())
    x = inputs.pixel_values.to(pipe._execution_device, like.dtype)
    pair = [_read(pipe, pixels, layer) for pixels in (torch.zeros_like(x), x)]
    if isinstance(layer, ImageProjection):
        pair[0] = torch.zeros_like(pair[1])
    return torch.stack(pair)[:, :, None]  # one picture per row


def _read(pipe: Any, pixels: Tensor, layer: nn.Module) -> Tensor:
    if isinstance(layer, ImageProjection):
        return pipe.image_encoder(pixels).image_embeds
    return pipe.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]


def _blank(pipe: Any, layer: nn.Module) -> Float[Tensor, "2 1 ..."]:
    """Embeddings of no picture."""
    if pipe.image_encoder is None or isinstance(layer, ImageProjection):
        first = next(m for m in layer.modules() if isinstance(m, nn.Linear))
        shape = (2, 1, 1) if isinstance(layer, ImageProjection) else (2, 1, 1, 1)
        return torch.zeros(*shape, first.in_features, device=pipe._execution_device)
    size = pipe.image_encoder.config.image_size
    like = next(pipe.image_encoder.parameters())
    pixels = torch.zeros(1, 3, size, size, dtype=like.dtype, device=pipe._execution_device)
    return _read(pipe, pixels, layer)[None, :, None].expand(2, -1, -1, -1, -1)
