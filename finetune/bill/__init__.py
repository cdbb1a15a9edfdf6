"""What a run cost and what it is worth: joules by phase, the journal, the report. No torch."""
