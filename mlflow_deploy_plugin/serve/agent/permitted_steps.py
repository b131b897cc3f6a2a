"""The permission of steps at an endpoint with requirements: `signature=` needs the
signature of the file, and `gate=passed` needs its digest in the gate policy of each
registered model. Setting a policy is an event of the audit trail.

Steps in use are checked again for each change of the spec and of the versions, after
each change that the change feed reports, and every minute. A server of all registered
models checks them at each listing.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_deploy_plugin.core.errors import (
    GateRefused,
    NotReady,
    OnnxserveError,
    RegistryUnavailable,
    SignatureRefused,
)
from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG
from mlflow_deploy_plugin.core.signatures import Signature, trust_file
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, ServeSpec
from mlflow_deploy_plugin.core.spec.steps import STEPS_FILE

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 60.0
MOST_DEATHS = 2
"""The number of worker deaths after which a version is rolled back, or steps are
refused. A single death may have another cause.
"""
LETHAL = (
    f"{MOST_DEATHS} workers died during loading, because of a crash, insufficient memory, or a "
    "computation without end"
)
_CHECKING = NotReady("its steps are being checked")
_UNKNOWN = NotReady, RegistryUnavailable
"""The errors of steps that could not be checked."""


@dataclass
class _Check:
    """The check of steps for a spec. It is due again at `due_at`. `error` is the reason
    why the steps may not run; None if they may.
    """

    spec: EndpointSpec
    serve: ServeSpec
    models: frozenset[str]
    due_at: float = 0.0
    error: OnnxserveError | None = _CHECKING
    is_running: bool = False

    def run(self) -> None:
        """Check the steps. If this fails, an earlier result remains valid. Runs in a
        thread.
        """
        error = steps_refusal(self.spec, self.serve, dict.fromkeys(self.models))
        if isinstance(self.error, _UNKNOWN) or not isinstance(error, _UNKNOWN):
            self.error = error
        self.is_running = False


@dataclass
class StepsPermits:
    """The checks of steps, which run in the threads of `pool`. `deaths` counts the
    workers that died while they imported steps, by digest. `errors` has the reasons of
    the refused steps, by endpoint, and `unknown` the endpoints whose new steps or
    models could not be checked yet.
    """

    pool: Executor
    clock: Callable[[], float]
    deaths: Mapping[Path, int]
    errors: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    _checks: dict[tuple[str, ServeSpec], _Check] = field(default_factory=dict)

    def permitted(
        self, spec: EndpointSpec, models: frozenset[str], used: ServeSpec | None
    ) -> ServeSpec | None:
        """Return the steps that the workers may run with versions of these models:
        those of the spec if they are permitted, otherwise those in use with them unless
        they are refused, otherwise None.
        """
        name = spec.name
        self.errors.pop(name, None)
        self.unknown.discard(name)
        now = self.clock()
        for serve in dict.fromkeys((spec.serve, used or spec.serve)):
            if self.deaths[Path(serve.digest)] >= MOST_DEATHS:
                self.errors.setdefault(name, f"endpoint {name}: its steps: {LETHAL}")
                continue
            if not (serve.steps and spec.requirements):
                return serve
            check = self._checks.get((name, serve))
            # The result of a check that was not repeated in time is outdated.
            is_outdated = check and now >= check.due_at + _RETRY_SECONDS and not check.is_running
            if check is None or (check.spec, check.models) != (spec, models) or is_outdated:
                check = _Check(spec, serve, models)
                self._checks[name, serve] = check
            if now >= check.due_at and not check.is_running:
                check.is_running = True
                check.due_at = now + _RETRY_SECONDS
                self.pool.submit(check.run)
            error = check.error
            if error is None:
                return serve
            if error is not _CHECKING:
                self.errors.setdefault(name, f"endpoint {name}: {error.message}")
            if isinstance(error, _UNKNOWN):
                if serve == used:
                    return serve
                self.unknown.add(name)
        return None

    def check_now(self) -> None:
        """Check all steps again, because a policy may have changed."""
        for check in self._checks.values():
            check.due_at = self.clock()


def steps_refusal(
    spec: EndpointSpec,
    serve: ServeSpec,
    models: Mapping[str, dict[str, str] | None],
) -> OnnxserveError | None:
    """Return the reason why the steps may not run with these registered models; None if
    they may. The registry is asked for tags that are None.
    """
    # Its large models would delay each start.
    from mlflow_deploy_plugin.core.registry.policy import policy_from_tags

    digest = serve.digest
    try:
        if spec.trusted_file:
            if serve.signature is None:
                raise SignatureRefused(
                    "its steps have no signature; sign the file with `onnxserve sign "
                    f"{serve.file} --key KEY` and serve it again"
                )
            key = trust_file(Path(spec.trusted_file))
            signature = Signature(serve.signature.encode(), key)
            signature.check_text(STEPS_FILE, serve.steps or "")
        for model, tags in models.items() if spec.requires_gate else ():
            if tags is None:
                with registry_errors(f"model {model}"):
                    tags = registry_client().get_registered_model(model).tags
            policy = policy_from_tags(model, tags)
            if policy is None or digest not in policy.steps:
                raise GateRefused(
                    f"its steps (sha256 {digest}) are not approved, but the endpoint requires "
                    f"gate=passed; add the digest to `steps` of the gate policy of {model} (tag "
                    f"{GATE_POLICY_TAG})"
                )
    except OnnxserveError as error:
        return error
    except Exception as error:  # noqa: BLE001 - any error is logged, and reported
        _log.exception("the steps of endpoint %s cannot be checked", spec.name)
        return NotReady(f"its steps cannot be checked: {type(error).__name__}, see the log")
    return None
