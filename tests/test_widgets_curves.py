"""Loss curves: how they are smoothed, summed up and drawn."""

from __future__ import annotations

import io

import numpy as np
import pytest

import tunerkit_widgets as tw


def test_smoothing_and_tenths_by_hand() -> None:
    curve = [(step, float(step % 7)) for step in range(1, 41)]
    decay = 0.9
    for index, (step, value) in enumerate(tw.smoothed(curve)):
        weights = [decay ** (index - i) for i in range(index + 1)]
        mean = sum(w * y for w, (_, y) in zip(weights, curve, strict=False)) / sum(weights)
        assert step == curve[index][0]
        assert value == pytest.approx(mean, rel=1e-12)
    assert tw.tenths(curve) == (sum(y for _, y in curve[:4]) / 4, sum(y for _, y in curve[-4:]) / 4)
    assert tw.tenths([(0, 2.0), (5, 1.0)]) == (2.0, 1.0)
    assert tw.tenths([]) is None


def test_the_plot_is_a_small_picture_with_all_curves() -> None:
    from PIL import Image

    history = tw.TrainingHistory(
        losses=[(step, 1.0 + (step % 5) / 5) for step in range(1, 3001)],
        evaluations=[(step, 2.0 - step / 3000) for step in range(0, 3001, 100)],
    )
    png = tw.loss_png(history)
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    assert picture.size == (648, 270)
    assert len(png) < 40_000
    pixels = np.asarray(picture, dtype=int)
    for colour in ((0x1F, 0x6F, 0xB4), (0xD9, 0x5F, 0x02)):
        assert (np.abs(pixels - (*colour, 255)).sum(axis=-1) < 30).any()
    assert Image.open(io.BytesIO(tw.loss_png(tw.TrainingHistory()))).size == (648, 270)


def test_parts_of_the_loss_have_curves_of_their_own() -> None:
    from PIL import Image

    history = tw.TrainingHistory()
    for step in range(1, 11):
        history.add({"step": step, "loss": 3 / step, "parts": {"video": 1 / step, "audio": 2 / step}, "seconds": 0.1})
    assert history.parts["video"] == [(step, 1 / step) for step in range(1, 11)]
    assert history.parts["audio"] == [(step, 2 / step) for step in range(1, 11)]
    alone = tw.TrainingHistory(losses=history.losses)
    width, height = Image.open(io.BytesIO(tw.loss_png(alone))).size
    picture = Image.open(io.BytesIO(tw.loss_png(history))).convert("RGBA")
    assert picture.size == (width, height + 180)
    pixels = np.asarray(picture, dtype=int)[height:]
    for colour in ((0x23, 0x8B, 0x45), (0x88, 0x41, 0x9D)):
        assert (np.abs(pixels - (*colour, 255)).sum(axis=-1) < 40).any()
    # One part alone is the loss itself.
    history = tw.TrainingHistory()
    history.add({"step": 1, "loss": 1.0, "parts": {"video": 1.0}})
    assert history.parts == {}
