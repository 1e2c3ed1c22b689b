"""What the shell offers for a word that is being typed; nothing heavy is loaded, and nothing is ever raised."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

from ..errors import EdgeoptError


def profiles(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the profiles that come with edgeopt; files where none begins so."""
    from .. import profile

    return _offered(profile.names(), incomplete) or [CompletionItem(incomplete, type="file")]


def devices(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the known boards, and "local"."""
    return _offered(["local", *_known()], incomplete)


def known_devices(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the known boards."""
    return _offered(_known(), incomplete)


def _known() -> list[str]:
    from ..device import registry

    with contextlib.suppress(EdgeoptError, OSError):  # a damaged file is told by the command, not by the Tab key
        return list(registry.entries())
    return []


def _offered(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
