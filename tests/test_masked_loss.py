"""Masks in the loss: the formula with given frames and sound, chance, and stills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import MINIATURES, engine_of
from PIL import Image

import tunerkit as tk
from tunerkit.cache.entries import Cache
from tunerkit.draws import generator
from tunerkit.families.flow import given_frames
from tunerkit.training.batches import BatchSource


@pytest.mark.parametrize(
    ("family", "method"),
    [*((name, "in_place") for name in MINIATURES), ("kandinsky5-video", "channels")],
)
def test_masked_image_to_video_is_the_formula(family: str, method: Any) -> None:
    """Of each sample the weighted mean over what is neither given nor black; the sound, where there is some, whole."""
    engine, (read, _) = engine_of(family, "fp32")
    drawn = read()
    source = torch.Generator().manual_seed(3)
    mask = torch.rand(2, 1, 2, 4, 6, generator=source)
    mask[:, :, :, :, :2] = 0  # black
    batch = replace(
        drawn.batch, loss_mask=mask, first_frame=torch.tensor([True, False]), first_frame_method=method,
        image=torch.randn(2, 4, 1, 4, 6, generator=source) if family == "kandinsky5-video" else None,
    )  # fmt: skip
    engine.transformer.eval()
    prediction = replace(drawn, batch=batch).predict(engine.family, engine.transformer)
    prediction.video.velocity.retain_grad()
    losses = prediction.losses()
    losses.total.backward()

    error = (prediction.video.velocity.detach().double() - (drawn.noise.double() - batch.latents.double())) ** 2
    per_sample = []
    for sample in range(2):
        whole = weights = 0.0
        for frame in range(2):
            given = batch.first_frame is not None and bool(batch.first_frame[sample]) and frame == 0
            for y in range(4):
                for x in range(6):
                    weight = 0.0 if given and method == "in_place" else float(mask[sample, 0, frame, y, x])
                    whole += weight * float(error[sample, :, frame, y, x].mean())
                    weights += weight
        per_sample.append(whole / weights)
    assert float(losses.parts["video"]) == pytest.approx(sum(per_sample) / 2, rel=1e-5)
    gradient = prediction.video.velocity.grad
    assert gradient is not None
    assert not gradient[..., :2].any()  # black
    assert gradient[1, :, 0, :, 2:].all()  # not given
    assert bool(gradient[0, :, 0].any()) == (method == "channels")  # given, and learned only beside the channels
    if batch.audio is not None and prediction.audio is not None and drawn.audio_noise is not None:
        target = drawn.audio_noise.double() - batch.audio.latents.double()
        sound = float(((prediction.audio.velocity.detach().double() - target) ** 2).mean())
        assert float(losses.parts["audio"]) == pytest.approx(sound, rel=1e-5)
        assert float(losses.total.detach()) == pytest.approx(sum(per_sample) / 2 + sound, rel=1e-5)


@pytest.mark.parametrize("family", MINIATURES)
def test_a_mask_that_leaves_nothing_has_no_share(family: str) -> None:
    """White on the given frame alone: the sample's loss is 0 and every gradient finite."""
    engine, (read, _) = engine_of(family, "fp32")
    drawn = read()
    mask = torch.zeros(2, 1, 2, 4, 6)
    mask[:, :, 0] = 1
    batch = replace(drawn.batch, loss_mask=mask, first_frame=torch.tensor([True, True]), audio=drawn.batch.audio)
    given = given_frames(batch)
    assert given is not None
    assert given.flatten(1).tolist() == [[1.0, 0.0]] * 2
    losses = replace(drawn, batch=batch).predict(engine.family, engine.transformer).losses()
    losses.total.backward()
    assert float(losses.parts["video"]) == 0.0
    gradients = [parameter.grad for parameter in engine.weights.live.values() if parameter.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.fixture(scope="module")
def masked(pristine_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BatchSource]:
    """Batches of the demo's clips, each with a still whose left half is white."""
    folder = tmp_path_factory.mktemp("masks")
    config = tk.load_config(pristine_project / "config.json", validation_disable=True, output_dir=folder / "out")
    for sample in tk.inspect_dataset(config).samples:
        still = Image.new("L", (sample.source.width, sample.source.height), 0)
        still.paste(255, (0, 0, sample.source.width // 2, sample.source.height))
        still.save(folder / f"{sample.file.stem}.png")
    masks = {"id": "masks", "dataset_type": "conditioning", "conditioning_type": "mask", "instance_data_dir": folder}
    media = config.media_datasets[0].model_copy(
        update={"conditioning_data": "masks", "cache_dir_vae": str(folder / "vae")}
    )
    kind = type(media)
    config = config.changed(datasets=[media, kind(**masks)])
    report = tk.inspect_dataset(config)
    assert not tk.build_cache(config, report=report, progress=False).failures
    family = tk.family(str(config.model_family))

    def make(**changes: Any) -> BatchSource:
        changed = tk.resolve(config.changed(**changes))
        return BatchSource(changed, family, Cache(changed, family), report.samples)

    return make


def test_a_still_mask_reaches_the_loss_of_every_frame(masked: Callable[..., BatchSource]) -> None:
    source = masked(train_batch_size=2)
    try:
        batch = source.make(0).batch
        alone = source.single(source.samples[0])
    finally:
        source.close()
    for found in (batch, alone):
        assert found.loss_mask is not None
        half = found.latents.shape[-1] // 2 - 1  # the still is scaled with its clip, which softens its edge
        assert found.loss_mask.shape == (len(found.latents), 1, *found.latents.shape[2:])
        assert (found.loss_mask[..., :half] == 1).all()
        assert (found.loss_mask[..., -half:] == 0).all()


def test_masks_are_used_by_chance(masked: Callable[..., BatchSource]) -> None:
    expected: dict[float, list[bool]] = {0.0: [], 0.5: [], 1.0: []}
    for probability, used in expected.items():
        source = masked(train_batch_size=2, masked_loss_probability=probability)
        try:
            for number in range(8):
                batch = source.make(number).batch
                assert batch.loss_mask is not None
                chance = torch.rand(len(batch.latents), generator=generator(source._config.seed, "mask", number))
                for sample, weights in enumerate(batch.loss_mask):
                    used.append(bool(chance[sample] < probability))
                    assert bool((weights == 1).all()) != used[-1]
            # Evaluated with its mask always: no chance has a part in that.
            mask = source.single(source.samples[0]).loss_mask
            assert mask is not None
            assert not (mask == 1).all()
        finally:
            source.close()
    assert not any(expected[0.0])
    assert all(expected[1.0])
    assert 2 <= sum(expected[0.5]) <= len(expected[0.5]) - 2
