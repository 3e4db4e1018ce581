"""Kandinsky 5.0 Video, Lite (2B) and Pro (19B): text and image to video, with Qwen2.5-VL and CLIP text.

Facts from kandinskylab/kandinsky-5's configurations and the installed diffusers classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunerkit.config.crepa_rules import CREPA_DEFAULTS, check_aligned_blocks
from tunerkit.config.memory_rules import check_depth
from tunerkit.config.precisions import text_precisions
from tunerkit.config.tread_rules import check_routes
from tunerkit.dtypes import text_dtype, torch_dtype
from tunerkit.errors import ModelError, Note, Problem
from tunerkit.families import checkpoint_files as files
from tunerkit.families.base import Family
from tunerkit.families.batch import Batch
from tunerkit.families.facts import PublishedComponent, TextKind
from tunerkit.families.kandinsky5 import flavours
from tunerkit.families.prediction import Prediction
from tunerkit.families.rendering import Rendered, RenderRequest

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig

VAE_KIND = files.VaeKind(
    "AutoencoderKLHunyuanVideo", "HunyuanVideo VAE", channels="latent_channels", normalisation=("scaling_factor",)
)
TRAINING_SHIFT = 3.0
"""Flow shift of the training density where no setting names one. The official density is not published; sampling uses 5
or 10, read from the checkpoint's scheduler."""
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
    latent_formula = "mode * scaling_factor"
    encodes_first_frame = True  # the VAE's norms and its attention look across time
    first_frame_methods = ("in_place", "channels")
    unquantised = ("modulation",)
    text_encoders = 2
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
        "crepa_block_index": 8,
        **CREPA_DEFAULTS,
    }

    def defaults_for(self, flavour: str) -> Mapping[str, Any]:
        sizes = {"validation_resolution": "1280x768"} if flavours.is_hd(flavour) else {}
        return {**self.defaults, **sizes, "validation_num_video_frames": flavours.frames(flavour)}

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
        in_place = config.first_frame_conditioning_method == "in_place"
        short = frames is not None and frames < FEWEST_FROM_IMAGE
        if short and from_image and in_place and not config.validation_disable:
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
        unconditioned = any(dataset.video.is_i2v is False for dataset in config.media_datasets)
        if self.image_to_video(config) and (unconditioned or config.first_frame_conditioning_probability == 0):
            yield Note("model_flavour", "clips are trained without their first frame, which the checkpoint starts from")
        if not self.image_to_video(config) and any(dataset.video.is_i2v for dataset in config.media_datasets):
            yield Note(
                "model_flavour",
                "the checkpoint was trained without a first frame; image to video starts better from i2v-lite-5s or "
                "i2v-pro-sft-5s",
            )
        if config.first_frame_conditioning_method == "channels":
            yield Note(
                "first_frame_conditioning_method",
                "the first frame is trained, and rendered here, in the condition channels; the released pipelines give "
                "it in place, and an adapter trained so does less in them",
            )
        if not config.sparse_attention and flavours.is_always_sparse(_flavour(config)):
            yield Note(
                SPARSE,
                "every token sees every other, which the checkpoint was not trained for: slower, the more so the "
                "longer the clip, and validation renders so, too",
            )

    def check_checkpoint(self, config: TrainConfig) -> None:
        model, instead = str(config.pretrained_model_name_or_path), self.flavours[self.default_flavour].repo
        transformer = files.transformer_config(config, "Kandinsky5Transformer3DModel", instead)
        if not transformer.get("visual_cond"):
            raise ModelError(
                f"{files.MODEL} = {model!r} is no video checkpoint: its transformer takes no condition channels "
                f"(visual_cond). Fix: use {instead}"
            )
        if transformer.get("attention_type") == "nabla" and config.sparse_attention and not _is_sparse(config):
            raise ModelError(
                f"{files.MODEL} = {model!r} was trained with sparse attention, model_flavour = {_flavour(config)!r} "
                f"was not. Fix: set model_flavour to t2v-lite-sft-10s or t2v-pro-sft-5s-hd, or {SPARSE} to false"
            )
        check_depth(config, transformer.get("num_text_blocks"), transformer.get("num_visual_blocks"))
        check_routes(config, transformer.get("num_visual_blocks"))
        check_aligned_blocks(config, transformer.get("num_visual_blocks"))
        files.check_vae(config, VAE_KIND, channels=transformer.get("in_visual_dim"), needed_by=self.title)
        source = files.base_source(config)
        files.require_folders(source, ("scheduler", *self.subfolders["text"]))
        for folder, width in (("text_encoder", "in_text_dim"), ("text_encoder_2", "in_text_dim2")):
            files.check_text_width(source, folder, transformer.get(width))

    def published_components(self, flavour: str) -> Mapping[PublishedComponent, Mapping[str, Any]]:
        from tunerkit.families.kandinsky5 import published

        return published.table(flavour)

    # Text ------------------------------------------------------------------------------------------------------

    def text_recipe(self, config: TrainConfig) -> dict[str, Any]:
        from tunerkit.families.kandinsky5.text import TOKENS

        return {
            "recipe": 1,
            "tokens": TOKENS,
            "cached": "real tokens",
            "dtype": str(text_dtype(config)),
            **text_precisions(config, self.text_encoders),
        }

    def load_text_encoder(self, config: TrainConfig, device: torch.device) -> Any:
        from tunerkit.families.kandinsky5.text import load_text_encoder

        return load_text_encoder(config, text_dtype(config), device)

    def encode_text(
        self, encoder: Any, texts: Sequence[str], kind: TextKind, config: TrainConfig
    ) -> list[dict[str, torch.Tensor]]:
        """`prompt_embeds` `[L, 3584]` and `pooled` `[768]` of each text; `L` is the text's own length."""
        from tunerkit.families.kandinsky5.text import encode

        return encode(encoder, texts)

    def collate_text(self, texts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """With texts of different lengths; see `text.collate`."""
        from tunerkit.families.kandinsky5.text import collate

        return collate(texts)

    # Latents ---------------------------------------------------------------------------------------------------

    def load_vae(self, config: TrainConfig, device: torch.device) -> Any:
        from diffusers import AutoencoderKLHunyuanVideo

        vae = files.load_vae(AutoencoderKLHunyuanVideo, config, torch_dtype(config.vae_dtype or "bf16"))
        return self._ready(vae, config, device)

    def encode_latents(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        height, width = pixels.shape[3:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"{width}x{height} pixels: {self.title} needs multiples of {self.size_multiple}")
        return self._mode(vae, pixels) * float(vae.config.scaling_factor)

    # Training --------------------------------------------------------------------------------------------------

    def load_transformer(self, config: TrainConfig, dtype: torch.dtype) -> Any:
        """Its time embedding and modulations stay in float32 whatever `dtype` is; the class keeps them so."""
        from diffusers import Kandinsky5Transformer3DModel

        from tunerkit.families.kandinsky5.attention import use_nabla
        from tunerkit.families.transformer_files import load_transformer

        attention = {} if config.sparse_attention else {"attention_type": "regular"}
        transformer = load_transformer(Kandinsky5Transformer3DModel, config, dtype, self.quantised_layers, **attention)
        if transformer.config.attention_type == "nabla":
            use_nabla(transformer)
        return transformer

    def blocks(self, transformer: Any) -> list[Any]:
        return [*transformer.text_transformer_blocks, *transformer.visual_transformer_blocks]

    def video_blocks(self, transformer: Any) -> list[Any]:
        return list(transformer.visual_transformer_blocks)

    def calls(self, batch: Batch) -> list[list[int]]:
        """One for each length of the texts."""
        from tunerkit.families.kandinsky5.objective import equal_lengths

        if "tokens" not in batch.text:
            return super().calls(batch)
        return equal_lengths(batch.text["tokens"].tolist())

    def routing_refusal(self, config: TrainConfig) -> str | None:
        if not _is_sparse(config):
            return None
        return (
            f"sparse attention takes the grid of tokens in tiles, so none can skip a block. Fix: set {SPARSE} to "
            "false, train a flavour without it such as t2v-lite-sft-5s, or leave it out"
        )

    def token_arguments(self, arguments: Sequence[Any]) -> dict[int, int]:
        """The tokens and their rotary embedding `[B, S, 1, d, 2, 2]`; positions are those of
        `Kandinsky5TransformerDecoderBlock.forward`."""
        if arguments[4] is not None:
            raise ValueError("sparse attention takes the whole grid of tokens")
        return {0: 1, 3: 1}

    def token_grid(self, transformer: Any, latents: torch.Tensor) -> tuple[int, int, int]:
        frames, height, width = (
            edge // patch for edge, patch in zip(latents.shape[2:], transformer.config.patch_size, strict=True)
        )
        return frames, height, width

    def hidden_width(self, transformer: Any) -> int:
        return int(transformer.config.model_dim)

    def on_grid(self, transformer: Any, states: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """Sparse attention takes the tokens of each frame in tiles of 8 x 8."""
        from diffusers.models.transformers.transformer_kandinsky import fractal_unflatten

        if transformer.config.attention_type != "nabla":
            return super().on_grid(transformer, states, grid)
        return fractal_unflatten(states, (len(states), *grid), block_mask=True)

    def lora_targets(self, config: TrainConfig) -> list[str]:
        """All projections of all attentions. A bare "out_layer" would match the model's last layer as well."""
        outputs = [f"{attention}.out_layer" for attention in ("self_attention", "cross_attention")]
        return ["to_query", "to_key", "to_value", *outputs]

    def sample_sigmas(self, config: TrainConfig, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Logit-normal draws moved by `flow_schedule_shift`, or by `TRAINING_SHIFT`."""
        from tunerkit.families.kandinsky5 import objective

        return objective.sample_sigmas(len(batch.latents), config.flow_schedule_shift or TRAINING_SHIFT, generator)

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
        from tunerkit.families.kandinsky5 import objective

        return objective.prediction(transformer, batch, sigma=sigma, noise=noise)

    # Validation and export -------------------------------------------------------------------------------------

    def pipeline_class(self) -> Any:
        from diffusers import Kandinsky5T2VPipeline

        return Kandinsky5T2VPipeline

    def build_pipeline(self, config: TrainConfig, transformer: Any, vae: Any, *, image_to_video: bool) -> Any:
        """The sampling shift is that of the checkpoint's scheduler, whatever the training shift is.

        A first frame in the condition channels goes into the text-to-video pipeline: see `pipeline.render`.
        """
        from tunerkit.families.kandinsky5 import pipeline as rendering

        return rendering.build(config, transformer, vae, image_to_video=image_to_video)

    def render(self, config: TrainConfig, pipeline: Any, request: RenderRequest) -> Rendered:
        from tunerkit.families.kandinsky5 import pipeline as rendering

        return rendering.render(pipeline, request)


def _flavour(config: TrainConfig) -> str:
    return str(config.model_flavour or Kandinsky5.default_flavour)


def _is_sparse(config: TrainConfig) -> bool:
    return config.sparse_attention and flavours.is_sparse(_flavour(config))


FAMILY = Kandinsky5()
