"""The protocol that every model family fulfils.

A family is stateless: it knows facts (names, sizes, frame rules, defaults) and how to load and call the stock
diffusers classes. Everything that changes during a run is passed in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tunerkit.errors import Note, Problem

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig
    from tunerkit.families.batch import Batch, FirstFrameMethod, LossParts
    from tunerkit.families.facts import Component, Flavour, PublishedComponent, SoundFormat, TextKind
    from tunerkit.families.prediction import Prediction
    from tunerkit.families.rendering import Rendered, RenderRequest

PARTS_RECIPE = 1
"""Version of the computation in parts (`tunerkit.memory.vae_parts`): it changes when a fault in it has been mended."""


class Family(ABC):
    """What is true of one model family. Instances hold no state."""

    name: ClassVar[str]
    title: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    flavours: ClassVar[Mapping[str, Flavour]]
    default_flavour: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    """Settings that depend on the model, filled in where the user left them unset; see `defaults_for`."""
    framerate: ClassVar[float]
    """Frames per second the model was trained at."""
    temporal_compression: ClassVar[int]
    size_multiple: ClassVar[int]
    """Pixel width and height must be multiples of this; see `multiple`."""
    subfolders: ClassVar[Mapping[Component, tuple[str, ...]]]
    """Sub-folders of a checkpoint that each component is made of."""
    sound: ClassVar[SoundFormat | None] = None
    """The waveform of the family's audio VAE; None where the model makes no sound."""
    vae_fallbacks: ClassVar[tuple[str, ...]] = ("in parts", "tiled")
    """Ways to encode in less memory that `save_vae_memory` knows, in the order in which they are tried, each on top of
    those before: "in parts" (a frame at a time through the layers, with the same result), "tiled" (the picture in
    overlapping tiles, which changes the latents a little). They are part of a cache entry's name."""

    first_frame_methods: ClassVar[tuple[FirstFrameMethod, ...]] = ("in_place",)
    """Ways to give the first frame that the model can learn; the one of the released pipelines first."""
    latent_formula: ClassVar[str]
    """How a latent follows from the mode of the VAE's posterior; part of a cache entry's name."""
    text_encoders: ClassVar[int] = 1
    """How many text encoders the model has."""
    unquantised: ClassVar[tuple[str, ...]] = ()
    """Parts of names of layers inside the blocks that a quantised base model keeps in full: small ones that
    steer much. What is outside of the blocks (projections in and out, embeddings, modulation) always is."""
    encodes_first_frame: ClassVar[bool] = False
    """Whether the first frame of a clip alone has other latents than within the clip, so that image to video, which has
    nothing but the image when a video is made, is trained from the latents of the image alone."""

    def flavour(self, name: str) -> str | None:
        """The name of the flavour that is called `name` or has it as an alias; None if there is none."""
        wanted = name.strip().lower()
        return next((key for key, one in self.flavours.items() if wanted == key or wanted in one.aliases), None)

    def defaults_for(self, flavour: str) -> Mapping[str, Any]:
        """The `defaults` of one flavour, by its name in `flavours`."""
        return self.defaults

    def multiple(self, config: TrainConfig) -> int:
        """What pixel width and height must be multiples of under these settings."""
        return self.size_multiple

    def image_to_video(self, config: TrainConfig) -> bool:
        """Whether the checkpoint makes videos from a first frame only, so that every clip is trained so."""
        return False

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

    @abstractmethod
    def published_components(self, flavour: str) -> Mapping[PublishedComponent, Mapping[str, Any]]:
        """What the configuration of every component of a flavour has other than its class by default.

        Args:
            flavour: a name of `flavours` that can be trained.
        """

    def published_config(self, flavour: str, component: PublishedComponent) -> Mapping[str, Any]:
        """What `config.json` of a component of a published checkpoint holds; no file is read.

        Args:
            flavour: a name of `flavours` or an alias.

        Raises:
            ValueError: there is no such flavour, it cannot be trained, or it has no such component.
        """
        from tunerkit.families.published import complete

        known = self.flavour(flavour)
        if known is None or self.flavours[known].refused:
            trainable = ", ".join(name for name, one in self.flavours.items() if not one.refused)
            raise ValueError(f"{flavour!r} is no flavour of {self.title} that can be trained ({trainable})")
        components = self.published_components(known)
        if component not in components:
            raise ValueError(f"{self.title} has no {component}, only {', '.join(components)}")
        return complete(components[component])

    def identity(self, config: TrainConfig, component: Component) -> dict[str, Any]:
        """What names the weights of a component in a cache key: equal weights give equal identities.

        Raises:
            ModelError: the files are missing or cannot be reached.
        """
        from tunerkit.families.checkpoint_files import base_source, component_identity, vae_source

        source = vae_source(config) if component == "vae" else base_source(config)
        return component_identity(source.model, self.subfolders[component], source.revision, source.setting)

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

    def collate_text(self, texts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The text tensors of a batch, from those of each of its samples."""
        import torch

        return {key: torch.stack([text[key] for text in texts]) for key in texts[0]}

    # Latents ---------------------------------------------------------------------------------------------------

    def vae_recipe(self, config: TrainConfig) -> dict[str, Any]:
        """Everything, beside the VAE's weights and the pixels, that shapes a cached latent."""
        return {
            "recipe": 1,
            "dtype": config.vae_dtype,
            "tiling": config.vae_enable_tiling,
            **({"parts": PARTS_RECIPE} if config.vae_works_in_parts else {}),
            "normalised": self.latent_formula,
            **({"first_frame": "also alone"} if self.encodes_first_frame else {}),
        }

    @abstractmethod
    def load_vae(self, config: TrainConfig, device: torch.device) -> Any:
        """Load the video VAE in the precision of `vae_dtype`."""

    @abstractmethod
    def encode_latents(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Clean normalised latents, float32 `[B, C, t, h, w]`, of pixels `[B, 3, T, H, W]` in [-1, 1]."""

    @staticmethod
    def _ready(vae: Any, config: TrainConfig, device: torch.device) -> Any:
        """A loaded VAE, frozen, on `device`, tiled, sliced and working in parts as the settings say.

        Raises:
            ModelError: it cannot work in parts.
        """
        vae.requires_grad_(False)
        if config.vae_works_in_parts:
            from tunerkit.memory.vae_parts import work_as_configured

            work_as_configured(vae, config)
        if config.vae_enable_tiling:
            vae.enable_tiling()
        if config.vae_enable_slicing:
            vae.enable_slicing()
        return vae.to(device).eval()

    def _mode(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """What the VAE holds most likely, float32 `[B, C, t, h, w]`, of pixels `[B, 3, T, H, W]` in [-1, 1].

        Raises:
            ValueError: no legal number of frames; some VAEs would drop the last ones without a word.
        """
        import torch

        frames = pixels.shape[2]
        if self.legal_frames(frames) != frames:
            step = self.temporal_compression
            raise ValueError(f"{frames} frames: {self.title} needs {step}k + 1 (1, {step + 1}, {2 * step + 1}, ...)")
        with torch.no_grad():
            return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()

    def save_vae_memory(self, vae: Any, how: str) -> None:
        """Make `vae` encode in less memory from now on, the way `how` of `vae_fallbacks`.

        Raises:
            ValueError: `how` is not known.
        """
        if how not in self.vae_fallbacks:
            raise ValueError(f"{self.name} does not know the fallback {how!r}")
        if how == "tiled":
            vae.enable_tiling()
            return
        from tunerkit.memory.vae_parts import obstacle, work_in_parts

        if not obstacle(vae):  # else it works as before, and what comes next is tried
            work_in_parts(vae, smallest=True)

    # Sound: only for families with `sound` ----------------------------------------------------------------------

    def sound_recipe(self, config: TrainConfig) -> dict[str, Any]:
        """Everything, beside the audio VAE's weights and the waveform, that shapes cached audio latents."""
        raise NotImplementedError(f"{self.title} makes no sound")

    def load_audio_vae(self, config: TrainConfig, device: torch.device) -> Any:
        """Load the audio VAE."""
        raise NotImplementedError(f"{self.title} makes no sound")

    def encode_sound(self, vae: Any, waveforms: torch.Tensor) -> torch.Tensor:
        """Clean normalised audio latents, float32 `[B, L, D]`, of waveforms `[B, channels, samples]` in [-1, 1]."""
        raise NotImplementedError(f"{self.title} makes no sound")

    # Training --------------------------------------------------------------------------------------------------

    @abstractmethod
    def load_transformer(self, config: TrainConfig, dtype: torch.dtype) -> Any:
        """Load the diffusion transformer in `dtype` to where it trains, in RAM where parts of it are offloaded; its
        `quantised_layers` in `base_model_precision`."""

    def quantised_layers(self, transformer: Any) -> list[str]:
        """Names of the layers that a quantised base model holds quantised."""
        from tunerkit.memory.quantised_linear import quantisable

        inside = {id(module) for block in self.blocks(transformer) for module in block.modules()}
        return [
            name
            for name, module in transformer.named_modules()
            if quantisable(module) and id(module) in inside and not any(part in name for part in self.unquantised)
        ]

    @abstractmethod
    def blocks(self, transformer: Any) -> list[Any]:
        """The transformer blocks that gradient checkpointing runs one by one, in order."""

    def video_blocks(self, transformer: Any) -> list[Any]:
        """Those of `blocks` that the picture's tokens pass, in order: what settings number from 0."""
        return self.blocks(transformer)

    def calls(self, batch: Batch) -> list[list[int]]:
        """Which samples of `batch` each call of the transformer in `predict` holds, in the order of the calls."""
        return [list(range(len(batch.latents)))]

    def routing_refusal(self, config: TrainConfig) -> str | None:
        """Why single tokens cannot skip blocks under these settings, as "reason. Fix: what to do"; None where they
        can, which only a family with `token_arguments` may say."""
        return f"blocks of {self.title} need all of its tokens. Fix: leave it out"

    def token_arguments(self, arguments: Sequence[Any]) -> dict[int, int]:
        """Which of the positional arguments of a block of `video_blocks` have one entry for each token of the picture.

        Returns:
            position -> dimension of the tokens, in the tensor at this position or in each tensor of a tuple there;
            position 0 are the tokens themselves, `[B, S, D]`.

        Raises:
            ValueError: an argument ties tokens to each other.
        """
        raise NotImplementedError(f"{self.title} needs all of its tokens in every block")

    @abstractmethod
    def token_grid(self, transformer: Any, latents: torch.Tensor) -> tuple[int, int, int]:
        """How many tokens latents `[B, C, T, H, W]` have along time, height and width; they run in this order."""

    @abstractmethod
    def hidden_width(self, transformer: Any) -> int:
        """Channels of a token of the picture between two of `video_blocks`."""

    def on_grid(self, transformer: Any, states: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """What a block of `video_blocks` gives, `[B, S, D]`, as `[B, T, H, W, D]`; `grid` is from `token_grid`."""
        return states.unflatten(1, grid)

    @abstractmethod
    def lora_targets(self, config: TrainConfig) -> list[str]:
        """Suffixes of the modules that get an adapter by default."""

    @abstractmethod
    def sample_sigmas(self, config: TrainConfig, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Noise levels in [0, 1] for training, float32 `[B]` on the CPU, from the family's training density."""

    def sample_audio_sigmas(self, config: TrainConfig, batch: Batch, generator: torch.Generator) -> torch.Tensor | None:
        """Noise levels of the sound, float32 `[B]` on the CPU; None where it shares those of the picture."""
        return None

    @abstractmethod
    def predict(
        self,
        transformer: Any,
        batch: Batch,
        *,
        sigma: torch.Tensor,
        noise: torch.Tensor,
        audio_sigma: torch.Tensor | None = None,
        audio_noise: torch.Tensor | None = None,
    ) -> Prediction:
        """What the transformer predicts of `batch` on the line between clean and noise, and what it should.

        Args:
            sigma: noise level of each sample, `[B]`.
            noise: shape of `batch.latents`.
            audio_sigma: noise level of each sample's sound, `[B]`; None = `sigma`.
            audio_noise: shape of `batch.audio.latents`; needed where the batch has sound.
        """

    def losses(
        self,
        transformer: Any,
        batch: Batch,
        *,
        sigma: torch.Tensor,
        noise: torch.Tensor,
        audio_sigma: torch.Tensor | None = None,
        audio_noise: torch.Tensor | None = None,
    ) -> LossParts:
        """The training loss of `batch` with explicit draws, which are those of `predict`."""
        return self.predict(
            transformer, batch, sigma=sigma, noise=noise, audio_sigma=audio_sigma, audio_noise=audio_noise
        ).losses()

    def loss(
        self,
        transformer: Any,
        batch: Batch,
        *,
        sigma: torch.Tensor,
        noise: torch.Tensor,
        audio_sigma: torch.Tensor | None = None,
        audio_noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`losses(...)` as the scalar to differentiate (float32, mean over samples)."""
        return self.losses(
            transformer, batch, sigma=sigma, noise=noise, audio_sigma=audio_sigma, audio_noise=audio_noise
        ).total

    # Validation and export -------------------------------------------------------------------------------------

    @abstractmethod
    def build_pipeline(self, config: TrainConfig, transformer: Any, vae: Any, *, image_to_video: bool) -> Any:
        """The stock pipeline around live components; text encoder and tokenizer absent."""

    @abstractmethod
    def render(self, config: TrainConfig, pipeline: Any, request: RenderRequest) -> Rendered:
        """Run the pipeline."""

    def comfyui_module(self, name: str) -> str:
        """Name that the original model, and with it ComfyUI, gives to the transformer's module `name`."""
        return name

    @abstractmethod
    def pipeline_class(self) -> Any:
        """The stock text-to-video pipeline class, whose LoRA mixin writes and reads adapters."""
