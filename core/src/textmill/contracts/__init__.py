"""Pydantic models of everything that is stored or sent. Knows no I/O."""
