"""Token routing: which documents and routes are refused, and what a routed step is planned to take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_tread import Routes, document

import tunerkit as tk
from tunerkit.config.tread_rules import routes_of

# Settings ----------------------------------------------------------------------------------------------------------

GOOD = {"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"routes": []}, r"tread_config.routes = \[\]: holds no route"),
        ({"route": [GOOD]}, r"tread_config.routes: is no list(.|\n)*tread_config.route = .*is not known"),
        ({"routes": [0.5]}, r"tread_config.routes\[0\] = 0.5: is no route"),
        ({"routes": [GOOD, {**GOOD, "selection_ratio": 1.0}]}, r"routes\[1\].selection_ratio = 1.0: .*below 1"),
        ({"routes": [{**GOOD, "selection_ratio": True}]}, r"routes\[0\].selection_ratio = True"),
        ({"routes": [{**GOOD, "start_layer_idx": 2.5}]}, r"start_layer_idx = 2.5: .*whole number"),
        ({"routes": [{"selection_ratio": 0.5}]}, r"start_layer_idx: is missing"),
        ({"routes": [{**GOOD, "ratio": 0.5}]}, r"routes\[0\].ratio = 0.5: is not known"),
    ],
)
def test_documents_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(tk.ConfigError, match=message):
        tk.TrainConfig(tread_config=given)


@pytest.mark.parametrize(
    ("routes", "settings", "message"),
    [
        ([(2, 48, 0.5)], {}, r"routes\[0\].end_layer_idx = 48: is no block .* has 48. Fix: use 0 to 47, or -1 to -48"),
        ([(-49, -2, 0.5)], {}, r"start_layer_idx = -49: is no block"),
        ([(6, -44, 0.5)], {}, r"end_layer_idx = -44: ends the route before its start: block 4 of 48"),
        ([(2, 9, 0.5), (9, 12, 0.5)], {}, r"routes\[1\].start_layer_idx = 9: .*use 10 or more"),
        ([(2, -2, 0.5)], {"crepa_block_index": 8}, r"crepa_block_index = 8: .*before 2 or block 46 or a later"),
        ([(8, -2, 0.5)], {"crepa_block_index": 8}, r"crepa_block_index = 8"),
    ],
)
def test_routes_that_do_not_fit_are_refused(routes: Routes, settings: dict[str, Any], message: str) -> None:
    config = tk.TrainConfig(tread_config=document(*routes), crepa_enabled=True, **settings)
    with pytest.raises(tk.ConfigError, match=message):
        routes_of(config, 48)


def test_routes_count_from_both_ends() -> None:
    config = tk.TrainConfig(tread_config={"routes": [GOOD]}, crepa_enabled=True, crepa_block_index=46)
    [route] = routes_of(config, 48)
    assert (route.first, route.last, route.ratio) == (2, 46, 0.5)
    assert routes_of(tk.TrainConfig(), 48) == ()
    assert [note for note in config.notes if note.key == "tread_config"] == []


def test_models_that_need_all_tokens_refuse(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    dataset = {"id": "clips", "instance_data_dir": str(tmp_path / "clips")}
    config = tk.TrainConfig(
        model_family="sanavideo", output_dir=tmp_path / "output", max_train_steps=1, datasets=[dataset],
        tread_config={"routes": [GOOD]},
    )  # fmt: skip
    with pytest.raises(tk.ConfigError, match=r"tread_config = .*convolutions over the whole grid.*leave it out"):
        tk.resolve(config)
    sparse = tk.TrainConfig(model_flavour="t2v-lite-sft-10s", tread_config={"routes": [GOOD]})
    kandinsky = tk.family("kandinsky5-video")
    assert "sparse_attention" in str(kandinsky.routing_refusal(sparse))
    assert kandinsky.routing_refusal(sparse.changed(sparse_attention=False)) is None


# Plan --------------------------------------------------------------------------------------------------------------


def test_a_plan_of_few_blocks_is_that_of_all() -> None:
    from tunerkit.planning.architectures import transformer_on_meta
    from tunerkit.planning.batches import Largest, Stand
    from tunerkit.planning.step import trace_step
    from tunerkit.planning.training import training_step

    family, depth, flavour = tk.family("kandinsky5-video"), 9, "t2v-lite-sft-5s"
    own = {"num_visual_blocks": depth, "num_text_blocks": 1}

    def settings(component: Any) -> dict[str, Any]:
        return {**family.published_config(flavour, component), **(own if component == "transformer" else {})}

    def planned(routes: Routes) -> tk.TrainConfig:
        return tk.TrainConfig(
            model_family=family.name, model_flavour=flavour, mixed_precision="bf16", tread_config=document(*routes),
            peft_lora_target_modules=["to_query"],
        )  # fmt: skip

    routes = [(3, 6, 0.5), (7, 7, 0.25)]  # one block before them and two within the first one are added
    config, largest = planned(routes), Largest(256, 256, 17, 24.0, 2, mask=True)
    stand = Stand(config, family, settings)
    found = training_step(config, family, settings("transformer"), stand, largest)
    transformer = transformer_on_meta(settings("transformer"), config, family)
    whole, _ = trace_step(config, family, transformer, lambda: stand.drawn(largest), alike=depth)
    assert [one.peak for one in found.segments] == pytest.approx([one.peak for one in whole], rel=1e-4)
    assert [one.work.flops for one in found.segments] == [one.work.flops for one in whole]
    assert [one.work.kernels for one in found.segments] == [one.work.kernels for one in whole]
    with pytest.raises(tk.ConfigError, match="is no block of the transformer, which has 9"):
        training_step(planned([(2, 9, 0.5)]), family, settings("transformer"), stand, largest)
