"""The null distribution of a verdict: what the reference's own windows look like, and which rate they support."""
