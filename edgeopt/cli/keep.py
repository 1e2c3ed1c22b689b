"""--keep and --stop: a folder for raw samples, and jobs on the board that outlive an interrupt."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .display import Display

if TYPE_CHECKING:
    from ..kept import Kept
    from .common import Boards, Where

WORTH_KEEPING_S = 60.0


@dataclasses.dataclass(frozen=True)
class Keep:
    """What --keep and --stop say; folder None: nothing is kept."""

    folder: Path | None
    stop: bool = False

    def of(self, where: Where, boards: Boards) -> Keep:
        """Of several boards each has a folder in the folder."""
        if self.folder is None or not boards.several:
            return self
        name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in where.device)
        return dataclasses.replace(self, folder=self.folder / name)


def keep_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--keep and --stop as one `keep` argument."""
    import functools

    @click.option(
        "--keep",
        "folder",
        type=click.Path(path_type=Path),
        help="A folder for the raw samples and the document, for `edgeopt report FOLDER --recompute`. With it Ctrl-C "
        "leaves the job on the board, and the same command takes it up.",
    )
    @click.option("--stop", is_flag=True, help="Of --keep: end on the board what was interrupted, and nothing else.")
    @functools.wraps(command)
    def wrapped(folder: Path | None, stop: bool, **options: Any) -> Any:
        if stop and folder is None:
            raise ConfigError("--stop: name the folder of the interrupted command with --keep")
        return command(keep=Keep(folder, stop), **options)

    return wrapped


@contextlib.contextmanager
def keeping(
    keep: Keep, command: str, asked: Mapping[str, Any], seconds: float, display: Display, alone: str = ""
) -> Iterator[Kept]:
    """The folder that a command measures into. seconds: how long it measures, about; alone: as of Journal."""
    from .. import kept

    with kept.opened(keep.folder, command, asked, alone) as found:
        try:
            yield found
        except KeyboardInterrupt:
            if keep.folder is None and seconds > WORTH_KEEPING_S:
                what = f"about {seconds:.0f} s of measuring begin anew next time; with --keep FOLDER they would go on"
                display.event({"event": "waiting", "what": what})
            raise


def stopped(keep: Keep, where: Where, made_for: str | None = None) -> dict[str, Any]:
    """End what runs on the board for the folder: {"device", "board", "stopped": jobs}."""
    from .. import kept
    from ..device.journal import Journal

    assert keep.folder is not None
    if not kept.is_kept(keep.folder):
        raise ConfigError(f"--stop: {keep.folder} is not a folder that --keep made")
    journal = Journal(keep.folder / "jobs.json")
    with Display(where.device) as display:
        session, _ = where.open(display, made_for, any_board=True)
        with session:
            session.keep(journal)
            return {"device": session.address, "board": where.board(session), "stopped": session.stop_kept()}


def stop_words(document: Mapping[str, Any]) -> str:
    """What `stopped` did, in one line."""
    jobs = ", ".join(document["stopped"])
    return f"stopped on the board: {jobs}" if jobs else "nothing of this folder was running on the board"
