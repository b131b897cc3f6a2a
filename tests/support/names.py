"""Names of registered models and endpoints that not every protocol can carry."""

NAMES = (
    "модель",
    "a b%",
    'say "x"',
    "x\nHost: y",
    "🛫" * 30,
    "m" * 300,
    "..",
    "a/../b",
    "zero\0",
    "\ud800",
)
WITHOUT_SURROGATES = NAMES[:-1]
"""The names that a database and JSON can contain."""
