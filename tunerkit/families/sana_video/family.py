"""Sana Video 2B (480p): a linear-attention transformer on Wan 2.1 latents with Gemma-2 text.

Facts from the paper (arXiv 2509.24695), NVlabs/Sana's training code and the installed diffusers pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunerkit.config.crepa_rules import CREPA_DEFAULTS, check_aligned_blocks
from tunerkit.config.memory_rules import check_depth
from tunerkit.config.precisions import text_precisions
from tunerkit.config.tread_rules import check_routes
from tunerkit.dtypes import text_dtype, torch_dtype
from tunerkit.errors import Note, Problem
from tunerkit.families import checkpoint_files as files
from tunerkit.families.base import Family
from tunerkit.families.batch import Batch
from tunerkit.families.facts import Flavour, PublishedComponent, TextKind
from tunerkit.families.prediction import Prediction
from tunerkit.families.rendering import Rendered, RenderRequest

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig

VAE_KIND = files.VaeKind(
    "AutoencoderKLWan", "Wan 2.1 VAE", channels="z_dim", normalisation=("latents_mean", "latents_std")
)
TRAINING_SHIFT = 3.0
"""Flow shift of the official training density; sampling uses 7 to 8, read from the checkpoint's scheduler."""

TRAINED_SIZES = (
    (896, 448), (832, 480), (768, 528), (720, 560), (624, 624), (592, 672),
    (560, 720), (528, 768), (496, 816), (480, 832), (448, 896),
)  # fmt: skip
"""(width, height) bins of the 480p model. All are multiples of 16, which is all the model needs; the pipeline renders
only those that are multiples of 32."""


