"""One module a step of the schema, in their order."""
