"""edgeopt completion: the script that lets a shell complete commands, options, profiles and boards."""

from __future__ import annotations

import click

from ..errors import ConfigError
from .common import json_option, print_json

INSTALL = {
    "bash": "echo 'eval \"$(edgeopt completion bash)\"' >> ~/.bashrc",
    "zsh": "echo 'eval \"$(edgeopt completion zsh)\"' >> ~/.zshrc",
    "fish": "edgeopt completion fish > ~/.config/fish/completions/edgeopt.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(INSTALL)))
@json_option
def completion(shell: str, as_json: bool) -> int:
    """Print the script by which SHELL completes edgeopt's commands, options, profiles and known boards.

    \b
    For every new shell:
      echo 'eval "$(edgeopt completion bash)"' >> ~/.bashrc
      echo 'eval "$(edgeopt completion zsh)"' >> ~/.zshrc
      edgeopt completion fish > ~/.config/fish/completions/edgeopt.fish

    \b
    Example:
      edgeopt completion bash
    """
    from click.shell_completion import get_completion_class

    from . import cli

    found = get_completion_class(shell)
    if found is None:
        raise ConfigError(f"completion {shell}: this click does not know that shell; allowed: {', '.join(INSTALL)}")
    script = found(cli, {}, "edgeopt", "_EDGEOPT_COMPLETE").source()
    if as_json:
        print_json({"shell": shell, "script": script, "install": INSTALL[shell]})
        return 0
    click.echo(script)
    return 0
