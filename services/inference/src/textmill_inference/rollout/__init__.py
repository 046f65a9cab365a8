"""Which names are served with which models, and how new weights go live."""
