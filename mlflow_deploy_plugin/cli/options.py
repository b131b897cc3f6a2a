"""Options that several commands have, each once and in the same words."""

import click

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Format of the answer: lines for people, or JSON for programs.",
)
why_option = click.option(
    "--why", default="", metavar="REASON", help="Reason, kept in the audit trail (`onnxserve history NAME`)."
)
