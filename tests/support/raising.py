"""A function that another process can be asked to call, and that fails there."""


def raise_it(error: Exception) -> None:
    raise error
