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
    tread_config: dict[str, object] | None = _setting(None, "Token routing (TREAD): {'routes': [...]}.")

    # Cross-frame representation alignment
    crepa_enabled: bool = _setting(False, "Align hidden states with image features across frames (CREPA).")
    crepa_block_index: int | None = _setting(None, "Block whose hidden states are aligned, from 0.", ge=0)
    crepa_lambda: float = _setting(0.5, "Weight of the alignment term.", ge=0)
    crepa_adjacent_distance: int = _setting(1, "Distance in frames of the aligned neighbours; 0 = none.", ge=0)
    crepa_adjacent_tau: float = _setting(1.0, "Decay of a neighbour's weight with its distance.", gt=0)
    crepa_encoder: str = _setting("dinov2_vitg14", "Frozen image encoder that gives the features.")
    crepa_encoder_image_size: int = _setting(518, "Edge in pixels of the encoder's input.", ge=14, multiple_of=14)
    crepa_encoder_frames_batch_size: int = _setting(-1, "Frames per encoder call; -1 = all.", ge=-1)
    crepa_normalize_by_frames: bool = _setting(True, "Average over frames instead of summing.")
    crepa_spatial_align: bool = _setting(True, "Align every token instead of their mean.")
    crepa_cumulative_neighbors: bool = _setting(False, "Use all neighbours up to the distance.")
    crepa_normalize_neighbour_sum: bool = _setting(False, "Divide the neighbour term by the sum of its weights.")
    crepa_use_tae: bool = _setting(False, "Decode with a tiny autoencoder.")
    crepa_use_backbone_features: bool = _setting(False, "Take the features from the model itself.")
    crepa_feature_source: Literal["encoder", "backbone", "self_flow"] = _setting("encoder", "Source of the features.")
    crepa_teacher_block_index: int | None = _setting(None, "Block that gives the features, from 0.", ge=0)
    crepa_self_flow_mask_ratio: float = _setting(0.1, "Share of masked tokens in self-flow.", ge=0, le=0.5)
    crepa_drop_vae_encoder: bool = _setting(False, "Drop the VAE's encoder once everything is cached.")
    crepa_scheduler: Ramp = _setting("constant", "How the weight changes over the run.")
    crepa_warmup_steps: int = _setting(0, "Steps over which the weight rises.", ge=0)
    crepa_decay_steps: int = _setting(0, "Step at which the weight has reached its end; 0 = the last.", ge=0)
    crepa_lambda_end: float = _setting(0.0, "Weight at the end.", ge=0)
    crepa_power: float = _setting(1.0, "Power of the polynomial decay.", gt=0)
    crepa_cutoff_step: int = _setting(0, "Step after which the term is off; 0 = never.", ge=0)
    crepa_similarity_threshold: float | None = _setting(None, "Similarity at which the term stops.", ge=-1, le=1)
    crepa_similarity_ema_decay: float = _setting(0.99, "Smoothing of that similarity.", ge=0, lt=1)
    crepa_threshold_mode: Literal["permanent", "recoverable"] = _setting("permanent", "Whether it may come back.")

    # Rollout
    scheduled_sampling_max_step_offset: int = _setting(0, "Longest rollout in train timesteps; 0 = off.", ge=0)
    scheduled_sampling_probability: float = _setting(0.0, "Share of samples that are rolled out.", ge=0, le=1)
    scheduled_sampling_strategy: Literal["uniform", "biased_early", "biased_late"] = _setting(
        "uniform", "How the length of a rollout is drawn."
    )
    scheduled_sampling_prob_start: float = _setting(0.0, "Share at the start of the ramp.", ge=0, le=1)
    scheduled_sampling_prob_end: float = _setting(0.5, "Share at the end of the ramp.", ge=0, le=1)
    scheduled_sampling_ramp_steps: int = _setting(0, "Length of the ramp; 0 = no ramp.", ge=0)
    scheduled_sampling_start_step: int = _setting(0, "Step at which the ramp starts.", ge=0)
    scheduled_sampling_ramp_shape: Literal["linear", "cosine"] = _setting("linear", "Shape of the ramp.")
    scheduled_sampling_sampler: Literal["unipc", "euler", "dpm"] = _setting("unipc", "Sampler of the rollout.")
    scheduled_sampling_order: int = _setting(2, "Order of that sampler.", ge=1, le=3)
    scheduled_sampling_reflexflow: bool | None = _setting(None, "Add the ReflexFlow terms.")
    scheduled_sampling_reflexflow_alpha: float = _setting(1.0, "ReflexFlow: weight of the exposure bias.", ge=0)
    scheduled_sampling_reflexflow_beta1: float = _setting(10.0, "ReflexFlow: weight of the anti-drift term.", ge=0)
    scheduled_sampling_reflexflow_beta2: float = _setting(1.0, "ReflexFlow: weight of the main term.", ge=0)
