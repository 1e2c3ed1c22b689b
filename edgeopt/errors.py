"""One root, grouped by who must act. The exit code of each kind is decided here and used in one place, the CLI."""

from __future__ import annotations


class EdgeoptError(Exception):
    """Root of every error that edgeopt raises on purpose; its text names the thing, what was found and the mend."""

    exit_code = 70


class ConfigError(EdgeoptError):
    """The user's file or flag is wrong: names file, key, value and what is allowed."""

    exit_code = 2


class ModelError(EdgeoptError):
    """The model cannot take this route: names node, operator or tensor."""

    exit_code = 6


class LoweringFault(ModelError):
    """A library or a stage of ours broke a model that is well: names the stage, and where its fault shows.

    of_conversion: the float artifact is broken already, which no other scheme of the runtime mends.
    """

    def __init__(self, message: str, of_conversion: bool = False) -> None:
        super().__init__(message)
        self.of_conversion = of_conversion


class PlanError(EdgeoptError):
    """The demands contradict one another, or what the board can do."""

    exit_code = 6


class MissingDependency(EdgeoptError):
    """A package of an extra is not installed: names the extra."""

    exit_code = 6


class DeviceUnreachable(EdgeoptError):
    """The board does not answer; trying again may help."""

    exit_code = 3


class AgentFailure(EdgeoptError):
    """The board's side failed. `kind` is the agent's word for it; `traceback` is the board's, or empty."""

    exit_code = 4

    def __init__(self, message: str, kind: str = "agent", traceback: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        if kind == "fallback":  # the board is well; the model asks for an accelerator that it has not
            self.exit_code = ModelError.exit_code
        self.traceback = traceback


class ProtocolError(EdgeoptError):
    """What came back is not what the contract says (edgeopt_agent.wire)."""

    exit_code = 4


class IntegrityError(EdgeoptError):
    """A hash, an archive or an identity is not what it must be; nothing was used."""

    exit_code = 5
