"""Long lists of legal names."""

from __future__ import annotations

_BITSANDBYTES = tuple(
    f"bnb-{name}{bits}{paged}"
    for name in ("adam", "adamw", "lion", "ademamix", "adagrad")
    for bits in ("", "8bit")
    for paged in (("",) if name == "adagrad" else ("", "-paged"))
)

OPTIMIZERS: tuple[str, ...] = (
    "torch-adamw",
    "torch-adam",
    "torch-sgd",
    "torch-radam",
    "torch-nadam",
    "torch-rmsprop",
    "torch-adagrad",
    "torch-adadelta",
    "torch-adafactor",
    "torch-adamax",
    "torch-asgd",
    "adamw_bf16",
    "adamw_8bit",
    "adamw_schedulefree",
    "prodigy",
    "muon",
    "optimi-adamw",
    "optimi-stableadamw",
    "optimi-adam",
    "optimi-lion",
    "optimi-radam",
    "optimi-ranger",
    "optimi-adan",
    "optimi-sgd",
    *_BITSANDBYTES,
)
"""Values of the setting `optimizer`."""
