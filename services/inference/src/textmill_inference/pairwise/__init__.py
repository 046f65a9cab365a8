"""Models compared in pairs: the same prompts to all, blind votes and a judge, ratings with intervals."""
