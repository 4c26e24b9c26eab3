"""SimpleITK, an optional dependency that only volumes need."""

from kmura.errors import InputError


def simpleitk():
    """Returns the module SimpleITK.

    Raises:
        InputError: it is not installed; says how to install it.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError("volumes need the package SimpleITK; run pip install '.[ct]' in a clone of kmura") from error
    return SimpleITK
