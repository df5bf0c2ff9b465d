"""What can go wrong with the local stack.

StackError              the local stack cannot do what was asked
├── MissingPrograms     what a server needs is not installed; the message has the command that installs it
├── DownloadFailed      Kafka's jars could not be fetched
├── NoPlace             no directory that the server's account can reach
├── PortTaken           somebody else listens on the server's port
├── CommandFailed       a program of the server's package ended with an error
└── StartFailed         the server ended, or did not answer in time; the message has the tail of its log
"""

from __future__ import annotations

__all__ = ["CommandFailed", "DownloadFailed", "MissingPrograms", "NoPlace", "PortTaken", "StackError", "StartFailed"]


class StackError(RuntimeError):
    """The local stack cannot do what was asked."""


class MissingPrograms(StackError):
    """What a server needs is not installed."""


class DownloadFailed(StackError):
    """Kafka's jars could not be fetched."""


class NoPlace(StackError):
    """No directory that the server's account can reach."""


class PortTaken(StackError):
    """Somebody else listens on the server's port."""


class CommandFailed(StackError):
    """A program of the server's package ended with an error."""


class StartFailed(StackError):
    """The server ended, or did not answer in time."""
