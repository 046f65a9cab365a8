"""What can only be said of a dataset as a whole: near-duplicates, contamination, personal data, balance."""
