"""For tests, ours and the embedder's: drawn graphs, a fake target, a scripted server, real guests."""
