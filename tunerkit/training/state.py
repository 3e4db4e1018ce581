"""What a checkpoint holds: trained weights, optimizer, EMA and the number of steps done.

Nothing else is needed to continue exactly: the order of samples and every random draw are functions of the seed and
the step, the learning rate is a function of the step. All files are safetensors or JSON.

    checkpoint-<step>/
      pytorch_lora_weights.safetensors   the adapter as stock pipelines load it   (LoRA)
      transformer/                       the model as stock pipelines load it     (full fine-tuning)
      trained.safetensors                the weights the optimizer holds, where the above are not the same
      alignment.safetensors              the projector of hidden states          (crepa_enabled)
      optimizer.safetensors, optimizer.json, ema.safetensors, state.json, manifest.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunerkit import families
from tunerkit.config.crepa_rules import from_backbone
from tunerkit.config.evaluation_rules import EVALUATION
from tunerkit.config.precisions import TEXT, UNCHANGED, is_quantised
from tunerkit.config.rollout_rules import ever
from tunerkit.errors import CheckpointError
from tunerkit.files import read_json, write_json
from tunerkit.methods.crepa_alignment import PROJECTOR
from tunerkit.methods.crepa_teacher import teacher_identity
from tunerkit.training.averaging import averages
from tunerkit.training.export import write_diffusers_lora
from tunerkit.training.state_files import load_tensors, optimizer_from_files, optimizer_to_files, save_tensors

if TYPE_CHECKING:
    from tunerkit.config.settings import TrainConfig
    from tunerkit.data.samples import Sample
    from tunerkit.training.engine import Engine

TRAINED, ALIGNMENT = "trained.safetensors", "alignment.safetensors"
_MUST_MATCH = ("family", "model_type", "base_model", "optimizer", "adapter", "alignment")
_MAY_BE_GONE = "alignment"
"""Must match where the checkpoint and the run both have it: it can be switched off, and on."""
_EVALUATION = "evaluation"
_SHOULD_MATCH = (
    "seed",
    "batch",
    "order",
    "samples",
    "learning_rate",
    "precision",
    "quantised",
    "encoders",
    "attention",
    "conditioning",
    "sound",
    "noise_levels",
    "clipping",
    "lora_dropout",
    "alignment_weight",
    "routing",
    "rollout",
)


@dataclass(frozen=True)
class Fingerprint:
    """What a run was, to recognise a checkpoint of another one."""

    facts: dict[str, Any]

    @classmethod
    def of(cls, config: TrainConfig, samples: Sequence[Sample], processes: int) -> Fingerprint:
        digest = hashlib.sha256()
        for sample in samples:
            facts = [sample.source.digest, sample.bucket, sample.fps, sample.is_i2v, sample.captions]
            facts += [sample.frame_indices[0], sample.alternatives, sample.mask and sample.mask.digest]
            if sample.sound is not None:
                facts += [sample.sound.digest, sample.sound.start, sample.sound.silent]
            digest.update(json.dumps(facts).encode())
        base = families.get(str(config.model_family)).identity(config, "transformer")
        return cls(
            {
                "family": config.model_family,
                "model_type": config.model_type,
                "base_model": base,
                "optimizer": config.optimizer,
                "seed": config.seed,
                "batch": [config.train_batch_size, config.gradient_accumulation_steps, processes],
                "order": _order_facts(config),
                "samples": {"clips": len(samples), "content": digest.hexdigest()},
                "precision": config.mixed_precision,
                "quantised": _quantised_facts(config),
                "encoders": _encoder_facts(config),
                "attention": None if config.sparse_attention else "dense",
                "conditioning": _conditioning_facts(config),
                "sound": _sound_facts(config),
                "noise_levels": [config.flow_schedule_shift, config.flow_schedule_auto_shift],
                "lora_dropout": config.lora_dropout,
                "adapter": _adapter_facts(config),
                _EVALUATION: {name: getattr(config, name) for name in EVALUATION},
                **_changeable_facts(config),
            }
        )

    def changed(self, config: TrainConfig) -> Fingerprint:
        """That of the same run, from where it goes on with other settings."""
        facts = {**self.facts, **_changeable_facts(config)}
        if facts["alignment"] is None:  # switched off: the projector is kept
            facts["alignment"] = self.facts["alignment"]
        return Fingerprint(facts)

    def compare(self, saved: dict[str, Any], folder: Path) -> list[str]:
        """Warnings about differences that only end exact continuation.

        Raises:
            CheckpointError: if the checkpoint is of another model or kind of training.
        """
        for key in _MUST_MATCH:
            if key == _MAY_BE_GONE and None in (saved.get(key), self.facts[key]):
                continue
            if saved.get(key) != self.facts[key]:
                raise CheckpointError(
                    f"{folder} was trained with {_words(key)} ({_short(saved.get(key))}), this run has "
                    f"({_short(self.facts[key])}). Fix: resume with the same {_words(key)}, or set "
                    "resume_from_checkpoint = null and another output_dir"
                )
        return [
            f"{folder.name}: {_words(key)} changed ({_short(saved.get(key))} then, {_short(self.facts[key])} now); "
            "training goes on, but not with the losses of an uninterrupted run"
            for key in _SHOULD_MATCH
            if saved.get(key) != self.facts[key]
        ] + self._other_evaluation(saved, folder)

    def _other_evaluation(self, saved: dict[str, Any], folder: Path) -> list[str]:
        """A warning where losses at fixed noise are not measured as they were."""
        then, now = saved.get(_EVALUATION), self.facts.get(_EVALUATION)
        if then is None or then == now:
            return []
        return [
            f"{folder.name}: the evaluation settings changed ({_short(then)} then, {_short(now)} now); losses at fixed "
            "noise from before and from now on cannot be compared"
        ]


def _changeable_facts(config: TrainConfig) -> dict[str, Any]:
    """What of a run can change between two of its steps."""
    return {
        "learning_rate": _rate_facts(config),
        "clipping": [config.max_grad_norm, config.grad_clip_method],
        **_alignment_facts(config),
        "routing": _routing_facts(config),
        "rollout": _rollout_facts(config),
    }


def _conditioning_facts(config: TrainConfig) -> list[Any]:
    """What a sample is trained with beside its caption; the usual way to give a first frame is not named, as it was
    not before there was another."""
    method = config.first_frame_conditioning_method
    named = [] if method == "in_place" else [method]
    return [config.caption_dropout_probability, config.first_frame_conditioning_probability, *named]


def _quantised_facts(config: TrainConfig) -> list[Any] | None:
    """How the base model is quantised; None where it is not."""
    if not is_quantised(config):
        return None
    return [config.base_model_precision, config.base_model_default_dtype]


def _encoder_facts(config: TrainConfig) -> list[Any] | None:
    """What changes cached texts and latents a little; None where it is as usual."""
    precisions = [getattr(config, name) for name in TEXT]
    usual = not config.vae_enable_tiling and all(one == UNCHANGED for one in precisions)
    return None if usual else [*precisions, *(["tiled VAE"] if config.vae_enable_tiling else [])]


def _sound_facts(config: TrainConfig) -> list[Any] | None:
    """How the sound of the clips is trained; None without."""
    if not config.trains_sound:
        return None
    return [config.audio_loss_weight, config.audio_sigma, config.sound_conditioning_probability]


def _order_facts(config: TrainConfig) -> list[Any]:
    """What, beside samples, batch size and seed, decides which sample is drawn when."""
    shares = [[dataset.probability, dataset.train_batch_size] for dataset in config.media_datasets]
    return [
        config.data_backend_sampling if len(shares) > 1 else None,
        config.allow_dataset_oversubscription,
        shares,
        config.masked_loss_probability,
    ]


def _rate_facts(config: TrainConfig) -> list[Any]:
    """What the learning rate of a step depends on; the length of the run only where the schedule decays."""
    constant = config.lr_scheduler.startswith("constant")
    length = None if constant else (config.lr_decay_steps or config.max_train_steps or config.num_train_epochs)
    scaled = [config.lr_scale_sqrt] if config.lr_scale else []
    return [config.learning_rate, config.lr_scheduler, config.lr_warmup_steps, config.lr_end, length, *scaled]


def _alignment_facts(config: TrainConfig) -> dict[str, Any]:
    """What hidden states are aligned with, on which the projector depends, and how; None without."""
    if not config.crepa_enabled:
        return {"alignment": None, "alignment_weight": None}
    if from_backbone(config):
        source: dict[str, Any] = {"teacher_block": config.crepa_teacher_block_index}
    else:
        source = teacher_identity(config)
    curve = [config.crepa_lambda, config.crepa_scheduler, config.crepa_lambda_end, config.crepa_power]
    curve += [config.crepa_warmup_steps, config.crepa_decay_steps, config.crepa_cutoff_step]
    stop = [config.crepa_similarity_threshold, config.crepa_similarity_ema_decay, config.crepa_threshold_mode]
    form = [config.crepa_adjacent_distance, config.crepa_adjacent_tau, config.crepa_cumulative_neighbors]
    form += [config.crepa_normalize_neighbour_sum, config.crepa_normalize_by_frames, config.crepa_spatial_align]
    form += [] if from_backbone(config) else [config.crepa_encoder_image_size]
    return {
        "alignment": {"block": config.crepa_block_index, **source},
        "alignment_weight": [*curve, *stop, *form],
    }


def _routing_facts(config: TrainConfig) -> list[Any] | None:
    """First block, last block and share of the tokens of each route; None where all tokens pass all blocks."""
    routes: Any = (config.tread_config or {}).get("routes")
    keys = ("start_layer_idx", "end_layer_idx", "selection_ratio")
    return [[route[key] for key in keys] for route in routes] if routes else None


def _rollout_facts(config: TrainConfig) -> list[Any] | None:
    """How samples are rolled out, how many of them, and how those are trained; None where none is."""
    if not ever(config):
        return None
    order = 1 if config.scheduled_sampling_sampler == "euler" else config.scheduled_sampling_order
    facts: list[Any] = [config.scheduled_sampling_max_step_offset, config.scheduled_sampling_strategy, order]
    facts.append(config.scheduled_sampling_start_step)
    if config.scheduled_sampling_ramp_steps:
        facts += [config.scheduled_sampling_prob_start, config.scheduled_sampling_prob_end]
        facts += [config.scheduled_sampling_ramp_steps, config.scheduled_sampling_ramp_shape]
    else:
        facts.append(config.scheduled_sampling_probability)
    if config.scheduled_sampling_reflexflow is not False:
        facts += [config.scheduled_sampling_reflexflow_alpha, config.scheduled_sampling_reflexflow_beta1]
        facts.append(config.scheduled_sampling_reflexflow_beta2)
    return facts


def _adapter_facts(config: TrainConfig) -> dict[str, Any] | None:
    """What decides how strongly, and on which base, adapter weights act."""
    if config.model_type != "lora":
        return None
    changes_base = config.lora_init_type if config.lora_init_type in ("pissa", "olora") else None
    return {
        "lora_rank": config.lora_rank,
        "lora_alpha": float(config.lora_alpha or config.lora_rank),
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "lora_init_type": changes_base,
    }


def _words(key: str) -> str:
    return {
        "family": "model_family",
        "base_model": "base model",
        "batch": "batch size, accumulation and processes",
        "order": "dataset probabilities, dataset batch sizes or sampling",
        "samples": "the set of clips, sizes or captions",
        "learning_rate": "learning rate settings",
        "precision": "mixed_precision",
        "quantised": "base_model_precision or base_model_default_dtype",
        "encoders": "text_encoder_1_precision (or another one's) or vae_enable_tiling",
        "attention": "sparse_attention",
        "conditioning": "caption dropout or first-frame conditioning",
        "sound": "the sound settings (audio_loss_weight, audio_sigma, sound_conditioning_probability)",
        "noise_levels": "flow_schedule_shift or flow_schedule_auto_shift",
        "clipping": "gradient clipping",
        "adapter": "LoRA settings",
        "alignment": "crepa_enabled, crepa_block_index and the source of its features",
        "alignment_weight": "crepa_enabled, or a crepa setting of weight, neighbours, threshold or image size",
        "routing": "tread_config",
        "rollout": "a setting of scheduled_sampling",
    }.get(key, key)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        hashes = ("content", "commit")
        return ", ".join(f"{key} {str(item)[:8] if key in hashes else item}" for key, item in value.items())
    return json.dumps(value)


def write_state(folder: Path, engine: Engine, step: int, fingerprint: Fingerprint) -> None:
    """Write everything a checkpoint holds, beside the manifest, into `folder`."""
    if engine.config.model_type == "lora":
        write_diffusers_lora(engine, folder)
    else:
        with engine.kept_weights():
            engine.transformer.save_pretrained(folder / "transformer")
    if engine.config.model_type == "lora" or engine.weights.has_masters or averages(engine.optimizer):
        save_tensors(folder / TRAINED, engine.weights.state())
    optimizer_to_files(engine.optimizer, list(engine.weights.optimized), folder)
    state: dict[str, Any] = {"step": step, "fingerprint": fingerprint.facts}
    if engine.alignment is not None:
        save_tensors(folder / ALIGNMENT, engine.weights.state(beside=True))
        state["alignment"] = engine.alignment.stop.state()
    if engine.scaler is not None:
        state["scaler"] = engine.scaler.state_dict()
    if engine.ema is not None:
        saved = engine.ema.state_dict()
        shadows = saved.pop("shadows")
        save_tensors(folder / "ema.safetensors", shadows)
        state["ema"] = saved
    write_json(folder / "state.json", state)


def read_state(folder: Path, engine: Engine, fingerprint: Fingerprint) -> tuple[int, list[str]]:
    """Restore `engine` from a verified checkpoint: steps done, and warnings.

    Raises:
        CheckpointError: if it is of another model, or its weights do not fit.
    """
    state = read_json(folder / "state.json")
    warnings = fingerprint.compare(state.get("fingerprint", {}), folder)
    engine.weights.load_state(_trained(folder), str(folder))
    if engine.alignment is not None:
        if "alignment" in state:
            engine.weights.load_state(load_tensors(folder / ALIGNMENT), str(folder), beside=True)
            engine.alignment.stop.load_state(state["alignment"])
        else:
            warnings.append(f"{folder.name} holds no projector of crepa_enabled; it starts anew")
    names = list(engine.weights.optimized)
    warnings += optimizer_from_files(engine.optimizer, names, folder, optional=PROJECTOR)
    if engine.scaler is not None and "scaler" in state:
        engine.scaler.load_state_dict(state["scaler"])
    if engine.ema is not None:
        if "ema" in state:
            engine.ema.load_state_dict({**state["ema"], "shadows": load_tensors(folder / "ema.safetensors")})
        else:
            warnings.append(f"{folder.name} holds no EMA; it starts anew from the checkpoint's weights")
            engine.ema.load_state_dict({"updates": 0, "shadows": engine.weights.state()})
    return int(state["step"]), warnings


def _trained(folder: Path) -> dict[str, Any]:
    if (folder / TRAINED).is_file():
        return load_tensors(folder / TRAINED)
    files = sorted((folder / "transformer").glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no trained weights. Fix: resume from another checkpoint")
    return {key: value for file in files for key, value in load_tensors(file).items()}
