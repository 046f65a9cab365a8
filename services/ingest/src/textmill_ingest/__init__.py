"""The ingest service: uploads and crawls in, documents and passages with a way back to their source out."""
