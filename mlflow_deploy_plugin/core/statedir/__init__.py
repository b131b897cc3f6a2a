"""The files that the processes of a server share: small files in the server's state
folder. Each line has the file, its writer → its readers, and its content.

- `spec.yaml`, deployment → agent: the endpoints, one YAML document each
- `wanted.json`, agent → workers: the versions that workers must serve, already on this
  disk
- `workers/PID.json`, each worker → everyone: the versions that the worker has loaded,
  and load errors
- `loading/PID.json`, each worker → agent: the version that the worker is loading
- `agent.json`, agent → everyone: the last poll of the registry, and errors
- `followed.json`, agent: the served and the previous versions, for the next start
- `commands/ID.json`, worker → agent: an endpoint to load or unload (`commands.py`)
- `answers/ID.json`, agent → worker: the result of the command
- `keys.json`, agent → workers: the valid API keys, identified by their digests
- `jwks.json`, agent → workers: the public keys of the token issuer (RFC 7517)
- `local.key`, supervisor → this machine: an API key for the user who may read this
  folder
- `control.json`, agent: changes to the spec by commands, for the next start
- `look`, deployment → agent: a request to poll the registry now
- `server.json`, supervisor → everyone: process id, host, port
- `server.log`, supervisor, workers, agent: their common log
- `spool/`, workers → agent: captured requests (`serve/spool/`)
- `sinks/`, agent: captured requests that wait for other systems
  (`serve/agent/sinks.py`)
- `metrics`, gunicorn: a link to the folder of the workers' counters
- `counted.json`, gunicorn → agent: the rows that the last workers have counted
- `history/`, agent → workers: counts of the last hour and day (`history.py`)
- `progress.json`, agent: the rows that the agent has shipped
  (`serve/agent/progress.py`)
- `mask.key`, workers: the key of masked columns (`serve/spool/captured_model.py`)

Each JSON file has one writer, which replaces the file by an atomic rename, so a reader
sees either the old or the new content. Workers serve the versions in `wanted.json`,
even while the registry is down and after a restart. If a file of the agent is lost, the
agent writes it again (`assert_state`).
"""
