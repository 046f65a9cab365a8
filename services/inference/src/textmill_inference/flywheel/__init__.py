"""Logged traffic and what it is good for: replay traces, training records, preference pairs."""
