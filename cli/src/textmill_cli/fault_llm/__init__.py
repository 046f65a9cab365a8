"""An OpenAI-compatible chat server with known latency and planted faults: ``textmill fault-llm``."""
