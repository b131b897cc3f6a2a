"""The files that the processes of one server share: small JSON files in its state folder.

    spec.yaml           deployment → agent          the endpoints, one YAML document each
    wanted.json         agent → workers             the versions to be served, already on this disk
    workers/PID.json    each worker → everyone      the versions it has loaded, and the errors of the others
    loading/PID.json    each worker → agent         the version it is loading just now
    agent.json          agent → everyone            its last poll of the registry, and its errors
    followed.json       agent                       the versions served and those before them, for the next start
    commands/ID.json    worker → agent              an endpoint to load or unload (`commands.py`)
    answers/ID.json     agent → worker              the result of the command
    keys.json           agent → workers             the valid API keys, by their digests
    jwks.json           agent → workers             the public keys of the issuer of tokens (RFC 7517)
    local.key           supervisor → this machine   the key of the user who may read this folder
    control.json        agent                       the changes of commands to the spec, for the next start
    look                deployment → agent          a reference was moved in the registry: poll at once
    server.json         supervisor → everyone       process id, host, port
    server.log          supervisor, workers, agent  their log
    spool/              workers → agent             captured requests (`spool/`)
    metrics             gunicorn                    a link to the folder of the workers' counters
    counted.json        gunicorn → agent            the rows that the last workers have counted
    history/            agent → workers             the last hour and day (`history.py`)
    progress.json       agent                       the rows it has shipped (`agent/progress.py`)
    mask.key            workers                     the key of masked columns (`spool/captured_model.py`)

Every file has one writer and is replaced by an atomic rename, so that a reader sees either the old or the new content.
Workers serve the versions in `wanted.json`, also while the registry is down and after a restart. The agent writes each
of its files again if it is lost (`assert_state`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
