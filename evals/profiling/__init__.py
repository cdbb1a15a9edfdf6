"""Where one step of a model spends FLOPs, bytes, time and joules, part by part."""
