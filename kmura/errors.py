"""The one error that a user can cause and mend."""


class InputError(ValueError):
    """Input that kmura cannot use: one line that names the thing, the reason and the mend.

    The command line prints the line and exits with code 2; library users catch it as a ValueError.
    """


def reason(error: OSError) -> str:
    """The operating system's own words for an error, without number and path ("No space left on device")."""
    return error.strerror or str(error)
