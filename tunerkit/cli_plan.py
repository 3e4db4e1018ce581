"""`plan`: what a run takes of the GPU, the machine and the disk, before it starts."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tunerkit.cli_output import process_rank, quiet_libraries, say

HELP = "show what a run takes of the GPU, the machine and the disk, and what makes it fit"


def add_plan(add: Callable[[str, str], argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command to a parser, and return its own.

    Args:
        add: takes the name and the description of a command, and returns its parser.
    """
    parser = add("plan", HELP)
    parser.add_argument(
        "--vram", type=float, metavar="GIB", help="memory of the GPU that it has to fit (default: that of the GPU here)"
    )
    parser.add_argument("--gpu", metavar="NAME", help='GPU that it is planned for, for example "RTX 4090"')
    return parser


def run_plan(arguments: argparse.Namespace) -> int:
    """Print the plan; 0 when it fits or nothing says what it has to fit, 1 when it does not fit."""
    from tunerkit.cli_commands import load

    config = load(arguments)
    quiet_libraries()
    if process_rank():
        return 0
    from tunerkit.planning.planner import plan

    found = plan(config, arguments.vram, gpu=arguments.gpu)
    say(found.to_text())
    return 1 if found.fits is False else 0
