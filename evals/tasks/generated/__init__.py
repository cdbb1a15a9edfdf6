"""Tasks that are generated: stories, questions on tables, edits, SQL and small talk."""
