"""Drawn clips for machines without the real ones: one shape crossing a grained background, said so in the caption.

Each has a sound that belongs to what is seen: the shape decides pitch and timbre, its place left and right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunerkit.demo.sounds import tone

SIZE = (192, 128)
"""Width and height in pixels."""
FRAMES = 40
RATE = 25.0
"""Frames per second; 40 frames last 1.6 s."""

Shape = Literal["ball", "box"]
Colour = tuple[int, int, int]

PITCH: Mapping[Shape, float] = {"ball": 440.0, "box": 165.0}
"""In Hz."""
HARMONICS: Mapping[Shape, tuple[float, ...]] = {
    "ball": (1.0, 0.3, 0.1),
    "box": (1.0, 0.0, 1 / 3, 0.0, 1 / 5, 0.0, 1 / 7, 0.0, 1 / 9),
}
"""A ball sounds soft, a box like a reed: nearly a square wave."""


@dataclass(frozen=True)
class Drawing:
    """What one clip shows; `motion` is (right, down) in pixels per frame."""

    name: str
    caption: str
    shape: Shape
    colour: Colour
    ground: Colour
    motion: tuple[int, int]

    def frames(self) -> np.ndarray:
        """`[T, H, W, 3]` uint8; the grain depends on the name alone, so every call draws the same."""
        width, height = SIZE
        y, x = np.mgrid[:height, :width]
        grain = np.random.default_rng(list(self.name.encode())).normal(0, 6, (height, width, 1))
        shade = np.linspace(18, -18, height)[:, None, None]
        background = np.asarray(self.ground, dtype=float) + shade + grain
        radius = height / 5
        pictures = np.empty((FRAMES, height, width, 3), np.uint8)
        for index in range(FRAMES):
            moved = index - (FRAMES - 1) / 2
            across = x - width / 2 - self.motion[0] * moved
            down = y - height / 2 - self.motion[1] * moved
            distance = np.hypot(across, down) if self.shape == "ball" else np.maximum(abs(across), abs(down))
            cover = np.clip(radius - distance + 0.5, 0, 1)[..., None]  # one pixel of soft edge
            light = 1 - 0.25 * np.clip(np.hypot(across + 8, down + 8) / radius, 0, 1)[..., None]
            picture = background * (1 - cover) + np.asarray(self.colour) * light * cover
            pictures[index] = np.clip(picture, 0, 255).round()
        return pictures

    def sound(self, rate: int) -> np.ndarray:
        """`[samples, 2]` float32 as long as the frames; it moves between left and right with the shape."""
        samples = round(FRAMES / RATE * rate)
        moved = np.arange(samples) / rate * RATE - FRAMES / 2
        place = np.clip(0.5 + self.motion[0] * moved / SIZE[0], 0, 1)
        return tone(samples, rate, PITCH[self.shape], HARMONICS[self.shape], place)


DRAWINGS = (
    Drawing(
        *("red-ball-right", "A red ball moves to the right across a green field."),
        *("ball", (214, 48, 40), (70, 140, 60), (3, 0)),
    ),
    Drawing(
        *("blue-ball-left", "A blue ball moves to the left across a yellow wall."),
        *("ball", (40, 70, 210), (220, 190, 80), (-3, 0)),
    ),
    Drawing(
        *("white-ball-falls", "A white ball falls down in front of a dark blue night sky."),
        *("ball", (240, 240, 235), (20, 25, 70), (0, 2)),
    ),
    Drawing(
        *("yellow-ball-rises", "A yellow ball rises in front of a light blue sky."),
        *("ball", (250, 210, 50), (140, 190, 240), (0, -2)),
    ),
    Drawing(
        *("green-box-right", "A green box slides to the right over a grey floor."),
        *("box", (40, 170, 70), (120, 120, 125), (2, 0)),
    ),
    Drawing(
        *("orange-box-left", "An orange box slides to the left over a brown table."),
        *("box", (245, 140, 30), (105, 70, 45), (-2, 0)),
    ),
    Drawing(
        *("purple-box-falls", "A purple box falls down in front of a pink curtain."),
        *("box", (120, 40, 150), (235, 160, 185), (0, 2)),
    ),
    Drawing(
        *("black-box-diagonal", "A black box moves diagonally over a white sheet."),
        *("box", (25, 25, 25), (225, 225, 220), (2, 1)),
    ),
)
