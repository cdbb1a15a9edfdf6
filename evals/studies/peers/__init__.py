"""The same weights through greenllm and through other servers: `python -m evals.studies.peers`."""
