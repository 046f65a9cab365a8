"""Ways of asking: into which other wordings a question with a known answer is put, and which of them are kept."""
