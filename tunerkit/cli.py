"""The command line: reads the arguments, runs a command, turns what happens into messages and an exit status.

Exit status: 0 done; 2 the request is wrong (one message on stderr that names the setting or file and the fix); 130
interrupted; 1 anything else. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from tunerkit import __version__
from tunerkit.cli_output import explain, fail, plain_output, warn
from tunerkit.cli_plan import add_plan
from tunerkit.cli_sweep import add_sweep
from tunerkit.errors import NonFiniteLossError, OutOfMemoryError, TunerkitError

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
_OVERRIDE = re.compile(r"-{0,2}([A-Za-z][\w.\-\[\]]*)=(.*)", re.DOTALL)


class UsageError(TunerkitError):
    """The command line cannot be understood."""


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. Fix: see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of this process when None.

    Returns:
        the exit status.
    """
    with plain_output():
        try:
            arguments = parse(sys.argv[1:] if argv is None else argv)
            from tunerkit import cli_commands

            return getattr(cli_commands, f"run_{arguments.command}")(arguments)
        except SystemExit as end:  # --help and --version
            return DONE if end.code is None else int(end.code)
        except (NonFiniteLossError, OutOfMemoryError) as error:
            fail(str(error))
            return FAILED
        except TunerkitError as error:
            fail(str(error))
            return WRONG_REQUEST
        except KeyboardInterrupt:
            warn("interrupted. What was saved and cached is whole; the same command goes on from there")
            return INTERRUPTED
        except BrokenPipeError:
            # Whoever read the output has left. Python would complain again when it flushes at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except Exception as error:
            explain(error)
            return FAILED


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command and its arguments; `overrides` is a dictionary of the `key=value` words, wherever they stand.

    Raises:
        UsageError: naming the word that is not understood.
        SystemExit: after --help and --version.
    """
    parser = build_parser()
    commands = _commands(parser)
    if not argv:
        raise UsageError(f"no command is given. Fix: use one of {', '.join(commands)}; see {parser.prog} --help")
    if not argv[0].startswith("-") and argv[0] not in commands:
        near = difflib.get_close_matches(argv[0], commands, n=1)
        choices = f"one of {', '.join(commands)}"
        raise UsageError(f"there is no command {argv[0]!r}. Fix: use {f'{near[0]}, or {choices}' if near else choices}")
    arguments, rest = parser.parse_known_args(argv)
    words = [*getattr(arguments, "overrides", []), *rest]
    if rest and not hasattr(arguments, "overrides"):
        raise UsageError(f"{arguments.command} does not take {rest[0]!r}. Fix: see {parser.prog} --help")
    arguments.overrides = _overrides(words, f"{parser.prog} {arguments.command}")
    return arguments


def _overrides(words: Sequence[str], program: str) -> dict[str, str]:
    overrides: dict[str, str] = {}
    for word in words:
        match = _OVERRIDE.fullmatch(word)
        if match is None:
            raise UsageError(f"{word!r} is neither an option nor key=value. Fix: see {program} --help")
        overrides[match[1]] = match[2]
    return overrides


def build_parser() -> argparse.ArgumentParser:
    """All commands with their help."""
    parser = _Parser(
        prog="python -m tunerkit",
        description="Fine-tune open video diffusion models.",
        epilog="CONFIG is a config.json, or a folder that holds one; key=value words change settings for this call.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tunerkit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)

    demo = add("demo", "write a small project that trains on a CPU without internet")
    demo.add_argument("directory", metavar="DIR", help="folder to write it into")
    demo.add_argument("--family", default="sanavideo", metavar="F", help="model family (default: sanavideo)")
    _add_overrides(demo)

    dataset = _config_command(add("dataset", "show which clips are used, how, and why others are not"))
    dataset.add_argument("--csv", metavar="FILE", help="also write every fact and decision to this file")
    _config_command(add_plan(add))
    cache = _config_command(add("cache", "encode captions and clips, so that training can start at once"))
    what = cache.add_mutually_exclusive_group()
    what.add_argument("--report", action="store_true", help="only show what lies in the cache and what is stale")
    what.add_argument("--prune", action="store_true", help="only delete what this configuration does not need")
    _config_command(add("train", "train, from the latest checkpoint if there is one"))
    validate = _config_command(add("validate", "render the validation prompts with a checkpoint"))
    _add_checkpoint(validate, "; base = the model without training")
    export = _config_command(add("export", "write the adapter of a checkpoint as a LoRA file"))
    _add_checkpoint(export, "")
    export.add_argument("--format", required=True, choices=("diffusers", "comfyui"), help="key layout of the file")
    export.add_argument("--output", required=True, metavar="FILE", help="the .safetensors file to write")

    push = add("push", "upload what a run has made to the hub, with a model card")
    push.add_argument("output_dir", metavar="OUTPUT_DIR", help="output_dir of the run")
    _add_overrides(push)

    runs = add("runs", "list the runs of a folder: what they do, how far they are")
    runs.add_argument("folder", nargs="?", default=".", metavar="FOLDER", help="where to look (default: here)")
    for name, text in (
        ("pause", "let a running training wait after its current step"),
        ("resume", "let a paused training go on"),
        ("stop", "end a running training after its current step, with a checkpoint"),
    ):
        add(name, text).add_argument("output_dir", metavar="OUTPUT_DIR", help="output_dir of the run")
    add_sweep(add)
    add("doctor", "check this machine: GPU, memory, disk, packages")
    return parser


def _config_command(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("config", metavar="CONFIG", help="config.json, or a folder that holds one")
    _add_overrides(parser)
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings to change, for example learning_rate=5e-5"
    )


def _add_checkpoint(parser: argparse.ArgumentParser, more: str) -> None:
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help=f"latest (the default), a folder, or its name in output_dir{more}",
    )


def _commands(parser: argparse.ArgumentParser) -> list[str]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return list(actions[0].choices)
