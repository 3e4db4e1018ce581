"""Sana Video 2B (480p): a linear-attention transformer on Wan 2.1 latents with Gemma-2 text.

Facts from the paper (arXiv 2509.24695), NVlabs/Sana's training code and the installed diffusers pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunerkit.dtypes import text_dtype, torch_dtype
from tunerkit.errors import ModelError, Note, Problem
from tunerkit.families.base import Batch, Family, Flavour, LossParts, Rendered, RenderRequest, TextKind
from tunerkit.families.checkpoint_files import component_config, load_component, readable

if TYPE_CHECKING:
    import torch

    from tunerkit.config.settings import TrainConfig

TEXT_TOKENS = 300
"""Text positions the transformer attends to."""
TRAINING_SHIFT = 3.0
"""Flow shift of the official training density; sampling uses 7 to 8, read from the checkpoint's scheduler."""
SAMPLING_SHIFT = 8.0
"""For checkpoints whose scheduler configuration names none."""

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
                        f"does not apply to Sana Video, which always trains with its official flow shift "
                        f"{TRAINING_SHIFT:g}; not used",
                    )
                )
        if config.motion_score is not None and config.motion_score < 0:
            problems.append(Problem("motion_score", config.motion_score, "must not be negative", "use about 30"))
        return problems, notes

    def check_checkpoint(self, config: TrainConfig) -> None:
        model = str(config.pretrained_model_name_or_path)
        setting = "pretrained_model_name_or_path"
        transformer = component_config(model, "transformer", setting, config.revision)
        found = transformer.get("_class_name")
        if found != "SanaVideoTransformer3DModel":
            raise ModelError(
                f"{setting} = {model!r} holds a {found}, not a SanaVideoTransformer3DModel. Fix: set model_family to "
                f"the family of that checkpoint, or use {self.flavours[self.default_flavour].repo}"
            )
        vae_model = str(config.pretrained_vae_model_name_or_path or model)
        setting = "pretrained_vae_model_name_or_path"
        vae = component_config(vae_model, "vae", setting, config.revision if vae_model == model else None)
        if vae.get("_class_name") != "AutoencoderKLWan":
            raise ModelError(
                f"{setting} = {vae_model!r} holds a {vae.get('_class_name')}; Sana Video 480p needs the Wan 2.1 VAE "
                "(AutoencoderKLWan). Fix: leave the setting out to use the base model's own VAE"
            )
        if vae.get("z_dim") != transformer.get("in_channels"):
            raise ModelError(
                f"{setting} = {vae_model!r} makes {vae.get('z_dim')} latent channels, the transformer of {model!r} "
                f"takes {transformer.get('in_channels')}. Fix: leave the setting out to use the base model's own VAE"
            )
        if vae_model != model:
            self._check_same_latents(component_config(model, "vae", setting, config.revision), vae, vae_model)

    @staticmethod
    def _check_same_latents(own: dict[str, Any], other: dict[str, Any], vae_model: str) -> None:
        for key in ("latents_mean", "latents_std"):
            if own.get(key) != other.get(key):
                raise ModelError(
                    f"pretrained_vae_model_name_or_path = {vae_model!r} normalises latents differently ({key}) from "
                    "the base model's VAE, so the transformer would see wrong inputs. Fix: leave the setting out"
                )

    # Text ------------------------------------------------------------------------------------------------------

    def text_recipe(self, config: TrainConfig) -> dict[str, Any]:
        return {
            "recipe": 1,
            "tokens": TEXT_TOKENS,
            "instruction": _instruction(),
            "motion_score": config.motion_score,
            "dtype": "float32" if config.mixed_precision == "no" else "bfloat16",
        }

    def load_text_encoder(self, config: TrainConfig, device: torch.device) -> Any:
        from diffusers import SanaVideoPipeline

        model = str(config.pretrained_model_name_or_path)
        with readable(model, "pretrained_model_name_or_path", "text encoder"):
            pipeline = SanaVideoPipeline.from_pretrained(
                model, revision=config.revision, transformer=None, vae=None, dtype=text_dtype(config)
            )
        return pipeline.to(device)

    def encode_text(
        self, encoder: Any, texts: Sequence[str], kind: TextKind, config: TrainConfig
    ) -> list[dict[str, torch.Tensor]]:
        """`prompt_embeds` `[300, D]` and `prompt_attention_mask` `[300]` of each text.

        Positives carry the checkpoint's instruction text (and the motion score); the kept window is the first
        position and the last 299, chosen by the stock pipeline. Negatives, and the empty prompt of caption dropout,
        are encoded plainly.
        """
        import torch

        prompts = list(texts)
        if kind == "positive" and config.motion_score is not None:
            prompts = [f"{prompt.strip()} motion score: {config.motion_score}." for prompt in prompts]
        with torch.no_grad():
            embeds, mask, _, _ = encoder.encode_prompt(
                prompts,
                do_classifier_free_guidance=False,
                device=encoder.text_encoder.device,
                max_sequence_length=TEXT_TOKENS,
                complex_human_instruction=_instruction() if kind == "positive" else None,
            )
        return [
            {
                "prompt_embeds": embeds[i].cpu().contiguous(),
                "prompt_attention_mask": mask[i].cpu().contiguous(),
            }
            for i in range(len(prompts))
        ]

    # Latents ---------------------------------------------------------------------------------------------------

    def vae_recipe(self, config: TrainConfig) -> dict[str, Any]:
        return {
            "recipe": 1,
            "dtype": config.vae_dtype,
            "tiling": config.vae_enable_tiling,
            "normalised": "(mode - mean) / std",
        }

    def load_vae(self, config: TrainConfig, device: torch.device) -> Any:
        from diffusers import AutoencoderKLWan

        base = str(config.pretrained_model_name_or_path)
        model = str(config.pretrained_vae_model_name_or_path or base)
        vae = load_component(
            AutoencoderKLWan,
            model,
            "pretrained_model_name_or_path" if model == base else "pretrained_vae_model_name_or_path",
            "VAE",
            subfolder="vae",
            revision=config.revision if model == base else None,
            dtype=torch_dtype(config.vae_dtype or "fp32"),
        )
        return self._ready(vae, config, device)

    def encode_latents(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        if (pixels.shape[2] - 1) % self.temporal_compression:
            # The Wan VAE would drop the last frames without a word.
            raise ValueError(f"{pixels.shape[2]} frames: Sana Video needs 4k + 1 (1, 5, 9, ..., 81)")
        with torch.no_grad():
            mode = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()
        mean = torch.tensor(vae.config.latents_mean, device=mode.device).view(1, -1, 1, 1, 1)
        std = torch.tensor(vae.config.latents_std, device=mode.device).view(1, -1, 1, 1, 1)
        return (mode - mean) / std

    # Training --------------------------------------------------------------------------------------------------

    def load_transformer(self, config: TrainConfig, dtype: torch.dtype) -> Any:
        from diffusers import SanaVideoTransformer3DModel

        return load_component(
            SanaVideoTransformer3DModel,
            str(config.pretrained_model_name_or_path),
            "pretrained_model_name_or_path",
            "transformer",
            subfolder="transformer",
            revision=config.revision,
            variant=config.variant,
            dtype=dtype,
        )

    def blocks(self, transformer: Any) -> list[Any]:
        return list(transformer.transformer_blocks)

    def lora_targets(self, config: TrainConfig) -> list[str]:
        return ["to_q", "to_k", "to_v", "to_out.0"]

    def sample_sigmas(
        self,
        config: TrainConfig,
        batch: Batch,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Logit-normal draws moved by the official training shift of 3: `sigma = 3u / (1 + 2u)`.

        The official code reads the same curve from a table of 1000 entries; the curve itself is used here.
        """
        from tunerkit.families import flow

        return flow.shift_sigma(flow.logit_normal(len(batch.latents), generator), TRAINING_SHIFT)

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
        """Mean squared error of the predicted velocity `noise - latents`, float32.

        Where `batch.first_frame` is set, the first latent frame is given clean with timestep 0 on its tokens and has
        no share in the loss, as SanaImageToVideoPipeline samples.
        """
        from tunerkit.families import flow

        given = self._given_frames(batch)
        noisy = flow.add_noise(batch.latents, noise, sigma)
        if given is not None:
            noisy = noisy.lerp(batch.latents.float(), given)  # 0 or 1: exactly one of the two
        prediction = self._predict(transformer, noisy, sigma, given, batch)
        weight = batch.loss_mask
        if given is not None:
            weight = (1.0 - given) if weight is None else weight * (1.0 - given)
        per_sample = flow.weighted_mse(prediction, flow.velocity(batch.latents, noise), weight)
        total = per_sample.mean()
        return LossParts(total, {"video": total.detach()})

    @staticmethod
    def _given_frames(batch: Batch) -> torch.Tensor | None:
        """1 where a latent frame is given clean, `[B, 1, T, 1, 1]`; None when nothing is."""
        frames = batch.latents.shape[2]
        if batch.first_frame is None or frames == 1 or not bool(batch.first_frame.any()):
            return None  # of a still image, nothing would be left to learn
        given = batch.latents.new_zeros(len(batch.latents), 1, frames, 1, 1)
        given[:, :, 0] = batch.first_frame.to(given.dtype).view(-1, 1, 1, 1)
        return given

    @staticmethod
    def _predict(
        transformer: Any,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        given: torch.Tensor | None,
        batch: Batch,
    ) -> torch.Tensor:
        """Velocity `[B, C, T, H, W]` that the transformer predicts for `noisy`."""
        from tunerkit.families import flow

        model = getattr(transformer, "module", transformer)  # inside DistributedDataParallel
        timestep = sigma.to(noisy.device).float() * flow.TIMESTEPS
        if given is not None:
            # One timestep per token, [B, 1, T, H/2, W/2]: 0 on the tokens of the given frame.
            _, patch_height, patch_width = model.config.patch_size
            _, _, frames, height, width = noisy.shape
            grid = (len(noisy), 1, frames, height // patch_height, width // patch_width)
            timestep = (flow.broadcast(timestep, noisy) * (1.0 - given)).expand(grid)
        dtype = model.patch_embedding.weight.dtype
        return transformer(
            noisy.to(dtype),
            encoder_hidden_states=batch.text["prompt_embeds"].to(dtype),
            # [B, 300], so that the model turns it into a bias; [B, 1, 300] would be taken as a ready bias.
            encoder_attention_mask=batch.text["prompt_attention_mask"],
            timestep=timestep,
            return_dict=False,
        )[0]

    # Validation and export -------------------------------------------------------------------------------------

    def pipeline_class(self) -> Any:
        from diffusers import SanaVideoPipeline

        return SanaVideoPipeline

    def build_pipeline(self, config: TrainConfig, transformer: Any, vae: Any, *, image_to_video: bool) -> Any:
        from diffusers import (
            DPMSolverMultistepScheduler,
            FlowMatchEulerDiscreteScheduler,
            SanaImageToVideoPipeline,
            SanaVideoPipeline,
        )

        model = str(config.pretrained_model_name_or_path)
        stored = DPMSolverMultistepScheduler.load_config(model, subfolder="scheduler", revision=config.revision)
        settings = dict(stored[0] if isinstance(stored, tuple) else stored)
        if image_to_video:
            # Keeping frame 0 fixed needs a one-step solver. Its shift is called `shift`: `flow_shift` is ignored.
            shift = settings.get("shift", settings.get("flow_shift", SAMPLING_SHIFT))
            pipeline_class, scheduler = SanaImageToVideoPipeline, FlowMatchEulerDiscreteScheduler(shift=shift)
        elif settings.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
            pipeline_class, scheduler = (
                SanaVideoPipeline,
                FlowMatchEulerDiscreteScheduler.from_config(settings),
            )
        else:
            pipeline_class, scheduler = SanaVideoPipeline, DPMSolverMultistepScheduler.from_config(settings)
        pipeline = pipeline_class(
            tokenizer=None,  # pyright: ignore[reportArgumentType] - text is cached
            text_encoder=None,  # pyright: ignore[reportArgumentType]
            vae=vae,
            transformer=transformer,
            scheduler=scheduler,  # pyright: ignore[reportArgumentType]
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def render(self, config: TrainConfig, pipeline: Any, request: RenderRequest) -> Rendered:
        import numpy as np
        import torch

        arguments: dict[str, Any] = {
            "prompt_embeds": request.text["prompt_embeds"][None],
            "prompt_attention_mask": request.text["prompt_attention_mask"][None],
            "negative_prompt_embeds": request.negative_text["prompt_embeds"][None],
            "negative_prompt_attention_mask": request.negative_text["prompt_attention_mask"][None],
            "negative_prompt": None,
            "height": request.height,
            "width": request.width,
            "frames": request.frames,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance,
            "generator": torch.Generator().manual_seed(request.seed),
            "output_type": "np",
            # Sizes were checked when the settings were read; binning would render another size and rescale it.
            "use_resolution_binning": False,
        }
        device = pipeline.transformer.device
        arguments = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        if request.image is not None:
            arguments["image"] = request.image
        frames = np.asarray(pipeline(**arguments).frames[0])
        return Rendered((frames * 255.0).round().clip(0, 255).astype(np.uint8))


def _instruction() -> list[str]:
    """The instruction text of the installed pipeline: the default of `complex_human_instruction`."""
    import inspect

    from diffusers import SanaVideoPipeline

    return list(inspect.signature(SanaVideoPipeline.__call__).parameters["complex_human_instruction"].default)


FAMILY = SanaVideo()