class SanaVideo(Family):
    name = "sanavideo"
    title = "Sana Video 2B"
    aliases = ("sana-video", "sana_video")
    flavours = {
        "2b-480p": Flavour("Efficient-Large-Model/SANA-Video_2B_480p_diffusers", "832x480, 81 frames at 16 fps")
    }
    default_flavour = "2b-480p"
    framerate = 16.0
    temporal_compression = 4
    size_multiple = 32
    latent_formula = "(mode - mean) / std"
    subfolders = {"text": ("text_encoder", "tokenizer"), "vae": ("vae",), "transformer": ("transformer",)}
    defaults = {
        "framerate": 16.0,
        "vae_dtype": "fp32",  # the Wan VAE visibly loses quality in bfloat16
        "validation_resolution": "832x480",
        "validation_num_video_frames": 81,
        "validation_num_inference_steps": 50,
        "validation_guidance": 6.0,
        "validation_negative_prompt": "",
        "first_frame_conditioning_probability": 1.0,
        "crepa_block_index": 10,
        **CREPA_DEFAULTS,
    }

    def model_sizes(self, config: TrainConfig) -> list[tuple[int, int]]:
        return list(TRAINED_SIZES)

    def check(self, config: TrainConfig) -> tuple[list[Problem], list[Note]]:
        problems: list[Problem] = []
        notes: list[Note] = []
        for key in ("flow_schedule_shift", "flow_schedule_auto_shift"):
            if getattr(config, key) not in (None, False):
                notes.append(
                    Note(
                        key,
                        f"does not apply to {self.title}, which always trains with its official flow shift "
                        f"{TRAINING_SHIFT:g}; not used",
                    )
                )
        if config.motion_score is not None and config.motion_score < 0:
            problems.append(Problem("motion_score", config.motion_score, "must not be negative", "use about 30"))
        return problems, notes

    def check_checkpoint(self, config: TrainConfig) -> None:
        instead = self.flavours[self.default_flavour].repo
        transformer = files.transformer_config(config, "SanaVideoTransformer3DModel", instead)
        check_depth(config, transformer.get("num_layers"))
        check_routes(config, transformer.get("num_layers"))
        check_aligned_blocks(config, transformer.get("num_layers"))
        files.check_vae(config, VAE_KIND, channels=transformer.get("in_channels"), needed_by=self.title)
        source = files.base_source(config)
        files.require_folders(source, ("scheduler", *self.subfolders["text"]))
        files.check_text_width(source, "text_encoder", transformer.get("caption_channels"))

    def published_components(self, flavour: str) -> Mapping[PublishedComponent, Mapping[str, Any]]:
        from tunerkit.families.sana_video.published import TABLE

        return TABLE

    # Text ------------------------------------------------------------------------------------------------------

    def text_recipe(self, config: TrainConfig) -> dict[str, Any]:
        from tunerkit.families.sana_video.text import TOKENS, instruction

        return {
            "recipe": 1,
            "tokens": TOKENS,
            "instruction": instruction(),
            "motion_score": config.motion_score,
            "dtype": "float32" if config.mixed_precision == "no" else "bfloat16",
            **text_precisions(config, self.text_encoders),
        }

    def load_text_encoder(self, config: TrainConfig, device: torch.device) -> Any:
        from tunerkit.families.sana_video.text import load_text_encoder

        return load_text_encoder(config, text_dtype(config), device)

    def encode_text(
        self, encoder: Any, texts: Sequence[str], kind: TextKind, config: TrainConfig
    ) -> list[dict[str, torch.Tensor]]:
        """`prompt_embeds` `[300, D]` and `prompt_attention_mask` `[300]` of each text."""
        from tunerkit.families.sana_video.text import encode

        return encode(encoder, texts, kind, config.motion_score)

    # Latents ---------------------------------------------------------------------------------------------------

    def load_vae(self, config: TrainConfig, device: torch.device) -> Any:
        from diffusers import AutoencoderKLWan

        vae = files.load_vae(AutoencoderKLWan, config, torch_dtype(config.vae_dtype or "fp32"))
        return self._ready(vae, config, device)

    def encode_latents(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        mode = self._mode(vae, pixels)
        mean = torch.tensor(vae.config.latents_mean, device=mode.device).view(1, -1, 1, 1, 1)
        std = torch.tensor(vae.config.latents_std, device=mode.device).view(1, -1, 1, 1, 1)
        return (mode - mean) / std

    # Training --------------------------------------------------------------------------------------------------

    def load_transformer(self, config: TrainConfig, dtype: torch.dtype) -> Any:
        from diffusers import SanaVideoTransformer3DModel

        from tunerkit.families.transformer_files import load_transformer

        return load_transformer(SanaVideoTransformer3DModel, config, dtype, self.quantised_layers)

    def blocks(self, transformer: Any) -> list[Any]:
        return list(transformer.transformer_blocks)

    def routing_refusal(self, config: TrainConfig) -> str | None:
        return (
            f"the feed-forward layers of {self.title} are convolutions over the whole grid of tokens, so none can skip "
            "a block, and its attention is linear, so little would be saved. Fix: leave it out"
        )

    def token_grid(self, transformer: Any, latents: torch.Tensor) -> tuple[int, int, int]:
        frames, height, width = (
            edge // patch for edge, patch in zip(latents.shape[2:], transformer.config.patch_size, strict=True)
        )
        return frames, height, width

    def hidden_width(self, transformer: Any) -> int:
        return int(transformer.config.num_attention_heads * transformer.config.attention_head_dim)

    def lora_targets(self, config: TrainConfig) -> list[str]:
        return ["to_q", "to_k", "to_v", "to_out.0"]

    def sample_sigmas(self, config: TrainConfig, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Logit-normal draws moved by the official training shift of 3."""
        from tunerkit.families.sana_video import objective

        return objective.sample_sigmas(len(batch.latents), TRAINING_SHIFT, generator)

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
        from tunerkit.families.sana_video import objective

        return objective.prediction(transformer, batch, sigma=sigma, noise=noise)

    # Validation and export -------------------------------------------------------------------------------------

    def pipeline_class(self) -> Any:
        from diffusers import SanaVideoPipeline

        return SanaVideoPipeline

    def build_pipeline(self, config: TrainConfig, transformer: Any, vae: Any, *, image_to_video: bool) -> Any:
        """The sampling shift is that of the checkpoint's scheduler, whatever the training shift is."""
        from tunerkit.families.sana_video import pipeline as rendering

        return rendering.build(config, transformer, vae, image_to_video=image_to_video)

    def render(self, config: TrainConfig, pipeline: Any, request: RenderRequest) -> Rendered:
        from tunerkit.families.sana_video import pipeline as rendering

        return rendering.render(pipeline, request)


FAMILY = SanaVideo()
