"""The published checkpoints of Kandinsky 5.0 Video, and what their names say about them."""

from __future__ import annotations

from tunerkit.families.facts import Flavour

DISTILLED = (
    "it is distilled for sampling {how}, and training would undo that. Fix: train {instead}, and load the adapter into "
    "the distilled model to sample"
)
UNPUBLISHED = "no pretrain checkpoint of image to video was published. Fix: use {instead}"

SD_SIZES = ((512, 512), (768, 512), (512, 768))
HD_SIZES = (
    (1024, 1024), (1408, 640), (640, 1408), (1280, 768), (768, 1280), (1152, 896), (896, 1152),
)  # fmt: skip
"""(width, height) that the checkpoints were trained on; all fit sparse attention."""

SPARSE_AND_DENSE = "i2v-pro-sft-5s"
"""Its official configurations are two, dense in SD and sparse in HD; its sizes in SD fit both."""


def frames(flavour: str) -> int:
    """Frames that a flavour makes, at 24 a second."""
    return 241 if "-10s" in flavour else 121


def is_hd(flavour: str) -> bool:
    """Whether a flavour was trained at 1024 pixels."""
    return flavour.endswith("-hd")


def is_image_to_video(flavour: str) -> bool:
    """Whether a flavour starts from a first frame."""
    return flavour.startswith("i2v-")


def is_always_sparse(flavour: str) -> bool:
    """Whether a flavour was trained with sparse attention only."""
    return is_hd(flavour) or "-10s" in flavour


def is_sparse(flavour: str) -> bool:
    """Whether the attention of a flavour is, or may be, sparse, so that sizes have to fit it."""
    return is_always_sparse(flavour) or flavour == SPARSE_AND_DENSE


def _repo(name: str) -> str:
    return f"kandinskylab/Kandinsky-5.0-{name}-Diffusers"


def _distilled(seconds: int) -> dict[str, Flavour]:
    instead = f"t2v-lite-sft-{seconds}s"
    return {
        f"t2v-lite-nocfg-{seconds}s": Flavour(
            _repo(f"T2V-Lite-nocfg-{seconds}s"), refused=DISTILLED.format(how="without guidance", instead=instead)
        ),
        f"t2v-lite-distilled16steps-{seconds}s": Flavour(
            _repo(f"T2V-Lite-distilled16steps-{seconds}s"),
            aliases=(f"t2v-lite-distilled-{seconds}s",),
            refused=DISTILLED.format(how="in 16 steps", instead=instead),
        ),
    }


FLAVOURS = {
    "t2v-lite-sft-5s": Flavour(_repo("T2V-Lite-sft-5s"), "2B, 768x512, 121 frames", ("t2v-lite-5s",)),
    "t2v-lite-pretrain-5s": Flavour(_repo("T2V-Lite-pretrain-5s"), "2B, for large datasets"),
    "t2v-lite-sft-10s": Flavour(_repo("T2V-Lite-sft-10s"), "2B, 241 frames, sparse attention", ("t2v-lite-10s",)),
    "t2v-lite-pretrain-10s": Flavour(_repo("T2V-Lite-pretrain-10s"), "2B, 241 frames, for large datasets"),
    "t2v-pro-sft-5s-hd": Flavour(
        _repo("T2V-Pro-sft-5s"), "19B, 1280x768, 121 frames, sparse attention", ("t2v-pro-sft-5s", "t2v-pro-5s-hd")
    ),
    "t2v-pro-sft-10s-hd": Flavour(
        _repo("T2V-Pro-sft-10s"), "19B, 1280x768, 241 frames, sparse attention", ("t2v-pro-sft-10s", "t2v-pro-10s-hd")
    ),
    "t2v-pro-pretrain-5s-hd": Flavour(
        _repo("T2V-Pro-pretrain-5s"), "19B, for large datasets", ("t2v-pro-pretrain-5s",)
    ),
    "t2v-pro-pretrain-10s-hd": Flavour(
        _repo("T2V-Pro-pretrain-10s"), "19B, 241 frames, for large datasets", ("t2v-pro-pretrain-10s",)
    ),
    "i2v-lite-5s": Flavour(_repo("I2V-Lite-5s"), "2B, from a first frame", ("i2v-lite-sft-5s",)),
    "i2v-pro-sft-5s": Flavour(_repo("I2V-Pro-sft-5s"), "19B, from a first frame", ("i2v-pro-5s",)),
    **_distilled(5),
    **_distilled(10),
    "i2v-pro-distilled-5s": Flavour(
        _repo("I2V-Pro-distilled-5s"), refused=DISTILLED.format(how="in few steps", instead="i2v-pro-sft-5s")
    ),
    "i2v-lite-pretrain-5s": Flavour(_repo("I2V-Lite-5s"), refused=UNPUBLISHED.format(instead="i2v-lite-5s")),
    "i2v-pro-pretrain-5s": Flavour(_repo("I2V-Pro-sft-5s"), refused=UNPUBLISHED.format(instead="i2v-pro-sft-5s")),
}
