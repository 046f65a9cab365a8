"""OpenAI's routes in front of the engines: the hot path, and who may use it how much."""
