"""The temporal adapter's LoRA, which hangs on the projections of a UNet.

Hu et al. 2021 (arXiv 2106.09685): W x + (alpha / rank) B A x. peft knows nothing of this LoRA: it
wraps the projection together with its delta. So LoRAs of peft and diffusers come, go, merge and
change their weights without it, in any order.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from vala_research import InputError
from vala_research.adapter.settings import AdapterSettings, lora_config
from vala_research.diffusion.backbone import UNet
from vala_research.diffusion.patching import lock_of, named_modules

NAME = "temporal"  # of the matrices inside the UNet


class ProjectionLora:
    """A delta for each attention projection that the settings name.

    layers: the projections, by name in the UNet. strength: the factor of all deltas.
    """

    def __init__(
        self, unet: UNet, settings: AdapterSettings, generator: torch.Generator | None = None
    ):
        """A ~ N(0, 1/rank) and B = 0, in float32 or better. Raises InputError for a second one."""
        targets = set(lora_config(unet, settings).target_modules)
        found = [(name, module) for name, module in named_modules(unet) if name in targets]
        self.unet, self.settings, self.strength = unet, settings, 1.0
        # A projection lies below the LoRAs of peft, if it has any.
        self.layers = {name: getattr(module, "base_layer", module) for name, module in found}
        if any(hasattr(layer, "lora_A") for layer in self.layers.values()):
            raise InputError("The UNet has a LoRA already, a temporal adapter: detach that one.")
        self._hooks = []
        for layer in self.layers.values():
            self._hang_on(layer, generator)

    def _hang_on(self, layer: nn.Linear, generator: torch.Generator | None) -> None:
        rank = self.settings.rank
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        make = partial(
            nn.utils.skip_init, nn.Linear, bias=False, device=home_of(layer), dtype=dtype
        )
        a, b = make(layer.in_features, rank), make(rank, layer.out_features)
        layer.lora_A, layer.lora_B = nn.ModuleDict({NAME: a}), nn.ModuleDict({NAME: b})

        device = "cpu" if generator is None else generator.device
        noise = torch.randn(a.weight.shape, generator=generator, device=device, dtype=dtype)
        a.weight.data.copy_(noise / rank)
        b.weight.data.zero_()
        self._hooks.append(layer.register_forward_hook(self._add_delta))

    def _add_delta(self, layer: nn.Linear, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if self.strength == 0:
            return out
        x, a, b = args[0], layer.lora_A[NAME], layer.lora_B[NAME]
        for matrix in (a, b):  # in a model that is offloaded, they stay where they were made
            if matrix.weight.device != x.device and not matrix.weight.is_meta:
                matrix.to(x.device)
        scale = self.settings.alpha / self.settings.rank * self.strength
        return (out + b(a(x.to(a.weight.dtype))) * scale).to(out.dtype)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names in the UNet and parameters."""
        return [
            (f"{name}.{matrix}.{NAME}.weight", getattr(layer, matrix)[NAME].weight)
            for name, layer in self.layers.items()
            for matrix in ("lora_A", "lora_B")
        ]

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """Within the block, multiply all deltas by a factor. Other threads wait until then."""
        with lock_of(self.unet):
            before, self.strength = self.strength, self.strength * factor
            try:
                yield
            finally:
                self.strength = before

    @contextmanager
    def away(self) -> Iterator[None]:
        """Within the block, the layers hold no deltas: their state is that of the plain UNet."""
        held = [(layer, layer.lora_A, layer.lora_B) for layer in self.layers.values()]
        for layer, *_ in held:
            del layer.lora_A, layer.lora_B
        try:
            yield
        finally:
            for layer, a, b in held:
                layer.lora_A, layer.lora_B = a, b

    def remove(self) -> None:
        """Take all deltas away."""
        for hook in self._hooks:
            hook.remove()
        for layer in self.layers.values():
            del layer.lora_A, layer.lora_B
        self._hooks, self.layers = [], {}


def home_of(layer: nn.Module) -> torch.device:
    """Where new parts of a layer are made: on its device, or the CPU while it is offloaded."""
    is_away = layer.weight.is_meta and hasattr(layer, "_hf_hook")
    return torch.device("cpu") if is_away else layer.weight.device
