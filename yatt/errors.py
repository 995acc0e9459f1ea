"""Errors a user may meet. Each names a field or a file, its value, the rule it breaks and the nearest fix."""


class YattError(Exception):
    """Base of every error this package raises on purpose; `exit_status` is what the command line returns."""

    exit_status = 1

    def _render_traceback_(self) -> list[str]:
        """The lines that a notebook shows: what the user can mend, without the frames above it."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(YattError):
    """A setting, or what it points at, is wrong. Raised before a device is touched."""

    exit_status = 2


class DataError(ConfigError):
    """A dataset is empty or has rows that cannot be read."""


class BadRow(DataError):
    """One row cannot be used; the text is the reason, without the place."""


class CheckpointError(ConfigError):
    """A checkpoint is missing, half-written, or belongs to another model."""


class RunEnded(YattError):
    """A run was ended before its last step, or failed in it, for what its numbers say."""


class WaitTimeout(YattError):
    """A wait passed its deadline; the message names those that did not come."""


class BackendError(YattError):
    """An engine, a rank or a reward worker failed while running."""


class ProcessDied(BackendError):
    """A generator, a rank or a controller is gone; nothing can go on without it."""


class ConversationEnded(YattError):
    """A conversation may not go on: it reached a limit, of `reason` turns, tokens or context, or it was aborted."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the conversation has ended: {reason}")
        self.reason = reason
