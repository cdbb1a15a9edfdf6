"""Several replicas behind one address, on Ray Serve.

    client -> front (routes, retries) -> replica (the whole server of one engine) -> keeper (ledger)

Each replica is what `greenllm serve` is on one machine, spoken to over Ray instead of a socket. The
front holds the port; the keeper holds the one ledger. Ray starts, watches and replaces replicas.
"""
