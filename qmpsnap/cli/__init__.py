"""The command line: one file per verb; it calls nothing that an embedder could not."""
