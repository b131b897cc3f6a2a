"""The proof that a model's ONNX form answers as the original, as a line to read."""

from collections.abc import Mapping

PREFIX = "onnxserve.parity."


def parity_line(state: str, metrics: Mapping[str, float]) -> str:
    """`parity proven on 3,727 rows: label equal in 100 %, probabilities within 2.0e-05`.

    Args:
        state: the tag `onnxserve.parity` of the run or of the registered version.
        metrics: of the run that logged the model.
    """
    figures = {name.removeprefix(PREFIX): value for name, value in metrics.items() if name.startswith(PREFIX)}
    if not figures:
        return f"parity {state}"
    parts = []
    for name in figures:
        output, _, figure = name.rpartition(".")
        if figure == "max_absolute_error":
            parts.append(f"{output} within {figures[name]:.1e}")
        elif figure == "agreement" and f"{output}.max_absolute_error" not in figures:
            parts.append(f"{output} equal in {figures[name]:.2%}")
    return f"parity {state} on {figures['rows']:,.0f} rows: {', '.join(parts)}"
