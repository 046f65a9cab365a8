"""What serves one model: its port, vLLM as a child of this machine, and the gates a model passes before it answers."""
