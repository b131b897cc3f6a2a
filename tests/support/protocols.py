"""The protocols of the server, for tests that send a request in each of them."""

from itertools import chain

from mlflow_deploy_plugin.serve.http.routes import expand_path
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.protocols.protocol import RequestBody
from mlflow_deploy_plugin.serve.protocols.table import PROTOCOLS

JSON_FORMS = {
    protocol: body
    for protocol in PROTOCOLS
    if isinstance(body := protocol.request.get(JSON), RequestBody)
}
"""The form of the JSON body of each protocol with a form that depends on the model."""


def protocol_paths(protocol, endpoint, version, label):
    """Return all paths of the protocol for an endpoint; a path without a name is the
    default endpoint's.
    """
    templates = list(chain.from_iterable(expand_path(path) for path in protocol.paths))
    return [
        template.format(endpoint=endpoint, version=version, label=label) for template in templates
    ]
