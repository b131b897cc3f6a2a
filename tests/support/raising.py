"""A function that another process can call, and that fails there."""


def raise_it(error: Exception) -> None:
    raise error
