"""LTX-2 (19B) and LTX-2.3 (22B): joint video and sound, with Gemma-3 text.

Facts from Lightricks' ltx-core and ltx-trainer and the installed diffusers classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunerkit.config.crepa_rules import check_aligned_blocks
from tunerkit.config.memory_rules import check_depth
from tunerkit.config.precisions import text_precisions
from tunerkit.config.tread_rules import check_routes
from tunerkit.dtypes import text_dtype, torch_dtype
from tunerkit.errors import ModelError, Note, Problem
from tunerkit.families.base import Family
from tunerkit.families.batch import Batch
from tunerkit.families.checkpoint_files import require_class
from tunerkit.families.facts import Component, Flavour, PublishedComponent, SoundFormat, TextKind
from tunerkit.families.ltx2 import checkpoint as files
from tunerkit.families.prediction import Prediction
from tunerkit.families.rendering import Rendered, RenderRequest

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig

SUFFIXES = ("to_q", "to_k", "to_v", "to_out.0")
"""Modules that the official LoRA configurations adapt, in all six attentions of a block."""
PICTURE_ATTENTION = ("attn1", "attn2")
"""The two attentions of a block that run when there is no sound."""

DISTILLED = (
    "it is distilled for sampling without guidance in 8 steps, and training would undo that. Fix: train {dev}, and "
    "load the adapter into the distilled model to sample"
)
NEXT_GENERATION = (
    "LTX-2.5 is not supported: it needs the Gemma-4 text encoder and the files it is split into, and they were not "
    "checked. Fix: use 2.3-dev"
)

TILE, TILE_STRIDE = 16, 14
"""Latents on a side of a tile, and between the starts of two tiles: the VAE's defaults of 512 and 448 pixels."""

TRAINED_SIZES = (
    (1216, 704), (960, 544), (768, 512), (704, 480), (640, 640), (512, 512), (480, 704), (512, 768), (544, 960),
    (704, 1216),
)  # fmt: skip
"""(width, height) of the official configurations and examples; the model takes any multiple of 32."""


