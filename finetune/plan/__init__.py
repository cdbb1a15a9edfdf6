"""Before a run trains: what it is going to cost, which settings, and when to start."""
