"""Offloaded weights: the same training bit for bit, while what is not brought is NaN, and never more on the device than
planned."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tunerkit as tk
from tunerkit.data.sampler import Draw
from tunerkit.families.batch import Audio, Batch
from tunerkit.memory import offload_groups
from tunerkit.memory.offload import Group, Offloader
from tunerkit.memory.offload_groups import in_ram, leaves, offload
from tunerkit.training.batches import Drawn
from tunerkit.training.blocks import BlockRunner
from tunerkit.training.engine import Engine

CPU = torch.device("cpu")
NAN = 255
"""A byte of which bfloat16 and float32 numbers become NaN."""


class Poisoned(Offloader):
    """Lets modules hold NaN while their weights are not brought, fills memory with NaN before and after its use, and
    counts the buffers that are alive."""

    def __init__(self, root: torch.nn.Module, groups: Any, device: torch.device, *, prefetch: bool) -> None:
        for group in groups:
            group._waiting = group.master.read(torch.full_like(group.master.buffer, NAN))
            group.release()
        super().__init__(root, groups, device, prefetch=prefetch)
        self.alive: Counter[bool] = Counter()
        self.most: Counter[bool] = Counter()
        """Most buffers that were alive in forward (False) and backward (True)."""
        self.bytes_alive = self.most_bytes = 0
        self._used: Any = None

    def _empty(self, group: Group) -> torch.Tensor:
        buffer = super()._empty(group).fill_(NAN)
        self.alive[True] += 1
        self.bytes_alive += group.bytes
        self.most[self._backward] = max(self.most[self._backward], self.alive[True])
        self.most_bytes = max(self.most_bytes, self.bytes_alive)
        weakref.finalize(buffer.untyped_storage(), self._gone, group.bytes)
        return buffer

    def _gone(self, size: int) -> None:
        self.alive[True] -= 1
        self.bytes_alive -= size

    def _bring(self, group: Group) -> torch.Tensor:
        buffer = super()._bring(group)
        self._used = weakref.ref(buffer)
        return buffer

    def _release(self) -> None:
        leaving = self._active is not None
        super()._release()
        buffer = self._used() if leaving else None
        if buffer is not None and not self._backward and self.poisons_forward:
            buffer.fill_(NAN)

    poisons_forward = True
    """Nothing may need weights of a checkpointed block once its forward is over; false where layers outside of blocks
    are offloaded, which are not checkpointed."""


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(offload_groups, "Offloader", Poisoned)


# Miniatures --------------------------------------------------------------------------------------------------------


def sana() -> tuple[Any, Batch]:
    from diffusers import SanaVideoTransformer3DModel

    model = SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=5,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=8,
        sample_size=30, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads", rope_max_seq_len=64,
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(2, 6, 8), "prompt_attention_mask": torch.ones(2, 6, dtype=torch.long)}
    return model, Batch(torch.randn(2, 4, 2, 4, 6), text, torch.full((2,), 16.0))


def kandinsky() -> tuple[Any, Batch]:
    from diffusers import Kandinsky5Transformer3DModel

    model = Kandinsky5Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=8, model_dim=48, ff_dim=48,
        num_text_blocks=1, num_visual_blocks=4, axes_dims=(8, 8, 8), visual_cond=True,
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(2, 6, 8), "pooled": torch.randn(2, 8)}
    return model, Batch(torch.randn(2, 4, 2, 4, 6), text, torch.full((2,), 24.0))


def ltx2() -> tuple[Any, Batch]:
    from diffusers import LTX2VideoTransformer3DModel

    model = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8,
        audio_cross_attention_dim=16, num_layers=5, caption_channels=8, rope_type="split",
    )  # fmt: skip
    text = {"prompt_embeds": torch.randn(2, 6, 8), "audio_prompt_embeds": torch.randn(2, 6, 8)}
    audio = Audio(torch.randn(2, 5, 4), torch.tensor([True, True]))
    return model, Batch(torch.randn(2, 4, 2, 4, 6), text, torch.full((2,), 24.0), audio=audio)


MINIATURES: dict[str, Callable[[], tuple[Any, Batch]]] = {"sanavideo": sana, "kandinsky5-video": kandinsky}
MINIATURES["ltxvideo2"] = ltx2
BLOCKS = 5


def engine_of(family: str, precision: str, **settings: Any) -> tuple[Engine, list[Callable[[], Drawn]]]:
    """An engine on a miniature whose weights are all random, and the batches of a step."""
    torch.manual_seed(0)
    model, batch = MINIATURES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    quantised, precision = precision == "int8", "bf16" if precision == "int8" else precision
    if precision == "bf16":  # as from_pretrained loads it
        kept = tuple(model._keep_in_fp32_modules or ())
        for name, parameter in model.named_parameters():
            if not any(part in name for part in kept):
                parameter.data = parameter.data.to(torch.bfloat16)
    one = tk.family(family)
    if quantised:
        from tunerkit.memory.quantised_linear import quantise_layers

        names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        quantise_layers(model, [name for name in names if "transformer_blocks" in name], "int8")
    dataset = {"id": "clips", "instance_data_dir": ".", **({"audio": {}} if batch.audio else {})}
    config = tk.TrainConfig(
        mixed_precision=precision, lora_rank=2, learning_rate=1e-2, lora_init_type="gaussian",
        datasets=[dataset], **settings,
    )  # fmt: skip
    noise = torch.randn_like(batch.latents)
    sound = None if batch.audio is None else torch.randn_like(batch.audio.latents)

    def drawn(number: int) -> Drawn:
        return Drawn(Draw(number, 0, (0,)), batch, torch.tensor([0.3, 0.2 * number]), noise, audio_noise=sound)

    return Engine(config, one, model, CPU), [lambda n=n: drawn(n) for n in (1, 2)]


def trained(engine: Engine, batches: list[Callable[[], Drawn]], steps: int = 2) -> tuple[Any, ...]:
    """Losses and gradient norms of some steps, and the trained weights after them."""
    updates = [engine.step(batches, number, 1e-2) for number in range(steps)]
    weights = {name: value.clone() for name, value in engine.weights.state().items()}
    return [update.loss for update in updates], [update.grad_norm for update in updates], weights


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return one[:2] == other[:2] and all(torch.equal(value, other[2][name]) for name, value in one[2].items())


@pytest.fixture(scope="module")
def plain() -> Iterator[Callable[..., tuple[Any, ...]]]:
    """What training without offloading gives, by family, precision and other settings; each worked out once."""
    known: dict[Any, tuple[Any, ...]] = {}

    def result(family: str, precision: str, **settings: Any) -> tuple[Any, ...]:
        key = (family, precision, *settings.items())
        if key not in known:
            known[key] = trained(*engine_of(family, precision, **settings))
        return known[key]

    yield result
    known.clear()


# The same training -------------------------------------------------------------------------------------------------

SWAP = {"musubi_blocks_to_swap": 3}
GROUPS = {"enable_group_offload": True}
STREAM = {**GROUPS, "group_offload_use_stream": True}
PAIRS = {**STREAM, "group_offload_blocks_per_group": 2}
LEAVES = {**GROUPS, "group_offload_type": "leaf_level"}
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "swap": (SWAP, 2), "groups": (GROUPS, 1), "stream": (STREAM, 2), "pairs": (PAIRS, 2),
}  # fmt: skip
"""Settings, and how many groups may be on the device at one time."""


@pytest.mark.parametrize(
    ("family", "precision", "way"),
    [
        *[("sanavideo", "no", way) for way in WAYS],
        ("sanavideo", "bf16", "stream"),
        ("sanavideo", "int8", "stream"),
        ("kandinsky5-video", "bf16", "swap"),
        ("ltxvideo2", "bf16", "pairs"),
    ],
)
def test_blocks_train_as_without(plain: Callable[..., Any], family: str, precision: str, way: str) -> None:
    settings, most = WAYS[way]
    engine, batches = engine_of(family, precision, **settings)
    assert same(trained(engine, batches), plain(family, precision))
    offloader: Any = engine.offloader
    gc.collect()
    assert offloader.alive[True] == 0  # each was released at the end of its recomputation, the last one too
    assert offloader.most == {False: most, True: most}
    assert offloader.most_bytes <= offloader.most_on_device
    frozen = sum(p.nbytes for p in engine.transformer.parameters() if not p.requires_grad)
    assert 0.4 * frozen < offloader.bytes < 1.6 * frozen  # with what alignment adds to such small weights


@pytest.mark.parametrize(
    ("family", "precision", "stream"),
    [("sanavideo", "int8", False), ("kandinsky5-video", "bf16", True), ("ltxvideo2", "bf16", True)],
)
def test_layers_train_as_without(
    plain: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, family: str, precision: str, stream: bool
) -> None:
    monkeypatch.setattr(Poisoned, "poisons_forward", False)
    engine, batches = engine_of(family, precision, group_offload_use_stream=stream, **LEAVES)
    assert same(trained(engine, batches), plain(family, precision))
    offloader: Any = engine.offloader
    block = next(iter(engine.family.blocks(engine.transformer)))
    layers = sum(1 for _ in leaves(block))
    # In forward also what autograd holds of the layers behind the blocks; in backward one block.
    assert offloader.most[False] <= 6
    assert offloader.most[True] <= layers + 6
    assert len(offloader.groups) > BLOCKS * layers / 2


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_dropout": 0.3}], ids=["dora", "dropout"])
@pytest.mark.parametrize("way", [SWAP, LEAVES], ids=["swap", "leaves"])
def test_other_adapters_train_as_without(
    plain: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, way: dict[str, Any], settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(Poisoned, "poisons_forward", way is SWAP)
    assert same(trained(*engine_of("sanavideo", "no", **settings, **way)), plain("sanavideo", "no", **settings))


def test_rendering_and_evaluation_bring_weights_too() -> None:
    outputs = []
    for settings in ({}, SWAP, STREAM, {**LEAVES, "group_offload_use_stream": True}):
        engine, (batch, _) = engine_of("sanavideo", "no", **settings)
        with engine.rendering(ema=False):
            outputs.append([batch().losses(engine.family, engine.transformer, CPU).total for _ in range(2)])
        offloader: Any = engine.offloader
        if offloader is not None:
            gc.collect()
            assert offloader.alive[True] == 0
            assert offloader.most[False] <= 2
    assert all(output == outputs[0] for output in outputs)


def test_an_error_within_a_block_leaves_nothing_behind(plain: Callable[..., Any]) -> None:
    engine, batches = engine_of("sanavideo", "no", **STREAM)
    inner = engine.family.blocks(engine.transformer)[2].attn2

    def fail(*_: Any) -> None:
        raise MemoryError

    hook = inner.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        engine.step(batches, 0, 1e-2)
    hook.remove()
    gc.collect()
    offloader: Any = engine.offloader
    assert offloader.alive[True] == 0
    assert same(trained(engine, batches), plain("sanavideo", "no"))


class Reordered(torch.nn.Module):
    """Layers that run in another order than they are listed in."""

    ORDER = (2, 0, 3, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in self.ORDER)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in self.ORDER:
            x = self.layers[number](x)
        return x


def test_prefetching_learns_the_order() -> None:
    root = Reordered()
    offloader: Any = offload(root, leaves(root), CPU, prefetch=True, store=in_ram(CPU))
    copies: list[Group] = []
    empty = offloader._empty
    offloader._empty = lambda group: copies.append(group) or empty(group)
    counts = []
    for _ in range(3):
        root(torch.randn(2, 4))
        counts.append(len(copies))
    assert counts[0] > 4  # wrong guesses
    assert counts[2] - counts[1] == counts[1] - counts[0] == 4


def test_parts_that_run_by_themselves_release_what_an_error_left() -> None:
    """A VAE encodes without its forward, whose end would release everything."""
    root = Reordered()
    offloader: Any = offload(root, leaves(root), CPU, prefetch=False, store=in_ram(CPU))
    with pytest.raises(RuntimeError):
        root.layers[0](torch.randn(2, 5))
    root.layers[1](torch.randn(2, 4))
    gc.collect()
    assert offloader.alive[True] == 0
    assert all(torch.isnan(parameter).all() for parameter in root.layers.parameters())


def test_trained_weights_never_move_and_saved_weights_are_whole() -> None:
    engine, batches = engine_of("sanavideo", "no", **SWAP)
    live = dict(engine.weights.live)
    engine.step(batches, 0, 1e-2)
    named = dict(engine.transformer.named_parameters())
    assert all(named[name] is parameter for name, parameter in live.items())
    assert list(engine.transformer.state_dict()) == list(engine_of("sanavideo", "no")[0].transformer.state_dict())


# Which blocks, which weights ---------------------------------------------------------------------------------------


def test_shared_and_trained_weights_stay() -> None:
    layers = [torch.nn.Linear(4, 4) for _ in range(4)]
    root = torch.nn.Sequential(*layers)
    layers[2].weight = layers[1].weight
    for layer in layers[:3]:
        layer.requires_grad_(False)
    kept = [layers[0].weight, layers[1].weight, layers[3].weight, layers[3].bias]
    x = torch.randn(2, 4)
    before = root(x)
    offload(root, leaves(root), CPU, prefetch=True, store=in_ram(CPU))
    assert all(any(one is each for each in root.parameters()) for one in kept)
    assert torch.isnan(layers[1].bias).all()
    assert torch.isnan(layers[2].bias).all()
    with torch.no_grad():
        assert torch.equal(root(x), before)


def test_offloading_needs_checkpointing() -> None:
    offloader = offload(torch.nn.Sequential(), [], CPU, prefetch=False, store=in_ram(CPU))
    with pytest.raises(ValueError, match="checkpointed"):
        BlockRunner([], checkpointing=False, offloader=offloader)


# Disk --------------------------------------------------------------------------------------------------------------


def test_on_disk_it_trains_as_without(plain: Callable[..., Any], tmp_path: Path) -> None:
    settings = {**STREAM, "group_offload_to_disk_path": tmp_path / "offload"}
    engine, batches = engine_of("sanavideo", "bf16", **settings)
    assert same(trained(engine, batches), plain("sanavideo", "bf16"))
    [folder] = (tmp_path / "offload").iterdir()
    files = sorted(folder.iterdir())
    assert len(files) == BLOCKS
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(files[0]) in maps.read_text(encoding="utf-8")
    another, _ = engine_of("sanavideo", "bf16", **settings)  # in the same folder, at the same time
    assert len(list((tmp_path / "offload").iterdir())) == 2
    del engine, another, folder
    gc.collect()
    assert list((tmp_path / "offload").iterdir()) == []


def test_one_block_has_to_stay() -> None:
    with pytest.raises(tk.ConfigError, match="musubi_blocks_to_swap = 5: the transformer has 5 blocks"):
        engine_of("sanavideo", "no", musubi_blocks_to_swap=5)
