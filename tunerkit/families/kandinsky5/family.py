"""Kandinsky 5.0 Video, Lite (2B) and Pro (19B): text and image to video, with Qwen2.5-VL and CLIP text.

Facts from kandinskylab/kandinsky-5's configurations and the installed diffusers classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tunerkit.dtypes import text_dtype, torch_dtype
from tunerkit.errors import ModelError, Note, Problem
from tunerkit.families.base import Batch, Family, LossParts, Rendered, RenderRequest, TextKind
from tunerkit.families.checkpoint_files import component_config, load_component
from tunerkit.families.kandinsky5 import flavours

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig

MODEL, VAE = "pretrained_model_name_or_path", "pretrained_vae_model_name_or_path"
SPARSE = "sparse_attention"
FEWEST_FROM_IMAGE = 17
"""Frames below which Kandinsky5I2VPipeline gives NaN."""
GUIDANCE = (2.0, 6.0)
"""Outside of it, videos fall apart."""


class Kandinsky5(Family):
    name = "kandinsky5-video"
    title = "Kandinsky 5.0 Video"
    aliases = ("kandinsky5_video", "kandinsky5", "kandinsky-5")
    flavours = flavours.FLAVOURS
    default_flavour = "t2v-lite-sft-5s"
    framerate = 24.0
    temporal_compression = 4
    size_multiple = 16
    subfolders = {
        "text": ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        "vae": ("vae",),
        "transformer": ("transformer",),
    }
    defaults = {
        "framerate": 24.0,
        "vae_dtype": "bf16",
        "validation_resolution": "768x512",
        "validation_num_video_frames": 121,
        "validation_num_inference_steps": 50,
        "validation_guidance": 5.0,
        "validation_negative_prompt": "Static, 2D cartoon, cartoon, 2d animation, paintings, images, worst quality, "
        "low quality, ugly, deformed, walking backwards",
        "first_frame_conditioning_probability": 1.0,
    }

    def model_sizes(self, config: TrainConfig) -> list[tuple[int, int]]:
        return list(flavours.HD_SIZES if flavours.is_hd(_flavour(config)) else flavours.SD_SIZES)

    def multiple(self, config: TrainConfig) -> int:
        """What pixel width and height must be multiples of: 128 where attention is sparse, else 16."""
        return 128 if _is_sparse(config) else self.size_multiple

    def image_to_video(self, config: TrainConfig) -> bool:
        """Whether every clip is trained from its first frame, as the flavour was, without a dataset asking for it."""
        return flavours.is_image_to_video(_flavour(config))

    def check(self, config: TrainConfig) -> tuple[list[Problem], list[Note]]:
        return list(self._problems(config)), list(self._notes(config))

    def _problems(self, config: TrainConfig) -> Iterator[Problem]:
        frames = config.validation_num_video_frames
        from_image = self.image_to_video(config) or config.validation_input or config.validation_using_datasets
        if frames is not None and frames < FEWEST_FROM_IMAGE and from_image and not config.validation_disable:
            yield Problem(
                "validation_num_video_frames",
                frames,
                "is too short for image to video: the stock pipeline fits the first 4 latent frames to those after "
                "them, and makes NaN where there are none",
                f"use {FEWEST_FROM_IMAGE} or more",
            )

    def _notes(self, config: TrainConfig) -> Iterator[Note]:
        if config.motion_score is not None:
            yield Note("motion_score", f"{self.title} is not told a motion score; not used")
        if config.flow_schedule_auto_shift:
            yield Note(
                "flow_schedule_auto_shift",
                f"does not apply to {self.title}, which trains with one flow shift for all sizes; not used",
            )
        low, high = GUIDANCE
        guidance = config.validation_guidance
        if guidance is not None and not low <= guidance <= high:
            yield Note("validation_guidance", f"{guidance:g} is outside of {low:g} to {high:g}, where videos hold")
        if not self.image_to_video(config) and any(dataset.video.is_i2v for dataset in config.media_datasets):
            yield Note(
                "model_flavour",
                "the checkpoint was trained without a first frame; image to video starts better from i2v-lite-5s or "
                "i2v-pro-sft-5s",
            )
        if not _wants_sparse(config) and flavours.is_sparse(_flavour(config)):
            yield Note(
                SPARSE,
                "every token sees every other, which the checkpoint was not trained for: slower, the more so the "
                "longer the clip, and validation renders so, too",
            )

    def check_checkpoint(self, config: TrainConfig) -> None:
        model = str(config.pretrained_model_name_or_path)
        transformer = component_config(model, "transformer", MODEL, config.revision)
        found = transformer.get("_class_name")
        if found != "Kandinsky5Transformer3DModel":
            raise ModelError(
                f"{MODEL} = {model!r} holds a {found}, not a Kandinsky5Transformer3DModel. Fix: set model_family to "
                f"the family of that checkpoint, or use {self.flavours[self.default_flavour].repo}"
            )
        if not transformer.get("visual_cond"):
            raise ModelError(
                f"{MODEL} = {model!r} is no video checkpoint: its transformer takes no condition channels "
                f"(visual_cond). Fix: use {self.flavours[self.default_flavour].repo}"
            )
        if transformer.get("attention_type") == "nabla" and _wants_sparse(config) and not _is_sparse(config):
            raise ModelError(
                f"{MODEL} = {model!r} was trained with sparse attention, model_flavour = {_flavour(config)!r} was not. "
                f"Fix: set model_flavour to t2v-lite-sft-10s or t2v-pro-sft-5s-hd, or {SPARSE} to false"
            )
        self._check_vae(config, model, int(transformer["in_visual_dim"]))

    @staticmethod
    def _check_vae(config: TrainConfig, model: str, channels: int) -> None:
        chosen = str(config.pretrained_vae_model_name_or_path or model)
        vae = component_config(chosen, "vae", VAE, config.revision if chosen == model else None)
        fix = "Fix: leave the setting out to use the base model's own VAE"
        if vae.get("_class_name") != "AutoencoderKLHunyuanVideo":
            raise ModelError(
                f"{VAE} = {chosen!r} holds a {vae.get('_class_name')}; Kandinsky 5.0 Video needs the HunyuanVideo VAE "
                f"(AutoencoderKLHunyuanVideo). {fix}"
            )
        if vae.get("latent_channels") != channels:
            raise ModelError(
                f"{VAE} = {chosen!r} makes {vae.get('latent_channels')} latent channels, the transformer of {model!r} "
                f"takes {channels}. {fix}"
            )
        if chosen != model:
            own = component_config(model, "vae", VAE, config.revision)
            if own.get("scaling_factor") != vae.get("scaling_factor"):
                raise ModelError(
                    f"{VAE} = {chosen!r} scales latents by {vae.get('scaling_factor')}, the base model's VAE by "
                    f"{own.get('scaling_factor')}, so the transformer would see wrong inputs. {fix}"
                )

    # Text ------------------------------------------------------------------------------------------------------

    def text_recipe(self, config: TrainConfig) -> dict[str, Any]:
        from tunerkit.families.kandinsky5.text import TOKENS

        return {"recipe": 1, "tokens": TOKENS, "cached": "real tokens", "dtype": str(text_dtype(config))}

    def load_text_encoder(self, config: TrainConfig, device: torch.device) -> Any:
        from tunerkit.families.kandinsky5.text import load_text_encoder

        return load_text_encoder(config, text_dtype(config)).to(device)

    def encode_text(
        self, encoder: Any, texts: Sequence[str], kind: TextKind, config: TrainConfig
    ) -> list[dict[str, torch.Tensor]]:
        """`prompt_embeds` `[L, 3584]` and `pooled` `[768]` of each text; `L` is the text's own length."""
        from tunerkit.families.kandinsky5.text import encode

        return encode(encoder, texts)

    # Latents ---------------------------------------------------------------------------------------------------

    def vae_recipe(self, config: TrainConfig) -> dict[str, Any]:
        return {
            "recipe": 1,
            "dtype": config.vae_dtype,
            "tiling": config.vae_enable_tiling,
            "normalised": "mode * scaling_factor",
        }

    def load_vae(self, config: TrainConfig, device: torch.device) -> Any:
        from diffusers import AutoencoderKLHunyuanVideo

        model = str(config.pretrained_model_name_or_path)
        chosen = str(config.pretrained_vae_model_name_or_path or model)
        vae = load_component(
            AutoencoderKLHunyuanVideo,
            chosen,
            MODEL if chosen == model else VAE,
            "VAE",
            subfolder="vae",
            revision=config.revision if chosen == model else None,
            dtype=torch_dtype(config.vae_dtype or "bf16"),
        )
        return self._ready(vae, config, device)

    def encode_latents(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        frames, height, width = pixels.shape[2:]
        if (frames - 1) % self.temporal_compression:
            # The VAE would drop the last frames without a word.
            raise ValueError(f"{frames} frames: {self.title} needs 4k + 1 (1, 5, 9, ..., 121)")
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"{width}x{height} pixels: {self.title} needs multiples of {self.size_multiple}")
        with torch.no_grad():
            mode = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()
        return mode * float(vae.config.scaling_factor)

    # Training --------------------------------------------------------------------------------------------------

    def load_transformer(self, config: TrainConfig, dtype: torch.dtype) -> Any:
        """Its time embedding and modulations stay in float32 whatever `dtype` is; the class keeps them so."""
        from diffusers import Kandinsky5Transformer3DModel

        from tunerkit.families.kandinsky5.attention import use_nabla

        transformer = load_component(
            Kandinsky5Transformer3DModel,
            str(config.pretrained_model_name_or_path),
            MODEL,
            "transformer",
            subfolder="transformer",
            revision=config.revision,
            variant=config.variant,
            dtype=dtype,
            **({} if _wants_sparse(config) else {"attention_type": "regular"}),
        )
        if transformer.config.attention_type == "nabla":
            use_nabla(transformer)
        return transformer

    def blocks(self, transformer: Any) -> list[Any]:
        return [*transformer.text_transformer_blocks, *transformer.visual_transformer_blocks]

    def lora_targets(self, config: TrainConfig) -> list[str]:
        """All projections of all attentions. A bare "out_layer" would match the model's last layer as well."""
        outputs = [f"{attention}.out_layer" for attention in ("self_attention", "cross_attention")]
        return ["to_query", "to_key", "to_value", *outputs]

    def sample_sigmas(self, config: TrainConfig, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Logit-normal draws moved by `flow_schedule_shift`, or by 3."""
        from tunerkit.families.kandinsky5 import objective

        return objective.sample_sigmas(len(batch.latents), config.flow_schedule_shift, generator)

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
        from tunerkit.families.kandinsky5 import objective

        return objective.losses(transformer, batch, sigma=sigma, noise=noise)

    # Validation and export -------------------------------------------------------------------------------------

    def pipeline_class(self) -> Any:
        from diffusers import Kandinsky5T2VPipeline

        return Kandinsky5T2VPipeline

    def build_pipeline(self, config: TrainConfig, transformer: Any, vae: Any, *, image_to_video: bool) -> Any:
        """The sampling shift is that of the checkpoint's scheduler, whatever the training shift is."""
        from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5I2VPipeline, Kandinsky5T2VPipeline

        pipeline_class: Any = Kandinsky5I2VPipeline if image_to_video else Kandinsky5T2VPipeline
        pipeline = pipeline_class(
            transformer=transformer,
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(
                str(config.pretrained_model_name_or_path), subfolder="scheduler", revision=config.revision
            ),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def render(self, config: TrainConfig, pipeline: Any, request: RenderRequest) -> Rendered:
        from tunerkit.families.kandinsky5 import pipeline as rendering

        return rendering.render(pipeline, request)


def _flavour(config: TrainConfig) -> str:
    return str(config.model_flavour or Kandinsky5.default_flavour)


def _wants_sparse(config: TrainConfig) -> bool:
    return bool(getattr(config, SPARSE, True))


def _is_sparse(config: TrainConfig) -> bool:
    return _wants_sparse(config) and flavours.is_sparse(_flavour(config))


FAMILY = Kandinsky5()
