"""What can be wrong with a machine or its images: a rule for each trouble, pure, over facts read before."""
