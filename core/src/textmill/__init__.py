"""What at least two of textmill's services share: contracts, store, bus, and the life of a job. No ML library."""
