"""Every text that the widgets show, by key, in one place."""

from __future__ import annotations

ENGLISH: dict[str, str] = {
    # errors
    "error.unexpected": "{kind}: {message}",
    "error.details": "Details",
    # fields
    "field.unset": "not set",
    "field.default": "default: {value}",
    "field.yes": "yes",
    "field.no": "no",
    "field.folder": "a folder of clips",
    "field.problem": "{message}. Fix: {fix}",
    "label.model_family": "Model family",
    "label.model_flavour": "Flavour",
    "label.pretrained_model_name_or_path": "Checkpoint",
    "label.data_folder": "Data folder",
    "label.model_type": "Train",
    "label.lora_rank": "LoRA rank",
    "label.max_train_steps": "Steps",
    "label.learning_rate": "Learning rate",
    "label.train_batch_size": "Batch size",
    "label.validation_prompt": "Validation prompt",
    "label.output_dir": "Output folder",
    "help.data_folder": "Folder of the clips, each with a .txt caption of the same name beside it.",
    "group.training": "Length, batches, randomness",
    "group.optimizer": "Optimizer, learning rate schedule, EMA",
    "group.adapter": "LoRA adapter",
    "group.data": "Sizes, caches",
    "group.validation": "Validation videos",
    "group.checkpoints": "Checkpoints",
    "group.model": "Model, precision, device",
    "group.memory": "Memory",
    # form
    "form.setting": "setting",
    "form.value": "value",
    "form.note": "note: {note}",
    "form.notes": "{count} notes on these settings",
    "form.ready": "Ready: {kind}, {steps} steps, into {folder}",
    "form.lora": "LoRA of rank {rank}",
    "form.full": "full fine-tuning",
    "form.epochs": "{count} epochs of",
    "form.problem": "1 setting is wrong",
    "form.problems": "{count} settings are wrong",
    "form.save": "Save",
    "form.save_help": "Write config.json and multidatabackend.json",
    "form.saved": "Saved {path}, and the datasets beside it",
    "form.no_file": "these settings come from no file: call form.save('my-project/config.json')",
    # cache
    "cache.captions": "Captions",
    "cache.clips": "Clips",
    "cache.sound": "Sounds",
    "cache.started": "{done} of {total}",
    "cache.running": "{done} of {total}, {left} left",
    "cache.done": "{total} encoded in {spent}",
    # plot
    "plot.raw": "training loss",
    "plot.smooth": "training loss, smoothed",
    "plot.evaluation": "evaluation loss (fixed noise)",
    "plot.step": "step",
    "plot.loss": "loss",
    "plot.parts": "parts of the\ntraining loss",
    # live training
    "live.step": "step {step} of {total}",
    "live.loss": "loss {loss}",
    "live.parts": "loss {loss} ({parts})",
    "live.part": "{name} {loss}",
    "live.lr": "learning rate {lr}",
    "live.speed": "{value} steps/s",
    "live.slow": "{value} s/step",
    "live.left": "{left} left",
    "live.stop": "Stop",
    "live.stop_help": "Save a checkpoint after the running step and end the training",
    "live.stopping": "stopping after this step ...",
    "live.starting": "rendering the base model's videos before the first step ...",
    "live.rendered": "{count} videos rendered into {folder}",
    "live.stopped": "Stopped after step {step}; a checkpoint is saved. Run the cell again to go on.",
    "live.interrupted": "Interrupted after step {step}, before a checkpoint of it was written.",
    "live.paused": "At step {step}. Run the cell again to go on.",
    "live.done": "All {step} steps are done; the result is in {folder}.",
    "live.evaluation": "Evaluation loss (fixed noise): {first} in the first tenth, {last} in the last, {share} of it.",
    "live.failed": "The training ended with an error; the last checkpoint is whole.",
    # trainer
    "trainer.state": "State",
    "trainer.done": "complete: all {step} steps are done",
    "trainer.resumed": "resumed after step {step} of {total}",
    "trainer.new": "new run of {total} steps",
    "trainer.model": "Model",
    "trainer.clips": "Clips",
    "trainer.folder": "Folder",
    # summary
    "summary.steps": "Steps",
    "summary.time": "Time of the steps",
    "summary.seconds": "{total}, {each} s each",
    "summary.loss": "Training loss, first and last tenth",
    "summary.part": "of it, {name}",
    "summary.evaluation": "Evaluation loss (fixed noise), first and last tenth",
    "summary.change": "{first} → {last}",
    "summary.gpu": "GPU memory at most",
    "summary.ram": "RAM at most",
    "summary.file": "Result",
    "summary.stopped": "Ended early",
    # videos
    "videos.none": "No videos were rendered.",
    "videos.more": "{count} more prompts in {folder}",
    "videos.base": "base model",
    "videos.tuned": "step {step}",
    "videos.ema": "step {step} (EMA)",
    "videos.details": "{width}x{height}, {frames} frames, {fps} fps, seed {seed}",
    "videos.heard": "{details}, with sound",
    # sounds
    "sounds.details": "{seconds} s, {rate} Hz, {channels} channels",
    "sounds.seconds": "seconds",
    "sounds.bands": "mel band",
    "sounds.picture": "log-mel spectrogram",
    # durations
    "duration.seconds": "{seconds} s",
    "duration.minutes": "{minutes} min {seconds} s",
    "duration.hours": "{hours} h {minutes} min",
}


def text(key: str, /, **values: object) -> str:
    """The text of a key, with its values filled in.

    Raises:
        KeyError: if there is no such key, or a value is missing.
    """
    return ENGLISH[key].format(**values)


def duration(seconds: float) -> str:
    """A time in words, with two units at most."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return text("duration.hours", hours=hours, minutes=minutes_left)
    if minutes:
        return text("duration.minutes", minutes=minutes, seconds=rest)
    return text("duration.seconds", seconds=whole)
