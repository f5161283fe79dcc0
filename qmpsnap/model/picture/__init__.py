"""Pictures of chains and of trees of images: what they consist of, and a file for each format."""
