"""What stands in the way of several operations alike: each check refuses with the way out."""
