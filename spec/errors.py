"""The ways a step can end other than well, each with the exit code that a workflow's retry strategy reads."""


class SpecError(Exception):
    """A step's expected end, told to the user in one line: what is wrong, where, what to do."""

    exit_code = 1
    agreed = False  # all ranks of a training run raise it alike: the first one tells it for all


class BadInput(SpecError):
    """Wrong settings or input. The same call would fail again, so it is never retried."""

    exit_code = 2


class BelowBar(SpecError):
    """The draft works and is not good enough to publish."""

    exit_code = 3


class PassingFault(SpecError):
    """Server, network or storage failed in a way that may pass: the same call, later, goes on where it stopped."""

    exit_code = 75


class Stopped(SpecError):
    """SIGTERM came and everything finished is saved: the same call goes on."""

    exit_code = 143
    agreed = True  # the ranks of a training run stop together
