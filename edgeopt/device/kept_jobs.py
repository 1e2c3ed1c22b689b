"""Jobs that outlive the command that asked for them: taken up where they are, left on the board, or ended there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..errors import AgentFailure
from .journal import Journal, new_id

if TYPE_CHECKING:
    from .session import Session

SECOND_INTERRUPT_S = 3.0
CHANGES = ("activate-", "rollback-")  # jobs that change what is current


class KeptJobs:
    """The jobs of a journal on a session's board. journal: None where nothing is kept: every job is then a new one, and
    an interrupt ends it."""

    def __init__(self, session: Session, journal: Journal | None = None) -> None:
        self._session = session
        self._journal = journal

    def take(self, request: dict[str, Any]) -> str:
        """The job for a request; says what became of one that was started before. Raises ConfigError, AgentFailure."""
        if self._journal is None:
            return new_id(request)
        job, state = self._journal.take(request)
        if state == "new":
            return job
        if self._journal.alone:
            self._session.cancel(job)
            self._journal.forget(job)
            self._session.say(f"{self._journal.alone}: job {job} was stopped and begins anew")
            return self._journal.take(request)[0]
        try:
            now = self._session.request("job.poll", job=job, offset=0, wait_s=0.0)["state"]
            goes_on = "goes on" if now == "running" else "has ended meanwhile"
            self._session.say(f"job {job} {goes_on}; taken up where it is")
        except AgentFailure as error:
            if error.kind != "not-found":
                raise
            if state != "asked":
                self._session.say(f"{self._session.address} has no job {job} any more, so it is measured again")
        return job

    def started(self, job: str) -> None:
        if self._journal:
            self._journal.note(job, "started")

    def ended(self, job: str) -> None:
        if self._journal:
            self._journal.note(job, "ended")

    def forget(self, job: str) -> None:
        """It has no result: the same command tries again."""
        if self._journal:
            self._journal.forget(job)

    @property
    def lasting(self) -> bool:
        """Whether its jobs are kept, and go on though nobody follows them."""
        return self._journal is not None and not self._journal.alone

    def unfollowed(self, job: str, stopping: str) -> str:
        """What becomes of a job whose board can no longer be reached. stopping: the command that ends it."""
        if self.lasting:
            return f"Job {job} goes on on the board: the same command takes it up when the board can be reached"
        tells = "`edgeopt status` tells then what is current. " if job.startswith(CHANGES) else ""
        return (
            f"If job {job} has begun it goes on to its end, but its result will not be fetched; if it waits, it does "
            f"not begin. {tells}When the board can be reached, run the same command again: it begins anew, after that "
            f"job or once {stopping} has ended it"
        )

    def left(self, job: str) -> bool:
        """Whether an interrupt leaves the job on the board; a second one, soon after, does not."""
        if self._journal is None:
            return False
        if self._journal.alone or job not in self._journal.started():
            self._session.say(f"{self._journal.alone or 'it had not begun'}: job {job} is stopped")
            self._journal.forget(job)
            return False
        try:
            self._session.say(
                f"job {job} goes on on the board: the same command takes it up, and with --stop added ends it "
                f"(Ctrl-C within {SECOND_INTERRUPT_S:g} s ends it now)"
            )
            time.sleep(SECOND_INTERRUPT_S)
        except KeyboardInterrupt:
            self._journal.forget(job)
            self._session.say(f"job {job} is stopped; the same command measures it again")
            return False
        return True

    def stop(self) -> list[str]:
        """End those that may still run; their ids."""
        stopped = self._journal.running() if self._journal else []
        for job in reversed(stopped):
            try:
                self._session.request("job.cancel", job=job)
            except AgentFailure as error:
                if error.kind != "not-found":
                    raise
            self.forget(job)
        return stopped

    def has_next(self) -> bool:
        """Whether the command had asked for another job already, when it was interrupted."""
        return self._journal is not None and self._journal.has_next()
