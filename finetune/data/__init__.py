"""What a run learns from: read, checked, encoded, split."""