class LTX2(Family):
    name = "ltxvideo2"
    title = "LTX-2"
    aliases = ("ltx2", "ltx-2", "ltxvideo-2")
    flavours = {
        "dev": Flavour("Lightricks/LTX-2", "19B, sound at 24 kHz", ("2.0", "2")),
        "2.3-dev": Flavour("diffusers/LTX-2.3-Diffusers", "22B, sound at 48 kHz", ("2.3",)),
        "dev-fp8": Flavour(
            "Lightricks/LTX-2",
            aliases=("dev-fp4",),
            refused="the repository's fp8 and fp4 files are for sampling; a trainer needs the bf16 weights. Fix: use "
            "dev",
        ),
        "distilled": Flavour("Lightricks/LTX-2", refused=DISTILLED.format(dev="dev")),
        "2.3-distilled": Flavour("diffusers/LTX-2.3-Distilled-Diffusers", refused=DISTILLED.format(dev="2.3-dev")),
        "2.5-dev": Flavour("Lightricks/LTX-2.5", aliases=("2.5", "2.5-distilled"), refused=NEXT_GENERATION),
    }
    default_flavour = "dev"
    framerate = 24.0
    temporal_compression = 8
    size_multiple = 32
    latent_formula = "(mode - mean) * scaling_factor / std"
    sound = SoundFormat(sample_rate=16000, channels=2)
    unquantised = ("to_gate_logits",)
    subfolders = {
        "text": ("text_encoder", "tokenizer", "connectors"),
        "vae": ("vae",),
        "audio_vae": ("audio_vae",),
        "transformer": ("transformer",),
    }
    defaults = {
        "framerate": 24.0,
        "vae_dtype": "bf16",
        "validation_resolution": "768x512",
        "validation_num_video_frames": 49,
        "validation_num_inference_steps": 30,
        "validation_guidance": 3.0,
        "validation_audio_guidance": 7.0,
        "validation_negative_prompt": "worst quality, inconsistent motion, blurry, jittery, distorted, static noise",
        "first_frame_conditioning_probability": 0.5,
        "crepa_block_index": 8,
        # A latent frame is 8 frames, a third of a second: neighbours show other things, and a strong term to the end
        # washes the picture out.
        "crepa_lambda": 0.25,
        "crepa_adjacent_tau": 0.5,
        "crepa_scheduler": "cosine",
    }

    def model_sizes(self, config: TrainConfig) -> list[tuple[int, int]]:
        return list(TRAINED_SIZES)

    def check(self, config: TrainConfig) -> tuple[list[Problem], list[Note]]:
        notes: list[Note] = []
        if config.motion_score is not None:
            notes.append(Note("motion_score", "LTX-2 is not told a motion score; not used"))
        if config.ltx2_checkpoint_filename and str(config.pretrained_model_name_or_path).endswith(".safetensors"):
            notes.append(
                Note("ltx2_checkpoint_filename", "pretrained_model_name_or_path names a file already; not used")
            )
        if not config.trains_sound:
            idle = {"audio_loss_weight": 1.0, "audio_sigma": "shared", "sound_conditioning_probability": 0.0}
            notes += [
                Note(key, "has no effect: no dataset takes sound along (an audio block, or s2v_datasets)")
                for key, default in idle.items()
                if getattr(config, key) != default
            ]
        problems = list(_torn_tiles(config))
        if config.pretrained_vae_model_name_or_path not in (None, config.pretrained_model_name_or_path):
            problems.append(
                Problem(
                    "pretrained_vae_model_name_or_path",
                    config.pretrained_vae_model_name_or_path,
                    "LTX-2's latents fit the VAE of the same checkpoint only",
                    "leave it out",
                )
            )
        if config.ltx2_checkpoint_filename and config.pretrained_model_name_or_path == self.flavours["2.3-dev"].repo:
            problems.append(
                Problem(
                    "ltx2_checkpoint_filename",
                    config.ltx2_checkpoint_filename,
                    f"{config.pretrained_model_name_or_path} holds no combined file",
                    "set pretrained_model_name_or_path to Lightricks/LTX-2.3, or leave ltx2_checkpoint_filename out",
                )
            )
        return problems, notes

    def check_checkpoint(self, config: TrainConfig) -> None:
        checkpoint = files.checkpoint_of(config)
        model, instead = str(config.pretrained_model_name_or_path), self.flavours[self.default_flavour].repo
        transformer = checkpoint.config("transformer")
        classes: dict[files.Part, str] = {
            "transformer": "LTX2VideoTransformer3DModel",
            "vae": "AutoencoderKLLTX2Video",
            "audio_vae": "AutoencoderKLLTX2Audio",
            "connectors": "LTX2TextConnectors",
        }
        for part, needed in classes.items():
            require_class(checkpoint.config(part), needed, model, instead)
        if transformer.get("use_keyframes_abs_pos_embedding"):
            raise ModelError(f"{files.MODEL} = {model!r}: {NEXT_GENERATION}")
        version = "2.3" if transformer.get("cross_attn_mod") else "2.0"
        asked = "2.3" if str(config.model_flavour).startswith("2.3") else "2.0"
        if asked != version:
            other = "2.3-dev" if version == "2.3" else "dev"
            raise ModelError(
                f"model_flavour = {config.model_flavour!r}, and {files.MODEL} = {model!r} holds LTX-2 {version}. Fix: "
                f"set model_flavour to {other}, or name a checkpoint of {asked}"
            )
        check_depth(config, transformer.get("num_layers"))
        check_routes(config, transformer.get("num_layers"))
        check_aligned_blocks(config, transformer.get("num_layers"))
        latents = checkpoint.config("vae").get("latent_channels")
        if latents != transformer.get("in_channels"):
            raise ModelError(
                f"{files.MODEL} = {model!r}: the VAE makes {latents} latent channels, the transformer takes "
                f"{transformer.get('in_channels')}. Fix: download the checkpoint again"
            )

        _check_widths(model, checkpoint)

    def published_components(self, flavour: str) -> Mapping[PublishedComponent, Mapping[str, Any]]:
        from tunerkit.families.ltx2 import published

        return published.table(flavour)

    def identity(self, config: TrainConfig, component: Component) -> dict[str, Any]:
        checkpoint = files.checkpoint_of(config)
        if component != "text":
            return checkpoint.identity(component)
        return {"gemma": files.text_source(config).identity(), "connectors": checkpoint.identity("connectors")}

    # Text ------------------------------------------------------------------------------------------------------

    def text_recipe(self, config: TrainConfig) -> dict[str, Any]:
        from tunerkit.families.ltx2.text import TOKENS

        return {
            "recipe": 1,
            "tokens": TOKENS,
            "cached": "connector outputs",
            "dtype": str(text_dtype(config)),
            **text_precisions(config, self.text_encoders),
        }

    def load_text_encoder(self, config: TrainConfig, device: torch.device) -> Any:
        from tunerkit.families.ltx2.text import load_text_encoder

        return load_text_encoder(config, text_dtype(config), device)

    def encode_text(
        self, encoder: Any, texts: Sequence[str], kind: TextKind, config: TrainConfig
    ) -> list[dict[str, torch.Tensor]]:
        """`prompt_embeds` `[1024, D]` and `audio_prompt_embeds` `[1024, D']` of each text."""
        return encoder.encode(texts)

    # Latents ---------------------------------------------------------------------------------------------------

    def load_vae(self, config: TrainConfig, device: torch.device) -> Any:
        vae = files.checkpoint_of(config).load("vae", torch_dtype(config.vae_dtype or "bf16"))
        return self._ready(vae, config, device)

    def encode_latents(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        mode = self._mode(vae, pixels)
        mean, std = (buffer.float().view(1, -1, 1, 1, 1) for buffer in (vae.latents_mean, vae.latents_std))
        return (mode - mean) * float(vae.config.scaling_factor) / std

    # Sound -----------------------------------------------------------------------------------------------------

    def sound_recipe(self, config: TrainConfig) -> dict[str, Any]:
        from tunerkit.families.ltx2.sound import RECIPE

        return {**RECIPE}

    def load_audio_vae(self, config: TrainConfig, device: torch.device) -> Any:
        import torch

        vae = files.checkpoint_of(config).load("audio_vae", torch.float32)
        return vae.requires_grad_(False).to(device).eval()

    def encode_sound(self, vae: Any, waveforms: torch.Tensor) -> torch.Tensor:
        from tunerkit.families.ltx2.sound import encode_sound

        return encode_sound(vae, waveforms)

    # Training --------------------------------------------------------------------------------------------------

    def load_transformer(self, config: TrainConfig, dtype: torch.dtype) -> Any:
        return files.checkpoint_of(config).load_transformer(config, dtype, self.quantised_layers)

    def blocks(self, transformer: Any) -> list[Any]:
        return list(transformer.transformer_blocks)

    def routing_refusal(self, config: TrainConfig) -> str | None:
        return None

    def token_arguments(self, arguments: Sequence[Any]) -> dict[int, int]:
        """The tokens and both rotary embeddings; the modulation where the tokens have timesteps of their own.

        Positions are those of `LTX2VideoTransformerBlock.forward`. Rotary embeddings are `[B, heads, S, d]` ("split")
        or `[B, S, D]` ("interleaved").
        """
        if arguments[18] is not None:
            raise ValueError("a mask between the tokens of the picture cannot be routed")
        tokens = arguments[0].shape[1]
        modulation = {place: 1 for place in (4, 6, 8) if arguments[place].shape[1] == tokens}
        return {0: 1, **modulation, **{place: arguments[place][0].ndim - 2 for place in (12, 14)}}

    def token_grid(self, transformer: Any, latents: torch.Tensor) -> tuple[int, int, int]:
        frames, height, width = latents.shape[2:]
        over, across = transformer.config.patch_size_t, transformer.config.patch_size
        return frames // over, height // across, width // across

    def hidden_width(self, transformer: Any) -> int:
        return int(transformer.config.num_attention_heads * transformer.config.attention_head_dim)

    def lora_targets(self, config: TrainConfig) -> list[str]:
        """The official four suffixes; without sound only in the attentions that run then."""
        if config.trains_sound:
            return list(SUFFIXES)
        return [f"{attention}.{suffix}" for attention in PICTURE_ATTENTION for suffix in SUFFIXES]

    def sample_sigmas(self, config: TrainConfig, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """The official density for the number of video tokens; with `flow_schedule_shift` a logit-normal with it."""
        from tunerkit.families.ltx2 import objective

        tokens = batch.latents[0, 0].numel()
        return objective.sample_sigmas(len(batch.latents), tokens, _shift(config), generator)

    def sample_audio_sigmas(self, config: TrainConfig, batch: Batch, generator: torch.Generator) -> torch.Tensor | None:
        """Of their own with `audio_sigma = "independent"`, from the density for the number of audio tokens."""
        if batch.audio is None or config.audio_sigma == "shared":
            return None
        from tunerkit.families.ltx2 import objective

        tokens = batch.audio.latents.shape[1]
        return objective.sample_sigmas(len(batch.latents), tokens, _shift(config), generator)

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
        from tunerkit.families.ltx2 import objective

        return objective.prediction(
            transformer, batch, sigma=sigma, noise=noise, audio_sigma=audio_sigma, audio_noise=audio_noise
        )

    # Validation and export -------------------------------------------------------------------------------------

    def comfyui_module(self, name: str) -> str:
        from tunerkit.families.ltx2.combined_names import SEGMENTS

        originals = {ours: theirs for theirs, ours in SEGMENTS["transformer"].items()}
        return ".".join(originals.get(segment, segment) for segment in name.split("."))

    def pipeline_class(self) -> Any:
        from diffusers import LTX2Pipeline

        return LTX2Pipeline

    def build_pipeline(self, config: TrainConfig, transformer: Any, vae: Any, *, image_to_video: bool) -> Any:
        from tunerkit.families.ltx2 import pipeline as rendering

        return rendering.build(config, transformer, vae, image_to_video=image_to_video)

    def render(self, config: TrainConfig, pipeline: Any, request: RenderRequest) -> Rendered:
        from tunerkit.families.ltx2 import pipeline as rendering

        full = config.validation_guidance_stack == "full"
        guidance = rendering.full_guidance(pipeline.transformer.config) if full else rendering.CFG_ONLY
        return rendering.render(pipeline, request, guidance)


def _check_widths(model: str, checkpoint: files.Checkpoint) -> None:
    """Parts of different checkpoints do not fit each other.

    Raises:
        ModelError: naming the part.
    """
    transformer, connectors = checkpoint.config("transformer"), checkpoint.config("connectors")
    audio_vae = checkpoint.config("audio_vae")
    if connectors.get("per_modality_projections"):
        made = connectors.get("video_hidden_dim"), connectors.get("audio_hidden_dim")
        taken = transformer.get("cross_attention_dim"), transformer.get("audio_cross_attention_dim")
        fits = not transformer.get("use_prompt_embeddings", True) and made == taken
    else:
        made, taken = connectors.get("caption_channels"), transformer.get("caption_channels")
        fits = transformer.get("use_prompt_embeddings", True) and made == taken
    if not fits:
        raise ModelError(
            f"{files.MODEL} = {model!r}: the connectors are of another version than the transformer (widths {made} and "
            f"{taken}). Fix: download the checkpoint again"
        )
    if audio_vae.get("base_channels") != transformer.get("audio_in_channels"):
        raise ModelError(
            f"{files.MODEL} = {model!r}: the audio VAE makes {audio_vae.get('base_channels')} channels, the "
            f"transformer takes {transformer.get('audio_in_channels')}. Fix: download the checkpoint again"
        )


def _torn_tiles(config: TrainConfig) -> Iterator[Problem]:
    """Sizes whose last tile is one latent wide: the decoder of 2.0 mirrors the edge and needs two."""
    if not config.vae_enable_tiling or str(config.model_flavour).startswith("2.3"):
        return
    for width, height in config.validation_sizes:
        if max(width, height) // 32 <= TILE:
            continue  # decoded whole
        for edge in (width, height):
            latents = edge // 32
            if latents > TILE_STRIDE and (latents - 1) % TILE_STRIDE == 0:
                yield Problem(
                    "validation_resolution",
                    f"{width}x{height}",
                    f"cannot be decoded in tiles (vae_enable_tiling): the last tile of {edge} pixels is too narrow",
                    f"use {edge + 32} or {edge - 32} pixels, or set vae_enable_tiling to false",
                )


def _shift(config: TrainConfig) -> float | None:
    """The flow shift that is asked for; None = the official density for the number of tokens."""
    return None if config.flow_schedule_auto_shift else config.flow_schedule_shift


FAMILY = LTX2()
