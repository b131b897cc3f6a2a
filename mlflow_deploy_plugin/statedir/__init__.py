"""The files that the processes of one server share: small JSON files in its state folder.

    spec.yaml           whoever deploys → agent     the endpoints, one YAML document each
    wanted.json         agent → workers             the versions to be served, already on this disk
    workers/PID.json    each worker → everyone      what it has loaded, and what it could not load
    loading/PID.json    each worker → agent         what it is loading just now
    agent.json          agent → everyone            when it last reached the registry, and what went wrong
    followed.json       agent                       the versions served and those before them, for the next start
    commands/ID.json    worker → agent              an endpoint to load or unload (`server/models/model_control.py`)
    answers/ID.json     agent → worker              the result of the command
    keys.json           agent → workers             the API keys that hold, by their digests
    jwks.json           agent → workers             the public keys of the issuer of tokens (RFC 7517)
    local.key           supervisor → this machine   the key of whoever may read this folder
    control.json        agent                       what commands have changed of the spec, for the next start
    look                whoever moved it → agent    a reference was moved in the registry: look there at once
    server.json         supervisor → everyone       process id, host, port
    server.log          supervisor, workers, agent  their log
    spool/              workers → agent             captured requests (`server/capture/`)
    metrics             gunicorn                    a link to the folder of the workers' counters
    counted.json        gunicorn → agent            the rows that the last workers have counted
    history/            agent → workers             the last hour and day (`server/observability/history.py`)
    progress.json       agent                       what it has shipped (`agent/progress.py`)
    mask.key            workers                     the key of masked columns (`server/capture/captured_model.py`)

Every file has one writer and is replaced by an atomic rename, so that a reader sees the old content or the new, never
half of one. If the registry is down, or after a restart, what `wanted.json` says goes on being served.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
