"""A function that another process can call, and that fails there."""


class Panic(BaseException):
    """An error like `pyo3_runtime.PanicException` of libraries in Rust, which is not an
    Exception.
    """


def raise_it(error):
    raise error
