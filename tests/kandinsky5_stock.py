"""The stock Kandinsky 5.0 Video pipelines, where torchvision is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def stock_pipeline(checkpoint: Path, *, image_to_video: bool = False) -> Any:
    """The stock pipeline with Qwen's own processor class, but for the part that only reads videos."""
    from diffusers import DiffusionPipeline, Kandinsky5I2VPipeline, Kandinsky5T2VPipeline
    from transformers import AutoTokenizer, ProcessorMixin, Qwen2VLImageProcessorPil, Qwen2VLProcessor

    class WithoutVideos(Qwen2VLProcessor):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def __init__(self, image_processor: Any, tokenizer: Any) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=None)

    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    processor = WithoutVideos(Qwen2VLImageProcessorPil(), tokenizer)
    parts = DiffusionPipeline.from_pretrained(str(checkpoint), tokenizer=processor).components
    pipeline = (Kandinsky5I2VPipeline if image_to_video else Kandinsky5T2VPipeline)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
