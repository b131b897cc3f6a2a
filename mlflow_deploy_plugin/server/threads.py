"""How many requests a worker answers at the same time, whatever brings them."""

from mlflow_deploy_plugin.spec import ServerSpec

_GPU_BATCH_SIZE = 32


def answering_threads(spec: ServerSpec) -> int:
    """Threads for requests beside a loop: one batch is computed while the next one fills; and what is over the limit of
    requests needs a free thread too, to be told so at once."""
    batch = largest_batch(spec)
    filling = 2 * batch if batch > 1 else 1
    refusing = spec.max_concurrent_requests + spec.threads if spec.max_concurrent_requests else 1
    return max(spec.threads, filling, refusing)


def largest_batch(spec: ServerSpec) -> int:
    """Rows that are joined into one run at most; 1: requests are not joined."""
    return spec.max_batch_size or (1 if spec.device == "cpu" else _GPU_BATCH_SIZE)
