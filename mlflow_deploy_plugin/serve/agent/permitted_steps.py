"""The permission of steps at an endpoint with requirements: `signature=` needs the
signature of the file, and `gate=passed` needs its digest in the gate policy of each
registered model. Setting a policy is an event of the audit trail.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_deploy_plugin.core.errors import GateRefused, OnnxserveError, SignatureRefused
from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.model_uri import registered_model_names
from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG
from mlflow_deploy_plugin.core.signatures import Signature, trust_file
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, ServeSpec
from mlflow_deploy_plugin.core.spec.steps import STEPS_FILE

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 60.0


@dataclass
class StepsPermits:
    """The checks of steps, which run in the threads of `pool`. `errors` has the reasons
    of the refused steps, by endpoint.
    """

    pool: Executor
    clock: Callable[[], float]
    errors: dict[str, str] = field(default_factory=dict)
    _checks: "dict[str, tuple[EndpointSpec, Future[str], float]]" = field(default_factory=dict)

    def permitted(self, spec: EndpointSpec, used: ServeSpec | None) -> ServeSpec | None:
        """Return the steps that the workers may run. Until the steps of the spec are
        permitted, they are those in use; None without an endpoint in use.
        """
        name = spec.name
        if not (spec.serve.steps and spec.requirements) or spec.serve == used:
            self.errors.pop(name, None)
            return spec.serve
        now = self.clock()
        checked, future, due = self._checks.get(name, (None, None, 0.0))
        if future is None or checked != spec or now >= due:
            future = self.pool.submit(_refusal, spec)
            self._checks[name] = spec, future, now + _RETRY_SECONDS
        if not future.done():
            return used
        if reason := future.result():
            self.errors[name] = f"endpoint {name}: {reason}"
            return used
        self.errors.pop(name, None)
        return spec.serve


def _refusal(spec: EndpointSpec) -> str:
    """Return why the steps may not run; empty if they may. Runs in a thread."""
    # Its large models would delay each start.
    from mlflow_deploy_plugin.core.registry.policy import policy_from_tags

    digest = spec.serve.digest
    try:
        if spec.trusted_file:
            if spec.serve.signature is None:
                raise SignatureRefused(
                    "its steps have no signature; sign the file with `onnxserve sign "
                    f"{STEPS_FILE} --key KEY` and serve it again"
                )
            key = trust_file(Path(spec.trusted_file))
            signature = Signature(spec.serve.signature.encode(), key)
            signature.check_text(STEPS_FILE, spec.serve.steps or "")
        models = registered_model_names(spec) if spec.requires_gate else ()
        for model in models:
            with registry_errors(f"model {model}"):
                model_tags = registry_client().get_registered_model(model).tags
            policy = policy_from_tags(model, model_tags)
            if policy is None or digest not in policy.steps:
                raise GateRefused(
                    f"its steps (sha256 {digest}) are not approved, but the endpoint requires "
                    f"gate=passed; add the digest to `steps` of the gate policy of {model} (tag "
                    f"{GATE_POLICY_TAG})"
                )
    except OnnxserveError as error:
        return error.message
    except Exception as error:  # noqa: BLE001 - any error refuses the steps
        _log.exception("the steps of endpoint %s cannot be checked", spec.name)
        return f"its steps cannot be checked: {type(error).__name__}, see the log"
    return ""
