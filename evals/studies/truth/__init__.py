"""Whether receipts are true: a machine whose joules are known, and step costs that are measured."""
