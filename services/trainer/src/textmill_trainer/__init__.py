"""Fine-tunes a base model on a dataset with QLoRA, and publishes the merged model with its lineage."""
