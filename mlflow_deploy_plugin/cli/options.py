"""Options that several commands have."""

import click

output_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How it is written."
)
why_option = click.option(
    "--why", default="", metavar="TEXT", help="Kept in the audit trail (`onnxserve history NAME`)."
)
