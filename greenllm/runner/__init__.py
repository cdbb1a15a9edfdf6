"""Runners: one ragged batch in, one sample per sequence out."""
