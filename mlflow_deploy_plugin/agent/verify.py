"""Who may run code: a version without an ONNX form is Python of its author, run by this server's user.

Whoever names such a model in the spec or on the command line, by a reference that always means the same version, agrees
to that. A stage, an alias or a tag may mean another version tomorrow, moved by whoever may move it in the registry;
and what is loaded over HTTP was named by whoever may call: there the spec has to say so first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mlflow_deploy_plugin.errors import InvalidArtifact
from mlflow_deploy_plugin.spec import EndpointSpec


@dataclass(frozen=True)
class PyfuncPolicy:
    """What the server's own spec says about its model URIs.

    Attributes:
        named: all of them.
        allowed: those that are allowed to be pyfuncs by every variant that names them.
    """

    named: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()

    def check(self, model_uri: str, is_followed: bool) -> None:
        """Whether a version without an ONNX form may be served for this URI.

        Raises:
            InvalidArtifact: it may not; the message says what would allow it.
        """
        if model_uri in self.allowed or (model_uri in self.named and not is_followed):
            return
        what = "the version has no ONNX form, so that serving it runs code of its own"
        if model_uri in self.named:
            raise InvalidArtifact(
                f"{what}; for a stage, an alias or a tag, -C variants.NAME.allow_pyfunc=true allows that "
                "(of `mlflow deployments create` and `update` also --flavor python_function)"
            )
        raise InvalidArtifact(f"{what}, which only the server's own spec can allow")


def pyfunc_policy(specs: Sequence[EndpointSpec]) -> PyfuncPolicy:
    """What these specs, the server's own, agree to."""
    variants = [variant for spec in specs for variant in spec.variants.values()]
    refused = {variant.model for variant in variants if not variant.allow_pyfunc}
    named = frozenset(variant.model for variant in variants)
    return PyfuncPolicy(named, named - refused)
