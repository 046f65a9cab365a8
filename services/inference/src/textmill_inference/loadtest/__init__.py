"""How much load an OpenAI-compatible server bears: the schedule, the load generator, its clocks and its report."""
