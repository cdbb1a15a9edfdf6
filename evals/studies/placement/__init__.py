"""Where requests go, on paper: a simulated fleet of machines whose curve was measured."""
