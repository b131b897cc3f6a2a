"""The protocols of the server, for tests that send a request in each of them."""

from mlflow_deploy_plugin.serve.http.routes import expand_path
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.protocols.protocol import Protocol, RequestBody
from mlflow_deploy_plugin.serve.protocols.table import PROTOCOLS

JSON_FORMS = {
    protocol: body
    for protocol in PROTOCOLS
    if isinstance(body := protocol.request.get(JSON), RequestBody)
}
"""The form of the JSON body of each protocol with a form that depends on the model."""


def protocol_paths(
    protocol: Protocol,
    endpoint: str,
    version: str,
    label: str,
) -> list[str]:
    """Return all paths of the protocol for an endpoint; a path without a name is the
    default endpoint's.
    """
    templates = [written for path in protocol.paths for written in expand_path(path, "{{{}}}")]
    return [
        template.format(endpoint=endpoint, version=version, label=label) for template in templates
    ]
