"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Bad input: one line that names the file or option, what was found, and what to do.

    Raised where the input enters, before any expensive work. The command line prints the message
    after the command's name and exits with status 2.
    """
