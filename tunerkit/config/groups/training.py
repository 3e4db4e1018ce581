"""Length, batches, randomness and objective of the training."""

from __future__ import annotations

from functools import partial
from typing import Literal

from tunerkit.config.fields import Settings, setting

_setting = partial(setting, group="training")
_memory = partial(setting, group="memory")
Ramp = Literal["constant", "linear", "cosine", "polynomial"]


class TrainingSettings(Settings):
    """How long, on what, and towards what."""

    seed: int = _setting(42, "Every random draw of the run follows from it.", ge=0, le=2**32 - 1)
    max_train_steps: int | None = _setting(
        None, "Optimizer steps of the run; 0 or unset when num_train_epochs counts.", ge=0
    )
    num_train_epochs: int | None = _setting(None, "Passes over the data; 0 or unset when max_train_steps counts.", ge=0)
    train_batch_size: int = _setting(1, "Clips per forward pass.", ge=1)
    gradient_accumulation_steps: int = _setting(1, "Batches whose gradients are averaged into one step.", ge=1)
    caption_dropout_probability: float = _setting(
        0.1, "Share of samples trained with the empty prompt, which guidance needs.", ge=0, le=1
    )
    framerate: float | None = _setting(
        None, "Frames per second that clips are resampled to; the family's own when not set.", gt=0, le=240
    )
    motion_score: int | None = _setting(None, "Motion score told to the model with every caption.")
    first_frame_conditioning_probability: float | None = _setting(
        None,
        "Share of image-to-video samples whose first frame is given; the family's own when not set.",
        ge=0,
        le=1,
    )
    first_frame_conditioning_method: Literal["in_place", "channels"] = _setting(
        "in_place",
        "How a model with condition channels (Kandinsky 5.0) is given the first frame: clean in its place, as its "
        "pipelines do, or beside noise in the condition channels, as some trainers do.",
    )
    gradient_checkpointing: bool = _memory(True, "Recompute activations in the backward pass: less memory, slower.")
    gradient_checkpointing_interval: int | None = _memory(None, "Recompute in chunks of this many blocks.", ge=1)
    gradient_checkpointing_segment_stride: int | None = _memory(None, "Distance of the recomputed chunks.", ge=1)
    gradient_checkpointing_backend: str = _memory("torch", "Implementation of the recomputation.")
    gradient_precision: str = _memory("unmodified", "Precision that gradients are accumulated in.")

    # Objective
    loss_type: Literal["l2", "huber", "smooth_l1"] = _setting("l2", "Distance between prediction and target.")
    huber_c: float = _setting(0.1, "Where the Huber loss turns linear.", gt=0)
    snr_gamma: float | None = _setting(None, "Min-SNR weight of diffusion models that predict noise.", ge=0)
    noise_offset: float = _setting(0.0, "Noise added per channel.", ge=0)
    input_perturbation: float = _setting(0.0, "Noise added to the model's input only.", ge=0)
    flow_sigmoid_scale: float = _setting(1.0, "Spread of the logit-normal timestep density.", gt=0)
    flow_use_uniform_schedule: bool = _setting(False, "Draw timesteps uniformly.")
    flow_use_beta_schedule: bool = _setting(False, "Draw timesteps from a beta distribution.")
    flow_beta_schedule_alpha: float = _setting(2.0, "First parameter of the beta distribution.", gt=0)
    flow_beta_schedule_beta: float = _setting(2.0, "Second parameter of the beta distribution.", gt=0)
    flow_custom_timesteps: str | list[float] | None = _setting(None, "Timesteps to train on, instead of a density.")
    audio_loss_weight: float = _setting(
        1.0, "Weight of the sound's term in the loss; 0 = the sound is only heard, not learned.", ge=0
    )
    audio_sigma: Literal["shared", "independent"] = _setting(
        "shared", "Whether sound and picture of a sample have the same noise level."
    )
    sound_conditioning_probability: float = _setting(
        0.0, "Share of samples whose sound is given clean, so that the picture learns to follow it.", ge=0, le=1
    )
    masked_loss_probability: float = _setting(1.0, "Share of masked samples whose mask is used.", ge=0, le=1)
    tread_config: dict[str, object] | None = _setting(
        None,
        "Routes by which a share of the tokens skips blocks in training, which makes steps faster (TREAD): a list "
        "'routes' of selection_ratio (the share, above 0 and below 1), start_layer_idx and end_layer_idx (the first "
        "and the last block, from 0, or from -1 at the end).",
    )

    # Cross-frame representation alignment
    crepa_enabled: bool = _setting(
        False,
        "Align hidden states with features that an image encoder has of the clip's frames, across frames (CREPA). The "
        "features are cached beside the latents.",
    )
    crepa_block_index: int | None = _setting(
        None, "Block whose hidden states are aligned, from 0; the family's own when not set.", ge=0
    )
    crepa_lambda: float | None = _setting(
        None, "Weight of the alignment term: 0.5, for LTX-2 0.25 when not set.", ge=0, le=1e4
    )
    crepa_adjacent_distance: int = _setting(1, "Distance in latent frames of the aligned neighbours; 0 = none.", ge=0)
    crepa_adjacent_tau: float | None = _setting(
        None,
        "A neighbour weighs exp(-distance / tau): 1.0, for LTX-2 with its long latent frames 0.5 when not set.",
        gt=0,
    )
    crepa_encoder: str = _setting(
        "dinov2_vitg14",
        "Frozen image encoder that gives the features: a DINOv2 by its name (dinov2_vits14, vitb14, vitl14, vitg14; "
        "with _reg: with registers), a repository or a folder.",
    )
    crepa_encoder_image_size: int = _setting(518, "Edge in pixels of the encoder's input.", ge=14, multiple_of=14)
    crepa_encoder_frames_batch_size: int = _setting(
        -1, "Frames per encoder call; -1 or 0 = all of a clip. Fewer where memory is short.", ge=-1
    )
    crepa_normalize_by_frames: bool = _setting(True, "Average over frames instead of summing.")
    crepa_spatial_align: bool = _setting(True, "Align every place of a frame instead of their mean.")
    crepa_cumulative_neighbors: bool = _setting(
        False, "Align with all neighbours up to the distance, not only with those at it."
    )
    crepa_normalize_neighbour_sum: bool = _setting(
        False, "Divide a frame's sum by the sum of its weights, so that the term stays within -1 and 1."
    )
    crepa_use_tae: bool = _setting(False, "Decode with a tiny autoencoder.")
    crepa_use_backbone_features: bool = _setting(
        False, "Take the features from the model itself: the same as crepa_feature_source = backbone."
    )
    crepa_feature_source: Literal["encoder", "backbone", "self_flow"] = _setting(
        "encoder", "Source of the features: an image encoder, or another block of the model itself."
    )
    crepa_teacher_block_index: int | None = _setting(
        None, "Block that gives the features with crepa_feature_source = backbone, from 0.", ge=0
    )
    crepa_self_flow_mask_ratio: float = _setting(0.1, "Share of masked tokens in self-flow.", ge=0, le=0.5)
    crepa_drop_vae_encoder: bool = _setting(
        False,
        "Keep the VAE's encoder out of memory once everything is cached. That is so in any case: the VAE is loaded to "
        "fill the cache and to render videos, and never during training steps.",
    )
    crepa_scheduler: Ramp | None = _setting(
        None,
        "How the weight goes from crepa_lambda to crepa_lambda_end: not (constant), for LTX-2 cosine when not set.",
    )
    crepa_warmup_steps: int = _setting(0, "Steps over which the weight rises from 0.", ge=0)
    crepa_decay_steps: int = _setting(0, "Step at which the weight has reached its end; 0 = the last.", ge=0)
    crepa_lambda_end: float = _setting(0.0, "Weight at the end, where it is not constant.", ge=0, le=1e4)
    crepa_power: float = _setting(1.0, "Power of the polynomial decay.", gt=0)
    crepa_cutoff_step: int = _setting(0, "Step from which on the term is off; 0 = never.", ge=0)
    crepa_similarity_threshold: float | None = _setting(
        None, "Smoothed similarity of frames to their own features from which on the term is off.", ge=-1, le=1
    )
    crepa_similarity_ema_decay: float = _setting(0.99, "Smoothing of that similarity.", ge=0, lt=1)
    crepa_threshold_mode: Literal["permanent", "recoverable"] = _setting(
        "permanent", "Whether the term comes back when the similarity falls below the threshold again."
    )

    # Rollout
    scheduled_sampling_max_step_offset: int = _setting(
        0,
        "Rollout: train some samples on what the model itself makes of a noisier input, at most so many of 1000 "
        "timesteps away; 0 = off. Every 25 timesteps take one more forward pass of these samples.",
        ge=0,
    )
    scheduled_sampling_probability: float = _setting(
        0.0, "Share of the samples that are rolled out, where there is no ramp.", ge=0, le=1
    )
    scheduled_sampling_strategy: Literal["uniform", "biased_early", "biased_late"] = _setting(
        "uniform", "Which distances are drawn: all alike, mostly short ones (biased_early) or long ones (biased_late)."
    )
    scheduled_sampling_prob_start: float = _setting(0.0, "Share at the start of the ramp.", ge=0, le=1)
    scheduled_sampling_prob_end: float = _setting(0.5, "Share at the end of the ramp, and after it.", ge=0, le=1)
    scheduled_sampling_ramp_steps: int = _setting(0, "Length of the ramp of the share; 0 = no ramp.", ge=0)
    scheduled_sampling_start_step: int = _setting(
        0, "Step at which the ramp starts; before it, nothing is rolled out.", ge=0
    )
    scheduled_sampling_ramp_shape: Literal["linear", "cosine"] = _setting("linear", "Shape of the ramp.")
    scheduled_sampling_sampler: Literal["unipc", "euler", "dpm"] = _setting(
        "unipc",
        "How the rollout follows the model's velocity: Euler steps, or for unipc and dpm an Adams-Bashforth multistep "
        "method of the same order. All take one forward pass per step.",
    )
    scheduled_sampling_order: int = _setting(2, "Order of that multistep method; 1 is Euler.", ge=1, le=3)
    scheduled_sampling_reflexflow: bool | None = _setting(
        None,
        "Train the samples that are rolled out with ReflexFlow's terms, which need one more forward pass of them; on "
        "unless false.",
    )
    scheduled_sampling_reflexflow_alpha: float = _setting(
        1.0, "ReflexFlow: how much more errors count where the rolled-out input changes the prediction.", ge=0, le=1e4
    )
    scheduled_sampling_reflexflow_beta1: float = _setting(
        10.0,
        "ReflexFlow: weight of the anti-drift term, by which the velocity points away from the clip.",
        ge=0,
        le=1e4,
    )
    scheduled_sampling_reflexflow_beta2: float = _setting(1.0, "ReflexFlow: weight of the squared error.", ge=0, le=1e4)
