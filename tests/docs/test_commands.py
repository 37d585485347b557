"""Commands on the pages: every one is read to its end by the program that it starts; a few run, at small size."""

import argparse
import importlib
import re
import runpy
import subprocess
import sys

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.conftest import ROOT
from tests.docs.pages import commands, inline, name_of, PAGES, words

COMMANDS = [pytest.param(command, id=f"{name_of(page)}-{number}")
            for page in PAGES for number, command in enumerate(commands(page), 1)]
NO_FLAGS = {"scripts.hyperparameters", "scripts.models"}
"""Programs without a command line."""
_parse = argparse.ArgumentParser.parse_args

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules")


class Read(BaseException):
    """The command line was read to its end. Nothing catches it."""


class Unread(BaseException):
    """It was not."""


def read(module, argv, parse_args=lambda *program_and_argv: (program_and_argv[0], _parse(*program_and_argv))):
    """Starts a module as a program, which ends where it reads its arguments; returns its parser, and the arguments."""

    def stop(self, args=None, namespace=None):
        raise Read(*parse_args(self, args, namespace))

    def hydra_main(version_base, config_path, config_name):
        return lambda function: lambda: compose(config_path, config_name)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Read) as caught:
        patch.setattr(sys, "argv", [module, *argv])
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(argparse.ArgumentParser, "parse_intermixed_args", stop)
        patch.setattr(hydra, "main", hydra_main)
        if module == "experiments.bench":
            importlib.import_module(f"{module}.{argv[0]}").main(list(argv[1:]))
        else:
            runpy.run_module(module, run_name="__main__")
    return caught.value.args


def compose(folder, name):
    """Hydra's configuration; of a sweep, with the first value of each key."""
    overrides = OverridesParser.create().parse_overrides([word for word in sys.argv[1:] if not word.startswith("-")])
    single = [f"{override.get_key_element()}={next(override.sweep_string_iterator())}" if override.is_sweep_override()
              else override.input_line for override in overrides]
    try:
        with hydra.initialize_config_dir(folder, version_base="1.3"):
            config = hydra.compose(name, single)
    except Exception as error:
        raise Unread(str(error)) from error
    raise Read(None, config)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_read(command, elsewhere):
    tokens, settings = words(command), {}
    while match := re.fullmatch(r"([A-Z_]+)=(.*)", tokens[0]):
        settings[match[1]] = match[2]
        del tokens[0]
    if tokens[0] == "source":
        assert tokens == ["source", ".venv/bin/activate"]
    elif tokens[0] == "bash":
        check_script(ROOT / tokens[1], settings)
    else:
        module, argv = tokens[tokens.index("-m") + 1], tokens[tokens.index("-m") + 2 :]
        assert tokens[0] in ("python", "python3", "torchrun") and not settings
        if module in NO_FLAGS:
            assert importlib.util.find_spec(module) and not argv
            return
        read(module, argv)
        if "--" in argv:  # what bench kill and bench ranks hand on
            read("experiments.evaluate", argv[argv.index("--") + 1 :])


def check_script(path, settings):
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    text += "".join((ROOT / name).read_text() for name in re.findall(r"^source (scripts/\S+)", text, re.MULTILINE))
    unread = [name for name in settings if not re.search(rf"\$\{{?{name}\b", text)]
    assert not unread, f"{path} does not read {', '.join(unread)}"


def test_flags_in_backticks_exist():
    known_flags = {"--help", "--multirun", "--nproc_per_node"}
    for path in [path for folder in ("experiments", "figures", "data/world") for path in (ROOT / folder).glob("[a-z]*.py")]:
        if "__main__" in path.read_text() and path.stem not in ("train", "sweep"):  # those two take KEY=VALUE
            program = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            known_flags |= set(flags(*read(program, [], lambda parser, *_: (parser,))))
    words_inline = {word.partition("=")[0] for page in PAGES for text in inline(page) for word in text.split()}
    assert {word for word in words_inline if re.match("--[a-z]", word)} <= known_flags


def flags(parser):
    """Those of a parser, and of its actions'."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action.choices, dict):
            for sub in action.choices.values():
                yield from flags(sub)
