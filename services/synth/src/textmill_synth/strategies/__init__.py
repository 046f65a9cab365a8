"""Ways of getting answers out of passages: one file each, behind ``Strategy``."""
