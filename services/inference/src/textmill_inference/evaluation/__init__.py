"""A model before and after, by its answers to held-out questions and by benchmark tasks."""
