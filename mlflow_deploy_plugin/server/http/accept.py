"""What a caller likes to be answered in: the weighted lists of Accept and Accept-Encoding (RFC 9110, 12.4.2)."""

_LONGEST = 2000


def qualities(header: str) -> dict[str, float]:
    """Each entry of the list, in lower case and without parameters, with its weight `q` (1 where it says none).

    A weight that cannot be read is 0; a list longer than any client writes is taken for none.
    """
    weights: dict[str, float] = {}
    if len(header) > _LONGEST:
        return weights
    for entry in header.lower().split(","):
        name, *parameters = entry.split(";")
        weights[name.strip()] = min((_quality(parameter) for parameter in parameters), default=1.0)
    return weights


def _quality(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        quality = float(value)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0
