"""vLLM behind an OpenAI-compatible gateway, evaluations and load tests of what it serves."""
