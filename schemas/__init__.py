"""The contracts that both sides of the log import. No tasks, no loops, no database."""
