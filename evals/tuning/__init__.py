"""Search for the settings of a server that need the fewest joules."""
