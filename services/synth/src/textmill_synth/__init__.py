"""Turns passages into checked training records, through any OpenAI-compatible LLM."""
