"""The protocol that every model family fulfils, and the batch that a family's loss takes.

A family is stateless: it knows facts (names, sizes, frame rules, defaults) and how to load and call the stock
diffusers classes. Everything that changes during a run is passed in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunerkit.errors import Note, Problem

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from tunerkit.config.settings import TrainConfig

TextKind = Literal["positive", "negative"]
Component = Literal["text", "vae", "transformer"]


@dataclass(frozen=True)
class Flavour:
    """One published checkpoint of a family: its hub repository and one line about it."""

    repo: str
    note: str = ""


@dataclass(frozen=True)
class Batch:
    """Samples of one bucket, ready for a family's loss.

    Attributes:
        latents: clean normalised latents, float32 `[B, C, T, H, W]`.
        text: the family's cached text tensors, batched on dim 0 (for example `prompt_embeds` `[B, L, D]`).
        fps: frames per second of each sample, float32 `[B]`.
        first_frame: bool `[B]`; True where the first latent frame is given clean (image to video). None = nowhere.
        loss_mask: weights in [0, 1] on the latent grid, `[B, 1, T, H, W]`. None = every position counts.
        names: file name of each sample, for messages.
    """

    latents: torch.Tensor
    text: Mapping[str, torch.Tensor]
    fps: torch.Tensor
    first_frame: torch.Tensor | None = None
    loss_mask: torch.Tensor | None = None
    names: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""

        def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            latents=self.latents.to(device, non_blocking=True),
            text={key: value.to(device, non_blocking=True) for key, value in self.text.items()},
            fps=self.fps.to(device, non_blocking=True),
            first_frame=move(self.first_frame),
            loss_mask=move(self.loss_mask),
        )


@dataclass(frozen=True)
class LossParts:
    """A loss and what it is made of: `total` is the scalar to differentiate, `parts` its detached named terms."""

    total: torch.Tensor
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RenderRequest:
    """One video to render. `text` and `negative_text` are cached text tensors without a batch dimension."""

    text: Mapping[str, torch.Tensor]
    negative_text: Mapping[str, torch.Tensor]
    width: int
    height: int
    frames: int
    steps: int
    guidance: float
    seed: int
    fps: float
    image: Image.Image | None = None


class Family(ABC):
    """What is true of one model family. Instances hold no state."""

    name: ClassVar[str]
    title: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    flavours: ClassVar[Mapping[str, Flavour]]
    default_flavour: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    """Settings that depend on the model, filled in where the user left them unset."""
    framerate: ClassVar[float]
    """Frames per second the model was trained at."""
    temporal_compression: ClassVar[int]
    size_multiple: ClassVar[int]
    """Pixel width and height must be multiples of this."""
    subfolders: ClassVar[Mapping[Component, tuple[str, ...]]]
    """Sub-folders of a checkpoint that each component is made of; they identify a cache entry's source."""
    vae_fallbacks: ClassVar[tuple[str, ...]] = ("tiled",)
    """Ways to encode in less memory that `save_vae_memory` knows, in the order in which they are tried, each on top of
    those before: "tiled" (the picture in overlapping tiles), "chunked" (the clip in pieces of time; only for VAEs
    that do not work so anyway). They change the latents a little, so they are part of a cache entry's name."""

    def legal_frames(self, count: int) -> int:
        """The largest frame count of the form `k * temporal_compression + 1` that is not above `count` (at least 1)."""
        return max(0, count - 1) // self.temporal_compression * self.temporal_compression + 1

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip of a legal number of `frames`."""
        return (frames - 1) // self.temporal_compression + 1

    @abstractmethod
    def model_sizes(self, config: TrainConfig) -> list[tuple[int, int]]:
        """The (width, height) pairs the model was trained on, for `resolution_type = "model"`."""

    @abstractmethod
    def check(self, config: TrainConfig) -> tuple[list[Problem], list[Note]]:
        """What this family refuses or understands differently; called before anything is loaded."""

    @abstractmethod
    def check_checkpoint(self, config: TrainConfig) -> None:
        """Read the small configuration files of the checkpoint and refuse one that is not this family's.

        Raises:
            ModelError: naming the setting, what was found and what is needed.
        """

    # Text ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def text_recipe(self, config: TrainConfig) -> dict[str, Any]:
        """Everything, beside the encoder's weights and the text, that shapes a cached text entry."""

    @abstractmethod
    def load_text_encoder(self, config: TrainConfig, device: torch.device) -> Any:
        """Load tokenizer and text encoder (nothing else) for `encode_text`."""

    @abstractmethod
    def encode_text(
        self, encoder: Any, texts: Sequence[str], kind: TextKind, config: TrainConfig
    ) -> list[dict[str, torch.Tensor]]:
        """Text tensors of each text, on the CPU, without a batch dimension."""

    # Latents ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def vae_recipe(self, config: TrainConfig) -> dict[str, Any]:
        """Everything, beside the VAE's weights and the pixels, that shapes a cached latent."""

    @abstractmethod
    def load_vae(self, config: TrainConfig, device: torch.device) -> Any:
        """Load the video VAE in the precision of `vae_dtype`."""

    @abstractmethod
    def encode_latents(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Clean normalised latents, float32 `[B, C, t, h, w]`, of pixels `[B, 3, T, H, W]` in [-1, 1]."""

    def save_vae_memory(self, vae: Any, how: str) -> None:
        """Make `vae` encode in less memory from now on, the way `how` of `vae_fallbacks`.

        Raises:
            ValueError: `how` is not known.
        """
        if how != "tiled":
            raise ValueError(f"{self.name} does not know the fallback {how!r}")
        vae.enable_tiling()

    # Training --------------------------------------------------------------------------------------------------

    @abstractmethod
    def load_transformer(self, config: TrainConfig, dtype: torch.dtype) -> Any:
        """Load the diffusion transformer on the CPU in `dtype`."""

    @abstractmethod
    def blocks(self, transformer: Any) -> list[Any]:
        """The transformer blocks that gradient checkpointing runs one by one, in order."""

    @abstractmethod
    def lora_targets(self, config: TrainConfig) -> list[str]:
        """Suffixes of the modules that get an adapter by default."""

    @abstractmethod
    def sample_sigmas(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Noise levels in (0, 1) for training, float32 `[B]` on the CPU, from the family's training density."""

    @abstractmethod
    def losses(self, transformer: Any, batch: Batch, *, sigma: torch.Tensor, noise: torch.Tensor) -> LossParts:
        """The training loss of `batch` at noise level `sigma` `[B]` with `noise` (shape of `batch.latents`)."""

    def loss(self, transformer: Any, batch: Batch, *, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`losses(...)` as the scalar to differentiate (float32, mean over samples)."""
        return self.losses(transformer, batch, sigma=sigma, noise=noise).total

    # Validation and export -------------------------------------------------------------------------------------

    @abstractmethod
    def build_pipeline(self, config: TrainConfig, transformer: Any, vae: Any, *, image_to_video: bool) -> Any:
        """The stock pipeline around live components; text encoder and tokenizer absent."""

    @abstractmethod
    def render(self, pipeline: Any, request: RenderRequest) -> np.ndarray:
        """Run the pipeline: uint8 frames `[T, H, W, 3]`."""

    @abstractmethod
    def pipeline_class(self) -> Any:
        """The stock text-to-video pipeline class, whose LoRA mixin writes and reads adapters."""
